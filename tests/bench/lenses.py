"""Lenses that nobody told: focal length and poses against those of true calibration.

    python -m tests.bench.lenses [LENS ...]        (or: make bench-lenses)

Synthetic orbits of 20 images, 1024 x 768, keypoints with 0.5 px of noise, a tenth of
the matches wrong. The focal length starts at COLMAP's guess, 1.2 times the longer side,
the principal point in the middle. Of all lenses, `examples/lenses.md` is written.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pycolmap

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DatabaseConfig, MappingConfig
from sfmprep.evaluation.poses import evaluate_model
from sfmprep.mapping.mapper import map_images
from sfmprep.mapping.verify import verify_matches
from sfmprep.pairing.pairs import exhaustive_pairs
from tests.support.orbit import WIDTH, lens, orbit

PAGE = Path(__file__).resolve().parents[2] / "examples" / "lenses.md"
Row = dict[str, Any]

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


def mapped(camera: pycolmap.Camera, how: str) -> Row:
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
        "auc": [found.auc[limit] for limit in (1, 3, 5)],
    }


_NOTES = """
- `auto` is the default: the lens model is chosen on tracks left out of the adjustment.
- `true` is told the true numbers of the camera, and keeps them.
- `SIMPLE_RADIAL` is what every camera is first, and what the others are measured
  against: how much the choice is worth.
- Bounds: a lens that folds inside its image, or whose focal length moves by more than
  half as much again, is none (`mapping/lenses.py`).
"""


def page(rows: Sequence[Row], date: str) -> str:
    """`examples/lenses.md`: what was found, and by how much `auto` is behind."""
    by = {(row["lens"], row["how"]): row for row in rows}
    found = [(row, by[row["lens"], "true"]) for row in rows if row["how"] == "auto"]
    lines = [
        "# Lenses that nobody told",
        "",
        "Made by `make bench-lenses`; no number is by hand. Synthetic orbits of 20"
        " images,",
        "1024 x 768, keypoints with 0.5 px of noise, a tenth of the matches wrong.",
        "The focal length starts at COLMAP's guess, 1.2 times the longer side, the",
        "principal point in the middle. Focal lengths and centres are those found less",
        "the true ones.",
        "",
        f"Of {len(found)} lenses with `auto`: the focal length is off by"
        f" {max((abs(a['focal']) for a, _ in found), default=0):.2%} at most, AUC@1 is"
        f" {max((t['auc'][0] - a['auc'][0] for a, t in found), default=0):.1f} points"
        " below that of true",
        "calibration at most,"
        f" {sum(a['registered'] for a, _ in found)} of {20 * len(found)} images have a"
        " pose.",
        "",
        "| Lens | Mapped as | Registered | Chosen | Focal | Centre | AUC@1/3/5 |",
        "|---|---|---|---|---|---|---|",
        *map(_line, rows),
        "",
        f"({date})",
    ]
    return "\n".join(lines) + "\n" + _NOTES


def _line(row: Row) -> str:
    x, y = row["offset"]
    return (
        f"| {row['lens']} | {row['how']} | {row['registered']} of 20 | {row['model']}"
        f" | {row['focal']:+.2%} | {x:+.1f}, {y:+.1f} px"
        f" | {' / '.join(f'{each:.1f}' for each in row['auc'])} |"
    )


def main(names: Sequence[str]) -> None:
    """Maps each lens three ways, prints lines, and writes the page if all are asked."""
    pycolmap.logging.minloglevel = int(pycolmap.logging.FATAL)
    rows = []
    for name in names or LENSES:
        for how in ("SIMPLE_RADIAL", "auto", "true"):
            rows.append({"lens": name, "how": how, **mapped(LENSES[name], how)})
            print(_line(rows[-1]), flush=True)
    if not names:
        PAGE.write_text(page(rows, time.strftime("%Y-%m-%d")), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
