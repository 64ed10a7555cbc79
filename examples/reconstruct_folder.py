"""Turns a folder of photographs into a dataset, from Python.

python examples/reconstruct_folder.py images/ out/ [recipe]
"""

import sys
from pathlib import Path

from tqdm import tqdm

from sfmprep import load_recipe
from sfmprep.pipelines.reconstruct import reconstruct

if len(sys.argv) < 3:
    sys.exit(__doc__)
images, out, *recipe = sys.argv[1:]
report = reconstruct(
    Path(images), Path(out), load_recipe(*recipe or ["splat"]), progress=tqdm
)
print(report.verdict)
for image in report.images:
    if image.status != "registered":
        print(f"{image.name}: {image.reason}")
