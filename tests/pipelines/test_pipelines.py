"""The main job on a small capture: its result, and going on after whatever happened."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import h5py
import numpy as np
import pycolmap
import pytest

from sfmprep.cli.commands import run
from sfmprep.mapping import verify
from sfmprep.models.extractors.sift import Sift
from tests.support.made_once import common_folder

SETTINGS = (
    *("--set", "features.max_size=480", "features.max_keypoints=1500"),
    "export.downscales=[2]",
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
        *("features.h5", "pairs.txt", "pairs.json", "matches.h5", "database.db"),
        *("images.json", "stages.json", "poses.json", "mapped.zip", "models", "lock"),
        *("second_pairs.txt", "lost_pairs.txt", "mapped_on.zip"),
        *("mapped_consistency.json", "mapped_on_consistency.json"),
    }


def test_same_inputs_and_seed_give_same_stores_in_the_program(
    demo_result: Path, demo_scene: Path, tmp_path: Path
) -> None:
    """The console's command, which also leaves the images alone and COLMAP quiet."""
    images = Path(shutil.copytree(demo_scene / "images", tmp_path / "images"))
    before = stamps(images)
    done = subprocess.run(
        [sys.executable, "-m", "sfmprep", *command(images, tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert stamps(images) == before
    assert_same_result(demo_result, tmp_path / "out")
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == [
        f"reading the photographs of {images}",
        *("features", "[1/6] identify", "[1/6] extract", "[3/6] match"),
        *("[4/6] import", "[4/6] verify", "[5/6] calibrate"),
        *("0000.jpg and 7 other images of its camera", "[5/6] map"),
        *("[5/6] sharpness", "seed cloud", "[6/6] export", "warning", "warning"),
    ]


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


def test_added_image_is_the_only_one_extracted_matched_and_verified(
    demo_scene: Path,
    result: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = Path(shutil.copytree(demo_scene / "images", result.parent / "images"))
    # one is removed
    (images / "0007.jpg").unlink()
    assert run(command(images, result)) == 0
    assert "7 of 7 images registered" in capsys.readouterr().out
    assert not (result / "images" / "0007.jpg").exists()
    # and another comes in its place: the same view in other bytes
    view = cv2.imread(str(demo_scene / "images" / "0007.jpg"))
    assert view is not None and cv2.imwrite(str(images / "0008.jpg"), view)
    verified = []
    estimate = pycolmap.estimate_two_view_geometry

    def count(*args: object) -> object:
        verified.append(1)
        return estimate(*args)

    monkeypatch.setattr(verify.pycolmap, "estimate_two_view_geometry", count)
    assert run(command(images, result)) == 0
    printed = capsys.readouterr()
    assert "8 of 8 images registered" in printed.out
    assert "extract: 1 in" in printed.err and "match: 7 in" in printed.err
    assert len(verified) == 7
    exported = {path.name for path in (result / "images").iterdir()}
    assert "0008.jpg" in exported and "0007.jpg" not in exported


def test_recipe_of_the_run_goes_on(result: Path, demo_scene: Path) -> None:
    recipe = str(result / "recipe.yaml")
    arguments = [str(demo_scene / "images"), str(result), "--recipe", recipe]
    assert run(["reconstruct", *arguments]) == 0


# --------------------------------------------------------------------- interruptions
PLACES = (
    *("kill extract 0", "interrupt extract 2", "kill extract 3", "kill match 3"),
    *("interrupt verify 2", "kill verify 5", "interrupt map 2", "kill map 4"),
    "kill export 3",
)


def test_killed_and_interrupted_run_goes_on_to_the_same_result(
    demo_result: Path,
    demo_scene: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """One run is stopped again and again, ever later."""
    out, said = tmp_path / "out", tmp_path / "said"
    said.mkdir()
    stopped = subprocess.run(
        [
            *(sys.executable, "-m", "tests.support.stopped_run"),
            *(str(said), str(common_folder(tmp_path_factory)), ",".join(PLACES)),
            *command(demo_scene / "images", out),
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    ends = {"kill": "SIGKILL", "interrupt": "130"}
    assert stopped.stdout.splitlines() == [
        f"{place}: {ends[place.split()[0]]}" for place in PLACES
    ]
    for number, place in enumerate(PLACES):
        error = (said / f"{number}.err").read_text()
        assert (said / f"{number}.out").read_text() == ""
        assert "Traceback" not in error
        assert place.startswith("kill") or error.splitlines()[-1] == (
            "sfmprep: stopped. The same command goes on where this run was."
        )
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
