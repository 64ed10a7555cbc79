"""What a result is worth: images, poses against known ones, and wrong pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycolmap
from numpy.typing import NDArray

from sfmprep.evaluation.poses import evaluate_model
from sfmprep.evaluation.reference import CameraPose, read_reference
from sfmprep.mapping.models import read_model
from tests.bench.scoreboard.scenes import Prepared

AUC_DEG = (1, 3, 5)

# Of the longer side of the image: far above the noise of features and of references
# that are estimates, far below what a match with another place is off by.
_MAX_DISTANCE = 0.005


def judge(prepared: Prepared, database: Path, models: Path) -> dict[str, Any]:
    """The figures of one run; nothing found is no image, no point and an AUC of 0."""
    found = (
        [read_model(path) for path in models.glob("[0-9]*")] if models.is_dir() else []
    )
    found.sort(key=lambda model: model.num_reg_images(), reverse=True)
    best = found[0] if found else pycolmap.Reconstruction()
    has_points = best.num_points3D() > 0
    verified = _verified_pairs(database) if database.is_file() else []
    return {
        "images": len(prepared.names),
        "registered": best.num_reg_images(),
        "models": [model.num_reg_images() for model in found],
        "auc": _auc(prepared, best),
        "pairs": len(verified),
        "wrong_pairs": _count_wrong(prepared, verified),
        "points": best.num_points3D(),
        "track_length": best.compute_mean_track_length() if has_points else None,
        "error_px": best.compute_mean_reprojection_error() if has_points else None,
    }


def _auc(prepared: Prepared, model: pycolmap.Reconstruction) -> dict[str, float] | None:
    if prepared.reference is None:
        return None
    reference = read_reference(prepared.images.parent)
    if not model.num_reg_images():
        return {str(limit): 0.0 for limit in AUC_DEG}
    auc = evaluate_model(model, reference).auc
    return {str(limit): auc[limit] for limit in AUC_DEG}


# -------------------------------------------------------------------------- wrong pairs
Verified = tuple[tuple[str, str], tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Names of two images and where their inliers are, [M, 2] each."""


def _verified_pairs(path: Path) -> list[Verified]:
    with pycolmap.Database.open(path) as database:
        names = {image.image_id: image.name for image in database.read_all_images()}
        ids, counts = database.read_two_view_geometry_num_inliers()
        pairs: list[Verified] = []
        for pair_id, count in zip(ids, counts, strict=True):
            pair = pycolmap.pair_id_to_image_pair(pair_id)
            if not count:
                continue
            index = np.asarray(database.read_two_view_geometry(*pair).inlier_matches)
            xy0, xy1 = (
                database.read_keypoints(image_id)[column, :2].astype(np.float64)
                for image_id, column in zip(pair, index.T, strict=True)
            )
            pairs.append(((names[pair[0]], names[pair[1]]), (xy0, xy1)))
    return pairs


def _count_wrong(prepared: Prepared, verified: list[Verified]) -> int | None:
    """None where it cannot be told: without true poses and intrinsics."""
    truth = prepared.reference
    if truth is None or not all("K" in entry for entry in truth.values()):
        return None
    poses = read_reference(prepared.images.parent)
    return sum(
        is_wrong(xy, (truth[a], truth[b]), (poses[a], poses[b]))
        for (a, b), xy in verified
        if a in poses and b in poses
    )


def is_wrong(
    xy: tuple[NDArray[np.float64], NDArray[np.float64]],
    entries: tuple[dict[str, Any], dict[str, Any]],
    poses: tuple[CameraPose, CameraPose],
) -> bool:
    """Whether most inliers of a pair cannot be one point in the true cameras.

    A match can be one point if it lies within 0.5 % of the longer side of the true
    epipolar line and, where its rays are not parallel, in front of both cameras.

    Args:
        xy: The inliers in both images, [M, 2] pixels.
        entries: Of reference.json: `K`, `dist`, `width`, `height`.
        poses: The true ones.
    """
    rays = [_rays(points, entry) for points, entry in zip(xy, entries, strict=True)]
    turn = poses[1].rotation @ poses[0].rotation.T
    shift = poses[1].rotation @ (poses[0].centre - poses[1].centre)
    seen = rays[0] @ turn.T
    normals = np.cross(shift, seen)
    focal = float(np.asarray(entries[1]["K"])[0][0])
    distance = focal * np.abs((normals * rays[1]).sum(axis=1))
    distance /= np.maximum(np.linalg.norm(normals[:, :2], axis=1), 1e-12)
    limit = _MAX_DISTANCE * max(entries[1]["width"], entries[1]["height"])
    # depths d of d0 seen + shift = d1 rays[1], by the cross product with either ray
    across = np.cross(seen, rays[1])
    size = np.maximum((across**2).sum(axis=1), 1e-18)
    depth0 = (np.cross(rays[1], shift) * across).sum(axis=1) / size
    depth1 = (np.cross(seen, shift) * across).sum(axis=1) / size
    lengths = np.linalg.norm(seen, axis=1) * np.linalg.norm(rays[1], axis=1)
    is_parallel = np.sqrt(size) < np.radians(0.5) * lengths
    in_front = is_parallel | ((depth0 > 0) & (depth1 > 0))
    return bool(np.mean((distance < limit) & in_front) < 0.5)


def _rays(xy: NDArray[np.float64], entry: dict[str, Any]) -> NDArray[np.float64]:
    """Directions [M, 3] with z = 1 of pixels [M, 2]."""
    matrix = np.asarray(entry["K"], np.float64)
    lens = np.asarray(entry.get("dist", ()), np.float64)
    flat = cv2.undistortPoints(xy[:, None], matrix, lens if lens.any() else None)
    return np.column_stack([flat[:, 0], np.ones(len(xy))])
