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
summary = reconstruct(
    Path(images), Path(out), load_recipe(*recipe or ["splat"]), progress=tqdm
)
print(f"{summary.num_registered} of {summary.num_images} images registered")
for name, reason in summary.left_out.items():
    print(f"{name}: {reason}")
