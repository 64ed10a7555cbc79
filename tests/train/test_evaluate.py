"""The table of `sfmprep train evaluate`: what is measured, and what not again."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest

from sfmprep.capture.image_file import ImageInfo
from sfmprep.capture.image_set import ImageSet
from sfmprep.errors import ConfigError
from sfmprep.evaluation.reference import CameraPose
from sfmprep.train.compare import evaluate as evaluation
from sfmprep.train.compare import homographies as homographies
from sfmprep.train.compare import pairs as two_views
from sfmprep.train.compare.columns import build_column
from sfmprep.train.compare.evaluate import evaluate
from sfmprep.train.compare.scenes import Scene, read_scene, scene_pairs
from sfmprep.train.compare.table import Table
from sfmprep.train.pairs.photographs import is_held_out, photograph_of
from sfmprep.train.pairs.views import transform
from sfmprep.types import Features, Matches

SIZE = (200, 120)


# --------------------------------------------------------------------------- held out
def test_crops_of_a_photograph_are_on_the_same_side() -> None:
    for number in range(200):
        sides = {
            is_held_out(f"{folder}photo_{number:08x}{crop}{suffix}")
            for folder in ("", "images/")
            for crop in ("", "_c1", "_c12")
            for suffix in (".jpg", ".png")
        }
        assert len(sides) == 1


def test_one_photograph_in_eight_is_held_out() -> None:
    held_out = sum(is_held_out(f"photo_{number}.jpg") for number in range(4000))
    assert 430 < held_out < 570


@pytest.mark.shared
def test_about_sixty_training_photographs_are_held_out(shared: Path) -> None:
    names = [path.name for path in (shared / "data/train/images").iterdir()]
    held_out = [name for name in names if is_held_out(name)]
    assert len(held_out) == 65
    assert len({photograph_of(name) for name in held_out}) == 53


# ----------------------------------------------------------------------- homographies
@pytest.mark.parametrize("chosen", homographies.SETS)
def test_pixels_move_where_the_homography_takes_points(chosen: str) -> None:
    warps = homographies.SETS[chosen]
    for seed in range(10):
        rng = np.random.default_rng(seed)
        homography = homographies.random_homography(rng, SIZE, warps)
        xy = np.array([[104.5, 55.5]], np.float32)  # near the middle: stays inside
        pixels = np.zeros((SIZE[1], SIZE[0], 3), np.float32)
        pixels[55, 104] = 1
        pixels = cv2.GaussianBlur(pixels, (0, 0), 2)
        warped = homographies.warp_pixels(pixels, homography)[..., 0]
        rows, columns = np.mgrid[: SIZE[1], : SIZE[0]] + 0.5
        centroid = [(warped * axis).sum() / warped.sum() for axis in (columns, rows)]
        expected = transform(homography, xy)[0]
        np.testing.assert_allclose(centroid, expected, atol=0.1)


@pytest.mark.parametrize("chosen", homographies.SETS)
def test_warps_stay_in_the_range_of_their_set_and_use_it(chosen: str) -> None:
    warps = homographies.SETS[chosen]
    angles, scales = [], []
    middle = np.array([[SIZE[0] / 2, SIZE[1] / 2]], np.float32)
    for seed in range(300):
        rng = np.random.default_rng(seed)
        homography = homographies.random_homography(rng, SIZE, warps)
        at, right, down = (
            transform(homography, middle + np.float32(step))[0]
            for step in ([0, 0], [1e-2, 0], [0, 1e-2])
        )
        jacobian = np.stack([right - at, down - at], axis=1) / 1e-2
        # a shift by up to a tenth moves the middle, so perspective adds a little
        angles.append(abs(np.degrees(np.arctan2(jacobian[1, 0], jacobian[0, 0]))))
        scales.append(np.sqrt(np.linalg.det(jacobian)))
    assert 0.95 * warps.rotation_deg < max(angles) < 1.1 * warps.rotation_deg + 1
    assert 0.9 * warps.scale < max(scales) < 1.1 * warps.scale
    assert 0.9 / warps.scale < min(scales) < 1.1 / warps.scale


def test_changed_light_is_eight_bits_in_0_to_1() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.random((20, 30, 3), np.float32)
    lit = homographies.change_light(pixels, rng, homographies.SETS["b"])
    assert lit.dtype == np.float32
    assert lit.min() >= 0
    assert lit.max() <= 1
    np.testing.assert_allclose(lit * 255, np.rint(lit * 255), atol=1e-4)
    assert not np.allclose(lit, pixels, atol=0.05)


class _InOrder:
    """Matches the first keypoint with the first one, and so on."""

    identity = {"weights_sha256": None}

    def match(self, pairs: list[tuple[Features, Features]]) -> list[Matches]:
        rows = np.arange(len(pairs[0][0]), dtype=np.int32)
        scores = np.ones(len(rows), np.float32)
        return [Matches(index=np.stack([rows, rows], axis=1), scores=scores)]


def _features(xy: list[list[float]]) -> Features:
    return Features(
        xy=np.array(xy, np.float32).reshape(-1, 2),
        scores=np.ones(len(xy), np.float32),
        descriptors=np.ones((len(xy), 1), np.float32),
        image_size=SIZE,
    )


def test_matches_of_points_outside_the_copy_do_not_count() -> None:
    shift = np.array([[1.0, 0, 10], [0, 1, 0], [0, 0, 1]])
    first = _features([[50, 50], [60, 60], [195, 50]])  # the last one leaves the image
    second = _features([[60, 50], [73, 64], [5, 50]])
    column = _Matching(_InOrder())
    errors = homographies._match_errors(first, second, shift, column)
    np.testing.assert_allclose(errors, [0, 5])


class _Matching:
    def __init__(self, matcher: _InOrder) -> None:
        self.matcher = matcher


def test_share_counts_right_matches_of_sift_and_no_chance_ones() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (60, 80, 3), np.uint8)
    photograph = cv2.resize(noise, (320, 240), interpolation=cv2.INTER_CUBIC)
    other = photograph[::-1].copy()
    column = build_column("sift", max_keypoints=300, with_ratio_test=False)
    found = homographies.measure_homographies(["a", "b"], [photograph, other], column)
    for figures in found.values():
        assert figures["photographs"] == 2
        assert figures["matches"] > 50
        within = figures["within"]
        assert within["1"] <= within["3"] <= within["5"]
        assert within["3"] > 50
    again = homographies.measure_homographies(["a", "b"], [photograph, other], column)
    assert again == found


# ------------------------------------------------------------------------------ scenes
def _ring(num_images: int, step_deg: float, *, distortion: float = 0.0) -> Scene:
    """Cameras on a circle of radius 10 that look at its middle."""
    reference, cameras, infos = {}, {}, {}
    for number in range(num_images):
        angle = np.radians(number * step_deg)
        forward = np.array([-np.sin(angle), 0, np.cos(angle)])
        right = np.array([np.cos(angle), 0, np.sin(angle)])
        name = f"{number:02}.jpg"
        reference[name] = CameraPose(
            rotation=np.stack([right, np.array([0.0, 1, 0]), forward]),
            centre=-10 * forward,
        )
        cameras[name] = pycolmap.Camera(
            model="OPENCV",
            width=640,
            height=480,
            params=[600, 610, 325, 236, distortion, 0, 0, 0],
        )
        infos[name] = ImageInfo(size=(640, 480), orientation=1, num_bytes=1)
    images = ImageSet(Path("nowhere"), tuple(infos), infos, {})
    return Scene(
        name="ring", images=images, reference=reference, cameras=cameras, sha256=""
    )


def _ball(num_points: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(-2, 2, (num_points, 3))


def test_triangulation_with_the_reference_poses_finds_the_points() -> None:
    scene = _ring(2, 10, distortion=0.1)
    points = _ball(50)
    xy = [
        two_views._project(scene, n, points).astype(np.float32)
        for n in scene.images.names
    ]
    xy[1][:5] += 30  # wrong matches
    found = two_views._triangulate(scene, ("00.jpg", "01.jpg"), (xy[0], xy[1]))
    np.testing.assert_allclose(found, points[5:], atol=1e-3)


def test_points_behind_a_camera_are_not_in_its_frame() -> None:
    scene = _ring(1, 0)
    behind = np.array([[0.0, 0, -20]])
    assert np.isnan(two_views._project(scene, "00.jpg", behind)).all()


def test_pairs_are_in_the_bin_of_their_angle_and_no_bin_is_too_full() -> None:
    scene = _ring(60, 1.5)
    points = dict.fromkeys(scene.images.names, _ball(40))
    chosen, candidates = two_views.choose_pairs(scene, points)
    assert list(chosen) == ["15-30", "30-45", "45-60"]
    for low, high in two_views.BINS_DEG:
        pairs = chosen[f"{low}-{high}"]
        assert len(pairs) == min(candidates[f"{low}-{high}"], 150)
        assert pairs == sorted(set(pairs))
        angles = [two_views.axis_angle_deg(scene, pair) for pair in pairs]
        assert low <= min(angles)
        assert max(angles) < high
    assert two_views.choose_pairs(scene, points)[0] == chosen


def test_images_that_see_other_points_do_not_overlap() -> None:
    scene = _ring(2, 20)
    aside = _ball(40) + 1000 * scene.reference["00.jpg"].rotation[0]
    middle = _ball(40)
    points = {"00.jpg": middle, "01.jpg": middle}
    assert two_views.choose_pairs(scene, points)[1]["15-30"] == 1
    points["01.jpg"] = aside
    assert two_views.choose_pairs(scene, points)[1]["15-30"] == 0
    del points["01.jpg"]
    assert two_views.choose_pairs(scene, points)[1]["15-30"] == 0


def test_image_without_a_near_neighbour_takes_the_nearest() -> None:
    assert two_views._near_pairs(_ring(3, 16)).items == (
        ("00.jpg", "01.jpg"),
        ("01.jpg", "02.jpg"),
    )
    assert len(two_views._near_pairs(_ring(40, 0.1))) >= 40 * 10 / 2


def _in_order(num_matches: int) -> np.ndarray:
    rows = np.arange(num_matches, dtype=np.int32)
    return np.stack([rows, rows], axis=1)


def test_pose_error_is_zero_for_true_points_and_180_without_matches() -> None:
    scene = _ring(2, 40, distortion=0.05)
    points = _ball(100)
    features = {
        name: _features(two_views._project(scene, name, points).tolist())
        for name in scene.images.names
    }
    pair = ("00.jpg", "01.jpg")
    error = two_views.pose_error_deg(scene, pair, features, _in_order(100))
    assert error < 0.01
    assert two_views.pose_error_deg(scene, pair, features, _in_order(3)) == 180
    features["01.jpg"] = _features(features["01.jpg"].xy[::-1].tolist())
    wrong = two_views.pose_error_deg(scene, pair, features, _in_order(100))
    assert wrong > 5


def test_auc_of_two_views() -> None:
    assert two_views.two_view_auc([]) is None
    assert two_views.two_view_auc([0.0, 180.0]) == {5: 50.0, 10: 50.0, 20: 50.0}


def test_few_images_are_paired_exhaustively_and_many_in_sequence() -> None:
    names = [f"{number:03}.jpg" for number in range(50)]
    assert len(scene_pairs(names[:30])) == 30 * 29 // 2
    steps = {int(b[:3]) - int(a[:3]) for a, b in scene_pairs(names)}
    assert steps == {*range(1, 11), 16, 32}


def test_scene_without_intrinsics_is_refused(demo_scene: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scene"
    folder.mkdir()
    (folder / "images").symlink_to(demo_scene / "images")
    reference = json.loads((demo_scene / "reference.json").read_text())
    name = min(reference["images"])
    del reference["images"][name]["K"]
    (folder / "reference.json").write_text(json.dumps(reference))
    with pytest.raises(ConfigError, match=f"image {name}: the intrinsics"):
        read_scene(folder)


# --------------------------------------------------------------------------- the table
ROWS = ("scenes/demo", "thinned/demo", "two-view/demo")


@pytest.fixture(scope="module")
def scenes(demo_scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    (folder / "demo").symlink_to(demo_scene)
    return folder


@pytest.fixture(scope="module")
def measured(
    scenes: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Table]:
    """A folder with the cells of SIFT on the demo scene, and their table."""
    out = tmp_path_factory.mktemp("evaluate")
    return out, _evaluate(scenes, out)


def _evaluate(scenes: Path, out: Path, **changes: object) -> Table:
    settings = {"columns": ["sift"], "rows": ROWS, "max_keypoints": 1000, **changes}
    return evaluate(scenes=scenes, photographs=scenes, out=out, **settings)


def test_sift_solves_the_demo_scene(measured: tuple[Path, Table]) -> None:
    _, table = measured
    whole = table.cells["scenes/demo"]["sift"]
    assert whole["images"] == whole["registered"] == 8
    assert whole["pairs"] == 28
    assert whole["auc"]["5"] > 80
    assert whole["track_length"] > 2
    assert whole["seconds"] > 0
    assert table.cells["thinned/demo"]["sift"]["images"] == 3
    bins = table.cells["two-view/demo"]["sift"]
    errors = [e for figures in bins.values() for e in figures["errors_deg"]]
    assert errors
    assert np.median(errors) < 5


def test_text_holds_every_figure(measured: tuple[Path, Table]) -> None:
    out, table = measured
    text = table.to_markdown()
    assert (out / "table.md").read_text("utf-8") == text
    assert json.loads((out / "table.json").read_text("utf-8"))["cells"] == table.cells
    assert "| demo: registered of 8 | 8 |" in text
    auc = table.cells["scenes/demo"]["sift"]["auc"].values()
    line = " / ".join(f"{value:.1f}" for value in auc)
    assert f"| demo: AUC@1 / 3 / 5 | {line} |" in text
    assert "demo, every third image: registered of 3" in text
    assert "- sift: none" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {3}


def _forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("measured anew")

    for name in ("reconstruct_scene", "measure_two_views"):
        monkeypatch.setattr(evaluation, name, fail)


def test_cells_that_are_there_are_not_measured_again(
    measured: tuple[Path, Table], scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, table = measured
    _forbid(monkeypatch)
    assert _evaluate(scenes, out).cells == table.cells


def test_other_settings_are_measured_anew(
    measured: tuple[Path, Table], scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _ = measured
    _forbid(monkeypatch)
    with pytest.raises(AssertionError, match="measured anew"):
        _evaluate(scenes, out, max_keypoints=900)


def test_stopped_run_keeps_finished_cells(
    measured: tuple[Path, Table],
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, table = measured
    whole, bins = (table.cells[f"{row}/demo"]["sift"] for row in ("scenes", "two-view"))
    with monkeypatch.context() as patch:
        _forbid(patch)
        patch.setattr(evaluation, "reconstruct_scene", lambda *args, **_: whole)
        with pytest.raises(AssertionError):
            _evaluate(scenes, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "measure_two_views", lambda *args, **_: bins)
        cells = _evaluate(scenes, tmp_path).cells
    assert cells["scenes/demo"]["sift"] == whole
    assert cells["two-view/demo"]["sift"] == bins


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": ["surf"]}, "there is no column 'surf'"),
        ({"rows": ["scene/demo"]}, "there is no row 'scene/demo'"),
        ({"rows": ["homographies/demo"]}, "there is no row 'homographies/demo'"),
        ({"rows": [*ROWS, "scenes/absent"]}, "absent/reference.json is not there"),
        ({"rows": []}, "no row or no column"),
    ],
)
def test_wrong_names_are_refused_before_anything_is_measured(
    changes: dict[str, object],
    message: str,
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _forbid(monkeypatch)
    with pytest.raises(ConfigError, match=message):
        _evaluate(scenes, tmp_path, **changes)


def test_rows_stand_for_the_scenes_of_the_table() -> None:
    assert list(evaluation._expand("thinned")) == [
        f"thinned/{name}" for name in evaluation.SCENES
    ]
    assert list(evaluation._expand("seconds")) == ["seconds/fountain-P11"]
    assert list(evaluation._expand("homographies")) == ["homographies"]


@pytest.mark.slow
def test_seconds_are_those_of_a_photograph_and_of_a_pair(
    scenes: Path, tmp_path: Path
) -> None:
    table = _evaluate(scenes, tmp_path, rows=["seconds/demo"])
    figures = table.cells["seconds/demo"]["sift"]
    assert figures["size"] == [480, 360]
    assert figures["photograph_s"] > 0
    assert figures["pair_s"] > 0
    assert "| a photograph of 480 × 360 |" in table.to_markdown()
