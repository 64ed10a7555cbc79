"""The pose of a single photograph against a finished model, and whether to trust it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pycolmap

from sfmprep.geometry.robust import deviation_of
from sfmprep.mapping.chance import needed_inliers
from sfmprep.types import Float64, Index, Mask

Verdict = Literal["found", "doubtful", "unknown"]

_MIN_INLIERS = 8
_ENOUGH_INLIERS = 30  # as many as COLMAP asks of a pose
_ENOUGH_IMAGES = 2  # of the model, whose points agree
_MAX_STDDEV_DEG = 1.0
_MIN_NOISE_PX = 0.2
_PREFERRED = 1.2  # of its own camera has more inliers, it is not one of the model's


@dataclass(frozen=True, kw_only=True, eq=False)
class Sightings:
    """Keypoints of a photograph and the points of a model that they may see."""

    keypoint: Index  # [M] rows of its keypoints; one may come several times
    xy: Float64  # [M, 2] pixels of the file
    xyz: Float64  # [M, 3] points
    image: Index  # [M] ids of the image of the model that told

    def __len__(self) -> int:
        return len(self.keypoint)


@dataclass(frozen=True, kw_only=True, eq=False)
class Located:
    """Where a photograph was taken, or why that is not known.

    The pose, and what follows it, is None where the verdict is `unknown`.
    """

    name: str
    verdict: Verdict
    reason: str  # in words; empty where it is found
    num_matches: int = 0  # keypoints that may see a point
    num_inliers: int = 0  # of these, keypoints that agree with the pose
    rotation: Float64 | None = None  # [3, 3] camera from world, OpenCV axes
    centre: Float64 | None = None  # [3]
    camera: pycolmap.Camera | None = None
    rotation_stddev_deg: float | None = None  # along the most uncertain axis
    position_stddev: float | None = None  # likewise, world units

    def moved(self, world: pycolmap.Sim3d) -> Located:
        """The same in another world, which the similarity leads to."""
        if self.rotation is None or self.centre is None:
            return self
        turn, scale = np.asarray(world.rotation.matrix()), float(world.scale)
        stddev = self.position_stddev
        return replace(
            self,
            rotation=self.rotation @ turn.T,
            centre=scale * turn @ self.centre + np.asarray(world.translation),
            position_stddev=None if stddev is None else scale * stddev,
        )


def locate(
    name: str,
    seen: Sightings,
    cameras: Sequence[pycolmap.Camera],
    *,
    max_error_px: float,
    within_px: float | None = None,
    seed: int = 0,
) -> Located:
    """Finds the pose that most keypoints agree with.

    It counts where more agree than practically ever would by chance. It is doubtful
    where fewer than 30 do, where all of them were told by one image of the model, or
    where the pose is not certain to a degree.

    Args:
        name: Of the photograph.
        seen: What it may see; may be empty.
        cameras: That may have taken it. Focal lengths that are no prior are estimated.
            The first is taken unless another has more inliers by a fifth.
        max_error_px: How far from its keypoint a point may be, pixels of the file.
        within_px: How far from a foreseen place keypoints were looked for; None for
            the whole photograph.
        seed: Of RANSAC.
    """
    num_matches = len(np.unique(seen.keypoint))
    nothing = Located(
        name=name,
        verdict="unknown",
        num_matches=num_matches,
        reason=f"{num_matches} of its keypoints match points of the model, too few",
    )
    camera = cameras[0]
    searched = within_px or math.hypot(camera.width, camera.height) / 2
    chance = max_error_px / searched
    needed = needed_inliers(num_matches, chance)
    if needed is None:
        return nothing
    needed = max(needed, _MIN_INLIERS)
    best, count = None, 0
    for camera in cameras:
        found = _estimated(seen, camera, max_error_px, seed)
        if found is not None and found[2] > count * (_PREFERRED if best else 1):
            best, count = found, found[2]
    if best is None or count < needed:
        return replace(
            nothing,
            num_inliers=count,
            reason=f"{count} of {num_matches} keypoints agree on a pose, {needed} are"
            " needed to rule out chance",
        )
    pose, camera, _, inside = best
    rotation = np.asarray(pose.rotation.matrix(), np.float64)
    centre = -rotation.T @ np.asarray(pose.translation, np.float64)
    stddevs = _stddevs(seen, inside, rotation, centre, camera)
    reasons = _doubts(count, len(np.unique(seen.image[inside])), stddevs)
    return Located(
        name=name,
        verdict="doubtful" if reasons else "found",
        reason=reasons,
        num_matches=num_matches,
        num_inliers=count,
        rotation=rotation,
        centre=centre,
        camera=camera,
        rotation_stddev_deg=stddevs[0],
        position_stddev=stddevs[1],
    )


def _doubts(count: int, num_images: int, stddevs: tuple[float, float]) -> str:
    if count < _ENOUGH_INLIERS:
        return f"only {count} keypoints agree"
    if num_images < _ENOUGH_IMAGES:
        return "one image of the model alone tells it"
    if stddevs[0] > _MAX_STDDEV_DEG:
        return f"its rotation is uncertain by {stddevs[0]:.1f} degrees"
    return ""


Estimate = tuple[pycolmap.Rigid3d, pycolmap.Camera, int, Mask]


def _estimated(
    seen: Sightings, camera: pycolmap.Camera, max_error_px: float, seed: int
) -> Estimate | None:
    """A pose, its camera, how many keypoints agree, and which sightings do."""
    camera = pycolmap.Camera(camera.todict())
    is_known = camera.has_prior_focal_length
    estimation = pycolmap.AbsolutePoseEstimationOptions()
    estimation.ransac.max_error = max_error_px
    estimation.ransac.random_seed = seed
    estimation.estimate_focal_length = not is_known
    refinement = pycolmap.AbsolutePoseRefinementOptions()
    refinement.refine_focal_length = not is_known
    found = pycolmap.estimate_and_refine_absolute_pose(
        seen.xy, seen.xyz, camera, estimation, refinement
    )
    if found is None:
        return None
    inside = np.asarray(found["inlier_mask"], bool)
    count = len(np.unique(seen.keypoint[inside]))
    return found["cam_from_world"], camera, count, inside


def _stddevs(
    seen: Sightings,
    inside: Mask,
    rotation: Float64,
    centre: Float64,
    camera: pycolmap.Camera,
) -> tuple[float, float]:
    """Degrees and world units by which the pose may be off, one standard deviation.

    From the noise of the keypoints, as their errors show it, and the places of the
    points, which are taken as known.
    """
    there = (seen.xyz[inside] - centre) @ rotation.T
    off = np.asarray(camera.img_from_cam(there)) - seen.xy[inside]
    errors = np.linalg.norm(off, axis=1)
    noise = max(deviation_of(errors[~np.isnan(errors)], 2), _MIN_NOISE_PX)
    focal, (x, y, z) = camera.mean_focal_length(), there.T
    zero = np.zeros_like(z)
    project = focal * np.array([[1 / z, zero, -x / z**2], [zero, 1 / z, -y / z**2]])
    turn = np.array([[zero, z, -y], [-z, zero, x], [y, -x, zero]])  # of the camera
    change = np.concatenate(
        [
            np.einsum("abm,bcm->mac", project, turn),
            np.einsum("abm,bc->mac", project, -rotation),
        ],
        axis=2,
    ).reshape(-1, 6)
    covariance = noise**2 * np.linalg.pinv(change.T @ change)
    largest = [
        math.sqrt(max(float(np.linalg.eigvalsh(block)[-1]), 0.0))
        for block in (covariance[:3, :3], covariance[3:, 3:])
    ]
    return math.degrees(largest[0]), largest[1]
