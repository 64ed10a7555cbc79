"""Collects what a bare machine with a GPU lacks, into one folder that travels there.

    python -m tests.bench.gpu.collect wheels-gpu         (or: make gpu-wheels)

The machine has no network, but an interpreter, its own PyTorch and what usually comes
with one (`THERE`). The folder holds everything else that sfmprep and its tests import,
unpacked and in one archive, since wheels are packed poorly; and of `../shared`
(SFMPREP_SHARED) the weights, photographs and fixtures that the tests and the benchmark
read. Nothing of it may be committed: git ignores it.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections import defaultdict
from email.parser import Parser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from tests.bench.shared import SHARED

ROOT = Path(__file__).resolve().parents[3]
MAX_BYTES = 60_000_000  # of the folder
MAX_TRAVELLING_BYTES = 64 << 20  # with the files of the checkout

# On the machine itself: too large to travel, or part of its PyTorch.
THERE = {"torch", "numpy", "h5py", "scipy", "opencv-python-headless", "pillow"}
_ALSO = ("pytest", "pytest-timeout", "hypothesis")  # for the tests
_PLATFORMS = (
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
)
# Parts of packages that no import needs: of notebooks, stubs, programs.
_NEEDLESS = ("plotly/labextension", "plotly/package_data/widgetbundle.js", "share")
_NEEDLESS_ENDINGS = (".pyi", ".js.map")

_WEIGHTS = ("aliked-n16", "xfeat", "lighterglue")
_SCENE, _FIXTURES = "fountain-P11", "s2ld"
_NUM_TRAINING_PHOTOGRAPHS = 60


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python-version", default="3.12", help="of the machine")
    parser.add_argument("--preset", type=int, default=6, help="of xz: 0 is fast")
    options = parser.parse_args()
    if not (SHARED / "weights").is_dir():
        parser.error(f"{SHARED} is not there; name it in SFMPREP_SHARED")
    options.folder.mkdir(parents=True, exist_ok=True)
    collect_packages(options.folder, options.python_version, options.preset)
    collect_shared(options.folder / "shared")
    check_size(options.folder)


# ---------------------------------------------------------------------------- packages
def collect_packages(folder: Path, python: str, preset: int) -> None:
    """Writes `packages.tar.xz` and, last, the names of its wheels; not twice."""
    archive, listing = folder / "packages.tar.xz", folder / "wheels.txt"
    with tempfile.TemporaryDirectory() as temporary:
        wheels = download(Path(temporary) / "wheels", python)
        text = "".join(f"{wheel.name}\n" for wheel in wheels)
        if archive.is_file() and listing.is_file() and listing.read_text() == text:
            print(f"{archive}: {len(wheels)} packages, as before")
            return
        site = Path(temporary) / "site"
        _pip("install", python, "--no-deps", "--no-compile", "--target", site, *wheels)
        for name in _NEEDLESS:
            path = site / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        for path in site.rglob("*"):
            if path.name.endswith(_NEEDLESS_ENDINGS):
                path.unlink()
        listing.unlink(missing_ok=True)
        with tarfile.open(archive, "w:xz", preset=preset) as file:
            for path in sorted(site.iterdir()):
                file.add(path, path.name)
        listing.write_text(text)
    print(f"{archive}: {len(wheels)} packages, {archive.stat().st_size / 1e6:.1f} MB")


def download(folder: Path, python: str) -> list[Path]:
    """Fetches the wheels of what is needed and of what that needs, and so on.

    Raises:
        SystemExit: two packages need versions of a third that do not go together.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted: dict[str, list[Requirement]] = defaultdict(list)
    for text in (*project["dependencies"], *_ALSO):
        requirement = Requirement(text)
        wanted[canonicalize_name(requirement.name)].append(requirement)
    there: dict[str, Path] = {}
    while missing := [n for n in wanted if n not in there and n not in THERE]:
        _pip(
            *("download", python, "--no-deps", "--dest", folder),
            *("--constraint", ROOT / "constraints.txt"),
            *(_spelled(requirement) for n in missing for requirement in wanted[n]),
        )
        for wheel in folder.glob("*.whl"):
            name = parse_wheel_filename(wheel.name)[0]
            if name in there:
                continue
            there[name] = wheel
            for needed in _needs(wheel, python):
                wanted[canonicalize_name(needed.name)].append(needed)
    for name, wheel in there.items():
        version = parse_wheel_filename(wheel.name)[1]
        for requirement in wanted[name]:
            if not requirement.specifier.contains(version, prereleases=True):
                raise SystemExit(f"{wheel.name} is here, but {requirement} is needed")
    return sorted(there.values())


def _spelled(requirement: Requirement) -> str:
    return f"{requirement.name}{requirement.specifier}"


def _needs(wheel: Path, python: str) -> list[Requirement]:
    with zipfile.ZipFile(wheel) as file:
        [name] = [n for n in file.namelist() if n.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(file.read(name).decode("utf-8"))
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "extra": "",
    }
    needs = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    return [r for r in needs if r.marker is None or r.marker.evaluate(environment)]


def _pip(command: str, python: str, *arguments: object) -> None:
    platforms = [x for name in _PLATFORMS for x in ("--platform", name)]
    where = ["--python-version", python, "--implementation", "cp", *platforms]
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", command, "--quiet", "--only-binary=:all:"),
            *where,
            *map(str, arguments),
        ],
        check=True,
    )


# ------------------------------------------------------------- weights and photographs
def collect_shared(folder: Path) -> None:
    """Copies from `../shared` what the tests and the benchmark read."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in _WEIGHTS:
        _copy(SHARED / "weights" / f"{name}.safetensors", folder / "weights")
    scene = SHARED / "data" / "scenes" / _SCENE
    for path in (scene / "reference.json", *sorted((scene / "images").iterdir())):
        _copy(path, folder / path.relative_to(SHARED).parent)
    for path in (SHARED / "fixtures" / _FIXTURES).iterdir():
        _copy(path, folder / "fixtures" / _FIXTURES)
    photographs = sorted((SHARED / "data" / "train" / "images").iterdir())
    step = max(1, len(photographs) // _NUM_TRAINING_PHOTOGRAPHS)
    for path in photographs[::step][:_NUM_TRAINING_PHOTOGRAPHS]:
        _copy(path, folder / "data" / "train" / "images")


def _copy(path: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, folder / path.name)


def check_size(folder: Path) -> None:
    """Prints what the folder takes.

    Raises:
        SystemExit: it is more than may travel.
    """
    total = 0
    for part in sorted(folder.iterdir()):
        size = sum(p.stat().st_size for p in (part, *part.rglob("*")) if p.is_file())
        total += size
        print(f"{size / 1e6:7.1f} MB  {part.name}")
    names = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, check=True
    ).stdout.decode()
    checkout = sum((ROOT / n).stat().st_size for n in names.split("\0") if n)
    print(f"{total / 1e6:7.1f} MB  in all; {checkout / 1e6:.1f} MB of the checkout")
    if total > MAX_BYTES or total + checkout > MAX_TRAVELLING_BYTES:
        raise SystemExit(
            f"{folder} may take {MAX_BYTES / 1e6:.0f} MB, and with the checkout"
            f" {MAX_TRAVELLING_BYTES / 1e6:.1f} MB. Leave something out."
        )


if __name__ == "__main__":
    main()
