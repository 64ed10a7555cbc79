"""The solver of large adjustments."""

from __future__ import annotations

import itertools

import numpy as np
import pycolmap
import pytest

from sfmprep.mapping import solver
from sfmprep.mapping.solver import choose_solver, factor_bytes, least_residuals


def model(num_images: int, tracks: list[tuple[int, ...]]) -> pycolmap.Reconstruction:
    """Images of which each keypoint is a point that the images of a track see."""
    made = pycolmap.Reconstruction()
    camera = pycolmap.Camera.create_from_model_name(1, "SIMPLE_PINHOLE", 100, 100, 100)
    made.add_camera_with_trivial_rig(camera)
    rows: list[int] = [0] * num_images
    for key in range(num_images):
        count = sum(key in track for track in tracks)
        image = pycolmap.Image(
            name=f"{key}.jpg",
            keypoints=np.zeros((count, 2)),
            camera_id=1,
            image_id=key + 1,
        )
        made.add_image_with_trivial_frame(image, pycolmap.Rigid3d())
    for seen in tracks:
        track = pycolmap.Track()
        for key in seen:
            track.add_element(key + 1, rows[key])
            rows[key] += 1
        made.add_point3D(np.zeros(3), track)
    return made


def test_a_row_of_images_fills_nothing_and_all_with_all_fills_everything() -> None:
    row = model(40, [(k, k + 1) for k in range(39)])
    assert factor_bytes(row) == (40 + 39) * 288  # the diagonal and one beside it
    every = model(12, list(itertools.combinations(range(12), 2)))
    assert factor_bytes(every) == 12 * 13 // 2 * 288
    assert factor_bytes(model(3, [])) == 0


@pytest.mark.parametrize(
    ("cores", "least"), [(1, 5_000), (2, 10_000), (10, 50_000), (64, 50_000)]
)
def test_every_core_has_residuals_enough(
    cores: int, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solver, "num_cores", lambda: cores)
    assert least_residuals() == least
    options = pycolmap.BundleAdjustmentOptions()
    choose_solver(options, model(2, [(0, 1)]))
    assert options.ceres.min_num_residuals_for_cpu_multi_threading == least


def test_what_sees_little_in_common_is_solved_directly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    row = model(40, [(k, k + 1) for k in range(39)])
    options = pycolmap.BundleAdjustmentOptions()
    choose_solver(options, row)
    assert options.ceres.max_num_images_direct_sparse_cpu_solver == 1000  # as it was
    options.ceres.max_num_images_direct_sparse_cpu_solver = 20
    choose_solver(options, row)
    assert options.ceres.max_num_images_direct_sparse_cpu_solver == 40

    monkeypatch.setattr(solver, "_MOST_BYTES", 40 * 288)
    options.ceres.max_num_images_direct_sparse_cpu_solver = 20
    with caplog.at_level("INFO", "sfmprep.mapping"):
        choose_solver(options, row)
    assert options.ceres.max_num_images_direct_sparse_cpu_solver == 20
    assert caplog.messages == ["40 images see too much in common to be solved directly"]
    # of what is dense already nothing is factored
    every = model(12, list(itertools.combinations(range(12), 2)))
    monkeypatch.setattr(solver, "_MOST_BYTES", 60 * 288)
    assert factor_bytes(every) is None
