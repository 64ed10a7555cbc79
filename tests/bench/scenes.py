"""The README's table: registration, pose accuracy and seconds per stage on real scenes.

    python -m tests.bench.scenes [SCENE ...]        (or: make bench-scenes)

Needs the scenes and weights of `../shared` (SFMPREP_SHARED names another place). Every
row is a run from nothing, in a process of its own, through the command line. What it
prints is what stands in the README; nothing is asserted on time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench.shared import SHARED, scene_folder

SCENES = ("fountain-P11", "Herz-Jesus-P8", "fox", "tum-fr2-desk20")
FRONTENDS = {
    "ALIKED + nearest": ["--recipe", "splat", "--set", "features.type=aliked"],
    "compact + its matcher, refined": ["--recipe", "compact"],
    "XFeat + LighterGlue": ["--recipe", "fast"],
    "SIFT + nearest": ["--recipe", "sift", "--set", "features.max_size=1600"],
}
STAGES = ("extract", "match", "database", "map", "export")


def measure(scene: Path, options: list[str]) -> dict[str, object]:
    """Reconstructs one scene from nothing and evaluates it."""
    environment = {
        **os.environ,
        "SFMPREP_WEIGHTS": str(SHARED / "weights"),
        "SFMPREP_OFFLINE": "1",
    }
    program = [sys.executable, "-m", "sfmprep"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        subprocess.run(
            [*program, "reconstruct", scene / "images", out, *options],
            env=environment,
            check=True,
            capture_output=True,
        )
        evaluation = subprocess.run(
            [*program, "evaluate", out, "--reference", scene],
            env=environment,
            check=True,
            capture_output=True,
        ).stdout
        report = json.loads((out / "report.json").read_text("utf-8"))
    return {**report, **json.loads(evaluation)}


def main(names: list[str]) -> None:
    """Prints the table as Markdown."""
    print(
        "| scene | features + matching | registered | AUC@1/3/5 | reprojection"
        f" | points | track | {' | '.join(f'{stage} s' for stage in STAGES)} |"
    )
    print("|---" * (7 + len(STAGES)) + "|")
    for name in names or SCENES:
        for label, options in FRONTENDS.items():
            found = measure(scene_folder(name), options)
            auc = " / ".join(f"{found['auc'][k]:.1f}" for k in ("1", "3", "5"))
            seconds = " | ".join(f"{found['seconds'][stage]:.1f}" for stage in STAGES)
            print(
                f"| {name} | {label} | {found['registered']} of {len(found['images'])}"
                f" | {auc} | {found['residuals']['mean_px']:.2f} px"
                f" | {found['result']['num_points']}"
                f" | {found['result']['mean_track_length']:.1f}"
                f" | {seconds} |",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
