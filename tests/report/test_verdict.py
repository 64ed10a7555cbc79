"""The verdict: absolute floors, and that headline, exit code and next steps agree."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from sfmprep.cli.commands import run as run_command
from sfmprep.report.findings import list_findings
from sfmprep.report.schema import Finding, Histogram, ImageReport, Residuals, Result
from sfmprep.report.verdict import exit_code, judge, per_cent
from tests.support.synthetic_run import synthesize

GOOD: dict[str, Any] = {
    "num_registered": 30,
    "num_dataset": 30,
    "num_points": 5000,
    "num_observations": 20_000,
    "mean_track_length": 4.0,
    "median_angle_deg": 20.0,
    "median_parallax_deg": 4.0,
    "model_sizes": [30],
}


def findings(*, seen: int = 400, **changes: Any) -> list[Finding]:
    result = Result(**{**GOOD, **changes})
    images = [
        ImageReport(
            name=f"{k:02}.jpg",
            status="registered",
            reason="",
            num_keypoints=2000,
            model=0,
            num_points=seen,
            coverage=0.8,
        )
        for k in range(result.num_dataset)
    ]
    return list_findings(
        images,
        result=result,
        cameras=[],
        graph=None,
        links=[],
        contradictions=[],
        residuals=None,
    )


def verdict(num_images: int = 30, **changes: Any) -> tuple[str, bool, str]:
    found = judge(
        num_images, Result(**{**GOOD, **changes}), findings(**changes), failure=None
    )
    return found.grade, found.trainable, found.sentence


def test_large_errors_are_large_for_what_the_features_saw() -> None:
    residuals = Residuals(
        mean_px=2.0,
        median_px=1.5,
        p90_px=4,
        p99_px=6,
        histogram=Histogram(edges=[0, 1], counts=[1]),
    )
    nothing: dict[str, Any] = {"cameras": [], "links": [], "contradictions": []}
    (found,) = list_findings(
        *([],), result=Result(**GOOD), graph=None, residuals=residuals, **nothing
    )
    assert found.code == "large_error"
    assert found.text == (
        "Points are 2.00 px from where they should be on average; 0.3 to 1.0 is usual."
    )
    assert not list_findings(
        *([],),
        result=Result(**GOOD),
        graph=None,
        residuals=residuals,
        scale=2.0,
        **nothing,
    )


# -------------------------------------------------------------------------- the floors
def test_good_result_has_no_finding() -> None:
    assert findings() == []
    assert verdict() == (
        "good",
        True,
        "All 30 photographs are in the dataset, and nothing looks wrong. It is ready"
        " for training.",
    )


@pytest.mark.parametrize(
    ("changes", "code", "blocks"),
    [
        ({"num_dataset": 20}, None, False),
        ({"num_dataset": 19}, "few_images", False),
        ({"num_dataset": 5}, "few_images", False),
        ({"num_dataset": 4}, "few_images", True),
        ({"num_points": 1000}, None, False),
        ({"num_points": 999}, "few_model_points", False),
        ({"num_points": 500}, "few_model_points", False),
        ({"num_points": 499}, "few_model_points", True),
        # what training starts from counts, where there is a dataset
        ({"num_points": 231, "num_dataset_points": 9000}, None, False),
        ({"num_dataset_points": 0}, "few_model_points", True),
        ({"median_angle_deg": 4.0}, None, False),
        ({"median_angle_deg": 3.9}, "narrow_angles", False),
        ({"median_angle_deg": 1.9}, "narrow_angles", True),
        ({"median_parallax_deg": 0.5}, None, False),
        ({"median_parallax_deg": 0.49}, "little_parallax", True),
        ({"median_parallax_deg": None}, None, False),
    ],
)
def test_floor(changes: dict[str, Any], code: str | None, blocks: bool) -> None:
    found = [(f.code, f.blocks_training) for f in findings(**changes)]
    assert found == ([] if code is None else [(code, blocks)])


def test_photographs_that_see_few_points_block() -> None:
    codes = [(f.code, f.blocks_training) for f in findings(seen=49)]
    assert codes == [("loose_poses", True), ("few_points", False)]
    assert findings(seen=50) == []


def test_blocking_findings_come_first_and_make_the_headline() -> None:
    changes = {"num_dataset": 4, "num_points": 231, "num_registered": 4}
    assert [f.code for f in findings(**changes)] == ["few_images", "few_model_points"]
    assert verdict(4, **changes) == (
        "poor",
        False,
        "All 4 photographs are in the dataset, but it is not worth training on: the"
        " photographs in it are too few and it has too few 3D points. See below what to"
        " do.",
    )


def test_what_is_found_in_words() -> None:
    (few, points) = findings(num_dataset=4, num_points=1)
    assert f"{few.text} {few.advice}" == (
        "The dataset has 4 photographs: a splat looks right only from near where they"
        " were taken. Take 20 or more, a step apart, from all sides that are to be"
        " seen."
    )
    assert f"{points.text} {points.advice}" == (
        "There is 1 3D point to start training from; some thousands are usual. Take"
        " sharper or larger photographs, or look for more in them: --set"
        " features.max_keypoints=8192, or --recipe textureless."
    )
    (turned,) = findings(median_parallax_deg=0.2)
    assert turned.text == (
        "A camera that turns on the spot would see half of this capture to within 0.20"
        " degrees: where the camera only turned, poses and points cannot be trusted."
    )


def test_much_that_is_missing_is_poor_but_can_be_trained() -> None:
    grade, trainable, sentence = verdict(100)
    assert (grade, trainable) == ("poor", True)
    assert sentence == (
        "30 of 100 photographs (30%) are in the dataset: what they show can be trained,"
        " but much of the capture is missing. See below why."
    )


@pytest.mark.parametrize(
    ("part", "expected"), [(0, "0%"), (1, "1%"), (150, "50%"), (299, "99%")]
)
def test_share_is_whole_only_where_nothing_is_missing(part: int, expected: str) -> None:
    assert per_cent(part, 300) == expected
    assert per_cent(300, 300) == "100%"


def test_one_photograph_that_is_missing_is_not_100_per_cent() -> None:
    grade, _, sentence = verdict(300, num_dataset=299, num_registered=299)
    assert (grade, sentence) == (
        "usable",
        "299 of 300 photographs (99%) are in the dataset. It can be trained; see below"
        " what is missing.",
    )


def test_finding_that_the_verdict_has_no_words_for_blocks_all_the_same() -> None:
    other = Finding(
        code="new", text="Poses are wrong.", advice="", blocks_training=True
    )
    found = judge(30, Result(**GOOD), [other], failure=None)
    assert (found.grade, found.trainable, found.sentence) == (
        "poor",
        False,
        "All 30 photographs are in the dataset, but it is not worth training on. See"
        " below what to do.",
    )


@pytest.mark.parametrize("num_frames", [4, 8])
def test_exit_code_and_next_steps_follow(tmp_path: Path, num_frames: int) -> None:
    report = synthesize(tmp_path, num_frames=num_frames).report()
    if num_frames == 4:
        assert not report.trainable and report.next_steps == []
        assert exit_code(report) == 3
    else:
        assert report.trainable and report.next_steps == ["brush /out"]
        assert exit_code(report) == 0


# ------------------------------------------------------------- captures, from the files
def turned_views(photograph: Path, folder: Path) -> None:
    """What a camera sees that turns on the spot: warps of one photograph."""
    source = cv2.imread(str(photograph))
    height, width = source.shape[:2]
    wide = np.array(
        [[0.9 * width, 0, width / 2], [0, 0.9 * width, height / 2], [0, 0, 1]]
    )
    narrow = np.array([[600.0, 0, 180], [0, 600, 135], [0, 0, 1]])
    folder.mkdir(parents=True)
    for number, degrees in enumerate(np.linspace(-10, 10, 6)):
        turn, _ = cv2.Rodrigues(np.array([0, np.radians(degrees), 0]))
        view = cv2.warpPerspective(
            source, narrow @ turn @ np.linalg.inv(wide), (360, 270)
        )
        cv2.imwrite(str(folder / f"{number}.png"), view)


def reconstruct(
    images: Path, out: Path, settings: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, dict[str, Any]]:
    call = ["reconstruct", str(images), str(out), "--recipe", "sift", "--set"]
    code = run_command([*call, "export.downscales=[8]", *settings])
    report = json.loads((out / "report.json").read_text("utf-8"))
    return code, capsys.readouterr().out, report


@pytest.mark.slow
def test_camera_that_only_turned_is_no_success(
    demo_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = sorted((demo_scene / "images").iterdir())[0]
    turned_views(first, tmp_path / "images")
    code, printed, report = reconstruct(
        tmp_path / "images",
        tmp_path / "out",
        ["features.max_size=360", "features.max_keypoints=500"],
        capsys,
    )
    assert code in (1, 3)  # no model at all, or none that is worth training on
    assert not report["trainable"] and report["next_steps"] == []
    assert "ns-train" not in printed and "can be trained" not in printed


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("scene", ["four", "kayak"])
def test_real_capture_that_is_not_worth_training_on(
    scene: str, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes = shared / "data" / "scenes"
    source, some = {
        "four": (scenes / "fountain-P11" / "images", slice(3, 7)),
        "kayak": (scenes / "rotation-kayak7" / "images", slice(None)),
    }[scene]
    folder = tmp_path / "images"
    folder.mkdir()
    for path in sorted(source.iterdir())[some]:
        shutil.copy(path, folder)
    size = {"four": 480, "kayak": 480}[scene]
    code, printed, report = reconstruct(
        folder, tmp_path / "out", [f"features.max_size={size}"], capsys
    )
    assert code == 3 and report["grade"] == "poor"
    expected = {"four": "few_images", "kayak": "little_parallax"}[scene]
    assert report["warnings"][0]["code"] == expected
    assert "ns-train" not in printed and "can be trained" not in printed
    assert report["verdict"] in printed
