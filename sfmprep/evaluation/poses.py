"""How well a reconstruction's camera poses agree with known ones.

Definitions, over all pairs of reference images, names in sorted order; of more than
1,400 images over up to a million pairs at random:

- Error of a pair (i, j): the larger of the angle of `R_ij R_ij_ref^T` and the angle
  between the directions of `t_ij` and `t_ij_ref`, 0..180 degrees, where (R_ij, t_ij)
  takes points of camera i to camera j. Infinite where an image is not registered.
- AUC at t: the area under the recall curve of these errors up to t degrees, divided by
  t, in per cent (Sarlin et al., SuperGlue, CVPR 2020; Sun et al., LoFTR, CVPR 2021).
- Axis-corrected AUC: the same after all cameras are turned by the one rotation of the
  camera frame that lowers the mean error most. A principal point that is not where the
  camera model keeps it turns all cameras alike, which is no fault of the matches.
- Centre error: distance of the camera centres, in units of the reference, after a
  similarity transform is fitted robustly to them.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath

import numpy as np
import pycolmap
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from sfmprep.errors import ConfigError
from sfmprep.evaluation.reference import CameraPose, registered_poses
from sfmprep.types import Float64, Index, Mask

logger = logging.getLogger(__name__)

AUC_THRESHOLDS_DEG = (1, 3, 5, 10)
_MAX_HYPOTHESES = 3000
_MAX_AXIS_PAIRS = 20_000
_MAX_PAIRS = 1_000_000  # of 1,400 images; AUC of so many is told to 0.1
_BLOCK = 1 << 16  # pairs whose relative poses are in memory at once


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Figures of one reconstruction; `inf` where images are missing.

    Angles are in degrees, AUC in per cent, centre errors in units of the reference.
    """

    registered: int  # images of the reconstruction with a pose
    registered_reference: int  # those of them that the reference has too
    num_reference: int  # images of the reference
    auc: dict[int, float]  # by threshold, degrees
    auc_axis_corrected: dict[int, float]
    axis_rotation_deg: float | None  # None with fewer than three common images
    median_pair_error_deg: float
    max_pair_error_deg: float
    median_rotation_error_deg: float
    median_translation_error_deg: float
    median_centre_error: float | None  # None with fewer than three common images
    max_centre_error: float | None
    num_points: int
    mean_reprojection_error_px: float | None  # None without points
    mean_track_length: float | None

    def to_json(self) -> str:
        """The figures as a JSON object; what is infinite becomes null."""
        return json.dumps(_without_infinity(asdict(self)), indent=2, allow_nan=False)


def _without_infinity(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _without_infinity(item) for key, item in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


# ------------------------------------------------------------------------ comparison
def evaluate_model(
    reconstruction: pycolmap.Reconstruction, reference: Mapping[str, CameraPose]
) -> Evaluation:
    """Compares the poses of a reconstruction with known ones.

    Images are the same if their names are (POSIX paths relative to the image root).
    Only where no name is common are they compared by stem, the file name without
    folder and suffix; no stem may then be ambiguous.

    Raises:
        ConfigError: The reference has fewer than two images, or none in common with
            the reconstruction, or names that can only be told apart by folders that
            the reconstruction's names do not share.
    """
    if len(reference) < 2:
        raise ConfigError(
            f"the reference has {len(reference)} images, expected at least 2: errors"
            " are those of pairs"
        )
    poses = registered_poses(reconstruction)
    names = {image.name for image in reconstruction.images.values()}
    name_of = _match_names(names, reference)
    truth = [reference[name] for name in sorted(reference)]
    known = np.array(
        [name_of.get(name) in poses for name in sorted(reference)], dtype=bool
    )
    estimate = [
        poses[name_of[name]]
        for name, is_known in zip(sorted(reference), known, strict=True)
        if is_known
    ]
    known_truth = [
        pose for pose, is_known in zip(truth, known, strict=True) if is_known
    ]
    errors, axis_errors, axis_rotation_deg = _all_pair_errors(
        estimate, known_truth, known
    )
    pair_errors = errors.max(axis=1)
    centre_errors = _centre_errors(
        np.array([pose.centre for pose in estimate]).reshape(-1, 3),
        np.array([pose.centre for pose in known_truth]).reshape(-1, 3),
    )
    has_centres, has_points = len(centre_errors) > 0, reconstruction.num_points3D() > 0
    return Evaluation(
        registered=len(poses),
        registered_reference=len(estimate),
        num_reference=len(reference),
        auc=pose_auc(pair_errors),
        auc_axis_corrected=pose_auc(axis_errors.max(axis=1)),
        axis_rotation_deg=axis_rotation_deg,
        median_pair_error_deg=float(np.median(pair_errors)),
        max_pair_error_deg=float(pair_errors.max()),
        median_rotation_error_deg=float(np.median(errors[:, 0])),
        median_translation_error_deg=float(np.median(errors[:, 1])),
        median_centre_error=float(np.median(centre_errors)) if has_centres else None,
        max_centre_error=float(centre_errors.max()) if has_centres else None,
        num_points=reconstruction.num_points3D(),
        mean_reprojection_error_px=(
            float(reconstruction.compute_mean_reprojection_error())
            if has_points
            else None
        ),
        mean_track_length=(
            float(reconstruction.compute_mean_track_length()) if has_points else None
        ),
    )


def _match_names(estimate: Iterable[str], reference: Iterable[str]) -> dict[str, str]:
    """The reconstruction's name of each reference image that it has."""
    estimate, reference = set(estimate), set(reference)
    common = estimate & reference
    if common:
        rest = {_stem(name) for name in estimate - common} & {
            _stem(name) for name in reference - common
        }
        if rest:
            logger.warning(
                "%d images have the reference's name; %d others share no more than the"
                " file name with one of it, such as %r, and count as not registered",
                len(common),
                len(rest),
                min(rest),
            )
        return {name: name for name in common}
    stems = Counter(map(_stem, estimate)), Counter(map(_stem, reference))
    shared = stems[0].keys() & stems[1].keys()
    if not shared:
        raise ConfigError(
            "the reference and the reconstruction have no image in common: the"
            f" reference names {_some(reference)}, the reconstruction"
            f" {_some(estimate)}. Give the reference of these images, with the same"
            " file names."
        )
    ambiguous = {stem for stem in shared if stems[0][stem] > 1 or stems[1][stem] > 1}
    if ambiguous:
        involved = [n for n in estimate | reference if _stem(n) in ambiguous]
        raise ConfigError(
            "the reference and the reconstruction have no full name in common, and"
            f" these file names are not unique: {_some(involved)}. Name the images in"
            " the reference by their path relative to the image folder."
        )
    name_of_stem = {_stem(name): name for name in estimate}
    return {n: name_of_stem[_stem(n)] for n in reference if _stem(n) in shared}


def _stem(name: str) -> str:
    return PurePosixPath(name).stem


def _some(names: Iterable[str]) -> str:
    """The first names, for a message."""
    first, rest = sorted(names)[:6], max(0, len(set(names)) - 6)
    more = f" and {rest} more" if rest else ""
    return (", ".join(map(repr, first)) or "nothing") + more


# ----------------------------------------------------------------------- pair errors
def _all_pair_errors(
    estimate: list[CameraPose], truth: list[CameraPose], known: Mask
) -> tuple[Float64, Float64, float | None]:
    """Errors before and after the axis correction, and the angle of that.

    Returns:
        Twice [P, 2] rotation and translation errors in degrees, over all pairs of
        reference images; infinite for those that are not `known`.
    """
    first, second = _pairs(len(known))
    both = known[first] & known[second]
    plain = np.full((len(first), 2), np.inf)
    corrected = plain.copy()
    if not both.any():
        return plain, corrected, None
    row = np.cumsum(known) - 1
    pairs = row[first[both]], row[second[both]]
    plain[both] = _errors(estimate, truth, pairs, np.zeros(3))
    if len(estimate) < 3:
        return plain, plain, None
    axis = _axis_rotation(estimate, truth, pairs)
    corrected[both] = _errors(estimate, truth, pairs, axis)
    return plain, corrected, float(np.linalg.norm(axis))


def _pairs(count: int) -> tuple[Index, Index]:
    """All pairs i < j of so many images, or as many of them as are looked at."""
    if count * (count - 1) // 2 <= _MAX_PAIRS:
        return np.triu_indices(count, 1)
    drawn = np.random.default_rng(0).integers(0, count, (_MAX_PAIRS, 2))
    drawn.sort(axis=1)
    first, second = np.divmod(np.unique(drawn[:, 0] * count + drawn[:, 1]), count)
    return first[first < second], second[first < second]


def _errors(
    estimate: list[CameraPose],
    truth: list[CameraPose],
    pairs: tuple[Index, Index],
    turn_deg: Float64,
) -> Float64:
    """As `relative_pose_errors`, of pairs of poses, in blocks."""
    first, second = pairs
    errors = np.empty((len(first), 2))
    for start in range(0, len(first), _BLOCK):
        rows = slice(start, start + _BLOCK)
        errors[rows] = relative_pose_errors(
            relative_poses(estimate, first[rows], second[rows]),
            relative_poses(truth, first[rows], second[rows]),
            turn_deg,
        )
    return errors


def relative_poses(
    poses: list[CameraPose], first: Index, second: Index
) -> tuple[Float64, Float64]:
    """R_ij [P, 3, 3] and t_ij [P, 3] of pairs, by rows of poses [P] each."""
    rotations = np.array([pose.rotation for pose in poses])
    centres = np.array([pose.centre for pose in poses])
    relative = rotations[second] @ rotations[first].transpose(0, 2, 1)
    gap = centres[first] - centres[second]
    return relative, (rotations[second] @ gap[..., None])[..., 0]


def relative_pose_errors(
    estimate: tuple[Float64, Float64], truth: tuple[Float64, Float64], turn_deg: Float64
) -> Float64:
    """Errors in degrees [P, 2] of relative rotations and translation directions.

    Args:
        estimate: R_ij [P, 3, 3] and t_ij [P, 3], translations of any length.
        truth: The same of the reference.
        turn_deg: All estimated cameras are turned by this vector [3], degrees.
    """
    turn = Rotation.from_rotvec(turn_deg, degrees=True).as_matrix()
    residual = turn @ estimate[0] @ turn.T @ truth[0].transpose(0, 2, 1)
    skew = residual - residual.transpose(0, 2, 1)
    # atan2 is exact near 0, where the arc cosine of the trace is not
    sine = np.linalg.norm(skew[:, [2, 0, 1], [1, 2, 0]], axis=1) / 2
    cosine = (np.trace(residual, axis1=1, axis2=2) - 1) / 2
    turned = estimate[1] @ turn.T
    across = np.linalg.norm(np.cross(turned, truth[1]), axis=1)
    along = (turned * truth[1]).sum(axis=1)
    angles = np.stack([np.arctan2(sine, cosine), np.arctan2(across, along)], axis=1)
    return np.asarray(np.degrees(angles))


def _axis_rotation(
    estimate: list[CameraPose], truth: list[CameraPose], pairs: tuple[Index, Index]
) -> Float64:
    """The rotation vector in degrees that lowers the mean error most.

    Compass search from 0 with steps of 0.4 degrees, halved down to 0.004; errors count
    up to 10 degrees. Beyond 20,000 pairs, it looks at that many of them.
    """
    first, second = pairs
    if len(first) > _MAX_AXIS_PAIRS:
        rng = np.random.default_rng(0)
        pick = rng.choice(len(first), _MAX_AXIS_PAIRS, replace=False)
        first, second = first[pick], second[pick]
    found, true = (relative_poses(p, first, second) for p in (estimate, truth))

    def cost(vector: Float64) -> float:
        errors = relative_pose_errors(found, true, vector).max(axis=1)
        return float(errors.clip(max=10).mean())

    best, step = np.zeros(3), 0.4
    best_cost = cost(best)
    while step > 0.004:
        steps = [sign * step * axis for axis in np.eye(3) for sign in (1, -1)]
        costs = [cost(best + change) for change in steps]
        if min(costs) < best_cost:
            best_cost = min(costs)
            best = best + steps[costs.index(best_cost)]
        else:
            step /= 2
    return best


def pose_auc(
    errors: Float64, thresholds_deg: Iterable[int] = AUC_THRESHOLDS_DEG
) -> dict[int, float]:
    """Areas in per cent under the recall curve of errors in degrees, by threshold.

    `errors` holds one error of each pair, at least one, infinite for a failure.
    """
    areas = {}
    for threshold in thresholds_deg:
        below = np.sort(errors[errors < threshold])
        recall = np.arange(len(below) + 1) / len(errors)
        widths = np.diff(np.concatenate([[0], below, [threshold]]))
        # trapezia up to the last error below the threshold, level from there
        heights = np.append((recall[1:] + recall[:-1]) / 2, recall[-1])
        areas[threshold] = float(100 * (widths @ heights) / threshold)
    return areas


# --------------------------------------------------------------------- centre errors
def _centre_errors(source: Float64, target: Float64) -> Float64:
    """Distances [N] of centres [N, 3] after a robust similarity; [0] below three.

    Hypotheses are the fit to all centres and fits to three (all of them, or 3000 at
    random); that of the least median distance is refitted to its inliers, those within
    2.5 robust standard deviations, as long as the median falls.
    """
    count = len(source)
    if count < 3:
        return np.empty(0)
    samples = [np.arange(count)]
    if math.comb(count, 3) <= _MAX_HYPOTHESES:
        samples += [np.array(t) for t in itertools.combinations(range(count), 3)]
    else:
        rng = np.random.default_rng(0)
        samples += [rng.choice(count, 3, False) for _ in range(_MAX_HYPOTHESES)]
    # of cameras on one spot no similarity can be had, though they would fit themselves
    least = 1e-9 * float(np.ptp(source, axis=0).max())
    trials = (
        _distances_after_fit(source, target, sample)
        for number, sample in enumerate(samples)
        if number == 0 or float(np.ptp(source[sample], axis=0).max()) > least
    )
    best = min(trials, key=lambda distances: float(np.median(distances)))
    for _ in range(5):
        median = np.median(best)
        inliers = np.flatnonzero(best <= max(2.5 * 1.4826 * float(median), 1e-9))
        refitted = _distances_after_fit(source, target, inliers)
        if len(inliers) < 4 or np.median(refitted) > median:
            break
        best = refitted
    return best


def _distances_after_fit(
    source: Float64, target: Float64, chosen: NDArray[np.intp]
) -> Float64:
    """Distances [N] after the least-squares similarity of the chosen points.

    Umeyama, PAMI 1991. pycolmap's has no answer for cameras on one line, as of a
    slider, for which the distances are as clear.
    """
    source_mean, target_mean = source[chosen].mean(axis=0), target[chosen].mean(axis=0)
    centred, aim = source[chosen] - source_mean, target[chosen] - target_mean
    u, singular, vt = np.linalg.svd(aim.T @ centred)
    signs = np.array([1.0, 1.0, -1.0 if np.linalg.det(u @ vt) < 0 else 1.0])
    rotation = (u * signs) @ vt
    spread = max(float((centred**2).sum()), 1e-300)
    moved = (singular @ signs) / spread * (source - source_mean) @ rotation.T
    return np.asarray(np.linalg.norm(moved + target_mean - target, axis=1))
