"""Row 2 of the table: relative poses of two images over wide baselines.

The pairs are the same for all columns. They are drawn, by a fixed seed, from those
whose optical axes differ by 15-30, 30-45 or 45-60 degrees and that overlap: of the
scene points that one image sees, so many lie in the frame of the other, both ways.
Those points are triangulated with the reference poses, from SIFT matches of pairs below
15 degrees, which are none of the tested ones; only an image that has no such neighbour
is paired with its nearest. What hides a point does not count.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from sfmprep.evaluation.poses import pose_auc, relative_pose_errors, relative_poses
from sfmprep.files import write_text
from sfmprep.pairing.pairs import Pairs
from sfmprep.progress import Progress, silent
from sfmprep.train.compare.columns import Column
from sfmprep.train.compare.scenes import MatchedScene, Scene, matched_scene
from sfmprep.types import Features, Float32, Float64, Int32, Pair

BINS_DEG = ((15, 30), (30, 45), (45, 60))
AUC_DEG = (5, 10, 20)

_MAX_PAIRS = 150  # of a bin and a scene
_MIN_OVERLAP = 0.3
_NEAR_DEG = 15  # pairs below give the points
_MAX_NEAR_PAIRS = 10  # of an image, for the points
_MIN_RAY_ANGLE_DEG = 2.0
_MAX_POINT_ERROR_PX = 2.0
_MAX_ERROR_PX = 2.0  # of an inlier of the essential matrix
_SEED = 0
_FAILED_DEG = 180.0


def two_view_settings(scene: Scene) -> dict[str, Any]:
    """What the figures depend on beside the column."""
    return {
        "scene_sha256": scene.sha256,
        "bins_deg": BINS_DEG,
        "max_pairs": _MAX_PAIRS,
        "min_overlap": _MIN_OVERLAP,
        "near_deg": _NEAR_DEG,
        "max_near_pairs": _MAX_NEAR_PAIRS,
        "min_ray_angle_deg": _MIN_RAY_ANGLE_DEG,
        "max_point_error_px": _MAX_POINT_ERROR_PX,
        "max_error_px": _MAX_ERROR_PX,
        "seed": _SEED,
    }


def measure_two_views(
    scene: Scene,
    column: Column,
    sift: Column,
    folder: Path,
    *,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Estimates the relative pose of every chosen pair of a scene.

    Args:
        scene: The photographs, their poses and intrinsics.
        column: Features and matcher.
        sift: The column whose matches give the scene points.
        folder: Where stores and the chosen pairs are kept.
        progress: Wraps the loops of the stages.

    Returns:
        By bin, such as `15-30`: `errors_deg`, one of each pair, the larger of the
        errors of rotation and of translation direction, 180 for a failure; and
        `candidates`, how many pairs of the bin overlap.
    """
    chosen, candidates = _read_or_choose(scene, sift, folder, progress)
    pairs = Pairs.of(pair for bin_pairs in chosen.values() for pair in bin_pairs)
    with matched_scene(scene, column, pairs, folder, progress=progress) as matched:
        read = {
            name: matched.features.get(name)
            for name in sorted({name for pair in pairs for name in pair})
        }
        return {
            label: {
                "candidates": candidates[label],
                "errors_deg": [
                    round(
                        pose_error_deg(
                            scene, pair, read, matched.matches.get(*pair).index
                        ),
                        3,
                    )
                    for pair in progress(
                        bin_pairs, desc=f"poses {label}", total=len(bin_pairs)
                    )
                ],
            }
            for label, bin_pairs in chosen.items()
        }


def two_view_auc(errors_deg: Iterable[float]) -> dict[int, float] | None:
    """AUC in per cent by threshold in degrees; None without errors."""
    errors = np.array(list(errors_deg), np.float64)
    return pose_auc(errors, AUC_DEG) if len(errors) else None


# --------------------------------------------------------------------- choice of pairs
def _read_or_choose(
    scene: Scene, sift: Column, folder: Path, progress: Progress
) -> tuple[dict[str, list[Pair]], dict[str, int]]:
    """The pairs of each bin and how many there were to choose from."""
    path = folder / scene.name / "two-view-pairs.json"
    made_of = json.loads(
        json.dumps({**two_view_settings(scene), "sift": sift.provenance})
    )
    if path.is_file():
        earlier = json.loads(path.read_text("utf-8"))
        if earlier["made_of"] == made_of:
            pairs = {
                label: [(a, b) for a, b in chosen]
                for label, chosen in earlier["pairs"].items()
            }
            return pairs, earlier["candidates"]
    near = _near_pairs(scene)
    with matched_scene(scene, sift, near, folder, progress=progress) as matched:
        points = _scene_points(scene, near, matched)
    pairs, candidates = choose_pairs(scene, points)
    write_text(
        path, json.dumps({"made_of": made_of, "candidates": candidates, "pairs": pairs})
    )
    return pairs, candidates


def choose_pairs(
    scene: Scene, points: dict[str, Float64]
) -> tuple[dict[str, list[Pair]], dict[str, int]]:
    """Draws the pairs to be tested.

    Args:
        scene: Poses and intrinsics.
        points: The scene points [N, 3] that each image sees; an image without any
            overlaps with none.

    Returns:
        By bin, sorted pairs, at most 150; and how many there were to choose from.
    """
    rng = np.random.default_rng(_SEED)
    chosen: dict[str, list[Pair]] = {}
    candidates: dict[str, int] = {}
    for low, high in BINS_DEG:
        fitting = [
            pair
            for pair in combinations(scene.images.names, 2)
            if low <= axis_angle_deg(scene, pair) < high
            and _overlap(scene, pair, points) >= _MIN_OVERLAP
        ]
        picks = rng.permutation(len(fitting))[:_MAX_PAIRS]
        chosen[f"{low}-{high}"] = [fitting[k] for k in sorted(picks)]
        candidates[f"{low}-{high}"] = len(fitting)
    return chosen, candidates


def axis_angle_deg(scene: Scene, pair: Pair) -> float:
    """The angle between the optical axes of two images, degrees."""
    axes = [scene.reference[name].rotation[2] for name in pair]
    return float(np.degrees(np.arccos(np.clip(axes[0] @ axes[1], -1, 1))))


def _near_pairs(scene: Scene) -> Pairs:
    """For each image up to ten others, at random, that look nearly the same way.

    Where none does, the one that looks most nearly so.
    """
    rng = np.random.default_rng(_SEED)
    pairs: list[Pair] = []
    for name in scene.images.names:
        angles = {
            other: axis_angle_deg(scene, (name, other))
            for other in scene.images.names
            if other != name
        }
        near = [other for other, angle in angles.items() if angle < _NEAR_DEG]
        near = near or [min(angles, key=lambda other: angles[other])]
        picks = rng.permutation(len(near))[:_MAX_NEAR_PAIRS]
        pairs += [(name, near[k]) for k in picks]
    return Pairs.of(pairs)


def _scene_points(
    scene: Scene, near: Pairs, matched: MatchedScene
) -> dict[str, Float64]:
    """The points [N, 3] that each image sees, from two-view triangulation."""
    found: dict[str, list[Float64]] = defaultdict(list)
    for name0, name1 in near:
        index = matched.matches.get(name0, name1).index
        xy0 = matched.features.get(name0).xy[index[:, 0]]
        xy1 = matched.features.get(name1).xy[index[:, 1]]
        points = _triangulate(scene, (name0, name1), (xy0, xy1))
        found[name0].append(points)
        found[name1].append(points)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _triangulate(scene: Scene, pair: Pair, xy: tuple[Float32, Float32]) -> Float64:
    """The middles [N, 3] of the gaps of two rays, of the matches that fit the poses."""
    rays0, rays1 = (
        _rays(scene.cameras[name], points) @ scene.reference[name].rotation
        for name, points in zip(pair, xy, strict=True)
    )
    centre0, centre1 = (scene.reference[name].centre for name in pair)
    cosine = (rays0 * rays1).sum(axis=1)
    wide = cosine < np.cos(np.radians(_MIN_RAY_ANGLE_DEG))
    rays0, rays1, cosine = rays0[wide], rays1[wide], cosine[wide]
    gap = centre1 - centre0
    along0, along1 = rays0 @ gap, rays1 @ gap
    depth0 = (along0 - cosine * along1) / (1 - cosine**2)
    depth1 = (cosine * along0 - along1) / (1 - cosine**2)
    points = (centre0 + depth0[:, None] * rays0 + centre1 + depth1[:, None] * rays1) / 2
    fits = (depth0 > 0) & (depth1 > 0)
    for name, measured in zip(pair, xy, strict=True):
        error = np.linalg.norm(_project(scene, name, points) - measured[wide], axis=1)
        fits &= error <= _MAX_POINT_ERROR_PX  # False for NaN
    return np.asarray(points[fits])


def _rays(camera: pycolmap.Camera, xy: Float32) -> Float64:
    """Unit rays [N, 3] in the camera's axes."""
    flat = np.asarray(camera.cam_from_img(xy.astype(np.float64).reshape(-1, 2)))
    rays = np.c_[flat, np.ones(len(flat))]
    return np.asarray(rays / np.linalg.norm(rays, axis=1, keepdims=True))


def _project(scene: Scene, name: str, points: Float64) -> Float64:
    """COLMAP pixels [N, 2] of world points, NaN behind the camera."""
    pose = scene.reference[name]
    in_cam = (points - pose.centre) @ pose.rotation.T
    seen = np.full((len(points), 2), np.nan)
    front = in_cam[:, 2] > 0
    seen[front] = scene.cameras[name].img_from_cam(in_cam[front])
    return seen


def _overlap(scene: Scene, pair: Pair, points: dict[str, Float64]) -> float:
    """The smaller share of the points of one image in the frame of the other, 0..1."""
    return min(
        _share_in_frame(scene, seen_by, frame, points)
        for seen_by, frame in (pair, pair[::-1])
    )


def _share_in_frame(
    scene: Scene, seen_by: str, frame: str, points: dict[str, Float64]
) -> float:
    if seen_by not in points or not len(points[seen_by]):
        return 0.0
    xy = _project(scene, frame, points[seen_by])
    inside = (xy >= 0) & (xy < scene.images.infos[frame].size)  # False for NaN
    return float(inside.all(axis=1).mean())


# ----------------------------------------------------------------------- relative pose
def pose_error_deg(
    scene: Scene,
    pair: Pair,
    features: Mapping[str, Features],
    index: Int32,
    *,
    seed: int = _SEED,
) -> float:
    """The error of the relative pose from the essential matrix of matches [M, 2].

    Returns:
        The larger of the errors of rotation and of translation direction, degrees; 180
        for a failure.
    """
    name0, name1 = pair
    options = pycolmap.RANSACOptions(max_error=_MAX_ERROR_PX, random_seed=seed)
    found = pycolmap.estimate_essential_matrix(
        features[name0].xy[index[:, 0]].astype(np.float64),
        features[name1].xy[index[:, 1]].astype(np.float64),
        scene.cameras[name0],
        scene.cameras[name1],
        options,
    )
    if found is None:
        return _FAILED_DEG
    pose = found["cam2_from_cam1"]
    truth = relative_poses(
        [scene.reference[name0], scene.reference[name1]], np.array([0]), np.array([1])
    )
    estimate = pose.rotation.matrix()[None], pose.translation[None]
    return float(relative_pose_errors(estimate, truth, np.zeros(3)).max())
