"""Degenerate captures: no rounding error, and no spread of zero, ends a run."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pycolmap
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import (
    ExportConfig,
    OutlierConfig,
    RefinementConfig,
    SeedConfig,
    WorldConfig,
)
from sfmprep.coords import beyond_rounding
from sfmprep.dataset.gravity import find_up
from sfmprep.dataset.initial_points import seed_points
from sfmprep.dataset.world_frame import apply_world, find_world
from sfmprep.errors import ReconstructionError
from sfmprep.evaluation.poses import _centre_errors, evaluate_model
from sfmprep.evaluation.reference import CameraPose
from sfmprep.export.dataset import export_dataset
from sfmprep.export.listing import listing
from sfmprep.geometry.epipolar import errors_by_poses_px
from sfmprep.geometry.normals import surface_shapes
from sfmprep.geometry.triangulate import (
    largest_angles_deg,
    relative_stddev,
    reprojection_errors,
    triangulate,
)
from sfmprep.geometry.uncertainty import (
    PoseUncertainty,
    point_uncertainties,
    pose_uncertainties,
)
from sfmprep.geometry.views import ModelArrays, Observations, Views
from sfmprep.mapping.agreement import VerifiedMatches
from sfmprep.mapping.outliers import find_outliers
from sfmprep.mapping.pose_graph import Edges, edge_errors_deg, fit_poses
from sfmprep.mapping.similarity import find_links, place
from sfmprep.pairing.near_views import near_partners
from sfmprep.pairing.pairs import Pairs
from sfmprep.refinement.refine import refine_keypoints
from sfmprep.report.measure import measure_model
from sfmprep.report.scene import scene_data
from sfmprep.viewer.scene import load_scene
from tests.support.degenerate import (
    LAYOUTS,
    SIZE,
    capture,
    captures,
    cloud_of,
    facing,
    poses_of,
    with_gps,
)

Capture = tuple[pycolmap.Reconstruction, ImageSet]


@pytest.fixture(autouse=True)
def _no_numpy_warning() -> Iterator[None]:
    """A division by zero or a root of a negative number is a failure."""
    pycolmap.logging.minloglevel = int(pycolmap.logging.FATAL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def centres_of(model: pycolmap.Reconstruction) -> np.ndarray:
    return Views.of(model).centres


# --------------------------------------------------------------------- world frame
@given(captures(), st.booleans(), st.booleans())
@settings(max_examples=60)
def test_every_capture_has_a_world_frame(
    made: Capture, centre: bool, unit_scale: bool
) -> None:
    model, images = made
    up = find_up(model, images)
    assert np.linalg.norm(up.direction) == pytest.approx(1)
    assert 0 < up.stddev_deg < math.inf
    config = WorldConfig(centre=centre, unit_scale=unit_scale)
    world = find_world(model, images, config)
    moved = centres_of(apply_world(model, world.world_from_sfm))
    assert np.isfinite(moved).all()
    if unit_scale:
        assert np.linalg.norm(moved, axis=1).max() < 1 + 1e-6


def test_unit_scale_leaves_cameras_on_the_origin_alone() -> None:
    model, images = capture(poses_of("one_spot", 3), cloud_of("none"))
    model.transform(
        pycolmap.Sim3d(0.37, pycolmap.Rotation3d(np.array([1, 2, 3])), [7, 1, -9])
    )
    world = find_world(model, images, WorldConfig(unit_scale=True))
    assert world.world_from_sfm.scale == pytest.approx(1)


def test_cameras_amid_the_points_have_an_up() -> None:
    points = cloud_of("volume")
    poses = [facing(np.median(points, axis=0), (math.sin(k), 1, 0)) for k in range(4)]
    model, images = capture(poses, points)
    assert find_up(model, images).direction @ (0, 0, 1) > 0.9


@given(captures(min_cameras=3), st.booleans())
@settings(max_examples=30)
def test_georeference_gives_metres_or_says_why_not(made: Capture, mast: bool) -> None:
    model, images = made
    number = len(images.names)
    steps = np.arange(number)[:, None] * 10.0
    places = steps * (0, 0, 1) if mast else steps * (3, 4, 0) + (0, 0, 50)
    images = with_gps(images, places)
    one_spot = len(np.unique(centres_of(model).round(9), axis=0)) == 1
    try:
        world = find_world(model, images, WorldConfig(georeference=True))
    except ReconstructionError as error:
        assert "Turn georeferencing off" in str(error)  # noqa: PT017
    else:
        assert not mast
        assert not one_spot
        assert np.isfinite(world.world_from_sfm.matrix()).all()


@pytest.mark.parametrize("layout", ["one_spot", "slider"])
def test_positions_over_one_spot_of_the_map_tell_no_scale(layout: str) -> None:
    model, images = capture(poses_of(layout, 5), cloud_of("volume"))
    heights = np.arange(5)[:, None] * (0, 0, 10.0)
    with pytest.raises(ReconstructionError, match="all on one spot"):
        find_world(model, with_gps(images, heights), WorldConfig(georeference=True))


# ------------------------------------------------------------------------ geometry
@given(captures())
@settings(max_examples=60)
def test_every_capture_can_be_judged(made: Capture) -> None:
    model, _ = made
    arrays = ModelArrays.of(model)
    uncertainties = pose_uncertainties(model, arrays)
    for each in uncertainties.values():
        assert each.rotation_stddev_deg >= 0
        assert each.position_stddev >= 0
    outliers = find_outliers(arrays, OutlierConfig(), uncertainties)
    assert not any("times the size of the capture" in why for why in outliers.values())
    points = point_uncertainties(arrays)
    assert all(stddev >= 0 for stddev in points.values())
    shapes = surface_shapes(arrays)
    np.testing.assert_allclose(np.linalg.norm(shapes.normals, axis=1), 1, atol=1e-5)
    assert (shapes.scales > 0).all()
    angles = largest_angles_deg(arrays.views, arrays.observations, arrays.xyz)
    assert ((angles >= 0) & (angles <= 180)).all()


def test_rays_from_one_spot_meet_at_the_camera_and_tell_no_depth() -> None:
    model, _ = capture(poses_of("turning", 3), cloud_of("none"))
    views = Views.of(model)
    rays = np.array([[0, 1, 0.1], [0.1, 1, 0], [-0.1, 1, 0.05]])
    observations = Observations(
        point=np.zeros(3, np.int64),
        view=np.arange(3),
        keypoint=np.arange(3),
        xy=np.zeros((3, 2)),
        ray=rays / np.linalg.norm(rays, axis=1, keepdims=True),
    )
    xyz = triangulate(views, observations)
    assert np.isfinite(xyz).all()
    assert np.isfinite(largest_angles_deg(views, observations, xyz)).all()
    at_camera = views.centres[:1]
    assert (reprojection_errors(views, observations, at_camera) == np.inf).all()
    assert relative_stddev(views, observations, at_camera, 1.0) >= 0


def test_parallel_rays_are_uncertain_whatever_the_noise() -> None:
    model, _ = capture(poses_of("one_spot", 2), cloud_of("one"))
    assert list(point_uncertainties(ModelArrays.of(model)).values()) == [math.inf]


# ------------------------------------------------------------------ dataset, report
@given(captures())
@settings(max_examples=40)
def test_every_capture_can_be_thinned_and_shown(made: Capture) -> None:
    model, images = made
    arrays = ModelArrays.of(model)
    config = SeedConfig(level="sparse", max_points=100)
    seeded = seed_points(model, arrays, images, None, None, config)
    assert seeded.num_points3D() <= 100
    measured = measure_model(arrays)
    assert 0 <= measured.median_angle_deg <= 180
    assert len(measured.images) == model.num_reg_images()
    scene = scene_data(model, images, level=True, outliers=())
    assert scene["step"] > 0
    assert np.isfinite(scene["frusta"]).all()


@given(captures(min_cameras=2))
@settings(max_examples=40)
def test_every_capture_agrees_with_itself(made: Capture) -> None:
    model, _ = made
    views = Views.of(model)
    truth = {
        name: CameraPose(rotation=rotation, centre=centre)
        for name, rotation, centre in zip(
            views.names, views.rotations, views.centres, strict=True
        )
    }
    found = evaluate_model(model, truth)
    assert found.median_rotation_error_deg < 1e-3
    if len(np.unique(views.centres.round(9), axis=0)) == len(views):
        assert found.max_pair_error_deg < 1e-3  # else a pair has no direction
    if len(views) >= 3:
        assert found.max_centre_error is not None
        assert found.max_centre_error < 1e-6 * np.abs(views.centres).max()


def test_centres_of_which_most_are_one_spot_agree_with_themselves() -> None:
    centres = np.array([[0, 0.005, 1.8]] * 6 + [[0, -0.005, 1.8]] * 3)
    assert _centre_errors(centres, centres).max() < 1e-9


@pytest.mark.parametrize("layout", LAYOUTS)
def test_degenerate_capture_becomes_a_dataset(layout: str, tmp_path: Path) -> None:
    model, images = capture(poses_of(layout, 4), cloud_of("plane"), noise_px=0.3)
    rng = np.random.default_rng(2)
    root = tmp_path / "photographs"
    root.mkdir()
    for name in images.names:
        pixels = rng.integers(0, 256, (*SIZE[::-1], 3), np.uint8)
        Image.fromarray(pixels).save(root / name)
    images = ImageSet.scan(root)
    refine_keypoints(model, ModelArrays.of(model), images, RefinementConfig())
    world = find_world(model, images, WorldConfig())
    out = tmp_path / "out"
    export_dataset(
        apply_world(model, world.world_from_sfm),
        images,
        out,
        ExportConfig(downscales=[]),
        world=world,
        uncertainties=pose_uncertainties(model, ModelArrays.of(model)),
    )
    scene = load_scene(out)
    assert len(scene.cameras) == 4
    assert np.isfinite(scene.xyz).all()
    assert np.isfinite([camera.position for camera in scene.cameras]).all()
    assert np.linalg.norm(scene.up) > 0


def test_cameras_upside_down_to_each_other_are_shown(tmp_path: Path) -> None:
    pose = facing((0, -5, 0), (0, 1, 0))
    model, _ = capture([pose, np.diag([-1.0, -1.0, 1.0]) @ pose], cloud_of("none"))
    model.write(tmp_path)
    assert load_scene(tmp_path).up == (0.0, 0.0, 1.0)


def test_camera_whose_points_have_no_depth_has_no_weight() -> None:
    pose = facing((0, 0, 0), (0, 1, 0))
    model, images = capture([pose, pose], np.array([[0.0, 1.0, 0.0]]))
    model.points3D[1].xyz = np.zeros(3)
    known = PoseUncertainty(rotation_stddev_deg=0.1, position_stddev=1.0)
    names = {name: name for name in images.names}
    described = listing(model, names, {"000.png": known}, num_points=1)["images"]
    assert described["000.png"]["weight"] == pytest.approx(0)


# ------------------------------------------------------------ poses among each other
@given(captures(min_cameras=2))
@settings(max_examples=40)
def test_every_capture_fits_its_own_relative_poses(made: Capture) -> None:
    views = Views.of(made[0])
    pairs = [(a, b) for b in range(len(views)) for a in range(b)]
    rotations, directions = [], []
    for first, second in pairs:
        turn = views.rotations[second] @ views.rotations[first].T
        shift = views.rotations[second] @ (views.centres[first] - views.centres[second])
        length = beyond_rounding(float(np.linalg.norm(shift)), views.centres)
        rotations.append(turn)
        directions.append(shift / length if length else np.array([0.0, 0.0, 1.0]))
    edges = Edges(
        index=np.array(pairs),
        rotations=np.array(rotations),
        directions=np.array(directions),
    )
    errors = edge_errors_deg(edges, views.rotations, views.centres)
    assert np.nanmax(errors, initial=0) < 1e-3
    fitted, centres = fit_poses(edges, views.rotations, views.centres)
    assert np.isfinite(fitted).all()
    assert np.isfinite(centres).all()


@given(captures(min_cameras=2), st.integers(0, 2**16))
@settings(max_examples=40)
def test_errors_from_epipolar_lines_are_lengths(made: Capture, seed: int) -> None:
    views = Views.of(made[0])
    rays = np.random.default_rng(seed).normal(size=(2, 30, 3))
    baseline = views.centres[-1] - views.centres[0]
    if baseline.any():
        rays[:, :3] = baseline
    rays /= np.linalg.norm(rays, axis=2, keepdims=True)
    errors = errors_by_poses_px(views, 0, len(views) - 1, *rays)
    assert (errors >= 0).all()


@given(captures(min_cameras=3))
@settings(max_examples=30)
def test_every_capture_has_near_views(made: Capture) -> None:
    views = Views.of(made[0])
    poses = views.names, views.rotations, views.centres
    pairs = Pairs.of_partners(near_partners(*poses, num_neighbours=2))
    assert {name for pair in pairs for name in pair} == set(views.names)


def test_near_views_of_a_camera_that_only_turns_are_those_beside_it() -> None:
    """Rounding sets its centres apart, which is no distance to measure by."""
    model, _ = capture(poses_of("turning", 9), cloud_of("none"))
    model.transform(
        pycolmap.Sim3d(0.37, pycolmap.Rotation3d(np.array([1, 2, 3])), [700, 1, -900])
    )
    views = Views.of(model)
    assert np.ptp(views.centres, axis=0).max() > 0
    poses = views.names, views.rotations, views.centres
    pairs = Pairs.of_partners(near_partners(*poses, num_neighbours=1))
    numbers = [[int(name.split(".")[0]) for name in pair] for pair in pairs]
    assert all(second - first == 1 for first, second in numbers)


@given(captures(min_cameras=2))
@settings(max_examples=20)
def test_every_capture_can_be_placed_on_itself(made: Capture) -> None:
    """A model of one line or one spot has no similarity, or one that fits."""
    model, _ = made
    ids = sorted(model.reg_image_ids())
    no_pairs = cast("VerifiedMatches", SimpleNamespace(partners={}))
    sides = find_links(model, model, no_pairs)
    cameras = {key: model.cameras[model.images[key].camera_id] for key in ids}
    placed = place(*sides, cameras, max_error_px=2.0, chance=0.05)
    assert placed.num_inliers <= placed.num_links
    if placed.first_from_second is not None:
        assert np.isfinite(placed.first_from_second.matrix()).all()


# ------------------------------------------------------------------------- rounding
@given(
    st.floats(1e-3, 1e6),
    st.lists(st.floats(-1, 1), min_size=3, max_size=3),
    st.floats(1e-6, 1),
)
def test_rounding_is_no_length_and_a_length_is_no_rounding(
    size: float, place: list[float], share: float
) -> None:
    coordinates = size * np.array([[*place], [1, 1, 1]])
    turned = coordinates @ np.array([[0.6, -0.8, 0], [0.8, 0.6, 0], [0, 0, 1]])
    back = turned @ np.linalg.inv([[0.6, -0.8, 0], [0.8, 0.6, 0], [0, 0, 1]])
    rounded = float(np.linalg.norm(back - coordinates))
    assert beyond_rounding(rounded, coordinates) == 0
    assert beyond_rounding(share * size, coordinates) == share * size
    assert beyond_rounding(1.0, np.empty((0, 3))) == 1.0
