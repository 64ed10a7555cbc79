"""Features of one's own, here corners and the pixels around them, in the whole job.

python examples/own_extractor.py images/ out/
"""

import sys
from pathlib import Path

import cv2
import numpy as np

import sfmprep as sp

RADIUS = 8


class Corners:
    """Shi-Tomasi corners; a descriptor is the blurred patch around one, 8 x 8."""

    # What is recorded in the stores; another one wherever the results are others.
    identity = {"name": "corners", "version": 1, "weights_sha256": None}
    batch_size = 4  # images of one size that `extract` gets at once, at most

    def extract(self, batch: sp.ImageBatch) -> list[sp.Features]:
        """One for each image of the batch, rows by falling score."""
        return [self._features(batch, item) for item in range(len(batch))]

    def _features(self, batch: sp.ImageBatch, item: int) -> sp.Features:
        grey = batch.pixels[item].mean(axis=0)  # [H, W] in 0..1, upright, reduced
        found = cv2.goodFeaturesToTrack(grey, 2000, 0.005, 4)
        places = np.zeros((0, 2)) if found is None else found[:, 0]
        inside = np.logical_and(
            places >= RADIUS, places < np.subtract(batch.network_size, RADIUS)
        ).all(axis=1)
        places = places[inside].astype(int)
        blurred = cv2.GaussianBlur(grey, None, 1.5)
        patches = [
            blurred[y - RADIUS : y + RADIUS : 2, x - RADIUS : x + RADIUS : 2].ravel()
            for x, y in places
        ]
        rows = np.array(patches, np.float32).reshape(-1, RADIUS**2)
        rows -= rows.mean(axis=1, keepdims=True)
        # The first pixel's centre is (0.5, 0.5); xy is in pixels of the file on disk.
        xy = sp.stored_from_network(places.astype(np.float32) + 0.5, batch, item)
        width, height = batch.sizes[item].tolist()
        return sp.Features(
            xy=xy,
            scores=np.linspace(1, 0.5, len(xy), dtype=np.float32),  # best first
            descriptors=rows / np.maximum(np.linalg.norm(rows, axis=1)[:, None], 1e-6),
            image_size=(width, height),
            orientation=int(batch.orientations[item]),
        )


if len(sys.argv) < 3:
    sys.exit(__doc__)
photographs, out = map(Path, sys.argv[1:])

images = sp.scan(photographs)
features = sp.extract(images, Corners(), max_size=1024)
pairs = sp.exhaustive_pairs(images.names)
matches = sp.match(features, pairs, sp.Nearest(ratio=0.8))
database = sp.verify(images, features, matches, out / "database.db")
models = sp.map(database, images)
dataset = sp.export(models[0], images, out, targets=["gsplat"])
print(f"{dataset.num_images} of {len(images)} images, {dataset.num_points} points")
