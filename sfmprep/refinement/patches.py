"""Patches of one surface point from all photographs that see it, in one common frame.

The frame of a point is its tangent plane as one of its views, the reference, sees it:
one unit is one pixel there. Each view has a 2x2 matrix that takes steps in that frame
to steps in its pixels, the local part of the homography of the plane. "Pixels" are
those of the image as loaded, upright and reduced, in COLMAP's convention.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.ndimage import map_coordinates, spline_filter

from sfmprep import coords
from sfmprep.capture.batches import fit_size
from sfmprep.capture.image_file import ImageInfo
from sfmprep.geometry.views import Observations, Views
from sfmprep.types import Bytes, Float32, Float64, Index, Mask

_MIN_COSINE = 0.35  # between normal and reference ray; a flatter plane is not believed
# Of a view's warp; beyond, two views show different things.
_STRETCH_RANGE = (0.25, 4.0)
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedFrame:
    """How COLMAP pixels of a file become those of its upright, reduced image."""

    matrix: Float64  # [2, 2]
    file_centre: Float64  # [2]
    centre: Float64  # [2]

    @staticmethod
    def of(info: ImageInfo, max_size: int | None) -> LoadedFrame:
        """The frame of an image that `load_batches` loads with this `max_size`."""
        size = coords.upright_size(fit_size(info.size, max_size), info.orientation)
        upright = np.array(coords.upright_size(info.size, info.orientation))
        turn = coords.upright_matrix(info.orientation)
        return LoadedFrame(
            matrix=(np.array(size) / upright)[:, None] * turn,
            file_centre=np.array(info.size) / 2,
            centre=np.array(size) / 2,
        )

    @property
    def scale(self) -> float:
        """Pixels as loaded for one pixel of the file."""
        return float(np.sqrt(abs(np.linalg.det(self.matrix))))

    def loaded_xy(self, xy: Float64) -> Float64:
        """Maps pixels [N, 2] of the file to those as loaded."""
        loaded: Float64 = (xy - self.file_centre) @ self.matrix.T + self.centre
        return loaded

    def file_steps(self, steps: Float64) -> Float64:
        """Maps steps [N, 2] in pixels as loaded to steps in pixels of the file."""
        turned: Float64 = steps @ np.linalg.inv(self.matrix).T
        return turned


# ----------------------------------------------------------------------------- warps
def reference_rows(observations: Observations, resolution: Float64) -> Index:
    """The observation [N] of every point that the others resemble most.

    It looks from near the mean direction, at near the median `resolution` [M], which is
    in pixels for a unit of the world.
    """
    starts, point = observations.starts, observations.point
    mean = np.add.reduceat(observations.ray, starts, axis=0)
    mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-300)
    cosine = np.einsum("mi,mi->m", observations.ray, mean[point])
    logs = np.log(np.maximum(resolution, 1e-300))
    middle = np.lexsort((logs, point))[starts + observations.counts() // 2]
    cost = np.arccos(np.clip(cosine, -1, 1)) + np.abs(logs - logs[middle][point])
    rows: Index = np.lexsort((cost, point))[starts]
    return rows


def plane_warps(
    views: Views,
    frames: dict[int, LoadedFrame],
    observations: Observations,
    xyz: Float64,
    normals: Float64 | None,
    reference: Index,
) -> Float64:
    """How the plane at each point looks in each view.

    Args:
        views: The cameras.
        frames: Of each view that observes, by its row.
        observations: Of N points.
        xyz: [N, 3] the points.
        normals: [N, 3] unit; None, and where they are far from the ray of the
            reference, for planes that face the reference.
        reference: [N] rows of observations.

    Returns:
        [M, 2, 2] the steps in pixels that belong to steps in the point's frame; NaN
        where a view does not see the plane from the same side, or much smaller or
        larger.
    """
    facing = -observations.ray[reference]
    if normals is not None:
        steep = np.abs(np.einsum("ni,ni->n", normals, facing)) < _MIN_COSINE
        facing = np.where(steep[:, None], facing, normals)
    steps = _steps(views, frames, observations, xyz, _tangents(facing))
    with np.errstate(invalid="ignore"):
        flat = np.abs(np.linalg.det(steps[reference])) < 1e-12
        inverse = np.full((len(reference), 2, 2), np.nan)
        seen = ~flat & np.isfinite(steps[reference]).all(axis=(1, 2))
        inverse[seen] = np.linalg.inv(steps[reference][seen])
        warps: Float64 = steps @ inverse[observations.point]
        stretch = np.linalg.norm(warps, axis=1)
        usable = (np.linalg.det(warps) > _STRETCH_RANGE[0] ** 2) & (
            stretch.max(axis=1) < _STRETCH_RANGE[1]
        )
    warps[~usable] = np.nan
    return warps


def _tangents(normals: Float64) -> Float64:
    """Two unit axes [N, 3, 2] across each normal."""
    aside = np.eye(3)[np.abs(normals).argmin(axis=1)]
    first = np.cross(normals, aside)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    return np.stack((first, np.cross(normals, first)), axis=2)


def _steps(
    views: Views,
    frames: dict[int, LoadedFrame],
    observations: Observations,
    xyz: Float64,
    axes: Float64,
) -> Float64:
    """Pixels as loaded [M, 2, 2] for a unit of the world along two axes of each point.

    By differences over about a pixel, so that any camera model will do.
    """
    steps = np.full((len(observations), 2, 2), np.nan)
    for view, rows in enumerate(observations.by_view(len(views))):
        camera, turn = views.cameras[view], views.rotations[view]
        points = observations.point[rows]
        places = (xyz[points] - views.centres[view]) @ turn.T
        step = np.maximum(places[:, 2], 0) / views.focals[view]
        rows, points = rows[step > 0], points[step > 0]
        places, step = places[step > 0], step[step > 0, None]
        for k in (0, 1) if len(rows) else ():
            offset = step * (axes[points, :, k] @ turn.T)
            ends = [
                np.asarray(camera.img_from_cam(places + s * offset)) for s in (1, -1)
            ]
            moved = (ends[0] - ends[1]) / (2 * step)
            steps[rows, :, k] = moved @ frames[view].matrix.T
    return steps


# -------------------------------------------------------------------------- sampling
def sample_patches(
    pixels: Float32, xy: Float64, warps: Float64, radius: int
) -> tuple[Bytes, Mask]:
    """Samples square patches of an image, each through its own 2x2 matrix.

    Interpolated by cubic splines (Unser, IEEE SPM 1999), since what is sampled here is
    compared at a hundredth of a pixel. Warps that reduce take from a reduced copy.

    Args:
        pixels: [3, H, W] RGB in 0..1.
        xy: [N, 2] the centres, COLMAP pixels.
        warps: [N, 2, 2] from steps in the patch to steps in the image; NaN allowed.
        radius: Patches are 2 radius + 1 wide.

    Returns:
        [N, S, S] uint8 brightness, and which lie inside of the image [N]; the others
        are undefined.
    """
    side = np.arange(-radius, radius + 1)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    height, width = pixels.shape[1:]
    corners = grid[[0, 2 * radius, -1 - 2 * radius, -1]]
    ends = xy[:, None] + corners @ warps.swapaxes(1, 2)
    within = (ends >= 0.5) & (ends <= (width - 0.5, height - 0.5))
    inside = np.asarray(within.all(axis=(1, 2)), bool)
    patches = np.zeros((len(xy), len(side), len(side)), np.uint8)
    shrink = np.sqrt(np.abs(np.linalg.det(np.where(inside[:, None, None], warps, 1))))
    levels = np.rint(np.log2(np.maximum(shrink, 1))).astype(int)
    grey = np.tensordot(_LUMA, pixels * np.float32(255), 1)
    for level in np.unique(levels[inside]).tolist():
        rows = np.flatnonzero(inside & (levels == level))
        size = (max(width >> level, 1), max(height >> level, 1))
        reduced = (
            cv2.resize(grey, size, interpolation=cv2.INTER_AREA) if level else grey
        )
        ratio = np.array(size) / (width, height)
        places = (xy[rows, None] + grid @ warps[rows].swapaxes(1, 2)) * ratio - 0.5
        values = map_coordinates(
            spline_filter(reduced, order=3, output=np.float32),
            places[..., ::-1].reshape(-1, 2).T,
            order=3,
            prefilter=False,
            mode="mirror",
            output=np.float32,
        )
        rounded = np.rint(values).clip(0, 255).astype(np.uint8)
        patches[rows] = rounded.reshape(len(rows), len(side), len(side))
    return patches, inside
