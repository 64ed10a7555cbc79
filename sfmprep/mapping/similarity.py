"""The similarity between the frames of two models, from what both see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pycolmap
from scipy.optimize import least_squares

from sfmprep.geometry.views import Views
from sfmprep.mapping.agreement import VerifiedMatches
from sfmprep.mapping.chance import needed_inliers
from sfmprep.types import Float64, Index, Mask

_SAMPLES = 1000
_BLOCK = 50  # samples that are judged at once
_MAX_JUDGED = 1500  # links that judge a sample
_MAX_POSES = 10  # views of each model that are placed in the other one
_MIN_FOR_POSE = 6
_HELD_OUT = 3  # one track in so many
_MIN_SHARE_AGREEING = 0.5  # of the tracks held out
MIN_LINKS = 12


@dataclass(frozen=True, kw_only=True, eq=False)
class Side:
    """What one of two models has of the points that both have; rows are links."""

    point: Index  # [L] ids
    xyz: Float64  # [L, 3]
    centre: Float64  # [L, 3] of the view that sees it
    ray: Float64  # [L, 3] unit, world axes of this model
    focal: Float64  # [L] pixels
    xy: Float64  # [L, 2]
    image: Index  # [L] ids
    rotation: Float64  # [L, 3, 3] camera from world

    def __len__(self) -> int:
        return len(self.point)

    def select(self, rows: Mask | Index) -> Side:
        """Some of the links."""
        return Side(**{name: value[rows] for name, value in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Placed:
    """How the frame of a second model lies in that of a first."""

    first_from_second: pycolmap.Sim3d | None  # None: told by too little, contradicted
    num_links: int
    num_inliers: int  # of the links that were not held out
    num_held_out: int
    num_agreeing: int  # of those held out


def find_links(
    first: pycolmap.Reconstruction,
    second: pycolmap.Reconstruction,
    matches: VerifiedMatches,
) -> tuple[Side, Side]:
    """The points of two models that are one, by common images and verified pairs.

    Args:
        first: Ids of images are those of the database in both models.
        second: Likewise.
        matches: Of that database.

    Returns:
        One row for each two points that are linked.
    """
    # of models of a large capture only the images at the seam are read
    seen0, seen1 = (_points_seen(model) for model in (first, second))
    others = set(second.reg_image_ids())
    found: dict[tuple[int, int], tuple[int, int, int, int]] = {}
    for id0 in sorted(first.reg_image_ids()):
        for id1, _ in [(id0, 0), *sorted(matches.partners.get(id0, ()))]:
            if id1 not in others:
                continue
            if id0 == id1:
                rows = np.arange(len(seen0(id0)))
                index = np.stack([rows, rows], axis=1)
            else:
                low = matches.between(*sorted((id0, id1)))
                index = low if id0 < id1 else low[:, ::-1]
            points = seen0(id0)[index[:, 0]], seen1(id1)[index[:, 1]]
            both = np.flatnonzero((points[0] >= 0) & (points[1] >= 0))
            for row in both.tolist():
                key = int(points[0][row]), int(points[1][row])
                found.setdefault(
                    key, (id0, int(index[row, 0]), id1, int(index[row, 1]))
                )
    pairs = np.array(list(found), np.int64).reshape(-1, 2)
    seen = np.array(list(found.values()), np.int64).reshape(-1, 4)
    return (
        _side(first, pairs[:, 0], seen[:, 0], seen[:, 1]),
        _side(second, pairs[:, 1], seen[:, 2], seen[:, 3]),
    )


def _points_seen(model: pycolmap.Reconstruction) -> Callable[[int], Index]:
    """Tells, for each keypoint of an image, the id of the point that it sees, or -1."""

    @cache
    def seen(image_id: int) -> Index:
        points = model.images[image_id].points2D
        ids = [p.point3D_id if p.has_point3D() else -1 for p in points]
        return np.array(ids, np.int64)

    return seen


def _side(
    model: pycolmap.Reconstruction, point: Index, image: Index, keypoint: Index
) -> Side:
    views = Views.of(model)
    row = np.searchsorted(views.ids, image)
    xy = np.array(
        [
            model.images[i].points2D[k].xy
            for i, k in zip(image.tolist(), keypoint.tolist(), strict=True)
        ],
        np.float64,
    ).reshape(-1, 2)
    ray = np.empty((len(point), 3))
    for view in np.unique(row).tolist():
        ray[row == view] = views.rays(view, xy[row == view])
    xyz = [model.points3D[key].xyz for key in point.tolist()]
    return Side(
        point=point,
        xyz=np.array(xyz, np.float64).reshape(-1, 3),
        centre=views.centres[row],
        ray=ray,
        focal=views.focals[row],
        xy=xy,
        image=image,
        rotation=views.rotations[row],
    )


def place(
    first: Side,
    second: Side,
    cameras: dict[int, pycolmap.Camera],
    *,
    max_error_px: float,
    chance: float,
    seed: int = 0,
) -> Placed:
    """Finds how a second model lies in the frame of a first, and checks it.

    A third of the tracks of the first model is held out. Candidates are similarities of
    three links, and of single views that the points of the other model place; the best
    has most links whose points lie near their keypoints in both directions. It counts
    where these are more than chance gives, and half of those held out agree.

    Args:
        first: Of `find_links`.
        second: Likewise.
        cameras: By id of image, for both.
        max_error_px: How far a point may be from its keypoint, pixels of the file.
        chance: That a wrong link fits, 0..1.
        seed: Of what is held out and of the samples.
    """
    rng = np.random.default_rng(seed)
    tracks = np.unique(first.point)
    out = np.isin(first.point, tracks[rng.permutation(len(tracks))[::_HELD_OUT]])
    told, held = ((first.select(rows), second.select(rows)) for rows in (~out, out))
    best, count = None, 0
    if len(told[0]) >= MIN_LINKS // 2:
        best, count = _best(told, cameras, max_error_px, rng)
    agreeing = 0 if best is None else int(_fits(best, *held, max_error_px).sum())
    needed = needed_inliers(len(told[0]), chance, solutions=1)
    trusted = (
        best is not None
        and needed is not None
        and count >= max(needed, MIN_LINKS // 2)
        and len(held[0]) > 0
        and agreeing >= _MIN_SHARE_AGREEING * len(held[0])
    )
    return Placed(
        first_from_second=_sim3d(best) if trusted and best is not None else None,
        num_links=len(first),
        num_inliers=count,
        num_held_out=len(held[0]),
        num_agreeing=agreeing,
    )


# A similarity is an array of [3, 5]: rotation, shift and, in the last column, scale.
def _sim3d(matrix: Float64) -> pycolmap.Sim3d:
    return pycolmap.Sim3d(
        matrix[0, 4], pycolmap.Rotation3d(matrix[:, :3]), matrix[:, 3]
    )


def _errors(matrices: Float64, first: Side, second: Side) -> Float64:
    """Larger of both distances of points from keypoints [K, L], pixels."""
    rotation, shift = matrices[:, :, :3], matrices[:, None, :, 3]
    scale = matrices[:, 0, 4][:, None, None]
    there = scale * (second.xyz @ rotation.swapaxes(1, 2)) + shift
    back = ((first.xyz[None] - shift) / scale) @ rotation
    return np.maximum(
        _angles(there - first.centre, first.ray) * first.focal,
        _angles(back - second.centre, second.ray) * second.focal,
    )


def _angles(towards: Float64, rays: Float64) -> Float64:
    sine = np.linalg.norm(np.cross(towards, rays), axis=-1)
    return np.asarray(np.arctan2(sine, np.einsum("kli,li->kl", towards, rays)))


def _fits(matrix: Float64, first: Side, second: Side, max_error_px: float) -> Mask:
    fits: Mask = _errors(matrix[None], first, second)[0] <= max_error_px
    return fits


def _best(
    told: tuple[Side, Side],
    cameras: dict[int, pycolmap.Camera],
    max_error_px: float,
    rng: np.random.Generator,
) -> tuple[Float64 | None, int]:
    """The similarity with most inliers, adjusted to them, and their number."""
    first, second = told
    judges = rng.permutation(len(first))[:_MAX_JUDGED]
    judging = first.select(judges), second.select(judges)
    samples = rng.random((_SAMPLES, len(judges))).argpartition(2, axis=1)[:, :3]
    candidates = np.concatenate(
        [
            _of_points(judging[0].xyz[samples], judging[1].xyz[samples]),
            *_of_views(first, second, cameras, max_error_px),
        ]
    )
    candidates = candidates[np.isfinite(candidates).all(axis=(1, 2))]
    counts = [
        (_errors(block, *judging) <= max_error_px).sum(axis=1)
        for block in np.array_split(candidates, len(candidates) // _BLOCK + 1)
        if len(block)
    ]
    if not counts:
        return None, 0
    order = np.argsort(-np.concatenate(counts), kind="stable")[:5]
    found: tuple[Float64 | None, int] = (None, 0)
    for row in order.tolist():
        matrix = candidates[row]
        for _ in range(3):
            fits = _fits(matrix, first, second, max_error_px)
            if fits.sum() < 3:
                break
            matrix = _adjusted(matrix, first.select(fits), second.select(fits))
        count = int(_fits(matrix, first, second, max_error_px).sum())
        if count > found[1]:
            found = (matrix, count)
    return found


def _of_points(target: Float64, source: Float64) -> Float64:
    """Similarities [K, 3, 5] of points [K, N, 3] (Umeyama, TPAMI 13, 1991)."""
    means = target.mean(axis=1, keepdims=True), source.mean(axis=1, keepdims=True)
    out, into = target - means[0], source - means[1]
    u, values, vt = np.linalg.svd(out.swapaxes(1, 2) @ into)
    signs = np.ones_like(values)
    signs[:, 2] = np.sign(np.linalg.det(u @ vt))
    rotation = (u * signs[:, None]) @ vt
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = (values * signs).sum(axis=1) / (into**2).sum(axis=(1, 2))
    scale[scale <= 0] = np.nan
    shift = means[0][:, 0] - scale[:, None] * np.einsum(
        "kij,kj->ki", rotation, means[1][:, 0]
    )
    return _stacked(rotation, shift, scale)


def _stacked(rotation: Float64, shift: Float64, scale: Float64) -> Float64:
    scales = np.repeat(scale[:, None, None], 3, axis=1)
    return np.concatenate([rotation, shift[:, :, None], scales], axis=2)


def _of_views(
    first: Side,
    second: Side,
    cameras: dict[int, pycolmap.Camera],
    max_error_px: float,
) -> list[Float64]:
    """Similarities of views of one model that the points of the other place."""
    found = []
    for side, other, swapped in ((second, first, False), (first, second, True)):
        ids, counts = np.unique(side.image, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:_MAX_POSES]
        for key in ids[order[counts[order] >= _MIN_FOR_POSE]].tolist():
            view = side.image == key
            matrix = _of_view(
                *(side.select(view), other.xyz[view], cameras[key], max_error_px)
            )
            if matrix is not None:
                found.append((_inverse(matrix) if swapped else matrix)[None])
    return found


def _of_view(
    view: Side, xyz: Float64, camera: pycolmap.Camera, max_error_px: float
) -> Float64 | None:
    """The frame of a view from its links, whose points are given in the other frame."""
    options = pycolmap.AbsolutePoseEstimationOptions()
    options.ransac.max_error = max_error_px
    options.ransac.random_seed = 0
    pose = pycolmap.estimate_absolute_pose(view.xy, xyz, camera, options)
    if pose is None or pose["num_inliers"] < _MIN_FOR_POSE:
        return None
    inside = np.asarray(pose["inlier_mask"], bool)
    placed = np.asarray(pose["cam_from_world"].matrix())
    centre = -placed[:, :3].T @ placed[:, 3]
    there = np.linalg.norm(xyz[inside] - centre, axis=1)
    here = np.linalg.norm(view.xyz[inside] - view.centre[0], axis=1)
    scale = float(np.median(there / np.maximum(here, 1e-12)))
    rotation = placed[:, :3].T @ view.rotation[0]
    shift = centre - scale * rotation @ view.centre[0]
    return _one(rotation, shift, scale)


def _one(rotation: Float64, shift: Float64, scale: float) -> Float64:
    matrix: Float64 = _stacked(rotation[None], shift[None], np.array([scale]))[0]
    return matrix


def _inverse(matrix: Float64) -> Float64:
    rotation, scale = matrix[:, :3].T, 1 / matrix[0, 4]
    return _one(rotation, -scale * rotation @ matrix[:, 3], scale)


def _adjusted(matrix: Float64, first: Side, second: Side) -> Float64:
    """The similarity that puts linked points nearest to the rays of both models."""

    def moved(step: Float64) -> Float64:
        turn = np.asarray(pycolmap.Rotation3d(step[:3]).matrix())
        scale = matrix[0, 4] * np.exp(step[6])
        middle = second.xyz.mean(axis=0)
        rotation = turn @ matrix[:, :3]
        target = matrix[0, 4] * matrix[:, :3] @ middle + matrix[:, 3]
        shift = target + size * step[3:6] - scale * rotation @ middle
        return _one(rotation, shift, float(scale))

    def residuals(step: Float64) -> Float64:
        new = moved(step)
        there = new[0, 4] * second.xyz @ new[:, :3].T + new[:, 3] - first.centre
        back = (first.xyz - new[:, 3]) @ new[:, :3] / new[0, 4] - second.centre
        off = [
            np.cross(ray / np.linalg.norm(ray, axis=1)[:, None], side.ray)
            * side.focal[:, None]
            for ray, side in ((there, first), (back, second))
        ]
        return np.concatenate(off).ravel()

    size = float(np.median(np.linalg.norm(first.xyz - first.centre, axis=1)))
    found = least_squares(residuals, np.zeros(7), loss="soft_l1", max_nfev=30)
    return moved(np.asarray(found.x))
