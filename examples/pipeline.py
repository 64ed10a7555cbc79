"""From photographs to a dataset, step by step; what is done already is not done again.

python examples/pipeline.py images/ out/
"""

import sys
from pathlib import Path

from tqdm import tqdm

import sfmprep as sp

if len(sys.argv) < 3:
    sys.exit(__doc__)
photographs, out = map(Path, sys.argv[1:])
features_file, matches_file = out / "work" / "features.h5", out / "work" / "matches.h5"

images = sp.scan(photographs)
features = sp.extract(images, sp.Compact(), features_file, progress=tqdm)
pairs = sp.retrieval_pairs(features, num_neighbours=20)
matches = sp.match(
    features, pairs, sp.LightGlue("compact"), matches_file, progress=tqdm
)
database = sp.verify(images, features, matches, out / "work" / "database.db")
model, outliers = sp.drop_outliers(sp.map(database, images)[0])
model = sp.refine(model, images, progress=tqdm)
dataset = sp.export(model, images, out, targets=["gsplat", "nerfstudio"])

print(f"{dataset.num_images} of {len(images)} images, {dataset.num_points} points")
for name, reason in outliers.items():
    print(f"{name}: {reason}")
