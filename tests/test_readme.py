"""Every command, option and call of the README: sfmprep's run, others are checked."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import cv2
import pycolmap
import pytest
from scipy.spatial.transform import Rotation

import sfmprep as sp
from sfmprep.cli.commands import run
from sfmprep.config.load import load_recipe
from sfmprep.evaluation.reference import read_reference
from sfmprep.export.next_steps import next_steps
from tests.support.films import write_film

pytestmark = pytest.mark.usefixtures("remembered")
ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
SMALL = [
    *("--set", "features.max_size=480", "features.max_keypoints=1024"),
    *("export.downscales=[8]", "refinement=null"),
]
PROGRAMS = ("sfmprep", "ns-train", "python", "make", "pip", "uv")


def commands(*programs: str) -> list[str]:
    """The indented lines that begin with one of these programs."""
    found = re.findall(r"^    (\S+ .*)$", README, re.M)
    return [line for line in found if line.split()[0] in programs]


def spans(pattern: str) -> list[str]:
    """What stands between backquotes in the text, each once."""
    return sorted(set(re.findall(f"`({pattern})`", README)))


def test_every_program_of_the_readme_is_checked_below() -> None:
    words = {line.split()[0] for line in commands(*PROGRAMS)}
    assert words == set(PROGRAMS)


def test_training_commands_are_those_that_a_run_prints() -> None:
    shown = [
        line.partition("#")[0].split()
        for line in commands("ns-train", "python")
        if "train" in line
    ]
    recipe = load_recipe("splat")
    steps = next_steps(Path("images"), Path("out"), recipe)[:3]
    absolute = str(Path("out").resolve())
    printed = [
        [word.replace(absolute, "out/") for word in step.partition("#")[0].split()]
        for step in steps
    ]
    assert shown == printed


def test_extras_and_targets_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    extras = set(project["project"]["optional-dependencies"])
    for line in commands("uv"):
        assert line.split()[:3] == ["uv", "pip", "install"]
    for names in re.findall(r"\.\[([a-z,]+)\]", README):
        assert set(names.split(",")) <= extras
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for line in (*commands("make"), *spans("make [^`]+")):
        assert f"\n{line.split()[1]}: " in makefile


def test_pictures_of_the_readme_are_there_and_small() -> None:
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)
    assert pictures
    for name in pictures:
        assert 0 < (ROOT / name).stat().st_size < 200_000


def test_pip_knows_every_option() -> None:
    known = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for line in commands("pip"):
        words = shlex.split(line, comments=True)
        assert words[1] == "install" and len(words) > 2
        for option in words[2:]:
            assert not option.startswith("-") or f"{option} " in known


@pytest.mark.parametrize("call", spans(r"sp\.\w+\([^`]*\)"))
def test_python_in_the_text_can_be_called_so(call: str) -> None:
    node = ast.parse(call, mode="eval").body
    assert isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    args = [ast.literal_eval(arg) for arg in node.args]
    options = {str(each.arg): ast.literal_eval(each.value) for each in node.keywords}
    function = getattr(sp, node.func.attr)
    if inspect.isclass(function):
        function(*args, **options)
    else:
        inspect.signature(function).bind(*args, **options)


# ---------------------------------------------------------------------------- sfmprep
@pytest.fixture
def captured(
    demo_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """The current folder holds what commands name; the first photographs do."""
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    for path in sorted((demo_scene / "images").iterdir())[:5]:
        shutil.copy(path, "images")
    table = ["name,x,y,z,qw,qx,qy,qz"]
    for name, pose in read_reference(demo_scene).items():
        x, y, z, w = Rotation.from_matrix(pose.rotation.T).as_quat()
        table.append(",".join(map(str, (name, *pose.centre, w, x, y, z))))
    Path("poses.csv").write_text("\n".join(table))
    [mine] = re.findall(r"^`(\{like: .*\})`\.$", README, re.M)
    Path("mine.yaml").write_text(mine)
    pycolmap.Database.open("project.db").close()
    return sorted(path.name for path in Path("images").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("line", commands("sfmprep"))
def test_command_runs(line: str, captured: list[str], demo_scene: Path) -> None:
    photographs = sorted((demo_scene / "images").iterdir())
    pictures = [cv2.imread(str(path)) for path in photographs]
    write_film(Path("film.mp4"), [pixels for pixels in pictures for _ in range(4)])
    _, *args = shlex.split(line, comments=True)
    if args[0] in ("reconstruct", "database", "refine"):
        args += SMALL
    if args[0] in ("add", "localise"):
        assert run(["reconstruct", "images/", "out/", *SMALL]) == 0
        shutil.copy(photographs[5], "images" if args[0] == "add" else "new.jpg")
    assert run(args) == 0
    if args[0] == "reconstruct":
        model = pycolmap.Reconstruction("out/sparse/0")
        is_film = args[1] == "film.mp4"
        num_images = len(pictures) // 2 if is_film else len(captured)
        assert model.num_reg_images() >= num_images


@pytest.mark.parametrize("span", spans("sfmprep [^`]+"))
def test_command_in_the_text_runs(
    span: str,
    demo_scene: Path,
    demo_result: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sfmprep.viewer import view
    from sfmprep.weights import weights_here

    monkeypatch.chdir(tmp_path)
    Path("images").symlink_to(demo_scene / "images")
    shutil.copytree(demo_result, "out")
    seen: list[str] = []  # where a server or the network would be asked

    def look(out: Path, **_: object) -> None:
        seen.append(str(out))

    def fetch(name: str, **_: object) -> object:
        seen.append(name)
        return weights_here("compact")

    monkeypatch.setattr(view, "view_result", look)
    monkeypatch.setattr("sfmprep.weights.resolve_weights", fetch)
    _, *args = span.replace("NAME", "splat").split()
    if args == ["view"]:  # only its name
        args.append("out/")
    assert run(args) == 0
    expected = {"view": ["out"], "weights": args[2:]}
    assert seen == expected.get(args[0], [])


# of ns-train, of weights fetch, and the name of one that is there with its value
ELSEWHERE = ("--data", "--all", "--masks")


@pytest.mark.parametrize(
    "span", [each for each in spans("--[^`]+") if each not in ELSEWHERE]
)
def test_option_in_the_text_is_one_of_reconstruct(
    span: str,
    captured: list[str],
    demo_result: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[object] = []

    def note(images: Path, out: Path, recipe: object, **options: object) -> object:
        seen.extend((recipe, options["device"]))
        return sp.read_report(demo_result)

    monkeypatch.setattr("sfmprep.pipelines.reconstruct.reconstruct", note)
    monkeypatch.setattr("sfmprep.cli.options.pick_device", str)
    monkeypatch.setattr("sfmprep.cli.options.limit_threads", lambda number: None)
    Path("DIR").mkdir()
    args = ["reconstruct", "images/", "out/", *span.split()]
    assert run(args) == 0
    usual = load_recipe("splat"), "auto"
    option = args[3]
    beside = ("--device", "--fail-below", "--json", "--num-threads")  # no settings
    assert (seen[0] == usual[0]) == (option in beside)
    assert seen[1] == (args[4] if option == "--device" else "auto")


def test_weights_fetch_takes_the_option_of_the_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fetched: list[str] = []

    def fetch(name: str, **_: object) -> object:
        fetched.append(name)

    monkeypatch.setattr("sfmprep.weights.resolve_weights", fetch)
    assert run(["weights", "fetch", "--all"]) == 0
    assert "aliked-n16" in fetched and "aliked-lightglue" in fetched
