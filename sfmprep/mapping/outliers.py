"""Which registered images are left out of a dataset, and why.

One camera far from where it was ruins a trainer's scene scale, which is made from the
largest distance, and what it shows is learned in the wrong place.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping

import numpy as np
import pycolmap
from scipy.spatial import cKDTree

from sfmprep.config import OutlierConfig
from sfmprep.coords import beyond_rounding
from sfmprep.errors import ReconstructionError
from sfmprep.geometry.uncertainty import PoseUncertainty
from sfmprep.geometry.views import ModelArrays
from sfmprep.types import Float64

logger = logging.getLogger(__name__)

_MAX_SHARE = 3  # at most one image in so many is left out
_MIN_KEPT = 2


def find_outliers(
    arrays: ModelArrays,
    config: OutlierConfig,
    uncertainties: Mapping[str, PoseUncertainty],
    frames: Mapping[str, Hashable] | None = None,
) -> dict[str, str]:
    """Finds registered images whose pose is not supported.

    Images of one frame of a rig support each other: all their points count for each,
    and the pose that is told best.

    At most a third of the images are outliers, and two always stay: where the
    thresholds name more, they do not fit the capture, which is a warning in the log,
    and those that miss them by the largest factor are left out.

    Args:
        arrays: Of any model.
        config: Thresholds.
        uncertainties: By image name, see `pose_uncertainties`; images that are not
            among them are not judged by it.
        frames: By image name, what all images of its frame have alike; images that are
            not among them are on their own.

    Returns:
        The reason in plain words by image name, in the order of names.
    """
    views, frames = arrays.views, frames or {}
    num_points = np.bincount(arrays.observations.view, minlength=len(views))
    count_of: Counter[Hashable] = Counter()
    told_by: dict[Hashable, PoseUncertainty] = {}
    for name, count in zip(views.names, num_points.tolist(), strict=True):
        frame = frames.get(name, name)
        count_of[frame] += count
        told = [each for each in (told_by.get(frame), uncertainties.get(name)) if each]
        if told:
            told_by[frame] = min(told, key=_spread)
    found: dict[str, tuple[float, str]] = {}  # how far from the threshold, and why
    for name, distance, limit in _isolated(arrays, config.max_distance_ratio):
        found[name] = (
            distance / limit,
            f"it lies {distance:.0f} times the size of the capture away from all"
            " other cameras",
        )
    for name in views.names:
        frame = frames.get(name, name)
        judged = _judged_alone(count_of[frame], told_by.get(frame), config)
        if judged is not None and judged[0] > found.get(name, (0.0, ""))[0]:
            found[name] = judged
    most = max(min(len(views) // _MAX_SHARE, len(views) - _MIN_KEPT), 0)
    worst = sorted(found, key=lambda name: (-found[name][0], name))
    if len(worst) > most:
        logger.warning(
            "%d of %d images are outliers by the thresholds of export.outliers, which"
            " do not fit this capture; only the worst %d are left out",
            *(len(worst), len(views), most),
        )
    return {name: found[name][1] for name in sorted(worst[:most])}


def _spread(uncertainty: PoseUncertainty) -> float:
    angle = uncertainty.rotation_stddev_deg
    return math.inf if math.isnan(angle) else angle


def without_images(
    model: pycolmap.Reconstruction, names: Iterable[str]
) -> pycolmap.Reconstruction:
    """Returns a copy in which these images have no pose and see no points.

    Points that lose all but one observation go. Images of one frame of a rig share a
    pose and leave together.

    Raises:
        ReconstructionError: A name is not that of a registered image.
    """
    model = pycolmap.Reconstruction(model)
    frames = {
        image.name: image.frame_id for image in model.images.values() if image.has_pose
    }
    names = set(names)
    if unknown := sorted(names - frames.keys()):
        raise ReconstructionError(
            f"{unknown[0]!r} is not among the {len(frames)} registered images of the"
            " model, so it cannot be left out; give names as the model has them"
        )
    for frame_id in sorted({frames[name] for name in names}):
        model.deregister_frame(frame_id)
    return model


def _judged_alone(
    num_points: int, uncertainty: PoseUncertainty | None, config: OutlierConfig
) -> tuple[float, str] | None:
    """How far one image is from the worst missed threshold, and in words; or None."""
    judged = []
    if num_points < config.min_num_points:
        judged.append(
            (
                config.min_num_points / max(num_points, 0.5),
                f"its pose rests on {num_points} points, {config.min_num_points} are"
                " needed",
            )
        )
    limit = config.max_rotation_stddev_deg
    if uncertainty is not None and limit is not None:
        angle = uncertainty.rotation_stddev_deg
        if not angle <= limit:
            judged.append(
                (
                    angle / limit if math.isfinite(angle) else math.inf,
                    f"its rotation is uncertain by {angle:.1f} degrees, {limit:g} are"
                    " allowed",
                )
            )
    return max(judged, default=None)


def _isolated(
    arrays: ModelArrays, max_ratio: float | None
) -> list[tuple[str, float, float]]:
    """Cameras that no chain of short steps joins to the camera in the middle.

    Returns:
        Name, distance to the nearest camera that is joined, in units of the capture's
        size, and the distance that is allowed.
    """
    views = arrays.views
    if max_ratio is None or not len(views):
        return []
    size = _size(arrays)
    if size == 0:
        return []
    centres = views.centres / size
    middle = np.linalg.norm(centres - np.median(centres, axis=0), axis=1)
    joined = middle == middle.min()
    grown = True
    while grown:
        distances, _ = cKDTree(centres[joined]).query(centres)
        grown = bool(((distances <= max_ratio) & ~joined).any())
        joined |= distances <= max_ratio
    return [
        (views.names[i], float(distances[i]), max_ratio)
        for i in np.flatnonzero(~joined).tolist()
    ]


def _size(arrays: ModelArrays) -> float:
    """The median distance of cameras from their middle, or to points if larger."""
    centres, observations = arrays.views.centres, arrays.observations
    middle = np.median(centres, axis=0)
    size = float(np.median(np.linalg.norm(centres - middle, axis=1)))
    size = beyond_rounding(size, centres)
    if not len(observations):
        return size
    depths: Float64 = np.linalg.norm(
        arrays.xyz[observations.point] - centres[observations.view], axis=1
    )
    return max(size, float(np.median(depths)))
