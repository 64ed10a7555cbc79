"""dataset.json: what a dataset's images are, for those who want more than a trainer.

    {"generator": "sfmprep", "version": 1, "num_points": 8129, "images": {"IMG_1.jpg": {
        "original": "left/IMG 1.HEIC",   its name among the photographs
        "made_from": "3f...",            a checksum, see `taken_over.py`; may be missing
        "split": "train",                or "test": every eighth by name, as gsplat and
                                         INRIA's 3DGS divide them
        "rotation_stddev_deg": 0.01,     one sigma of the pose
        "position_stddev": 0.002,        in units of the dataset
        "weight": 0.98}}}                of the image in training, 0..1

Uncertainties and weights are left out where they are not known. The weight is
1 / (1 + e^2): the inverse variance of a pixel that is uncertain by one pixel anyway and
by e pixels through the pose, e^2 = f^2 (rotation^2 + (position / depth)^2), with the
focal length f in pixels and the median depth of the points that the image sees. The two
parts are taken as independent, which makes e rather too large than too small.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from sfmprep.geometry.uncertainty import PoseUncertainty

LISTING = "dataset.json"
GENERATOR = "sfmprep"
_VERSION = 1
_TEST_EVERY = 8
_MAX_DEPTHS = 200  # points whose depth is looked at


def listing(
    reconstruction: pycolmap.Reconstruction,
    names: Mapping[str, str],
    uncertainties: Mapping[str, PoseUncertainty],
    *,
    num_points: int,
    made_from: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The content of dataset.json.

    Args:
        reconstruction: In which the originals are registered.
        names: Original name to that of the file; none for a dataset that is not yet
            complete.
        uncertainties: By original name; may lack some.
        num_points: 3D points of the dataset.
        made_from: A checksum of what each file was made from, by original name.
    """
    by_name = {image.name: image for image in reconstruction.images.values()}
    images: dict[str, dict[str, Any]] = {}
    in_order = sorted(names.items(), key=lambda item: item[1])
    for number, (original, name) in enumerate(in_order):
        images[name] = {
            "original": original,
            "split": "train" if number % _TEST_EVERY else "test",
        }
        if made_from is not None:
            images[name]["made_from"] = made_from[original]
        known = uncertainties.get(original)
        if known is not None and math.isfinite(
            known.rotation_stddev_deg + known.position_stddev
        ):
            images[name] |= {
                "rotation_stddev_deg": known.rotation_stddev_deg,
                "position_stddev": known.position_stddev,
                "weight": _weight(reconstruction, by_name[original], known),
            }
    return {
        "generator": GENERATOR,
        "version": _VERSION,
        "num_points": num_points,
        "images": images,
    }


def is_export(folder: Path) -> bool:
    """Whether sfmprep wrote the dataset in this folder, be it complete or not."""
    # Before there was a dataset.json, transforms.json said so.
    names = LISTING, "transforms.json"
    return any(_content(folder / name).get("generator") == GENERATOR for name in names)


def is_begun(folder: Path) -> bool:
    """Whether the dataset in this folder was begun by sfmprep and never completed."""
    return _content(folder / LISTING).get("images") == {}


def images_of(folder: Path) -> dict[str, dict[str, Any]]:
    """What a dataset says of its images, by name; none where there is no dataset."""
    found = _content(folder / LISTING).get("images", {})
    return dict(found) if isinstance(found, dict) else {}


def write_json(path: Path, content: object) -> None:
    """Writes `content`, which holds no NaN, as readable JSON."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _content(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _weight(
    reconstruction: pycolmap.Reconstruction,
    image: pycolmap.Image,
    uncertainty: PoseUncertainty,
) -> float:
    rows = image.get_observation_point2D_idxs()
    seen = rows[:: max(1, len(rows) // _MAX_DEPTHS)]
    points = [reconstruction.points3D[image.point2D(row).point3D_id] for row in seen]
    depth = math.inf
    if points:
        xyz = np.array([point.xyz for point in points])
        _, _, z_row = image.cam_from_world().matrix()
        depth = float(np.median(xyz @ z_row[:3] + z_row[3]))
    focal = reconstruction.cameras[image.camera_id].mean_focal_length()
    turned = math.radians(uncertainty.rotation_stddev_deg)
    moved = uncertainty.position_stddev / max(abs(depth), 1e-100)
    pixels = focal * math.hypot(turned, moved)
    return 1 / (1 + pixels * pixels)
