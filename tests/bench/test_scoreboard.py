"""The scoreboard: what counts as wrong, what a file of results makes, and one game."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from sfmprep.demo import textures
from sfmprep.demo.courtyard import render_demo_scene
from sfmprep.errors import ConfigError
from sfmprep.evaluation.reference import CameraPose
from tests.bench.scoreboard import __main__ as scoreboard
from tests.bench.scoreboard import rendered as rendered_scenes
from tests.bench.scoreboard import scenes as scene_list
from tests.bench.scoreboard import table
from tests.bench.scoreboard.judge import is_wrong, judge
from tests.bench.scoreboard.play import Settings, play, read_rows
from tests.bench.scoreboard.process import run_measured
from tests.bench.scoreboard.scenes import Scene, own, prepare, rendered
from tests.bench.scoreboard.tools import TOOLS, doubts_of
from tests.bench.scoreboard.worse import make_worse, night, shaken, two_lights

ENTRY = {"K": [[800, 0, 320], [0, 800, 240], [0, 0, 1]], "width": 640, "height": 480}
POSES = (
    CameraPose(rotation=np.eye(3), centre=np.zeros(3)),
    CameraPose(rotation=np.eye(3), centre=np.array([1.0, 0, 0])),
)


def seen(points: NDArray[np.float64], pose: CameraPose) -> NDArray[np.float64]:
    local = (points - pose.centre) @ pose.rotation.T
    return 800 * local[:, :2] / local[:, 2:] + (320, 240)


def points(depth: float) -> NDArray[np.float64]:
    rng = np.random.default_rng(0)
    return rng.uniform((-1, -1, depth), (1, 1, depth + 2), (40, 3))


# -------------------------------------------------------------------------------- judge
def test_inliers_that_fit_the_true_cameras_are_not_wrong() -> None:
    world = points(5)
    xy = seen(world, POSES[0]), seen(world, POSES[1])

    assert not is_wrong(xy, (ENTRY, ENTRY), POSES)
    # within 0.5 % of 640 pixels, 3.2, across the epipolar lines, which are level
    assert not is_wrong((xy[0], xy[1] + (0, 3.1)), (ENTRY, ENTRY), POSES)
    assert is_wrong((xy[0], xy[1] + (0, 3.3)), (ENTRY, ENTRY), POSES)


def test_inliers_on_their_lines_but_behind_the_cameras_are_wrong() -> None:
    xy = seen(points(5), POSES[0]), seen(points(5), POSES[1])

    # both cameras exchanged: the rays meet behind them
    assert is_wrong((xy[1], xy[0]), (ENTRY, ENTRY), POSES)


def test_half_of_the_inliers_decide() -> None:
    world = points(5)
    first, second = seen(world, POSES[0]), seen(world, POSES[1])
    for count, wrong in ((20, False), (21, True)):
        moved = second + np.where(np.arange(40) < count, 50, 0)[:, None] * [0, 1]
        assert is_wrong((first, moved), (ENTRY, ENTRY), POSES) == wrong


def test_lens_of_the_reference_counts() -> None:
    world, lens = points(2), np.array([-0.3, 0, 0, 0])
    matrix = np.array(ENTRY["K"], float)
    xy = [
        cv2.projectPoints(world - pose.centre, np.zeros(3), np.zeros(3), matrix, lens)
        for pose in POSES
    ]
    first, second = (np.asarray(found[0], float)[:, 0] for found in xy)
    bent = {**ENTRY, "dist": lens.tolist()}

    assert not is_wrong((first, second), (bent, bent), POSES)
    assert is_wrong((first, second), (ENTRY, bent), POSES)


# ---------------------------------------------------------------------------- processes
def test_memory_of_children_counts_and_a_limit_stops_all() -> None:
    child = "x = bytearray(200 << 20); import time; time.sleep(1.5)"
    program = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    )

    done = run_measured([sys.executable, "-c", program], {}, 30)
    assert done.exit_code == 0
    assert done.peak_bytes is None or done.peak_bytes > 200 << 20

    stopped = run_measured([sys.executable, "-c", "while True: pass"], {}, 1)
    assert stopped.exit_code is None


# -------------------------------------------------------------------------------- games
@pytest.fixture(scope="module")
def courtyard(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], None]:
    """Fills a folder with six small photographs, rendered once, and their reference."""
    made = tmp_path_factory.mktemp("courtyard")
    render_demo_scene(made, num_images=6, size=(320, 240))
    return lambda folder: shutil.copytree(made, folder, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def small(courtyard: Callable[[Path], None]) -> Scene:
    return rendered("courtyard", courtyard)


COLMAP = [tool for tool in TOOLS if tool.name == "colmap"]


def test_scene_is_thinned_and_reduced_with_its_reference(
    courtyard: Callable[[Path], None], tmp_path: Path
) -> None:
    scene = Scene("courtyard", courtyard, every=3)

    found = prepare(scene, tmp_path, 160)

    assert found.names == ("0000.jpg", "0003.jpg")
    assert found.reference is not None
    entry = found.reference["0003.jpg"]
    full = json.loads((tmp_path / "courtyard/whole/reference.json").read_text())
    assert (entry["width"], entry["height"]) == (160, 120)
    assert np.allclose(
        np.array(entry["K"])[:2] * 2, np.array(full["images"]["0003.jpg"]["K"])[:2]
    )


def test_scene_that_is_not_there_is_skipped_with_a_word(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(scene_list, "scene_folder", lambda name: tmp_path / name)
    missing = scene_list.shared("fox")
    monkeypatch.setattr(scoreboard, "SCENES", (missing,))
    words = ["scoreboard", "--scratch", str(tmp_path), "--scenes", "fox"]
    monkeypatch.setattr(sys, "argv", words)

    scoreboard.main()

    assert not missing.is_there
    assert "so skipped: fox\n" in (said := capsys.readouterr().out)
    assert "0 runs more" in said
    (tmp_path / "fox").mkdir()
    assert missing.is_there


@pytest.mark.parametrize("given", ["walk", "walk/images"])
def test_own_folder_is_judged_by_the_truth_in_it_or_beside_it(
    courtyard: Callable[[Path], None], tmp_path: Path, given: str
) -> None:
    courtyard(tmp_path / "walk")
    (tmp_path / "walk/images/notes.txt").write_text("not a photograph")

    scene = own(tmp_path / given)
    found = prepare(scene, tmp_path / "scratch", None)

    assert scene.name == "walk"
    assert found.names == tuple(f"{n:04d}.jpg" for n in range(6))
    assert set(found.reference or {}) == set(found.names)
    # what changed since counts
    (tmp_path / "walk/images/0000.jpg").unlink()
    assert len(prepare(scene, tmp_path / "scratch", None).names) == 5


def test_own_folder_needs_no_truth_but_photographs(
    courtyard: Callable[[Path], None], tmp_path: Path
) -> None:
    courtyard(tmp_path / "made")
    (tmp_path / "mine" / "left").mkdir(parents=True)
    with pytest.raises(ConfigError, match="there are no photographs below"):
        own(tmp_path / "mine")
    shutil.copy(tmp_path / "made/images/0000.jpg", tmp_path / "mine/left/a.jpg")

    found = prepare(own(tmp_path / "mine"), tmp_path / "scratch", None)

    assert (found.names, found.reference) == (("left/a.jpg",), None)
    nothing = judge(found, tmp_path / "database.db", tmp_path / "models")
    assert (nothing["images"], nothing["auc"], nothing["wrong_pairs"]) == (
        1,
        None,
        None,
    )

    shutil.copy(tmp_path / "made/reference.json", tmp_path / "mine")
    with pytest.raises(ConfigError, match=r"knows none of the photographs, such"):
        prepare(own(tmp_path / "mine"), tmp_path / "scratch", None)


def test_truth_without_intrinsics_counts_no_wrong_pairs(
    courtyard: Callable[[Path], None], tmp_path: Path
) -> None:
    courtyard(tmp_path / "walk")
    path = tmp_path / "walk/reference.json"
    entries = json.loads(path.read_text())["images"]
    poses = {n: {"R": e["R"], "t": e["t"]} for n, e in entries.items()}
    path.write_text(json.dumps({"images": poses}))

    found = prepare(own(tmp_path / "walk"), tmp_path / "scratch", 160)

    nothing = judge(found, tmp_path / "database.db", tmp_path / "models")
    assert nothing["auc"] == {"1": 0.0, "3": 0.0, "5": 0.0}
    assert nothing["wrong_pairs"] is None


def test_canvas_of_a_lens_is_where_the_lens_sees() -> None:
    camera, pixels = rendered_scenes._canvas(rendered_scenes.WIDE)
    width, height = rendered_scenes.SIZE
    for row, column in ((0, 0), (height - 1, width - 1), (100, 700)):
        rays = np.linalg.solve(
            camera.intrinsics, [*(pixels[row, column] + 0.5).astype(float), 1]
        )
        seen_at = cv2.projectPoints(
            *(rays[None], np.zeros(3), np.zeros(3)),
            rendered_scenes.WIDE.matrix((width, height)),
            np.array(rendered_scenes.WIDE.dist),
        )[0]
        assert seen_at.ravel() == pytest.approx((column + 0.5, row + 0.5), abs=1e-3)


def test_fronts_of_one_number_are_painted_alike_and_look_outwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(textures, "TEXELS", 64)  # of 256 a metre, for speed
    _, *fronts = rendered_scenes._house((0, 1, 0, 2), seed=0)

    paint = [front.texture for front in fronts]
    assert np.array_equal(paint[0], paint[2])
    assert not np.array_equal(paint[0], paint[1])
    assert not np.array_equal(paint[1], paint[3])
    for front, out in zip(fronts, ((0, -1), (1, 0), (0, 1), (-1, 0)), strict=True):
        middle, normal = front.sample(np.array([0.5]), np.array([0.5]))
        assert middle[:, 0] == pytest.approx((3 * out[0], 3 * out[1], 1.8))
        assert normal[:, 0] == pytest.approx((*out, 0))


@pytest.mark.slow
def test_game_is_played_once_and_goes_on(small: Scene, tmp_path: Path) -> None:
    how = Settings(results=tmp_path / "rows.jsonl", scratch=tmp_path / "scratch")

    (row,) = play([small], COLMAP, how)

    assert (row["scene"], row["tool"], row["images"]) == ("courtyard", "colmap", 6)
    assert row["what"] == "SIFT, exhaustive"
    assert row["exit_code"] == 0
    assert set(row["steps"]) == {"extract", "match", "map"}
    assert row["wrong_pairs"] <= row["pairs"] <= 15
    assert read_rows(how.results) == [row]
    assert list(play([small], COLMAP, how)) == []
    assert list((tmp_path / "scratch" / "runs").iterdir()) == []


def test_no_time_is_no_result(small: Scene, tmp_path: Path) -> None:
    how = Settings(
        results=tmp_path / "rows.jsonl", scratch=tmp_path / "scratch", minutes=1e-9
    )

    assert list(play([small], COLMAP, how)) == []
    assert not how.results.exists()


# ------------------------------------------------------------------------------- tables
def row(scene: str, tool: str, **changed: Any) -> dict[str, Any]:
    return {
        **{"scene": scene, "every": 1, "only_turns": False, "tool": tool},
        **{"max_size": None, "commit": "abc", "device": "cpu", "cores": 2},
        **{"versions": {"python": "3.11"}, "date": "2026-01-02T03:04:05Z"},
        **{"uncommitted_changes": False, "what": "SIFT, exhaustive", "images": 9},
        **{"registered": 9, "models": [9], "auc": {"1": 60.0, "3": 70.0, "5": 80.0}},
        **{"pairs": 30, "wrong_pairs": 1, "points": 100, "track_length": 3.25},
        **{"error_px": 0.5, "seconds": 10.0, "process_seconds": 12.0},
        **{"cpu_seconds": 20.0},
        **{"peak_bytes": 300_000_000, "exit_code": 0, "failure": ""},
        **changed,
    }


def test_losses_are_named() -> None:
    rows = [
        row("a", "colmap"),
        row("a", "sfmprep", registered=8, auc={"1": 0, "3": 69.4, "5": 0}, seconds=9),
        row("b", "colmap", auc=None),
        row("b", "sfmprep", auc=None, seconds=10.6),
        row("turns", "colmap", registered=0, only_turns=True),
        row("turns", "sfmprep", registered=9, only_turns=True),
    ]

    assert table.verdicts(table.board_of(rows), theirs="colmap-one-camera") == ""
    assert table.verdicts(table.board_of(rows)) == (
        "sfmprep against COLMAP SIFT, on 2 captures:\n"
        "\n"
        "- images registered: better on 0, worse on 1 (a)\n"
        "- AUC@3, beyond half a point: better on 0, worse on 1 (a)\n"
        "- seconds, beyond a twentieth: better on 1, worse on 1 (b)"
    )


def test_doubts_are_what_the_report_cuts_or_flags() -> None:
    verdict = {"num_left_out": 3, "num_overlaid": 0, "broken": [{}, {}]}
    report = {
        "consistency": {**verdict, "num_contradicted": 0},
        "result": {"num_registered": 9, "num_dataset": 8},
    }
    doubts = {"pairs cut": 3, "pairs broken": 2, "photographs left out": 1}
    assert doubts_of(report) == doubts
    assert doubts_of({"consistency": None, "result": None}) is None
    assert doubts_of({}) is None


def test_rows_say_what_was_doubted_and_older_ones_that_nobody_asked() -> None:
    old, calm = row("old", "sfmprep"), row("calm", "sfmprep", doubts={})
    doubted = row("cut", "sfmprep", doubts={"pairs cut": 3, "pairs broken": 2})

    cells = [table.long_line(each).split(" | ")[-1] for each in (old, calm, doubted)]

    assert cells == ["– |", "none |", "3 pairs cut, 2 pairs broken |"]
    assert table.doubted(table.board_of([old])) == ""
    assert table.doubted(table.board_of([old, calm, doubted])) == (
        "sfmprep cut or flagged 1 of 2 captures: cut (3 pairs cut, 2 pairs broken)."
    )
    assert table.doubted(table.board_of([calm])) == (
        "sfmprep cut or flagged 0 of 1 captures."
    )


def test_of_a_busy_machine_seconds_of_the_cpu_count(tmp_path: Path) -> None:
    rows = [row("a", "colmap", cpu_seconds=20), row("a", "sfmprep", cpu_seconds=21.5)]

    table.write_further(rows, tmp_path / "page.md")

    written = (tmp_path / "page.md").read_text()
    assert written.startswith("# Further captures\n")
    assert (
        "- seconds of the CPU, beyond a twentieth: better on 0, worse on 1" in written
    )
    with pytest.raises(ValueError, match="no results yet"):
        table.write_further([], tmp_path / "page.md")


def test_newest_code_counts_alone() -> None:
    old, new = row("a", "colmap", commit="old"), row("a", "sfmprep", seconds=1.0)
    again = row("a", "sfmprep", seconds=2.0)

    assert table.newest([old, new, again]) == [again]


def test_tables_go_between_the_marks_and_into_a_page(tmp_path: Path) -> None:
    readme, page = tmp_path / "README.md", tmp_path / "scoreboard.md"
    readme.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    rows: Sequence[dict[str, Any]] = [row("a", "colmap"), row("b", "sfmprep", every=3)]

    table.write(rows, readme, page)

    written = readme.read_text()
    assert written.startswith(f"before\n{table.BEGIN}\n\n| scene | images |")
    assert written.endswith(f"\n\n{table.END}\nafter\n")
    assert "| a | 9 | 9; 60.0 / 70.0 / 80.0; 10 s |  |" in written
    assert "| b, every 3rd | 9 |  | 9; 60.0 / 70.0 / 80.0; 10 s |" in written
    assert (
        "| a | COLMAP SIFT | SIFT, exhaustive | 9 of 9 | 9 | 60.0 / 70.0 / 80.0"
        " | 1 of 30 | 100 | 3.2 | 0.50 | 10.0 | 12.0 | 20 | 300 | – |"
    ) in page.read_text()


def test_tables_without_rows_or_marks_are_refused(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("no marks")

    with pytest.raises(ValueError, match="there are no results yet"):
        table.write([], readme, tmp_path / "page.md")
    with pytest.raises(ValueError, match="lacks the lines"):
        table.write([row("a", "colmap")], readme, tmp_path / "page.md")


@pytest.mark.parametrize("change", [night, two_lights, shaken])
def test_worse_light_is_the_same_each_time_and_leaves_some_as_they_are(
    change: Callable[..., NDArray[np.float64]], tmp_path: Path
) -> None:
    texture = np.random.default_rng(1).uniform(40, 250, (60, 80, 3)).astype(np.uint8)
    found = []
    for turn in ("a", "b"):
        (tmp_path / turn).mkdir()
        for name in ("0.png", "1.png"):
            cv2.imwrite(str(tmp_path / turn / name), texture)
        make_worse(tmp_path / turn, change)
        found.append([cv2.imread(str(tmp_path / turn / n)) for n in ("0.png", "1.png")])
    assert np.array_equal(found[0], found[1])
    first, second = (np.abs(image.astype(int) - texture).mean() for image in found[0])
    assert second > 10
    assert first > 10 if change is night else first == 0
