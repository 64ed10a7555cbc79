"""The pose evaluation: closed forms, references, names, and the shared tool."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pycolmap
import pytest

from sfmprep.errors import ConfigError
from sfmprep.evaluation.poses import evaluate_model
from sfmprep.evaluation.reference import CameraPose, read_reference


def turn(rng: np.random.Generator, degrees: float) -> np.ndarray:
    axis = rng.normal(size=3)
    return pycolmap.Rotation3d(
        np.radians(degrees) * axis / np.linalg.norm(axis)
    ).matrix()


def some_poses(num: int = 10, seed: int = 0) -> dict[str, CameraPose]:
    rng = np.random.default_rng(seed)
    return {
        f"{k:04d}.jpg": CameraPose(
            rotation=turn(rng, rng.uniform(0, 180)), centre=rng.uniform(-5, 5, 3)
        )
        for k in range(num)
    }


def write_model(poses: dict[str, CameraPose], folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "cameras.txt").write_text("1 SIMPLE_PINHOLE 1600 1200 1400 800 600\n")
    (folder / "points3D.txt").write_text("")
    lines = []
    for k, (name, pose) in enumerate(sorted(poses.items()), 1):
        x, y, z, w = pycolmap.Rotation3d(pose.rotation).quat
        numbers = (w, x, y, z, *(-pose.rotation @ pose.centre))
        lines += [f"{k} {' '.join(repr(float(v)) for v in numbers)} 1 {name}", ""]
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    return folder


def write_json(poses: dict[str, CameraPose], path: Path) -> Path:
    images = {
        name: {"R": p.rotation.tolist(), "t": (-p.rotation @ p.centre).tolist()}
        for name, p in poses.items()
    }
    path.write_text(json.dumps({"images": images}))
    return path


@pytest.fixture
def model(tmp_path: Path):
    """Makes a reconstruction without points from poses."""

    def make(poses: dict[str, CameraPose]) -> pycolmap.Reconstruction:
        number = len(list(tmp_path.glob("model*")))
        return pycolmap.Reconstruction(write_model(poses, tmp_path / f"model{number}"))

    return make


# ---------------------------------------------------------------------- closed forms
def test_truth_against_itself_is_100(model):
    truth = some_poses()
    result = evaluate_model(model(truth), truth)
    for auc in (result.auc, result.auc_axis_corrected):
        assert auc == pytest.approx({1: 100, 3: 100, 5: 100, 10: 100}, abs=1e-3)
    assert result.registered == result.registered_reference == 10
    assert result.num_reference == 10
    assert result.max_pair_error_deg < 1e-5
    assert result.max_centre_error < 1e-9
    assert result.num_points == 0
    assert result.mean_reprojection_error_px is None
    assert result.mean_track_length is None


def test_a_similarity_of_the_world_changes_nothing(model):
    truth, rng = some_poses(), np.random.default_rng(1)
    spin, shift = turn(rng, 77), np.array([3.0, -5, 9])
    moved = {
        name: CameraPose(
            rotation=p.rotation @ spin.T, centre=0.37 * spin @ p.centre + shift
        )
        for name, p in truth.items()
    }
    result = evaluate_model(model(moved), truth)
    assert result.auc[1] == pytest.approx(100, abs=1e-3)
    assert result.max_centre_error < 1e-9


def test_one_image_turned_by_two_degrees(model):
    truth, rng = some_poses(), np.random.default_rng(2)
    first = truth["0000.jpg"]
    turned = CameraPose(rotation=turn(rng, 2) @ first.rotation, centre=first.centre)
    result = evaluate_model(model({**truth, "0000.jpg": turned}), truth)
    # 36 of 45 pairs are exact, 9 have an error of 2: the recall is 0.8 from 0, climbs
    # to that of the first of the nine at 2, and is 1 from there
    to_two = 2 * (0.8 + 0.8 + 1 / 45) / 2
    assert result.auc[1] == pytest.approx(80, abs=1e-3)
    for threshold in (3, 5, 10):
        area = (to_two + threshold - 2) / threshold
        assert result.auc[threshold] == pytest.approx(100 * area, abs=1e-3)
    assert result.max_pair_error_deg == pytest.approx(2, abs=1e-6)
    assert result.median_pair_error_deg < 1e-5
    assert result.max_centre_error < 1e-9


def test_a_missing_image_costs_its_pairs(model):
    truth = some_poses()
    result = evaluate_model(
        model({name: p for name, p in truth.items() if name != "0000.jpg"}), truth
    )
    assert result.auc == pytest.approx({1: 80, 3: 80, 5: 80, 10: 80}, abs=1e-3)
    assert (result.registered, result.num_reference) == (9, 10)
    assert result.max_pair_error_deg == math.inf
    figures = json.loads(result.to_json())
    assert figures["max_pair_error_deg"] is None
    assert figures["auc"]["10"] == pytest.approx(80, abs=1e-3)


def test_a_common_turn_of_all_cameras_is_corrected(model):
    truth, tilt = some_poses(), turn(np.random.default_rng(3), 0.5)
    tilted = {
        name: CameraPose(rotation=tilt @ p.rotation, centre=p.centre)
        for name, p in truth.items()
    }
    result = evaluate_model(model(tilted), truth)
    assert result.auc[1] < 90
    assert result.auc_axis_corrected[1] > 99
    assert result.axis_rotation_deg == pytest.approx(0.5, abs=0.01)


def test_one_wrong_centre_does_not_move_the_others(model):
    truth = some_poses()
    first = truth["0000.jpg"]
    away = CameraPose(rotation=first.rotation, centre=first.centre + [3.0, 4.0, 0.0])
    result = evaluate_model(model({**truth, "0000.jpg": away}), truth)
    assert result.median_centre_error < 1e-9
    assert result.max_centre_error == pytest.approx(5, abs=1e-6)


def test_two_common_images_have_no_centre_error(model):
    truth = some_poses()
    two = {name: truth[name] for name in ("0000.jpg", "0001.jpg")}
    result = evaluate_model(model(two), truth)
    assert result.median_centre_error is None
    assert result.axis_rotation_deg is None
    assert result.auc[5] == pytest.approx(100 / 45, abs=1e-3)


# ------------------------------------------------------------------------------ names
def test_same_file_names_in_two_folders_are_told_apart(model):
    left, right = some_poses(5, seed=1), some_poses(5, seed=2)
    truth = {f"left/{n}": p for n, p in left.items()}
    truth |= {f"right/{n}": p for n, p in right.items()}
    assert evaluate_model(model(truth), truth).auc[1] == pytest.approx(100, abs=1e-3)
    one_missing = {n: p for n, p in truth.items() if n != "left/0000.jpg"}
    result = evaluate_model(model(one_missing), truth)
    assert result.registered_reference == 9


def test_an_unmatched_name_is_no_match_for_another_folder(model, caplog):
    poses = some_poses(4)
    truth = {f"left/{n}": p for n, p in poses.items()}
    estimate = dict(truth)
    estimate["right/0003.jpg"] = estimate.pop("left/0003.jpg")
    result = evaluate_model(model(estimate), truth)
    assert result.registered_reference == 3
    assert "count as not registered" in caplog.text


def test_names_match_by_stem_where_none_is_equal(model):
    poses = some_poses()
    truth = {name.replace(".jpg", ".png"): p for name, p in poses.items()}
    estimate = {f"images/{name}": p for name, p in poses.items()}
    result = evaluate_model(model(estimate), truth)
    assert result.auc[1] == pytest.approx(100, abs=1e-3)


def test_ambiguous_stems_are_refused_by_name(model):
    poses = some_poses(3)
    estimate = {f"left/{n}": p for n, p in poses.items()}
    estimate["right/0001.jpg"] = poses["0001.jpg"]
    with pytest.raises(ConfigError, match=r"'left/0001.jpg', 'right/0001.jpg'"):
        evaluate_model(model(estimate), poses)


def test_no_common_image_is_refused_with_both_names(model):
    truth = some_poses(3)
    other = {f"other{n}": p for n, p in truth.items()}
    with pytest.raises(ConfigError, match=r"'0000.jpg'.*'other0000.jpg'"):
        evaluate_model(model(other), truth)


def test_a_reference_of_one_image_is_refused(model):
    truth = some_poses(1)
    with pytest.raises(ConfigError, match="at least 2"):
        evaluate_model(model(truth), truth)


# -------------------------------------------------------------------------- references
def assert_same(one: dict[str, CameraPose], two: dict[str, CameraPose]) -> None:
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(one[name].rotation, two[name].rotation, atol=1e-9)
        np.testing.assert_allclose(one[name].centre, two[name].centre, atol=1e-9)


def test_all_kinds_of_reference_give_the_same_poses(tmp_path: Path):
    poses = some_poses(3)
    path = write_json(poses, tmp_path / "reference.json")
    assert_same(read_reference(path), poses)
    assert_same(read_reference(tmp_path), poses)
    assert_same(read_reference(write_model(poses, tmp_path / "sparse")), poses)
    cameras = tmp_path / "strecha"
    cameras.mkdir()
    for name, pose in poses.items():
        numbers = [*np.eye(3).ravel(), 0, 0, 0, *pose.rotation.T.ravel(), *pose.centre]
        text = " ".join(repr(float(v)) for v in numbers)
        (cameras / f"{name}.camera").write_text(f"{text}\n3072 2048\n")
        (cameras / name).write_bytes(b"")
    assert_same(read_reference(cameras), poses)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"images": {"a.jpg": {"R": 1}}}', "cannot be read"),
        ('{"images": {"a.jpg": {"R": [[1]], "t": [0, 0, 0]}}}', "a.jpg"),
        (
            '{"images": {"a.jpg": {"R": [[2,0,0],[0,1,0],[0,0,1]], "t": [0,0,0]}}}',
            "not a rotation",
        ),
        (
            '{"images": {"a.jpg": {"R": [[-1,0,0],[0,1,0],[0,0,1]], "t": [0,0,0]}}}',
            "mirrors",
        ),
    ],
)
def test_a_broken_json_reference_is_named(tmp_path: Path, text: str, message: str):
    path = tmp_path / "reference.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        read_reference(path)
    assert str(path) in str(error.value)


def test_a_camera_file_that_is_too_short_is_named(tmp_path: Path):
    (tmp_path / "a.jpg.camera").write_text("1 2 3")
    with pytest.raises(ConfigError, match=r"a\.jpg\.camera holds 3 numbers"):
        read_reference(tmp_path)


def test_a_damaged_model_is_named(tmp_path: Path):
    (tmp_path / "images.bin").write_bytes(b"no model")
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path))):
        read_reference(tmp_path)


def test_a_folder_without_reference_says_what_is_expected(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"folder without these.*reference\.json"):
        read_reference(tmp_path)
    with pytest.raises(ConfigError, match="is not there"):
        read_reference(tmp_path / "nowhere")
    (tmp_path / "poses.txt").write_text("")
    with pytest.raises(ConfigError, match=r"is not a \.json file"):
        read_reference(tmp_path / "poses.txt")


# ------------------------------------------------------------- against the shared tool
@pytest.fixture(scope="module")
def tool(shared: Path) -> ModuleType:
    path = shared / "tools" / "evaluate_poses.py"
    spec = importlib.util.spec_from_file_location("evaluate_poses", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_agrees(tool: ModuleType, reconstruction, reference: Path) -> None:
    theirs = tool.evaluate(reconstruction, reference)
    ours = evaluate_model(reconstruction, read_reference(reference))
    pairs = {
        "registered": ours.registered,
        "num_gt_images": ours.num_reference,
        "registered_gt": ours.registered_reference,
        "num_points3D": ours.num_points,
        "axis_rotation_deg": ours.axis_rotation_deg,
        "median_pair_error_deg": ours.median_pair_error_deg,
        "max_pair_error_deg": ours.max_pair_error_deg,
        "median_rotation_error_deg": ours.median_rotation_error_deg,
        "median_translation_error_deg": ours.median_translation_error_deg,
        "median_centre_error": ours.median_centre_error,
        "max_centre_error": ours.max_centre_error,
        "mean_reprojection_error_px": ours.mean_reprojection_error_px,
        "mean_track_length": ours.mean_track_length,
    }
    for key, value in pairs.items():
        known = value if value is not None and math.isfinite(value) else None
        assert known == pytest.approx(theirs[key], abs=0.01), key
    for key, auc in (
        ("auc_deg", ours.auc),
        ("auc_deg_axis_corrected", ours.auc_axis_corrected),
    ):
        for threshold, value in auc.items():
            assert value == pytest.approx(theirs[key][str(threshold)], abs=0.01), key


@pytest.mark.shared
@pytest.mark.parametrize(
    ("num", "missing", "degrees", "metres"),
    [(8, 0, 0.5, 0.02), (12, 2, 2.0, 0.1), (20, 12, 6.0, 0.3), (40, 3, 0.1, 0.005)],
)
def test_agrees_with_the_tool_on_perturbed_poses(
    tool, model, tmp_path, num, missing, degrees, metres
):
    truth, rng = some_poses(num, seed=num), np.random.default_rng(num)
    estimate = {
        name: CameraPose(
            rotation=turn(rng, degrees * rng.exponential()) @ p.rotation,
            centre=p.centre + metres * rng.normal(size=3),
        )
        for name, p in list(truth.items())[missing:]
    }
    reference = write_json(truth, tmp_path / "reference.json")
    assert_agrees(tool, model(estimate), reference)


@pytest.mark.shared
@pytest.mark.slow
def test_agrees_with_the_tool_on_a_real_reconstruction(tool, shared, tmp_path):
    scene = shared / "data" / "scenes" / "Herz-Jesus-P8"
    database = tmp_path / "database.db"
    options = pycolmap.FeatureExtractionOptions()
    options.max_image_size = 480
    pycolmap.extract_features(
        database,
        scene / "images",
        camera_mode=pycolmap.CameraMode.SINGLE,
        extraction_options=options,
    )
    pycolmap.match_exhaustive(database)
    models = pycolmap.incremental_mapping(database, scene / "images", tmp_path / "out")
    assert_agrees(tool, models[0], scene / "reference.json")


def test_of_many_images_some_pairs_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = some_poses(60)
    rng = np.random.default_rng(1)
    disturbed = {
        name: CameraPose(
            rotation=turn(rng, rng.uniform(0, 4)) @ pose.rotation, centre=pose.centre
        )
        for name, pose in list(truth.items())[:50]  # ten are missing
    }
    model = pycolmap.Reconstruction(write_model(disturbed, tmp_path / "model"))
    whole = evaluate_model(model, truth)
    monkeypatch.setattr("sfmprep.evaluation.poses._BLOCK", 7)
    assert evaluate_model(model, truth) == whole
    monkeypatch.setattr("sfmprep.evaluation.poses._MAX_PAIRS", 1700)  # of 1,770
    some = evaluate_model(model, truth)
    assert some != whole
    for limit, area in whole.auc.items():
        assert some.auc[limit] == pytest.approx(area, abs=5)
    assert evaluate_model(model, truth) == some
