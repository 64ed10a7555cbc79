"""Options: one message for one wrong value, and completion by the shell."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sfmprep.cli.commands import run
from sfmprep.cli.options import MaskOptions, Options
from sfmprep.errors import ConfigError

Capture = pytest.CaptureFixture[str]


def told(capsys: Capture, *options: str) -> str:
    """What a wrong option is answered with, without tyro's frame."""
    assert run(["reconstruct", "in", "out", *options]) == 2
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().err).split())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--max-size", "abc"), "Error parsing --max-size: abc is no whole number"),
        (("--num-threads", "2.5"), "parsing --num-threads: 2.5 is no whole number"),
        (
            ("--mapper", "globl"),
            "invalid choice 'globl' for argument '--mapper'. Expected one of"
            " ('incremental', 'global', 'none').",
        ),
        (
            ("--camera-model", "OPENVC"),
            "invalid choice 'OPENVC' for argument '--camera-model'. Expected one of"
            " ('auto', 'SIMPLE_PINHOLE', 'PINHOLE',",
        ),
        (("--recipee", "fast"), "Perhaps you meant: --recipe NAME|FILE"),
        (("--max-keypoints", "9"), "a setting: --set features.max_keypoints=VALUE."),
        (("--max-keypoint", "9"), "--max-keypoints is a setting: --set features.max_k"),
    ],
)
def test_wrong_option_has_one_message(
    capsys: Capture, options: tuple[str, ...], expected: str
) -> None:
    said = told(capsys, *options)
    assert expected in said
    assert said.count(f"{options[1]}'") + said.count(f": {options[1]} ") <= 1


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["rec"], {"reconstruct", "recipes"}),
        (["reconstruct", "in", "out", "--camera-m"], {"--camera-model"}),
        (["reconstruct", "--mapper", ""], {"incremental", "global", "none"}),
        (["map", "--camera-model", "OPENCV_"], {"OPENCV_FISHEYE"}),
        (["export", "--target", "g"], {"gsplat"}),
    ],
)
def test_bash_completes(capsys: Capture, words: list[str], expected: set[str]) -> None:
    assert run(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    line = " ".join(f"'{word}'" for word in ["sfmprep", *words])
    ask = (
        f"COMP_WORDS=({line}); COMP_CWORD={len(words)}; COMP_LINE='sfmprep'\n"
        "_tyro_sfmprep sfmprep; printf '%s\\n' \"${COMPREPLY[@]}\"; complete -p sfmprep"
    )
    done = subprocess.run(
        ["bash"], input=f"{script}\n{ask}\n", capture_output=True, text=True, check=True
    )
    *found, registered = done.stdout.split("\n")[:-1]
    assert {word.strip() for word in found} == expected
    # what tyro does not know of, IMAGES and OUT, are files
    assert registered == "complete -o default -F _tyro_sfmprep sfmprep"


def test_zsh_has_its_own_script(capsys: Capture) -> None:
    assert run(["completion", "zsh"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("#compdef sfmprep\n")
    # what tyro does not know of, IMAGES and OUT, are files
    assert told.endswith('\n_tyro_sfmprep "$@" || _files\n\n\n')


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not here")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["rec"], ["recipes:recipes", "reconstruct:reconstruct"]),
        (["reconstruct", "--recipe", ""], ["files"]),
        (["reconstruct", "photos"], [":", "files"]),
    ],
)
def test_zsh_completes(capsys: Capture, words: list[str], expected: list[str]) -> None:
    assert run(["completion", "zsh"]) == 0
    script = capsys.readouterr().out
    line = " ".join(f"'{word}'" for word in ["sfmprep", *words])
    # what zsh has in its line editor alone; it finds no match for `photos`
    around = (
        'compdef() { }; _files() { print files }; _describe() { print -l "${(@P)2}";'
        ' [[ ${(P)2} != ":" ]] }\n'
        f"words=({line}); CURRENT={len(words) + 1}\n"
    )
    done = subprocess.run(
        ["zsh", "-f"], input=around + script, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == expected


def test_camera_params_are_numbers_of_the_recipe() -> None:
    options = Options(camera_params="1520, 960,540,-0.02")
    assert options.load("splat").database.camera_params == [1520, 960, 540, -0.02]


def test_wrong_camera_params_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        Options(camera_params="1520,x").load("splat")
    assert str(caught.value) == (
        "--camera-params 1520,x: expected numbers with commas between them, in COLMAP's"
        " order for the camera model, such as 1520,960,540,0."
    )


def test_masks_are_a_folder_or_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert MaskOptions(masks=Path("motion")).overrides() == ["motion_masks={}"]
    (tmp_path / "motion").mkdir()
    folder = [f'masks="{tmp_path}/motion"']
    assert MaskOptions(masks=Path("motion")).overrides() == folder
