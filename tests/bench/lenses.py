"""Lenses that nobody told: focal length and poses against those of true calibration.

    python -m tests.bench.lenses [LENS ...]        (or: make bench-lenses)

Synthetic orbits of 20 images, 1024 x 768, keypoints with 0.5 px of noise, a tenth of
the matches wrong. The focal length starts at COLMAP's guess, 1.2 times the longer side,
the principal point in the middle. Prints a table; nothing is asserted here.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pycolmap

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DatabaseConfig, MappingConfig
from sfmprep.evaluation.poses import evaluate_model
from sfmprep.mapping.mapper import map_images
from sfmprep.mapping.verify import verify_matches
from sfmprep.pairing.pairs import exhaustive_pairs
from tests.support.orbit import WIDTH, lens, orbit

LENSES = {
    "SIMPLE_RADIAL": lens("SIMPLE_RADIAL", 800, -0.1),
    "SIMPLE_RADIAL, off": lens("SIMPLE_RADIAL", 800, -0.1, centre=(527, 372)),
    "RADIAL": lens("RADIAL", 700, -0.25, 0.08),
    "RADIAL, off": lens("RADIAL", 700, -0.25, 0.08, centre=(500, 400)),
    "OPENCV": lens("OPENCV", 700, -0.28, 0.1, 0.001, -0.001),
    "OPENCV, off": lens("OPENCV", 700, -0.28, 0.1, 0.001, -0.001, centre=(524, 372)),
    "fisheye, 98 degrees": lens("OPENCV_FISHEYE", 600, -0.02, 0.01),
    "fisheye, 122 degrees": lens("OPENCV_FISHEYE", 480, -0.03, 0.005),
}


def mapped(camera: pycolmap.Camera, how: str) -> dict[str, object]:
    """Maps an orbit of a lens: `auto`, `true`, or by the name of a model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "database.db"
        known = how == "true"
        first = {"auto": "SIMPLE_RADIAL", "true": camera.model_name}.get(how, how)
        truth = orbit(
            *(path, camera),
            guess_px=1.2 * WIDTH,
            num_images=20,
            num_points=1000,
            noise_px=0.5,
            num_wrong=100,
            known=known,
            stored_as=first,
        )
        names = tuple(sorted(truth))
        params = {"camera_params": list(camera.params), "refine": "none"}
        config = DatabaseConfig.model_validate(
            {
                "camera_model": first if how != "auto" else how,
                **(params if known else {}),
            }
        )
        verify_matches(path, exhaustive_pairs(names), config)
        images = ImageSet(path.parent, names, {}, {})
        models = map_images(
            *(path, images, path.parent / "models", MappingConfig()), cameras=config
        )
    found = evaluate_model(models[0], truth)
    own = models[0].cameras[1]
    return {
        "registered": models[0].num_reg_images(),
        "model": own.model_name,
        "focal": own.mean_focal_length() / camera.mean_focal_length() - 1,
        "offset": (
            own.principal_point_x - camera.principal_point_x,
            own.principal_point_y - camera.principal_point_y,
        ),
        "auc": found.auc,
    }


def main(names: list[str]) -> None:
    """Prints the table as Markdown."""
    print("| lens | mapped as | registered | chosen | focal | centre | AUC@1/3/5 |")
    print("|---" * 7 + "|")
    for name in names or LENSES:
        for how in ("SIMPLE_RADIAL", "auto", "true"):
            found = mapped(LENSES[name], how)
            auc = found["auc"]
            x, y = found["offset"]
            print(
                f"| {name} | {how} | {found['registered']} of 20 | {found['model']}"
                f" | {found['focal']:+.2%} | {x:+.1f}, {y:+.1f} px"
                f" | {' / '.join(f'{auc[k]:.1f}' for k in (1, 3, 5))} |",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
