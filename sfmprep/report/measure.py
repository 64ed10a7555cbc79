"""What can be measured in a model: residuals, angles, tracks, coverage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pycolmap
from numpy.typing import NDArray

from sfmprep.geometry.triangulate import largest_angles_deg
from sfmprep.geometry.views import ModelArrays
from sfmprep.report.schema import CameraReport, Histogram, ResidualField, Residuals
from sfmprep.types import Float64, Index

COVERAGE_GRID = 10
_FIELD_CELLS = 16  # along the longer side
_MIN_IN_CELL = 30  # observations, for a mean that says something
_MAX_SAMPLED_ERRORS = 2_000_000
_MAX_SAMPLED_POINTS = 20_000
_ERROR_EDGES = [*np.round(np.arange(0, 4.01, 0.1), 1).tolist()]
_ANGLE_EDGES = [0.0, 1, 2, 3, 4, 6, 8, 10, 15, 20, 25, 30, 40, 50, 60, 90, 180]
_TRACK_EDGES = [*map(float, range(2, 21)), 25.0, 30, 40, 60, 100]


@dataclass(frozen=True, kw_only=True)
class ImageMeasure:
    """What one registered image sees of the model."""

    camera_id: int
    num_points: int
    mean_error_px: float | None
    coverage: float  # 0..1, share of the cells of a grid with a point


@dataclass(frozen=True, kw_only=True)
class ModelMeasure:
    """What `measure_model` finds."""

    images: dict[str, ImageMeasure]
    cameras: list[CameraReport]
    residuals: Residuals | None
    track_lengths: Histogram
    angles_deg: Histogram
    median_angle_deg: float


@dataclass
class _Field:
    """Sums of residuals over the cells of one camera's image plane."""

    shape: tuple[int, int]  # rows, columns
    count: Index = field(init=False)
    sums: Float64 = field(init=False)  # x, y, and their squares together
    num_images: int = 0

    def __post_init__(self) -> None:
        cells = self.shape[0] * self.shape[1]
        self.count, self.sums = np.zeros(cells, np.int64), np.zeros((cells, 3))

    def add(self, xy: Float64, size: tuple[int, int], residual: Float64) -> None:
        rows, columns = self.shape
        cell = _cells(xy, size, columns, rows)
        self.count += np.bincount(cell, minlength=len(self.count))
        values = np.column_stack([residual, (residual**2).sum(axis=1)])
        for k in range(3):
            self.sums[:, k] += np.bincount(cell, values[:, k], len(self.count))

    def report(self) -> ResidualField:
        count = np.maximum(self.count, 1)[:, None]
        mean = self.sums[:, :2] / count
        squared = (mean**2).sum(axis=1)
        by_chance = (self.sums[:, 2] / count[:, 0] - squared) / np.maximum(
            self.count - 1, 1
        )
        full = self.count >= _MIN_IN_CELL
        left = np.maximum(squared - by_chance, 0)[full]
        weight = self.count[full]
        leftover = (left @ weight / weight.sum()) ** 0.5 if full.any() else 0.0
        return ResidualField(
            num_columns=self.shape[1],
            num_rows=self.shape[0],
            mean_px=[(round(float(x), 3), round(float(y), 3)) for x, y in mean],
            num_observations=self.count.tolist(),
            leftover_px=round(float(leftover), 3),
        )


def measure_model(arrays: ModelArrays) -> ModelMeasure:
    """Measures a model; empty histograms where it has no points."""
    views, observations = arrays.views, arrays.observations
    measures: dict[str, ImageMeasure] = {}
    fields: dict[int, _Field] = {}
    cameras = {camera.camera_id: camera for camera in views.cameras}
    sampled: list[Float64] = []
    step = -(-len(observations) // _MAX_SAMPLED_ERRORS) or 1
    for view, rows in enumerate(observations.by_view(len(views))):
        camera = views.cameras[view]
        size = camera.width, camera.height
        field = fields.setdefault(camera.camera_id, _Field(_field_shape(size)))
        field.num_images += 1
        xy = observations.xy[rows]
        offsets = arrays.xyz[observations.point[rows]] - views.centres[view]
        residual = xy - _projected(camera, offsets @ views.rotations[view].T)
        field.add(xy, size, residual)
        errors = np.linalg.norm(residual, axis=1)
        sampled.append(errors[::step])
        cells = _cells(xy, size, COVERAGE_GRID, COVERAGE_GRID)
        measures[views.names[view]] = ImageMeasure(
            camera_id=camera.camera_id,
            num_points=len(xy),
            mean_error_px=float(errors.mean()) if len(errors) else None,
            coverage=len(np.unique(cells)) / COVERAGE_GRID**2,
        )
    every = max(len(arrays.xyz) // _MAX_SAMPLED_POINTS, 1)
    some = observations.select(observations.point % every == 0)
    angles = largest_angles_deg(views, some, arrays.xyz[::every])
    return ModelMeasure(
        images=measures,
        cameras=[_camera_report(cameras[k], fields[k]) for k in sorted(fields)],
        residuals=_residuals(np.concatenate(sampled)) if len(observations) else None,
        track_lengths=_histogram(observations.counts(), _TRACK_EDGES),
        angles_deg=_histogram(angles, _ANGLE_EDGES),
        median_angle_deg=float(np.median(angles)) if len(angles) else 0.0,
    )


def _projected(camera: pycolmap.Camera, in_camera: Float64) -> Float64:
    # pycolmap's stubs know only the overload for one point
    return np.asarray(camera.img_from_cam(in_camera, check_cheirality=False))


def _field_shape(size: tuple[int, int]) -> tuple[int, int]:
    longer = max(size)
    columns, rows = (max(1, round(_FIELD_CELLS * side / longer)) for side in size)
    return rows, columns


def _cells(xy: Float64, size: tuple[int, int], columns: int, rows: int) -> Index:
    """The cell of a grid, row by row, in which each place lies."""
    grid = np.array([columns, rows])
    cell = np.clip((xy / np.array(size) * grid).astype(np.int64), 0, grid - 1)
    return np.asarray(cell[:, 1] * columns + cell[:, 0], np.int64)


def _histogram(values: NDArray[Any], edges: list[float]) -> Histogram:
    counts, _ = np.histogram(np.minimum(values, edges[-1]), edges)
    return Histogram(edges=edges, counts=counts.tolist())


def _residuals(errors: Float64) -> Residuals:
    median, p90, p99 = np.percentile(errors, (50, 90, 99)).tolist()
    return Residuals(
        mean_px=float(errors.mean()),
        median_px=median,
        p90_px=p90,
        p99_px=p99,
        histogram=_histogram(errors, _ERROR_EDGES),
    )


def _camera_report(camera: pycolmap.Camera, field: _Field) -> CameraReport:
    names = [name.strip() for name in camera.params_info.split(",")]
    focal = camera.mean_focal_length()
    longer = max(camera.width, camera.height)
    return CameraReport(
        camera_id=camera.camera_id,
        model=camera.model.name,
        width=camera.width,
        height=camera.height,
        parameters=dict(zip(names, map(float, camera.params), strict=True)),
        num_images=field.num_images,
        focal_length_px=focal,
        field_of_view_deg=float(np.degrees(2 * np.arctan2(longer / 2, focal))),
        principal_point_offset_px=(
            camera.principal_point_x - camera.width / 2,
            camera.principal_point_y - camera.height / 2,
        ),
        residuals=field.report(),
    )
