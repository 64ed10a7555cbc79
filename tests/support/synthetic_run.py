"""A capture whose database and model are synthetic."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycolmap

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import Recipe
from sfmprep.config.load import load_recipe
from sfmprep.report.collect import collect_report
from sfmprep.report.schema import Report


@dataclass
class Run:
    """A capture whose database and model are synthetic."""

    images: ImageSet
    database: Path
    model: pycolmap.Reconstruction

    def report(self, **changes: Any) -> Report:
        settings: dict[str, Any] = {
            "recipe": recipe(),
            "frontend": "sift",
            "database": self.database,
            "features": None,
            "models": [self.model],
            "seconds": {"map": 1.0},
            "unreadable": {},
            "outliers": {},
            "uncertainties": {},
            "world": None,
            "command": "sfmprep reconstruct /photos /out --recipe /out/recipe.yaml",
            "next_steps": ["brush /out"],
        }
        return collect_report(self.images, **(settings | changes))

    def image(self, name: str) -> pycolmap.Image:
        return next(i for i in self.model.images.values() if i.name == name)


def recipe() -> Recipe:
    return load_recipe("sift")


def synthesize(folder: Path, *, num_frames: int = 8, noise_px: float = 0.5) -> Run:
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs = 1
    options.num_frames_per_rig = num_frames
    options.num_points3D = 1200
    database = folder / "database.db"
    pycolmap.set_random_seed(0)
    with pycolmap.Database.open(database) as opened:
        model = pycolmap.synthesize_dataset(options, opened)
    rng = np.random.default_rng(0)
    for image in model.images.values():
        for point in image.points2D:
            point.xy = point.xy + rng.normal(0, noise_px, 2)
    blank = np.full((options.camera_height, options.camera_width, 3), 99, np.uint8)
    for image in model.images.values():
        path = folder / "images" / image.name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), blank)
    return Run(ImageSet.scan(folder / "images"), database, model)
