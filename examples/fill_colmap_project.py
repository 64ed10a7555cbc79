"""Gives a COLMAP project other features: its database is filled in place.

python examples/fill_colmap_project.py images/ project.db
"""

import sys

import sfmprep as sp

if len(sys.argv) < 3:
    sys.exit(__doc__)
photographs, database = sys.argv[1:]

images = sp.scan(photographs)
features = sp.extract(images, sp.Compact())
pairs = sp.exhaustive_pairs(images.names)
matches = sp.match(features, pairs, sp.LightGlue("compact"))
filled = sp.verify(images, features, matches, database)

print(f"{filled.verified.num_verified} of {len(pairs)} pairs verified")
