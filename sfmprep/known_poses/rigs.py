"""Rigs that a COLMAP model with known poses holds."""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pycolmap

from sfmprep.known_poses.colmap_model import model_folder, model_without_points

logger = logging.getLogger(__name__)

_UP_TO_A_WORD = re.compile(r".*[^0-9A-Za-z]")


def rigs_of_poses(path: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """The rigs of known poses, as COLMAP's `rig_config.json` has them; mostly none.

    The places of their cameras are left open: they are as rough as the poses. A rig
    whose images do not tell their camera by the beginning of their names, and their
    frame by the rest, is left out with a warning; so is one of other images.

    Args:
        path: As for `read_poses`; only COLMAP models have rigs.
        names: The images of the capture.

    Raises:
        ConfigError: the model is damaged.
    """
    folder = model_folder(path)
    if folder is None:
        return []
    model = model_without_points(folder)
    found = []
    for rig_id, rig in sorted(model.rigs.items()):
        if rig.num_sensors() < 2:
            continue
        prefixes = _prefixes(model, rig_id)
        if prefixes is None or not all(
            any(name.startswith(prefix) for name in names) for prefix in prefixes
        ):
            logger.warning(
                "rig %d of %d cameras in %s is not kept: expected images that are"
                " called by their camera and their frame, such as left/0001.jpg. Tell"
                " it by --rigs",
                *(rig_id, rig.num_sensors(), path),
            )
            continue
        first, *others = ({"image_prefix": prefix} for prefix in prefixes)
        found.append({"cameras": [{**first, "ref_sensor": True}, *others]})
    return found


def _prefixes(model: pycolmap.Reconstruction, rig_id: int) -> list[str] | None:
    """How names begin, each camera's, that of the reference first; None if no way."""
    by_camera: dict[int, dict[int, str]] = defaultdict(dict)
    for image in model.images.values():
        if model.frames[image.frame_id].rig_id == rig_id:
            by_camera[image.camera_id][image.frame_id] = image.name
    prefixes, frames = dict[int, str](), defaultdict[int, set[str]](set)
    for camera_id, of_frame in by_camera.items():
        common = _UP_TO_A_WORD.match(os.path.commonprefix(list(of_frame.values())))
        prefixes[camera_id] = common[0] if common else ""
        for frame_id, name in of_frame.items():
            frames[frame_id].add(name.removeprefix(prefixes[camera_id]))
    is_told = all(len(rest) == 1 for rest in frames.values()) and all(prefixes.values())
    if len(set(prefixes.values())) < len(prefixes) or len(prefixes) < 2 or not is_told:
        return None
    reference = model.rigs[rig_id].ref_sensor_id.id
    order = sorted(prefixes, key=lambda camera_id: (camera_id != reference, camera_id))
    return [prefixes[camera_id] for camera_id in order]
