"""Tests, benchmark and training on a bare machine with one GPU, in one command.

    python3 -m tests.bench.gpu --minutes 9    (or: make gpu GPU="--minutes 9")

It needs an interpreter with PyTorch and what `collect.THERE` names, and the folder that
`make gpu-wheels` made; no network, no pip, no write access to the interpreter. Parts
run one after the other, each in a process of its own and with a limit; what a part has
found lies in `gpu.json` from the moment on when it was found, so that whatever is
killed loses nothing. Training has what is left of the minutes. With `--device cpu` the
same runs with tiny sizes.

Only the standard library is imported here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]

# Parts in the order of running, with the most seconds that each may take on a GPU.
LIMITS_S = {
    "machine": 40,
    "tests": 150,
    "lightglue": 90,
    "precision": 45,
    "aliked": 50,
    "dense": 50,
    "memory": 30,
    "processes": 45,
    "capture": 150,
    "train": 840,
}
_MORE_ON_CPU = 5  # times as long, as nobody waits for it with a machine lent
_LAST_S = 12.0  # of the minutes, for the end of the last part and its results
_LEAST_S = 5.0  # with less a part is left out
_LOOK_EVERY_S = 0.2
_PATIENCE_S = 8.0  # for a part that was asked to stop
_IMPORTS = (
    *("torch", "numpy", "h5py", "scipy.spatial", "cv2", "PIL.Image", "pycolmap"),
    *("kornia.feature", "pydantic", "tyro", "simplejpeg", "plotly.graph_objects"),
    *("jinja2", "pooch", "requests", "safetensors.torch", "tqdm", "yaml", "filelock"),
    *("pytest", "pytest_timeout", "hypothesis", "sfmprep.pipelines.reconstruct"),
)


def main() -> int:
    """Reads the command line; returns 1 where a part failed or a module lacks."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=14.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--parts", nargs="+", choices=list(LIMITS_S), metavar="NAME")
    parser.add_argument("--kit", type=Path, default=ROOT / "wheels-gpu")
    parser.add_argument("--out", type=Path, help="gpu-results, or what OUT names")
    parser.add_argument("--scratch", type=Path, help="a folder to use and to keep")
    options = parser.parse_args()
    out = options.out or Path(os.environ.get("OUT") or ROOT / "gpu-results")
    out.mkdir(parents=True, exist_ok=True)
    archive = options.kit / "packages.tar.xz"
    if not archive.is_file():
        parser.error(f"{archive} is not there; `make gpu-wheels` makes it")
    end = began + 60 * options.minutes - _LAST_S
    with contextlib.ExitStack() as stack:
        scratch = options.scratch or Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(
                    prefix="sfmprep-gpu-", ignore_cleanup_errors=True
                )
            )
        )
        checkout = unpack(archive, scratch)
        run = Run(checkout, environment(scratch, options.kit), options.device, out, end)
        if lacking := run.lacking_modules():
            print("cannot be imported:\n" + lacking, flush=True)
            return 1
        print(f"{time.monotonic() - began:5.0f} s  all modules are here", flush=True)
        parts = options.parts or list(LIMITS_S)
        if "capture" in parts or "train" in parts:
            stack.callback(_stop, run.start("pictures", run.log()))
        for name in parts:
            run.part(name)
    return int(any(part["status"] == "failed" for part in run.parts.values()))


# ----------------------------------------------------------------------------- set-up
def unpack(archive: Path, scratch: Path) -> Path:
    """Lays packages and checkout out as an installation has them.

    Returns:
        The copy of the checkout, in which `pipelines` and `recipes` are inside the
        package too, as setuptools puts them; a process that starts there sees it.
    """
    site, checkout = scratch / "site", scratch / "checkout"
    if not site.is_dir():
        unfinished = scratch / "site.part"
        shutil.rmtree(unfinished, ignore_errors=True)
        with tarfile.open(archive) as file:
            file.extractall(unfinished, filter="data")
        unfinished.rename(site)
    shutil.rmtree(checkout, ignore_errors=True)
    skipped = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("sfmprep", "pipelines", "recipes", "tests", "examples"):
        shutil.copytree(ROOT / name, checkout / name, ignore=skipped)
    for name in ("pipelines", "recipes"):
        shutil.copytree(ROOT / name, checkout / "sfmprep" / name, ignore=skipped)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    info = site / f"sfmprep-{version['version']}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: sfmprep\nVersion: {version['version']}\n"
    )
    return checkout


def environment(scratch: Path, kit: Path) -> dict[str, str]:
    """Where processes find packages, weights and photographs; without a network."""
    shared = (kit / "shared").resolve()
    found = {
        **os.environ,
        "PYTHONPATH": str((scratch / "site").resolve()),
        "PYTHONUNBUFFERED": "1",
        "SFMPREP_OFFLINE": "1",
        "SFMPREP_SHARED": str(shared),
        "SFMPREP_WEIGHTS": str(shared / "weights"),
        "XDG_CACHE_HOME": str((scratch / "cache").resolve()),
    }
    found.pop("PYTHONDONTWRITEBYTECODE", None)  # some twenty processes come
    return found


class Run:
    """The parts of one call, and the file of what they found."""

    def __init__(
        self, checkout: Path, env: dict[str, str], device: str, out: Path, end: float
    ) -> None:
        self._checkout, self._env, self._device = checkout.resolve(), env, device
        self._out, self._end = out.resolve(), end
        self.parts: dict[str, dict[str, Any]] = {}
        self._before = read_json(self._out / "gpu.json").get("parts", {})
        if self._before.get("machine", {}).get("device") != device:
            self._before = {}  # of another device

    def log(self) -> Path:
        return self._out / "gpu.log"

    def lacking_modules(self) -> str:
        """What cannot be imported, and why; empty where nothing lacks."""
        code = (
            "import importlib\n"
            f"for name in {_IMPORTS!r}:\n"
            "    try: importlib.import_module(name)\n"
            "    except Exception as e: print(f'  {name}: {type(e).__name__}: {e}')\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=self._checkout,
            env=self._env,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        return done.stdout or ("  python: it crashed" if done.returncode else "")

    def start(self, name: str, log: Path, *more: object) -> subprocess.Popen[bytes]:
        """Starts the process of a part, the leader of a group."""
        command = [sys.executable, "-m", "tests.bench.gpu.parts", name]
        with log.open("ab") as file:
            file.write(f"\n---- {name}\n".encode())
            file.flush()
            return subprocess.Popen(
                [*command, "--device", self._device, *map(str, more)],
                cwd=self._checkout,
                env=self._env | {"SFMPREP_GPU_SCRATCH": str(self._checkout.parent)},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def part(self, name: str) -> None:
        """Runs one part until it ends, its limit or the end of the minutes."""
        limit = LIMITS_S[name] * (1 if self._device != "cpu" else _MORE_ON_CPU)
        begin = time.monotonic()
        seconds = min(limit, self._end - begin)
        if seconds < _LEAST_S:
            print(f"      {name}: left out, as the minutes are over", flush=True)
            return
        told = self.parts[name] = {
            "device": self._device,
            "status": "running",
            "seconds": 0.0,
            "result": {},
        }
        path = self._out / f".{name}.json"
        path.unlink(missing_ok=True)
        process = self.start(
            *(name, self.log(), "--out", path, "--results", self._out),
            *("--seconds", seconds),
        )
        while told["status"] == "running":
            time.sleep(_LOOK_EVERY_S)
            if (code := process.poll()) is not None:
                told["status"] = "done" if code == 0 else "failed"
            elif time.monotonic() - begin > seconds:
                _stop(process)
                told["status"] = "cut"
            told["seconds"] = round(time.monotonic() - begin, 1)
            self._write(told, path)
        path.unlink(missing_ok=True)
        print(f"{told['seconds']:5.0f} s  {name}: {told['status']}", flush=True)
        if told["status"] == "failed":
            print(_end_of(self.log()), flush=True)

    def _write(self, told: dict[str, Any], path: Path) -> None:
        found = read_json(path)
        if found == told["result"] and told["status"] == "running":
            return
        told["result"] = found
        parts = {**self._before, **self.parts}
        write_json(self._out / "gpu.json", {"commit": commit(), "parts": parts})


def commit() -> str | None:
    """Of the checkout; None where it came without git."""
    with contextlib.suppress(OSError):
        done = subprocess.run(
            ["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True
        )
        return done.stdout.strip() or None
    return None


def read_json(path: Path) -> dict[str, Any]:
    """What is there; nothing where it is not, or is being written."""
    with contextlib.suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return found
    return {}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replaces a file at once."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
    part.replace(path)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Asks the whole group to stop, then ends it."""
    for number, patience in ((signal.SIGTERM, _PATIENCE_S), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)


def _end_of(log: Path) -> str:
    return log.read_text("utf-8", "replace")[-3000:]


if __name__ == "__main__":
    sys.exit(main())
