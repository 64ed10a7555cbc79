"""Seed clouds of a wall that is known: what is found, what is not, what never moves."""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image
from scipy.optimize import least_squares

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import SeedConfig
from sfmprep.dataset.initial_points import seed_points
from sfmprep.errors import ImageError, StoreError
from sfmprep.geometry.normals import surface_shapes
from sfmprep.geometry.tracks import Keypoints, Links, consistent_links, link_tracks
from sfmprep.geometry.triangulate import relative_stddev, triangulate
from sfmprep.geometry.views import ModelArrays
from sfmprep.stores.tables import FeatureStore, MatchStore
from sfmprep.types import Features, Matches

SIZE = (640, 480)
NOISE_PX = 0.3
NUM_VIEWS, NUM_MAPPED, NUM_PAIRED, NUM_GHOSTS, NUM_LONE = 6, 400, 300, 100, 60
MADE = {"config": {"type": "test"}, "weights_sha256": None}
SEMI = SeedConfig(level="semi")


@dataclass
class Scene:
    """A curved wall; some of its points are mapped, some only matched, in two views."""

    model: pycolmap.Reconstruction
    images: ImageSet
    features: FeatureStore
    matches: MatchStore
    truth: dict[tuple[str, int], np.ndarray]  # by image and keypoint; wrong ones not

    def seed(
        self, config: SeedConfig = SEMI, scale: float | None = None
    ) -> pycolmap.Reconstruction:
        return seed_points(
            *(self.model, ModelArrays.of(self.model), self.images),
            *(self.features, self.matches, config),
            scales=scale and dict.fromkeys(self.images.names, scale),
        )


def wall(random: np.random.Generator, count: int) -> np.ndarray:
    xy = random.uniform((-2.2, -1.5), (2.2, 1.5), (count, 2))
    return np.c_[xy, 5 + 0.3 * np.sin(2 * xy[:, 0])]


def photograph() -> np.ndarray:
    """Red grows to the right, green downwards."""
    x, y = np.meshgrid(np.arange(SIZE[0]) + 0.5, np.arange(SIZE[1]) + 0.5)
    return np.stack((x / 3, y / 2, 0 * x + 90), axis=-1).round().astype(np.uint8)


def build(folder: Path, *, wrong_share: float = 1.0) -> Scene:
    """`wrong_share`: wrong matches for every right one of points with two views."""
    random = np.random.default_rng(4)
    camera = pycolmap.Camera.create_from_model_name(1, "SIMPLE_RADIAL", 500.0, *SIZE)
    camera.params = [500.0, 320.0, 240.0, 0.03]
    # Ghosts are what wrong matches along the epipolar line give: points at any depth.
    ghosts = wall(random, NUM_GHOSTS)
    ghosts *= random.uniform(0.45, 2.2, (NUM_GHOSTS, 1))
    points = np.concatenate((wall(random, NUM_MAPPED + NUM_PAIRED), ghosts))
    num_true = NUM_MAPPED + NUM_PAIRED
    views: dict[int, list[int]] = {}  # the views of every point
    for p in range(len(points)):
        count = int(random.integers(3, NUM_VIEWS)) if p < NUM_MAPPED else 2
        views[p] = sorted(random.choice(NUM_VIEWS, count, replace=False).tolist())
    names = [f"a/{view}.png" for view in range(NUM_VIEWS)]
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(camera)
    (folder / "images" / "a").mkdir(parents=True)
    keypoint: dict[tuple[int, int], int] = {}  # of (point, view)
    truth: dict[tuple[str, int], np.ndarray] = {}
    lone: dict[int, list[int]] = {}
    items = []
    for view, name in enumerate(names):
        Image.fromarray(photograph()).save(folder / "images" / name)
        turn = pycolmap.Rotation3d(np.array([0, 0.05 * (view - 2.5), 0.02 * view]))
        centre = np.array([0.5 * (view - 2.5), 0.1 * (view % 2), 0.0])
        pose = pycolmap.Rigid3d(turn, -turn.matrix() @ centre)
        own = [p for p in views if view in views[p]]
        own = random.permutation(own).tolist()
        xy = camera.img_from_cam(points[own] @ turn.matrix().T + pose.translation)
        xy = xy + random.normal(0, NOISE_PX, xy.shape)
        others = random.uniform((0, 0), SIZE, (NUM_LONE, 2))
        for row, p in enumerate(own):
            keypoint[p, view] = row
            if p < num_true:
                truth[name, row] = points[p]
        lone[view] = list(range(len(own), len(own) + NUM_LONE))
        xy = np.concatenate((xy, others)).astype(np.float32)
        image = pycolmap.Image(
            name=name,
            points2D=pycolmap.Point2DList([pycolmap.Point2D(q) for q in xy]),
            camera_id=1,
            image_id=view + 1,
        )
        model.add_image_with_trivial_frame(image, pose)
        items.append(
            (
                name,
                Features(
                    xy=xy,
                    scores=np.ones(len(xy), np.float32),
                    descriptors=np.ones((len(xy), 1), np.float32),
                    image_size=SIZE,
                ),
            )
        )
    for p in range(NUM_MAPPED):
        track = [pycolmap.TrackElement(v + 1, keypoint[p, v]) for v in views[p]]
        model.add_point3D(points[p], pycolmap.Track(track), np.uint8([1, 2, 3]))
    model.update_point_3d_errors()
    features = FeatureStore(folder / "features.h5", MADE)
    features.append(items)
    matches = MatchStore(folder / "matches.h5", MADE)
    for v, w in itertools.combinations(range(NUM_VIEWS), 2):
        right = [
            (keypoint[p, v], keypoint[p, w]) for p in views if {v, w} <= {*views[p]}
        ]
        wrong = list(
            zip(random.permutation(lone[v]), random.permutation(lone[w]), strict=True)
        )[: round(wrong_share * NUM_LONE)]
        index = np.array([*right, *wrong], np.int32).reshape(-1, 2)
        matches.append(
            [
                (
                    (names[v], names[w]),
                    Matches(index=index, scores=np.ones(len(index), np.float32)),
                )
            ]
        )
    return Scene(model, ImageSet.scan(folder / "images"), features, matches, truth)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return build(tmp_path_factory.mktemp("wall"))


def new_ids(scene: Scene, seed: pycolmap.Reconstruction) -> list[int]:
    return sorted(set(seed.point3D_ids()) - set(scene.model.point3D_ids()))


def poses(model: pycolmap.Reconstruction) -> list[bytes]:
    return [
        model.images[i].name.encode()
        + model.images[i].cam_from_world().matrix().tobytes()
        for i in sorted(model.reg_image_ids())
    ]


def test_poses_cameras_and_the_given_model_never_change(scene: Scene) -> None:
    before, params = poses(scene.model), scene.model.cameras[1].params.tobytes()
    points = {i: p.xyz.tobytes() for i, p in scene.model.points3D.items()}
    for level in ("sparse", "semi"):
        seed = scene.seed(SeedConfig(level=level))
        assert poses(seed) == poses(scene.model) == before
        assert seed.cameras[1].params.tobytes() == params
        assert {i: p.xyz.tobytes() for i, p in scene.model.points3D.items()} == points
        assert seed.is_valid()
        assert all(
            seed.points3D[i].xyz.tobytes() == xyz
            for i, xyz in points.items()
            if i in seed.points3D
        )


def test_matches_of_two_views_become_points_near_the_truth(scene: Scene) -> None:
    seed = scene.seed()
    names = {i: image.name for i, image in seed.images.items()}
    errors = []
    for point_id in new_ids(scene, seed):
        point = seed.points3D[point_id]
        truths = [
            scene.truth.get((names[e.image_id], e.point2D_idx))
            for e in point.track.elements
        ]
        if all(t is not None for t in truths):
            errors.append(np.linalg.norm(point.xyz - truths[0]) / truths[0][2])
    assert len(errors) > 0.8 * NUM_PAIRED
    assert np.median(errors) < 0.004
    assert np.mean(np.array(errors) < 0.01) > 0.9


@pytest.mark.parametrize("level", ["sparse", "semi"])
def test_thresholds_are_pixels_of_what_the_features_saw(
    level: str, scene: Scene
) -> None:
    """Half as many pixels of a picture of twice the size."""
    file, features = (
        SeedConfig.model_validate({"level": level, "max_error_px": limit})
        for limit in (0.8, 0.4)
    )
    expected = tracks(scene.seed(file))
    assert tracks(scene.seed(features, scale=2.0)) == expected
    assert tracks(scene.seed(features)) != expected


def tracks(model: pycolmap.Reconstruction) -> set[tuple[object, ...]]:
    return {
        tuple((e.image_id, e.point2D_idx) for e in point.track.elements)
        for point in model.points3D.values()
    }


def test_wrong_matches_do_not_survive(scene: Scene) -> None:
    seed = scene.seed()
    names = {i: image.name for i, image in seed.images.items()}
    new = new_ids(scene, seed)
    wrong = [
        p
        for p in new
        if any(
            (names[e.image_id], e.point2D_idx) not in scene.truth
            for e in seed.points3D[p].track.elements
        )
    ]
    assert len(new) > 200
    # Of 900 at random and 100 on their epipolar line; some of these are near the wall.
    assert len(wrong) < 0.2 * NUM_GHOSTS


def test_links_are_the_matches_that_fit_the_poses(scene: Scene) -> None:
    arrays = ModelArrays.of(scene.model)
    views = arrays.views
    keypoints = Keypoints.read(scene.model, arrays, scene.features)
    links = consistent_links(views, keypoints, scene.matches, max_error_px=2.0)
    num_matches = sum(len(m) for _, m in scene.matches.items())
    num_random = 15 * NUM_LONE
    lone = np.concatenate([keypoints.offsets[1:] - k - 1 for k in range(NUM_LONE)])
    is_random = np.isin(links.ends, lone).all(axis=1)
    assert is_random.sum() < 0.05 * num_random
    assert (~is_random).sum() > 0.95 * (num_matches - num_random)


def test_weakest_matches_of_a_contradicting_track_are_cut() -> None:
    # Two tracks of four images, every image with a keypoint of each, and one bridge.
    keypoints = Keypoints(
        offsets=np.arange(0, 9, 2),
        xy=np.zeros((8, 2), np.float32),
        ray=np.zeros((8, 3), np.float32),
    )
    whole = [
        (2 * v + k, 2 * w + k)
        for k in (0, 1)
        for v, w in itertools.combinations(range(4), 2)
    ]
    ends = np.array([*whole, (0, 7)], np.int32)
    scores = np.array([0.5] * 12 + [0.9], np.float32)  # support counts before scores
    keypoint, track = link_tracks(Links(ends=ends, scores=scores), keypoints)
    found = {tuple(keypoint[track == t].tolist()) for t in np.unique(track)}
    for members in found:
        assert len({k // 2 for k in members}) == len(members) >= 2
        assert len({k % 2 for k in members}) == 1


def test_keypoints_without_links_make_no_tracks() -> None:
    nothing = Links(ends=np.empty((0, 2), np.int32), scores=np.empty(0, np.float32))
    keypoints = Keypoints(
        offsets=np.array([0, 1]),
        xy=np.zeros((1, 2), np.float32),
        ray=np.zeros((1, 3), np.float32),
    )
    keypoint, track = link_tracks(nothing, keypoints)
    assert len(keypoint) == len(track) == 0


def test_triangulated_points_have_the_least_angular_errors(scene: Scene) -> None:
    # From cameras at 1 and at 5 units, so that distances matter.
    model = pycolmap.Reconstruction(scene.model)
    for image_id in (1, 2, 3):
        image = model.images[image_id]
        pose = image.cam_from_world()
        pose.translation = pose.translation + np.array([0, 0, -3.5])
        model.frames[image.frame_id].rig_from_world = pose
    arrays = ModelArrays.of(model)
    views, truth, observations = arrays.views, arrays.xyz, arrays.observations
    random = np.random.default_rng(0)
    first = np.flatnonzero(observations.point < 20)
    observations = observations.select(first)
    xy = np.empty((len(first), 2))
    for row, (point, view) in enumerate(
        zip(observations.point, observations.view, strict=True)
    ):
        image = model.images[int(views.ids[view])]
        xy[row] = image.project_point(truth[point]) + random.normal(0, 1, 2)
    ray = np.concatenate(
        [views.rays(v, q[None]) for v, q in zip(observations.view, xy, strict=True)]
    )
    observations = replace(observations, xy=xy, ray=ray)
    xyz = triangulate(views, observations)
    stddev = relative_stddev(views, observations, xyz, noise_px=1.0)
    for point in range(20):
        own = observations.select(observations.point == point)
        centres, focals = views.centres[own.view], views.focals[own.view]

        def residuals(x: np.ndarray, own=own, centres=centres, focals=focals):
            offsets = x - centres
            directions = offsets / np.linalg.norm(offsets, axis=1, keepdims=True)
            return (focals[:, None] * np.cross(directions, own.ray)).ravel()

        best = least_squares(residuals, xyz[point], x_scale="jac").x
        nearest = np.linalg.norm(centres - best, axis=1).min()
        assert np.linalg.norm(xyz[point] - best) < 0.05 * stddev[point] * nearest


def test_new_points_have_the_colour_of_the_photographs(scene: Scene) -> None:
    seed = scene.seed()
    for point_id in new_ids(scene, seed):
        point = seed.points3D[point_id]
        xy = np.mean(
            [
                seed.images[e.image_id].points2D[e.point2D_idx].xy
                for e in point.track.elements
            ],
            axis=0,
        )
        expected = np.array([xy[0] / 3, xy[1] / 2, 90])
        np.testing.assert_allclose(point.color, expected, atol=1.5)
    assert tuple(seed.points3D[min(scene.model.point3D_ids())].color) == (1, 2, 3)


def test_keypoint_linked_to_a_point_that_it_fits_joins_its_track(scene: Scene) -> None:
    model = pycolmap.Reconstruction(scene.model)
    point_id = min(i for i, p in model.points3D.items() if len(p.track.elements) >= 4)
    element = model.points3D[point_id].track.elements[-1]
    model.delete_observation(element.image_id, element.point2D_idx)
    shorter = Scene(model, scene.images, scene.features, scene.matches, scene.truth)
    seed = shorter.seed()
    row = seed.images[element.image_id].points2D[element.point2D_idx]
    assert row.point3D_id == point_id
    assert point_id in scene.model.points3D


def test_track_of_a_new_point_has_one_keypoint_an_image(scene: Scene) -> None:
    model = pycolmap.Reconstruction(scene.model)
    for point_id in list(model.point3D_ids())[::2]:
        model.delete_point3D(point_id)
    seed = Scene(model, scene.images, scene.features, scene.matches, scene.truth).seed()
    for point in seed.points3D.values():
        seen = [e.image_id for e in point.track.elements]
        assert len(seen) == len(set(seen))
    assert seed.num_points3D() > scene.model.num_points3D()


def test_sparse_filters_and_adds_nothing(scene: Scene) -> None:
    config = SeedConfig(min_track_length=4)
    seed = scene.seed(config)
    expected = {
        i for i, p in scene.model.points3D.items() if len(p.track.elements) >= 4
    }
    assert set(seed.point3D_ids()) == expected
    assert 100 < len(expected) < scene.model.num_points3D()


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_error_px", 0.01), ("min_angle_deg", 150.0), ("max_uncertainty", 1e-7)],
)
def test_threshold_that_leaves_next_to_nothing_is_not_applied(
    scene: Scene, key: str, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        seed = scene.seed(SeedConfig.model_validate({key: value}))
    assert seed.num_points3D() == scene.model.num_points3D()
    assert f"{key} alone takes" in caplog.text


@pytest.mark.parametrize("level", ["sparse", "semi"])
def test_cap_is_kept_and_the_same_every_time(scene: Scene, level: str) -> None:
    config = SeedConfig.model_validate({"level": level, "max_points": 120})
    first, second = scene.seed(config), scene.seed(config)
    assert 0.85 * 120 <= first.num_points3D() <= 120
    assert {i: p.xyz.tobytes() for i, p in first.points3D.items()} == {
        i: p.xyz.tobytes() for i, p in second.points3D.items()
    }


@pytest.mark.parametrize("max_points", [1, 5])
def test_cap_may_be_tiny(scene: Scene, max_points: int) -> None:
    seed = scene.seed(SeedConfig(max_points=max_points))
    assert 1 <= seed.num_points3D() <= max_points


def test_cap_thins_evenly_and_keeps_long_tracks(scene: Scene) -> None:
    seed = scene.seed(SeedConfig(max_points=100))
    lengths = [len(p.track.elements) for p in scene.model.points3D.values()]
    kept = [len(p.track.elements) for p in seed.points3D.values()]
    assert np.mean(kept) > np.mean(lengths) + 0.3
    xyz = np.array([p.xyz for p in seed.points3D.values()])
    quarters = np.histogram(xyz[:, 0], 4, (-2.2, 2.2))[0]
    assert quarters.min() > 0.5 * quarters.max()


def test_keypoints_that_refinement_moved_in_the_model_are_the_models(
    scene: Scene,
) -> None:
    model = pycolmap.Reconstruction(scene.model)
    for image in model.images.values():
        for row, point in enumerate(image.points2D):
            if point.has_point3D():
                image.points2D[row].xy = point.xy + 0.25
    arrays = ModelArrays.of(model)
    views = arrays.views
    keypoints = Keypoints.read(model, arrays, scene.features)
    for row, image_id in enumerate(views.ids.tolist()):
        image = model.images[image_id]
        xy = keypoints.xy[keypoints.offsets[row] : keypoints.offsets[row + 1]]
        stored = scene.features.get(image.name).xy
        seen = np.array([point.has_point3D() for point in image.points2D])
        np.testing.assert_allclose(xy[seen], stored[seen] + 0.25, atol=1e-3)
        np.testing.assert_array_equal(xy[~seen], stored[~seen])


def test_other_features_than_the_models_are_refused(
    scene: Scene, tmp_path: Path
) -> None:
    other = FeatureStore(tmp_path / "other.h5", MADE)
    other.append(
        [
            (
                name,
                Features(
                    xy=f.xy + np.float32(1),
                    scores=f.scores,
                    descriptors=f.descriptors,
                    image_size=SIZE,
                ),
            )
            for name, f in scene.features.items()
        ]
    )
    wrong = Scene(scene.model, scene.images, other, scene.matches, scene.truth)
    with pytest.raises(StoreError, match="they are not the same"):
        wrong.seed()


def test_missing_photograph_is_an_error_that_names_it(
    scene: Scene, tmp_path: Path
) -> None:
    images = ImageSet(tmp_path, scene.images.names, scene.images.infos, {})
    moved = Scene(scene.model, images, scene.features, scene.matches, scene.truth)
    with pytest.raises(ImageError, match=r"a/\d.png"):
        moved.seed()


def test_model_without_points_stays_without_or_gets_new_ones(scene: Scene) -> None:
    model = pycolmap.Reconstruction(scene.model)
    for point_id in list(model.point3D_ids()):
        model.delete_point3D(point_id)
    empty = Scene(model, scene.images, scene.features, scene.matches, scene.truth)
    assert empty.seed(SeedConfig()).num_points3D() == 0
    assert empty.seed().num_points3D() > NUM_MAPPED / 2


# --------------------------------------------------------------------------- surface
def test_normals_are_the_walls_and_look_at_the_cameras(scene: Scene) -> None:
    shapes = surface_shapes(ModelArrays.of(scene.model))
    assert shapes.point_ids.tolist() == sorted(scene.model.point3D_ids())
    xyz = np.array([scene.model.points3D[i].xyz for i in shapes.point_ids.tolist()])
    slope = np.c_[0.6 * np.cos(2 * xyz[:, 0]), 0 * xyz[:, 0], -np.ones(len(xyz))]
    slope /= np.linalg.norm(slope, axis=1, keepdims=True)
    cosines = (shapes.normals * slope).sum(axis=1)
    assert np.median(cosines) > 0.97
    assert (shapes.normals[:, 2] < 0).all()
    np.testing.assert_allclose(np.linalg.norm(shapes.normals, axis=1), 1, atol=1e-5)


def test_scales_are_the_distances_of_neighbours(scene: Scene) -> None:
    shapes = surface_shapes(ModelArrays.of(scene.model))
    xyz = np.array([scene.model.points3D[i].xyz for i in shapes.point_ids.tolist()])
    distances = np.sort(np.linalg.norm(xyz[:, None] - xyz, axis=2), axis=1)[:, 1:4]
    expected = np.sqrt((distances**2).mean(axis=1))
    np.testing.assert_allclose(shapes.scales, expected, rtol=1e-4)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
def test_few_points_have_shapes_too(scene: Scene, count: int) -> None:
    model = pycolmap.Reconstruction(scene.model)
    for point_id in sorted(model.point3D_ids())[count:]:
        model.delete_point3D(point_id)
    shapes = surface_shapes(ModelArrays.of(model))
    assert shapes.normals.shape == (count, 3) and shapes.scales.shape == (count,)
    assert np.isfinite(shapes.normals).all() and (shapes.scales > 0).all()


def test_points_at_one_place_and_one_far_away_have_sane_scales(scene: Scene) -> None:
    model = pycolmap.Reconstruction(scene.model)
    ids = sorted(model.point3D_ids())
    usual = float(np.median(surface_shapes(ModelArrays.of(model)).scales))
    for point_id in ids[:20]:
        model.points3D[point_id].xyz = model.points3D[ids[0]].xyz
    model.points3D[ids[30]].xyz = np.array([0, 0, 1000.0])
    shapes = surface_shapes(ModelArrays.of(model))
    assert np.isfinite(shapes.normals).all()
    assert shapes.scales[:20].min() > 0.001 * usual
    assert shapes.scales[30] < 0.5 * 1000
