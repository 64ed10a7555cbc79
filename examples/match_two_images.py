"""Extracts and matches the first two images of a folder, without any store.

python examples/match_two_images.py images/ [recipe]
"""

import sys
from pathlib import Path

from sfmprep import load_recipe
from sfmprep.capture.image_set import ImageSet, load_batches
from sfmprep.models.build import build_extractor, build_matcher
from sfmprep.pipelines.choose_frontend import choose_frontend

if len(sys.argv) < 2:
    sys.exit(__doc__)
folder, *recipe = sys.argv[1:]
chosen = choose_frontend(load_recipe(*recipe or ["splat"]))
images = ImageSet.scan(Path(folder))
extractor = build_extractor(chosen.features)
batches = load_batches(images, images.names[:2], max_size=chosen.features.max_size)
first, second = (
    features for _, batch in batches for features in extractor.extract(batch)
)
[matches] = build_matcher(chosen.matcher).match([(first, second)])

print(f"{len(first)} and {len(second)} keypoints, {len(matches)} matches; the best:")
for (i, j), score in list(zip(matches.index, matches.scores, strict=True))[:5]:
    print(f"{first.xy[i]} - {second.xy[j]}  {score:.2f}")
