"""What a terminal shows: wrapped lines, stages, time left; quiet, log and JSON."""

from __future__ import annotations

import json
import logging
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sfmprep.cli.commands import run
from sfmprep.cli.options import Options
from sfmprep.config.load import load_recipe
from sfmprep.report.schema import Report
from sfmprep.terminal import (
    StageProgress,
    progress_line,
    show_progress,
    start_logging,
    wrapped,
)
from tests.support.synthetic_run import synthesize

SENTENCE = (
    "warning: The dataset has 4 photographs: a splat looks right only from near where"
    " they were taken."
)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Leaves the log as it was found."""
    root = logging.getLogger("sfmprep")
    before = list(root.handlers), root.level
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers[:], root.level = before


# ------------------------------------------------------------------------------- lines
def test_lines_are_wrapped_at_words() -> None:
    assert wrapped(SENTENCE, 40) == (
        "warning: The dataset has 4 photographs:\n"
        "  a splat looks right only from near\n"
        "  where they were taken."
    )
    assert wrapped(SENTENCE, 80) == (
        "warning: The dataset has 4 photographs: a splat looks right only from near"
        " where\n"
        "  they were taken."
    )
    assert wrapped(SENTENCE, None) == SENTENCE


def test_wrapping_keeps_lines_indents_and_paths() -> None:
    text = "two:\n  left out: /a/very/long/path-with-hyphens/that/no/line/holds.jpg: no"
    assert wrapped(text, 24) == (
        "two:\n"
        "  left out:\n"
        "    /a/very/long/path-with-hyphens/that/no/line/holds.jpg:\n"
        "    no"
    )
    assert wrapped("a\n\nb", 40) == "a\n\nb"


@pytest.mark.parametrize(("width", "longest"), [(40, 40), (80, 80)])
def test_terminal_of_this_width_gets_lines_that_fit(width: int, longest: int) -> None:
    code = (
        "from sfmprep.terminal import say;"
        "say('sfmprep: error: no command is called \\'reconstuct\\'. Did you mean"
        " `sfmprep reconstruct`? See `sfmprep --help`.')"
    )
    master, slave = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stderr=slave,
        env={**os.environ, "COLUMNS": str(width)},
    ):
        os.close(slave)
        shown = b""
        while chunk := _read(master):
            shown += chunk
    os.close(master)
    lines = shown.decode().replace("\r\n", "\n").splitlines()
    assert max(map(len, lines)) <= longest
    assert (
        lines
        == {
            40: [
                "sfmprep: error: no command is called",
                "  'reconstuct'. Did you mean `sfmprep",
                "  reconstruct`? See `sfmprep --help`.",
            ],
            80: [
                "sfmprep: error: no command is called 'reconstuct'. Did you mean"
                " `sfmprep",
                "  reconstruct`? See `sfmprep --help`.",
            ],
        }[width]
    )


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # the other end is closed
        return b""


# ---------------------------------------------------------------------------- progress
def test_stage_of_a_loop_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    start_logging(verbose=False)
    progress = StageProgress([("extract",), ("import", "verify")])
    assert list(progress([1, 2], desc="verify")) == [1, 2]
    assert list(progress(iter([3]), desc="elsewhere", total=1)) == [3]
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" in ")[0] for line in lines] == [
        "[2/2] verify: 2",
        "elsewhere: 1",
    ]


def test_stages_of_a_recipe_have_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    start_logging(verbose=False)
    for recipe, stage in (("sift", "[5/6] map"), ("textureless", "[7/8] map")):
        list(Options().progress(load_recipe(recipe))([1], desc="map"))
        assert capsys.readouterr().err.startswith(f"{stage}: 1 in ")


@pytest.mark.parametrize(
    ("count", "total", "seconds", "steady", "expected"),
    [
        (100, 400, 300, True, "match: 100 of 400, about 15 min left"),
        (1000, 1100, 60, True, "match: 1,000 of 1,100, less than a minute left"),
        (100, 400, 300, False, "match: 100 of 400"),
        (500, 400, 300, True, "match: 500 of 400"),
        (500, None, 300, True, "match: 500"),
    ],
)
def test_minutes_left(
    count: int, total: int | None, seconds: float, steady: bool, expected: str
) -> None:
    assert progress_line("match", count, total, seconds, steady) == expected


# -------------------------------------------------------------------------- quiet, log
def test_quiet_shows_warnings_only_and_the_log_has_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "run.log"
    start_logging(verbose=False, quiet=True, file=log)
    logging.getLogger("sfmprep.somewhere").info("features: sift")
    logging.getLogger("sfmprep.somewhere").warning("one photograph is left out")
    list(show_progress([1], desc="extract"))
    assert capsys.readouterr().err == "warning: one photograph is left out\n"
    written = [line.split(maxsplit=2)[2] for line in log.read_text().splitlines()]
    assert written[:2] == [
        "INFO features: sift",
        "WARNING one photograph is left out",
    ]
    assert written[2].startswith("INFO extract: 1 in ")


def test_log_that_cannot_be_written_is_told_before_the_work(
    demo_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "no" / "run.log"
    call = ["reconstruct", str(demo_scene / "images"), str(tmp_path / "out")]
    assert run([*call, "--log", str(log)]) == 2
    assert capsys.readouterr().err == (
        f"sfmprep: error: the log {log} cannot be written: No such file or directory."
        " Give --log a file in a folder that exists.\n"
    )
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------ the summary
def test_summary_names_what_to_do_next_with_whole_paths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sfmprep.cli.summary import finish

    report = synthesize(tmp_path).report()
    assert finish(report, tmp_path / "my out") == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-4:] == [
        f"report: '{tmp_path}/my out/report.html'",
        f"result: '{tmp_path}/my out'",
        "next:",
        "  brush /out",
    ]
    assert printed.err == (
        "warning: The dataset has 8 photographs: a splat looks right only from near"
        " where they were taken. Take 20 or more, a step apart, from all sides that are"
        " to be seen.\n"
    )


def test_summary_of_what_is_not_worth_training_on_says_how_to_mend_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sfmprep.cli.summary import finish

    report = synthesize(tmp_path, num_frames=4).report()
    assert finish(report, tmp_path) == 3
    assert capsys.readouterr().out.splitlines()[-3:] == [
        f"result: {tmp_path}",
        "next: Take 20 or more, a step apart, from all sides that are to be seen.",
        "Then run the same command again: what is there is used.",
    ]


def test_summary_of_a_run_without_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sfmprep.cli.summary import finish

    report = synthesize(tmp_path).report(models=[], seconds={})
    assert finish(report, tmp_path) == 3
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"report: {tmp_path}/report.html",
        "next: the report says what to mend; then run the same command again.",
    ]


def test_json_is_the_report_and_nothing_else(
    demo_scene: Path,
    demo_result: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = shutil.copytree(demo_result, tmp_path / "out")
    recipe = ["--recipe", str(result / "recipe.yaml"), "--json"]
    call = ["reconstruct", str(demo_scene / "images"), str(result), *recipe]
    assert run(call) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed)["trainable"] is True
    assert Report.model_validate_json(printed).result is not None


def test_full_stdout_is_an_error_and_no_traceback() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "sfmprep", "recipes"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"},
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == (
        "sfmprep: error: standard output, or another file without a name: No space left"
        " on device. Free some disk space, and run the same command again.\n"
    )


def test_closed_stdout_is_no_traceback() -> None:
    call = [sys.executable, "-m", "sfmprep", "recipes"]
    done = subprocess.run(
        ["sh", "-c", f"{' '.join(call)} >&-"],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
