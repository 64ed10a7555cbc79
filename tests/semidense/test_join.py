"""Keypoints and tracks from semi-dense matches, on a scene whose truth is known."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image

from sfmprep.capture.image_file import ImageInfo
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DenseConfig, XFeatStarConfig
from sfmprep.geometry.views import ModelArrays
from sfmprep.semidense.contradictions import PairLinks, cut_contradictions
from sfmprep.semidense.join import (
    aggregate,
    join_pair,
    network_scales,
)
from sfmprep.semidense.keypoints import Endpoints, add_keypoints, nearest, quantise
from sfmprep.semidense.remeasure import remeasure
from sfmprep.stores.tables import DenseStore, FeatureStore, MatchStore
from sfmprep.types import DenseMatches, Features, Float32, Matches

SIZE = (640, 480)
FOCAL = 600.0
NUM_POINTS = 400


def centre(number: int) -> np.ndarray:
    """Where a camera is; all look along +z."""
    return np.array([0.5 * number, 0.1 * number**2, 0.0])


def project(xyz: np.ndarray, number: int) -> np.ndarray:
    """COLMAP pixels."""
    local = xyz - centre(number)
    return local[:, :2] / local[:, 2:] * FOCAL + np.array(SIZE) / 2


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    """Points that all cameras see, some 9 pixels apart."""
    random = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(20), np.arange(20)), -1).reshape(-1, 2)
    depth = random.uniform(4, 6, NUM_POINTS)
    xy = (grid - 9.5) * 15 + random.uniform(-3, 3, grid.shape)
    return np.c_[xy / FOCAL * depth[:, None] + (0.75, 0.45), depth]


def image_set(num_images: int = 4, size: tuple[int, int] = SIZE) -> ImageSet:
    """A capture without files."""
    names = tuple(f"{k}.png" for k in range(num_images))
    info = ImageInfo(size=size, orientation=1, num_bytes=0)
    return ImageSet(Path("none"), names, dict.fromkeys(names, info), {})


def simulate(
    store: DenseStore,
    points: np.ndarray,
    *,
    num_images: int = 4,
    sigma: float = 0.3,
    wrong: float = 0.0,
) -> None:
    """Each image's starts are every other point; ends are noisy, some are wrong."""
    random = np.random.default_rng(1)
    for a, b in itertools.permutations(range(num_images), 2):
        rows = np.arange(a % 2, NUM_POINTS, 2)
        xy1 = project(points[rows], b) + random.normal(0, sigma, (len(rows), 2))
        bad = random.random(len(rows)) < wrong
        xy1[bad] = random.uniform((0, 0), SIZE, (int(bad.sum()), 2))
        found = DenseMatches(
            xy0=project(points[rows], a).astype(np.float32),
            xy1=xy1.astype(np.float32),
            scores=random.uniform(0.5, 1, len(rows)).astype(np.float32),
        )
        store.append([((f"{a}.png", f"{b}.png"), found)])


def config(radius: float = 2.0, **options: int) -> DenseConfig:
    """Of a matcher that sees images as they are."""
    return DenseConfig(matcher=XFeatStarConfig(max_size=640), radius=radius, **options)


class Result:
    """The stores that `aggregate` writes."""

    def __init__(
        self,
        out: Path,
        images: ImageSet,
        dense: DenseStore,
        settings: DenseConfig,
        features: FeatureStore | None = None,
        sparse: MatchStore | None = None,
    ) -> None:
        out.mkdir()
        self.features = FeatureStore(out / "features.h5", {})
        self.matches = MatchStore(out / "matches.h5", {})
        aggregate(
            images,
            features,
            sparse,
            dense,
            settings,
            new_features=self.features,
            new_matches=self.matches,
        )

    def tracks(self) -> list[list[tuple[str, int]]]:
        """Keypoints that matches join."""
        group: dict[tuple[str, int], set[tuple[str, int]]] = {}
        for (name0, name1), index in self.matches.indices():
            for i, j in index.tolist():
                both = group.get((name0, i), {(name0, i)}) | group.get(
                    (name1, j), {(name1, j)}
                )
                for member in both:
                    group[member] = both
        return [sorted(g) for g in {id(g): g for g in group.values()}.values()]


@pytest.fixture
def dense(tmp_path: Path) -> Iterator[DenseStore]:
    """An empty store."""
    with DenseStore(tmp_path / "dense.h5", {}) as store:
        yield store


# ------------------------------------------------------------------------- keypoints
def endpoints(starts: list, ends: list, scores: list | None = None) -> Endpoints:
    """Endpoints with scores of one, or given ones for the ends."""
    return Endpoints(
        starts=np.array(starts, np.float32).reshape(-1, 2),
        start_scores=np.ones(len(starts)),
        ends=np.array(ends, np.float32).reshape(-1, 2),
        end_scores=np.array(scores or [1.0] * len(ends)),
    )


def test_nearest_keypoint_within_the_radius_is_found() -> None:
    keypoints = np.array([[10, 10], [12, 10]], np.float32)
    xy = np.array([[10.9, 10], [11.1, 10], [14, 10], [14.1, 10]], np.float32)
    assert nearest(keypoints, xy, 2.0).tolist() == [0, 1, 1, -1]
    assert nearest(keypoints[:0], xy, 2.0).tolist() == [-1] * 4


def test_quantised_place_is_the_weighted_mean_also_across_cells() -> None:
    xy = np.array([[9.8, 9.9], [10.1, 10.2], [10.2, 9.8]], np.float32)
    scores = np.array([0.5, 1.0, 0.5])
    place = quantise(xy, scores, radius=2.0)
    np.testing.assert_allclose(place, [np.average(xy, axis=0, weights=scores)], 1e-6)


def test_quantised_places_are_apart_and_cover_every_point() -> None:
    random = np.random.default_rng(0)
    xy = random.uniform(0, 60, (800, 2)).astype(np.float32)
    places = quantise(xy, random.uniform(0.2, 1, 800), radius=2.0)
    gaps = np.linalg.norm(places[:, None] - places, axis=2)
    assert np.median(np.sort(gaps, axis=1)[:, 1]) > 2.0
    assert (nearest(places, xy, 2.0) >= 0).mean() > 0.8


def test_starts_near_detected_keypoints_are_not_added() -> None:
    detected = np.array([[10, 10]], np.float32)
    found = endpoints([[11, 10], [40, 40]], [[10, 11], [41, 40], [80, 80]])
    xy, scores = add_keypoints(detected, found, radius=2.0, max_added=10)
    assert xy.tolist() == [[40, 40], [80, 80]]
    assert scores.tolist() == [2.0, 1.0]


def test_keypoints_with_the_most_confidence_are_kept() -> None:
    found = endpoints([[10, 10], [50, 50]], [[50, 51], [90, 90]], [0.9, 0.1])
    xy, _ = add_keypoints(np.empty((0, 2), np.float32), found, radius=2, max_added=1)
    assert xy.tolist() == [[50, 50]]


def test_no_endpoints_add_no_keypoints() -> None:
    xy, scores = add_keypoints(
        np.ones((3, 2), np.float32), endpoints([], []), radius=2.0, max_added=9
    )
    assert xy.shape == (0, 2)
    assert len(scores) == 0


# ------------------------------------------------------------------------------ pairs
def join(
    points: np.ndarray, index: np.ndarray, scores: np.ndarray, fixed: Matches
) -> PairLinks:
    """Joins matches whose ends are where points truly are."""
    tables = [project(points, k).astype(np.float32) for k in (0, 1)]
    xy = np.stack((tables[0][index[:, 0]], tables[1][index[:, 1]]), axis=1)
    return join_pair(fixed, index, xy, scores, *tables, max_error_px=3.0)


def test_match_that_both_directions_found_wins(points: np.ndarray) -> None:
    same = np.stack([np.arange(100)] * 2, axis=1)
    # row 0 competes with a better single match, for the keypoint 0 of the first image
    index = np.concatenate((same, [[0, 0]]))
    scores = np.full(101, 0.6, np.float32)
    links = join(points, index, scores, Matches.none())
    np.testing.assert_allclose(links.scores[0], 1 - 0.4**2, rtol=1e-5)
    assert links.index[0].tolist() == [0, 0]
    assert len(links.index) == 100


def test_matches_are_one_to_one_and_those_of_features_stay(points: np.ndarray) -> None:
    random = np.random.default_rng(0)
    same = np.stack([np.arange(100)] * 2, axis=1)
    near = np.c_[np.arange(100), (np.arange(100) + random.integers(0, 2, 100)) % 100]
    fixed = Matches(
        index=np.array([[3, 4], [200, 201]], np.int32),
        scores=np.array([0.1, 0.1], np.float32),
    )
    index = np.concatenate((same, near))
    links = join(points, index, random.random(200).astype(np.float32), fixed)
    assert links.index[:2].tolist() == fixed.index.tolist()
    assert links.num_sparse == 2
    for column in links.index.T:
        assert len(np.unique(column)) == len(column)


def test_matches_off_the_epipolar_line_are_dropped(points: np.ndarray) -> None:
    same = np.stack([np.arange(100)] * 2, axis=1)
    index = np.concatenate((same, np.c_[np.arange(100, 120), np.arange(320, 340)]))
    links = join(points, index, np.ones(120, np.float32), Matches.none())
    assert sorted(map(tuple, links.index.tolist())) == [(k, k) for k in range(100)]


def test_pair_with_too_few_matches_gets_none(points: np.ndarray) -> None:
    same = np.stack([np.arange(10)] * 2, axis=1)
    links = join(points, same, np.ones(10, np.float32), Matches.none())
    assert links.index.shape == (0, 2)


# ------------------------------------------------------------------------------- cuts
def links_of(*index: tuple[int, int], num_sparse: int = 0) -> PairLinks:
    """Links of equal scores."""
    return PairLinks(
        index=np.array(index, np.int32).reshape(-1, 2),
        scores=np.full(len(index), 0.5, np.float32),
        num_sparse=num_sparse,
    )


def table(*places: float) -> Float32:
    """Keypoints in a row."""
    return np.array([(x, 0) for x in places], np.float32)


def test_bridge_between_two_tracks_is_cut() -> None:
    names = "abcd"
    tables = {name: table(10, 50) for name in names}
    joined = {
        pair: links_of((0, 0), (1, 1)) for pair in itertools.combinations(names, 2)
    }
    joined["a", "d"] = links_of((0, 0), (1, 1), (0, 1))
    kept = cut_contradictions(joined, tables, dict.fromkeys(names, 2.0))
    for pair, rows in zip(joined, kept, strict=True):
        assert rows.tolist() == [True, True, False][: len(rows)], pair


def test_keypoints_within_the_radius_do_not_contradict() -> None:
    tables = {"a": table(10, 11.5), "b": table(10), "c": table(10)}
    joined = {
        ("a", "b"): links_of((0, 0)),
        ("b", "c"): links_of((0, 0)),
        ("a", "c"): links_of((1, 0)),
    }
    for radius, all_kept in ((2.0, True), (1.0, False)):
        kept = cut_contradictions(joined, tables, dict.fromkeys(tables, radius))
        assert all(rows.all() for rows in kept) == all_kept


def test_matches_of_features_are_never_cut() -> None:
    tables = {"a": table(10, 50), "b": table(10), "c": table(10)}
    joined = {
        ("a", "b"): links_of((0, 0), num_sparse=1),
        ("b", "c"): links_of((0, 0)),
        ("a", "c"): links_of((1, 0), num_sparse=1),
    }
    kept = cut_contradictions(joined, tables, dict.fromkeys(tables, 2.0))
    assert [rows.tolist() for rows in kept] == [[True], [False], [True]]


def test_no_pairs_leave_nothing_to_cut() -> None:
    assert cut_contradictions({}, {"a": table(1, 2)}, {"a": 2.0}) == []


# -------------------------------------------------------------------------- aggregate
def test_stars_become_tracks_through_all_images(
    points: np.ndarray, dense: DenseStore, tmp_path: Path
) -> None:
    simulate(dense, points, wrong=0.1)
    tracks = Result(tmp_path / "out", image_set(), dense, config()).tracks()
    whole = [t for t in tracks if len({name for name, _ in t}) == 4]
    assert len(whole) > 0.95 * NUM_POINTS
    assert len(tracks) < 1.1 * NUM_POINTS


def test_tracks_do_not_come_back_to_an_image(
    points: np.ndarray, dense: DenseStore, tmp_path: Path
) -> None:
    simulate(dense, points, wrong=0.3)
    result = Result(tmp_path / "out", image_set(), dense, config())
    xy = {name: found.xy for name, found in result.features.keypoints()}
    for track in result.tracks():
        for (name0, i), (name1, j) in itertools.combinations(track, 2):
            if name0 == name1:
                assert np.abs(xy[name0][i] - xy[name0][j]).max() <= 2.0


def test_detected_keypoints_keep_their_rows_and_matches(
    points: np.ndarray, dense: DenseStore, tmp_path: Path
) -> None:
    simulate(dense, points)
    images = image_set()
    with (
        FeatureStore(tmp_path / "features.h5", {}) as features,
        MatchStore(tmp_path / "matches.h5", {}) as sparse,
    ):
        for k, name in enumerate(images.names):
            xy = np.concatenate((project(points[:50], k) + 0.4, [[1 + k, 2]]))
            row = Features(
                xy=xy.astype(np.float32),
                scores=np.ones(51, np.float32),
                descriptors=np.ones((51, 8), np.float16),
                image_size=SIZE,
            )
            features.append([(name, row)])
        index = np.stack([np.arange(50)] * 2, axis=1).astype(np.int32)
        fixed = Matches(index=index, scores=np.ones(50, np.float32))
        sparse.append([(("0.png", "1.png"), fixed)])
        result = Result(tmp_path / "out", images, dense, config(), features, sparse)
        for name in images.names:
            old, new = features.get(name), result.features.get(name)
            np.testing.assert_array_equal(new.xy[:51], old.xy)
            assert len(new) < 1.1 * NUM_POINTS  # each point once
    matches = result.matches.get("0.png", "1.png")
    np.testing.assert_array_equal(matches.index[:50], index)
    assert len(matches) > 0.9 * NUM_POINTS
    # pairs without matches of features use the detector's keypoints as well
    others = result.matches.get("2.png", "3.png").index
    assert np.isin(np.arange(50), others[:, 0]).mean() > 0.9


def test_same_input_gives_the_same_stores(
    points: np.ndarray, dense: DenseStore, tmp_path: Path
) -> None:
    simulate(dense, points, wrong=0.2)
    first, second = (
        Result(tmp_path / f"out{k}", image_set(), dense, config()) for k in (0, 1)
    )
    for name, found in first.features.items():
        np.testing.assert_array_equal(found.xy, second.features.get(name).xy)
    for pair, found in first.matches.items():
        np.testing.assert_array_equal(found.index, second.matches.get(*pair).index)


def test_radius_is_in_pixels_of_the_matcher(
    points: np.ndarray, dense: DenseStore, tmp_path: Path
) -> None:
    # the same scene at half the matcher's size: half the noise is half the radius
    images = image_set(size=(1280, 960))
    assert set(network_scales(images, config()).values()) == {2.0}
    with DenseStore(tmp_path / "small.h5", {}) as small:
        simulate(small, points)
        for pair, found in small.items():
            large = DenseMatches(
                xy0=2 * found.xy0, xy1=2 * found.xy1, scores=found.scores
            )
            dense.append([(pair, large)])
        small_result = Result(tmp_path / "out0", image_set(), small, config())
    result = Result(tmp_path / "out1", images, dense, config())
    for name, found in small_result.features.items():
        np.testing.assert_allclose(result.features.get(name).xy, 2 * found.xy, 1e-5)


def test_masked_endpoints_make_no_keypoints(
    points: np.ndarray, dense: DenseStore, tmp_path: Path
) -> None:
    simulate(dense, points)
    masks = tmp_path / "masks"
    masks.mkdir()
    used = np.full((SIZE[1], SIZE[0]), 255, np.uint8)
    used[:, :320] = 0
    Image.fromarray(used).save(masks / "1.png")
    plain = image_set()
    images = ImageSet(plain.root, plain.names, plain.infos, {}, masks)
    result = Result(tmp_path / "out", images, dense, config())
    assert result.features.get("1.png").xy[:, 0].min() >= 319
    assert result.features.get("0.png").xy[:, 0].min() < 300


def test_empty_pairs_give_empty_matches(dense: DenseStore, tmp_path: Path) -> None:
    none = DenseMatches(
        xy0=np.empty((0, 2), np.float32),
        xy1=np.empty((0, 2), np.float32),
        scores=np.empty(0, np.float32),
    )
    dense.append([(("0.png", "1.png"), none), (("1.png", "0.png"), none)])
    result = Result(tmp_path / "out", image_set(), dense, config())
    assert len(result.matches.get("0.png", "1.png")) == 0
    assert result.features.names() == ["0.png", "1.png"]
    assert result.features.num_keypoints("0.png") == 0


# -------------------------------------------------------------------------- remeasure
def model_of(points: np.ndarray, shifts: np.ndarray) -> pycolmap.Reconstruction:
    """The true model, with keypoints moved by `shifts` [4, N, 2]."""
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera.create_from_model_name(1, "SIMPLE_PINHOLE", FOCAL, *SIZE)
    camera.camera_id = 1
    model.add_camera_with_trivial_rig(camera)
    for k, shift in enumerate(shifts):
        image = pycolmap.Image(name=f"{k}.png", camera_id=1, image_id=k + 1)
        image.points2D = pycolmap.Point2DList(
            [pycolmap.Point2D(xy) for xy in project(points, k) + shift]
        )
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(), -centre(k))
        model.add_image_with_trivial_frame(image, pose)
    for row, xyz in enumerate(points):
        track = pycolmap.Track()
        for k in range(len(shifts)):
            track.add_element(k + 1, row)
        model.add_point3D(xyz, track, np.zeros(3, np.uint8))
    return model


def errors(model: pycolmap.Reconstruction, points: np.ndarray) -> np.ndarray:
    """Pixels between keypoints and the points they are of."""
    return np.concatenate(
        [
            np.linalg.norm(
                [
                    p.xy - q
                    for p, q in zip(
                        model.images[k + 1].points2D, project(points, k), strict=True
                    )
                ],
                axis=1,
            )
            for k in range(4)
        ]
    )


def test_snapped_keypoints_move_back_to_where_they_were_measured(
    points: np.ndarray, dense: DenseStore
) -> None:
    simulate(dense, points, sigma=0.05)
    random = np.random.default_rng(2)
    shifts = random.uniform(-1, 1, (4, NUM_POINTS, 2))
    model = model_of(points, shifts)
    before = errors(model, points)
    moved = remeasure(
        model, ModelArrays.of(model), dense, radii={f"{k}.png": 2.0 for k in range(4)}
    )
    assert moved > 0.95 * 4 * NUM_POINTS
    assert np.median(errors(model, points)) < 0.1 < 0.5 < np.median(before)


def test_measurements_far_from_the_keypoint_are_not_believed(
    points: np.ndarray, dense: DenseStore
) -> None:
    simulate(dense, points, wrong=1.0)
    model = model_of(points, np.zeros((4, NUM_POINTS, 2)))
    remeasure(
        model,
        ModelArrays.of(model),
        dense,
        radii={f"{k}.png": 1.0 for k in range(4)},
        max_move=2.0,
    )
    assert errors(model, points).max() <= 2.0 + 1e-3


def test_observations_that_were_not_measured_stay(
    points: np.ndarray, dense: DenseStore
) -> None:
    simulate(dense, points, num_images=3, sigma=0.05)
    model = model_of(points, np.full((4, NUM_POINTS, 2), 0.5))
    remeasure(
        model, ModelArrays.of(model), dense, radii={f"{k}.png": 2.0 for k in range(4)}
    )
    assert model.compute_num_observations() == 4 * NUM_POINTS
    left = errors(model, points)[3 * NUM_POINTS :]
    np.testing.assert_allclose(left, 0.5 * np.sqrt(2), rtol=1e-6)


def test_model_without_points_is_left_as_it_is(dense: DenseStore) -> None:
    model = pycolmap.Reconstruction()
    assert remeasure(model, ModelArrays.of(model), dense, radii={}) == 0
