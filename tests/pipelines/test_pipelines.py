"""The main job on a small capture: its result, and going on after whatever happened."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pycolmap
import pytest

from sfmprep.cli.commands import run
from sfmprep.models.extractors.sift import Sift

SETTINGS = (
    *("--set", "features.max_size=480", "features.max_keypoints=1500"),
    "export.downscales=[2]",
)
PROGRAM = (
    sys.executable,
    "-c",
    "from sfmprep.cli.commands import main; main()",
)


def command(images: Path, out: Path) -> list[str]:
    return ["reconstruct", str(images), str(out), "--recipe", "sift", *SETTINGS]


@pytest.fixture
def result(demo_result: Path, tmp_path: Path) -> Path:
    """A copy of the result of an undisturbed run."""
    return Path(shutil.copytree(demo_result, tmp_path / "out"))


def stamps(folder: Path) -> dict[str, int]:
    """When each file below a folder was last written; not that of the summary."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file()
        and path.name not in ("report.json", "report.html", "images.json")
    }


def stored(path: Path) -> dict[str, np.ndarray]:
    """The content of a store."""
    with h5py.File(path) as file:
        columns = {name: column[:] for name, column in file["columns"].items()}
        return {**columns, "index": file["index"][:], "keys": file["keys"][:]}


def assert_same_stores(one: Path, other: Path) -> None:
    for name in ("features.h5", "matches.h5"):
        a, b = stored(one / "work" / name), stored(other / "work" / name)
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=f"{name} {key}")


def assert_same_result(one: Path, other: Path) -> None:
    assert_same_stores(one, other)
    entries = [sorted(path.name for path in out.iterdir()) for out in (one, other)]
    assert entries[0] == entries[1]
    # COLMAP's mapper runs on threads: some runs start from another pair, which gives
    # the same model in another world frame
    a, b = (pycolmap.Reconstruction(out / "sparse" / "0") for out in (one, other))
    found = pycolmap.compare_reconstructions(a, b, alignment_error="proj_center")
    assert found is not None and len(found["errors"]) == 8
    for error in found["errors"]:
        assert error.rotation_error_deg < 0.05
        assert error.proj_center_error < 0.01


@pytest.fixture
def no_sift(monkeypatch: pytest.MonkeyPatch) -> None:
    """Extraction fails the test."""

    def extract(self: object, batch: object) -> None:
        raise AssertionError("features were extracted again")

    monkeypatch.setattr(Sift, "extract", extract)


# ---------------------------------------------------------------------- undisturbed
def test_all_images_are_registered_at_their_true_poses(
    demo_result: Path, demo_scene: Path
) -> None:
    from sfmprep.evaluation.poses import evaluate_model
    from sfmprep.evaluation.reference import read_reference

    model = pycolmap.Reconstruction(demo_result / "work" / "models" / "0")
    evaluation = evaluate_model(model, read_reference(demo_scene))
    assert evaluation.registered == 8
    assert evaluation.auc[5] >= 90


def test_output_holds_the_dataset_and_nothing_else(demo_result: Path) -> None:
    assert {path.name for path in demo_result.iterdir()} == {
        *("images", "images_2", "sparse", "transforms.json", "dataset.json"),
        *("world_from_sfm.json", "recipe.yaml", "report.json", "report.html", "work"),
    }
    assert {path.name for path in (demo_result / "work").iterdir()} == {
        *("features.h5", "pairs.txt", "matches.h5", "database.db", "models"),
        *("images.json", "stages.json", "poses.json", "mapped.zip", "lock"),
        *("second_pairs.txt", "lost_pairs.txt", "mapped_on.zip"),
    }


def test_images_are_not_modified(demo_scene: Path, tmp_path: Path) -> None:
    images = shutil.copytree(demo_scene / "images", tmp_path / "images")
    before = stamps(images)
    assert run(command(images, tmp_path / "out")) == 0
    assert stamps(images) == before


def test_same_inputs_and_seed_give_same_stores(
    demo_result: Path, demo_scene: Path, tmp_path: Path
) -> None:
    assert run(command(demo_scene / "images", tmp_path / "out")) == 0
    assert_same_result(demo_result, tmp_path / "out")


# ------------------------------------------------------------------------- going on
@pytest.mark.usefixtures("no_sift")
def test_second_run_does_nothing_and_says_the_same(
    result: Path, demo_scene: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command(demo_scene / "images", result)) == 0
    first = capsys.readouterr().out
    before = stamps(result)
    assert run(command(demo_scene / "images", result)) == 0
    second, log = capsys.readouterr()
    assert log.splitlines()[:2] == [
        f"reading the photographs of {demo_scene / 'images'}",
        "features: sift + nearest, as in the earlier run",
    ]
    changed = {k for k, stamp in stamps(result).items() if before.get(k) != stamp}
    # stores and database are opened for writing; recipe and pairs are written anew
    opened = {f"work/{name}" for name in ("features.h5", "matches.h5", "database.db")}
    written = {"recipe.yaml", "report.json", "report.html", "work/images.json"}
    assert not changed - written - opened
    assert second.split("extract")[0] == first.split("extract")[0]
    assert "8 of 8 images registered" in second


@pytest.mark.usefixtures("no_sift")
@pytest.mark.parametrize(
    "lost",
    [
        ("images",),
        ("images_2",),
        ("sparse",),
        ("work/models",),
        ("images", "images_2", "sparse", "transforms.json"),
    ],
    ids=lambda lost: lost[0] if len(lost) == 1 else "all",
)
def test_what_was_deleted_is_made_again(
    lost: tuple[str, ...], demo_result: Path, result: Path, demo_scene: Path
) -> None:
    for name in lost:
        if (result / name).is_dir():
            shutil.rmtree(result / name)
        else:
            (result / name).unlink()
    assert run(command(demo_scene / "images", result)) == 0
    assert_same_result(demo_result, result)


@pytest.mark.usefixtures("no_sift")
@pytest.mark.parametrize("lost", ["matches.h5", "database.db", "pairs.txt"])
def test_lost_store_is_made_again(
    lost: str, demo_result: Path, result: Path, demo_scene: Path
) -> None:
    (result / "work" / lost).unlink()
    assert run(command(demo_scene / "images", result)) == 0
    assert_same_result(demo_result, result)


def test_added_image_is_the_only_one_extracted(
    demo_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = Path(shutil.copytree(demo_scene / "images", tmp_path / "images"))
    (images / "0007.jpg").rename(tmp_path / "later.jpg")
    assert run(command(images, tmp_path / "out")) == 0
    assert "7 of 7 images registered" in capsys.readouterr().out
    (tmp_path / "later.jpg").rename(images / "0007.jpg")
    assert run(command(images, tmp_path / "out")) == 0
    printed = capsys.readouterr()
    assert "8 of 8 images registered" in printed.out
    assert "extract: 1 in" in printed.err and "match: 7 in" in printed.err
    exported = {path.name for path in (tmp_path / "out" / "images").iterdir()}
    assert "0007.jpg" in exported
    # and a removed one is gone
    (images / "0007.jpg").unlink()
    assert run(command(images, tmp_path / "out")) == 0
    assert "7 of 7 images registered" in capsys.readouterr().out
    assert not (tmp_path / "out" / "images" / "0007.jpg").exists()


def test_recipe_of_the_run_goes_on(result: Path, demo_scene: Path) -> None:
    recipe = str(result / "recipe.yaml")
    arguments = [str(demo_scene / "images"), str(result), "--recipe", recipe]
    assert run(["reconstruct", *arguments]) == 0


# --------------------------------------------------------------------- interruptions
def started(images: Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PROGRAM, *command(images, out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background jobs ignore Ctrl-C, and so do their children
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(path: Path, process: subprocess.Popen[str], delay_s: float = 0.0) -> None:
    for _ in range(6000):
        if path.exists() or process.poll() is not None:
            break
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()
    time.sleep(delay_s)


def kill_points() -> Iterator[tuple[str, float]]:
    yield "work/features.h5", 0.3
    yield "work/features.h5", 1.2
    yield "work/matches.h5", 0.05
    yield "work/database.db", 0.0
    yield "work/models", 0.02
    yield ".partial-export", 0.0


def test_killed_run_goes_on_to_the_same_result(
    demo_result: Path, demo_scene: Path, tmp_path: Path
) -> None:
    """One run is killed again and again, ever later."""
    out = tmp_path / "out"
    num_killed = 0
    for name, delay_s in kill_points():
        process = started(demo_scene / "images", out)
        try:
            wait_for(out / name, process, delay_s)
        except AssertionError:
            # too fast to be caught in this stage: begin anew
            assert process.returncode == 0
            shutil.rmtree(out)
            continue
        process.send_signal(signal.SIGKILL)
        process.communicate()
        num_killed += 1
    assert num_killed >= 3
    assert run(command(demo_scene / "images", out)) == 0
    assert_same_result(demo_result, out)


@pytest.mark.parametrize(
    ("name", "delay_s"), [("work/features.h5", 0.5), ("work/models", 0.0)]
)
def test_interrupted_run_says_so_and_goes_on(
    name: str, delay_s: float, demo_result: Path, demo_scene: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = started(demo_scene / "images", out)
    wait_for(out / name, process, delay_s)
    process.send_signal(signal.SIGINT)
    printed, error = process.communicate(timeout=60)
    assert (process.returncode, printed) == (130, "")
    assert error.splitlines()[-1] == (
        "sfmprep: stopped. The same command goes on where this run was."
    )
    assert "Traceback" not in error
    assert run(command(demo_scene / "images", out)) == 0
    assert_same_result(demo_result, out)


def test_database_left_half_written_is_not_trusted(
    demo_result: Path, result: Path, demo_scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image comes and goes while the run for it was stopped in verification."""
    from sfmprep.pipelines import stages

    images = Path(shutil.copytree(demo_scene / "images", result.parent / "images"))
    # the same pixels in another file: equal files count once
    (images / "0008.jpg").write_bytes((images / "0003.jpg").read_bytes() + b"\0")

    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stages, "verify_matches", stop)
        assert run(command(images, result)) == 130
    (images / "0008.jpg").unlink()
    assert run(command(images, result)) == 0
    with pycolmap.Database.open(result / "work" / "database.db") as database:
        assert database.num_images() == 8
        assert database.num_verified_image_pairs() > 20
    assert run(["map", str(images), str(result)]) == 0


def test_stale_log_of_a_database_is_not_played_back(
    result: Path, demo_scene: Path, tmp_path: Path
) -> None:
    """A killed writer leaves SQLite's log, which belongs to the old database only."""
    database = result / "work" / "database.db"
    script = (
        "import os, pycolmap, sys\n"
        "database = pycolmap.Database.open(sys.argv[1])\n"
        "database.clear_matches()\n"
        "database.clear_images()\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", script, database], check=True)
    assert Path(f"{database}-wal").stat().st_size > 0
    database.unlink()
    assert run(command(demo_scene / "images", result)) == 0
    with pycolmap.Database.open(database) as opened:
        assert (opened.num_images(), opened.num_matched_image_pairs() > 20) == (8, True)


def test_second_run_at_the_same_time_is_refused(
    result: Path, demo_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hold = (
        "import sys\n"
        "from pathlib import Path\n"
        "from sfmprep.pipelines.workspace import Workspace\n"
        "with Workspace(Path(sys.argv[1])).locked():\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    before = stamps(result)
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(result)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None and holder.stdin is not None
        assert holder.stdout.readline() == "held\n"
        assert run(command(demo_scene / "images", result)) == 1
        holder.stdin.close()
    assert (
        capsys.readouterr()
        .err.replace(str(tmp_path), "TMP")
        .endswith(
            "sfmprep: error: TMP/out is in use by another sfmprep. Wait for it, or stop"
            " it.\n"
        )
    )
    changed = {k for k, stamp in stamps(result).items() if before.get(k) != stamp}
    assert changed <= {"work/lock"}
