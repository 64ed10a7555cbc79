"""Poses that are known, and off, against none: `sfmprep refine` on real scenes.

    python -m tests.bench.known_poses                    (or: make bench-known-poses)
    python -m tests.bench.known_poses --scenes fountain-P11 --max-size 480 --recipe sift

Needs the scenes of `../shared`. The poses of a scene's reference are turned and moved,
and given as a transforms.json of nerfstudio, with the focal length right or wrong;
those of tum-fr2-desk20 as a trajectory of TUM, whose clock is off against that of the
images.
The page `examples/refine.md` is written from it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
from scipy.spatial.transform import Rotation

from sfmprep.coords import opengl_from_opencv
from sfmprep.evaluation.poses import evaluate_model
from sfmprep.evaluation.reference import read_reference
from tests.bench.scoreboard.scenes import Prepared, prepare, shared
from tests.bench.shared import (
    auc_cell,
    radius,
    run_sfmprep,
    scene_options,
    use_shared_weights,
)


@dataclass(frozen=True)
class Off:
    """By how much what is given is wrong; all images alike, each in its own way."""

    degrees: float = 0.0  # of each rotation, about any axis
    share: float = 0.0  # of each centre, of the radius of all
    focal: float = 1.0  # factor of the focal length

    def __str__(self) -> str:
        if self == Off():
            return "as they are"
        told = f"{self.degrees:g}°, {100 * self.share:g} %"
        return told if self.focal == 1 else f"{told}, focal length x {self.focal:g}"


FEW, MANY = (
    (
        *(Off(), Off(1, 0.01), Off(5, 0.03), Off(15, 0.1)),
        *(Off(1, 0.01, 1.2), Off(1, 0.01, 0.8)),
    ),
    (Off(), Off(5, 0.03)),
)
SCENES = {"fountain-P11": FEW, "Herz-Jesus-P8": FEW, "fox": MANY}
TRAJECTORY = "tum-fr2-desk20"


def main() -> None:
    """Reads the command line."""
    every = (*SCENES, TRAJECTORY)
    parser = scene_options(__doc__, every, max_size=1024, page="refine")
    parser.add_argument("--recipe", default="splat")
    options = parser.parse_args()
    use_shared_weights()
    lines = []
    for name in options.scenes:
        scene = prepare(shared(name), options.scratch / "scenes", options.max_size)
        for line in _rows(scene, options.scratch / "runs", options.recipe):
            lines.append(line)
            print(line, flush=True)
    options.page.write_text(_page(options, lines), "utf-8")
    shutil.rmtree(options.scratch / "runs")


def _rows(scene: Prepared, runs: Path, recipe: str) -> Iterator[str]:
    yield _line(scene, "none", _run(scene, runs, recipe, None))
    if scene.scene.name == TRAJECTORY:
        poses = _write_trajectory(scene, runs / "poses.txt")
        report = _run(scene, runs, recipe, poses)
        late = 1000 * report["given_poses"]["time_offset_s"]
        yield _line(scene, f"a trajectory; its clock is {late:.0f} ms ahead", report)
        return
    for off in SCENES[scene.scene.name]:
        poses = write_transforms(scene, runs / "transforms.json", off)
        yield _line(scene, str(off), _run(scene, runs, recipe, poses))


def write_transforms(scene: Prepared, path: Path, off: Off) -> Path:
    """The poses of a scene as nerfstudio has them."""
    rng = np.random.default_rng(0)
    entries = scene.reference or {}
    truth = read_reference(scene.images.parent)
    length = radius(truth.values())
    frames = []
    for name, pose in sorted(truth.items()):
        entry = entries[name]
        turn = Rotation.from_rotvec(rng.normal(size=3)).as_rotvec()
        turn *= np.radians(off.degrees) / np.linalg.norm(turn)
        way = rng.normal(size=3)
        world_from_cam = np.eye(4)
        rotation = Rotation.from_rotvec(turn).as_matrix() @ pose.rotation
        world_from_cam[:3, :3] = rotation.T
        world_from_cam[:3, 3] = pose.centre + off.share * length * way / np.linalg.norm(
            way
        )
        (fx, _, cx), (_, fy, cy), _ = entry["K"]
        lens = zip(("k1", "k2", "p1", "p2"), entry["dist"], strict=False)
        frames.append(
            {
                "file_path": f"images/{name}",
                "transform_matrix": opengl_from_opencv(world_from_cam).tolist(),
                **{"fl_x": fx * off.focal, "fl_y": fy * off.focal, "cx": cx, "cy": cy},
                **{"w": entry["width"], "h": entry["height"], **dict(lens)},
            }
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"frames": frames}))
    return path


def _write_trajectory(scene: Prepared, path: Path) -> Path:
    lines = []
    for name, pose in sorted(read_reference(scene.images.parent).items()):
        turn = Rotation.from_matrix(pose.rotation.T).as_quat()
        lines.append(" ".join(map(str, (Path(name).stem, *pose.centre, *turn))))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))
    return path


def _run(
    scene: Prepared, runs: Path, recipe: str, poses: Path | None
) -> dict[str, Any]:
    """The report of a run, with its AUC beside."""
    out = runs / "out"
    shutil.rmtree(out, ignore_errors=True)
    if poses is None:
        run_sfmprep("reconstruct", scene.images, out, "--recipe", recipe)
    else:
        run_sfmprep("refine", scene.images, poses, out, "--recipe", recipe)
    report: dict[str, Any] = json.loads((out / "report.json").read_text("utf-8"))
    model = pycolmap.Reconstruction(out / "work" / "models" / "0")
    found = evaluate_model(model, read_reference(scene.images.parent))
    return {**report, "auc": auc_cell(found), "registered": model.num_reg_images()}


def _line(scene: Prepared, given: str, report: dict[str, Any]) -> str:
    seconds = sum(s for step, s in report["seconds"].items() if step != "extract")
    pairs = report["rungs"][0]["num_pairs"]
    return (
        f"| {scene.scene.name} | {given} | {report['registered']} of"
        f" {len(scene.names)} | {pairs} | {report['auc']} | {seconds:.0f} |"
    )


def _page(options: argparse.Namespace, lines: list[str]) -> str:
    return "\n".join(
        [
            "# Known poses, however rough",
            "",
            f"`make bench-known-poses`: recipe `{options.recipe}`, photographs of at"
            f" most {options.max_size} pixels; `sfmprep",
            "refine` with the reference poses of the scene, every rotation turned by so"
            " many degrees",
            "about any axis and every centre moved by so much of the scene's radius,"
            " against `reconstruct`.",
            "Given cameras have the principal point of the reference. The reference of"
            " fox is COLMAP's",
            "estimate, which is also what is given there: its AUC says how well it is"
            " kept, not how true",
            "it is. Seconds are of all stages but the features, which are the same.",
            "",
            "| Scene | Poses given | Registered | Pairs | AUC@1 / 3 / 5 | s |",
            "|---|---|---|---|---|---|",
            *lines,
            "",
        ]
    )


if __name__ == "__main__":
    main()
