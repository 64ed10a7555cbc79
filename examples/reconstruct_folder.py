"""Turns a folder of photographs into a dataset by a recipe.

python examples/reconstruct_folder.py images/ out/ [recipe]
"""

import sys

from tqdm import tqdm

import sfmprep as sp

if len(sys.argv) < 3:
    sys.exit(__doc__)
report = sp.reconstruct(*sys.argv[1:], progress=tqdm)
print(report.verdict)
for image in report.images:
    if image.status != "registered":
        print(f"{image.name}: {image.reason}")
