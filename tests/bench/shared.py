"""What the benches on real scenes share: where those are, how they are asked for."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np

from sfmprep.evaluation.poses import Evaluation
from sfmprep.evaluation.reference import CameraPose

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("SFMPREP_SHARED") or ROOT.parent / "shared")
SCENE_FOLDER = SHARED / "data" / "scenes"
_NOT_WORTH_TRAINING = 3  # an exit code: there is a result, with a warning


def scene_folder(name: str) -> Path:
    """The folder of a scene with a reference."""
    return SCENE_FOLDER / name


def use_shared_weights() -> None:
    """Reads weights from `SHARED`, unless SFMPREP_WEIGHTS names another place."""
    os.environ.setdefault("SFMPREP_WEIGHTS", str(SHARED / "weights"))


def scene_options(
    about: str | None, scenes: Collection[str], *, max_size: int, page: str
) -> argparse.ArgumentParser:
    """The command line of a bench that reduces scenes and writes `examples/PAGE.md`.

    Args:
        about: The docstring of its module.
        scenes: That may be asked for; all are where none is.
        max_size: That photographs are reduced to, if nothing else is said.
        page: Without suffix; its scratch folder is called so too.
    """
    parser = argparse.ArgumentParser(description=(about or "").split("\n")[0])
    parser.add_argument("--scenes", nargs="*", choices=scenes, default=list(scenes))
    parser.add_argument(
        "--max-size", type=int, default=max_size, help="longer side, px"
    )
    parser.add_argument("--scratch", type=Path, default=ROOT / "build" / page)
    parser.add_argument("--page", type=Path, default=ROOT / "examples" / f"{page}.md")
    return parser


def run_sfmprep(*words: str | Path) -> None:
    """Runs a command of sfmprep to its end, without a network.

    Raises:
        subprocess.CalledProcessError: it failed; exit code 3, a doubtful
            result, is no failure.
    """
    program = [sys.executable, "-m", "sfmprep", *map(str, words)]
    environment = {**os.environ, "SFMPREP_OFFLINE": "1"}
    done = subprocess.run(
        program, env=environment, check=False, stdout=subprocess.DEVNULL
    )
    if done.returncode != _NOT_WORTH_TRAINING:
        done.check_returncode()


def radius(poses: Iterable[CameraPose]) -> float:
    """The largest distance of a camera from the middle of all."""
    centres = np.array([pose.centre for pose in poses])
    return float(np.linalg.norm(centres - centres.mean(axis=0), axis=1).max())


def auc_cell(found: Evaluation) -> str:
    """AUC at 1, 3 and 5 degrees, per cent."""
    return " / ".join(f"{found.auc[limit]:.1f}" for limit in (1, 3, 5))
