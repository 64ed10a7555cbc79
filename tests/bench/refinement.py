"""What sub-pixel refinement does to poses: the table before and after, on real scenes.

    python -m tests.bench.refinement [--models FOLDER] [SCENE ...]

Needs the scenes and weights of `../shared` (SFMPREP_SHARED names another place). Each
scene is reconstructed with four kinds of features; with `--models` the models are kept
in that folder and used again. Both rows of a model come after the last bundle
adjustment that `reconstruct` ends with. Nothing is asserted.

The reference of tum-fr2-desk20 is late against the images, whose names are times. Its
two last rows are against poses interpolated between those of the reference.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pycolmap

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import MappingConfig, Recipe, RefinementConfig
from sfmprep.evaluation.poses import Evaluation, evaluate_model
from sfmprep.evaluation.reference import CameraPose, read_reference
from sfmprep.geometry.views import ModelArrays
from sfmprep.mapping.adjust import refine_model
from sfmprep.pipelines import stages
from sfmprep.pipelines.choose_pairs import make_pairs
from sfmprep.pipelines.poses import find_poses
from sfmprep.pipelines.run import open_run
from sfmprep.refinement.refine import refine_keypoints
from tests.bench.shared import auc_cell, scene_folder, use_shared_weights

LATE_S = {"tum-fr2-desk20": 0.025}  # where unrefined models fit best, 0.025 to 0.035
SCENES = ("fountain-P11", "Herz-Jesus-P8", "fox", "tum-fr2-desk20")
FRONTENDS = {
    "ALIKED": {
        "features": {"type": "aliked"},
        "matcher": {"type": "nearest", "ratio": 0.9},
    },
    "XFeat": {
        "features": {"type": "xfeat"},
        "matcher": {"type": "nearest", "ratio": None, "min_similarity": 0.82},
    },
    "compact": {
        "features": {"type": "compact", "max_keypoints": 2048},
        "matcher": {"type": "lightglue", "model": "compact-lightglue"},
    },
    "SIFT": {
        "features": {"type": "sift", "max_keypoints": 4096, "max_size": 1600},
        "matcher": {"type": "nearest", "ratio": 0.8},
    },
}


def reconstruct(images: ImageSet, out: Path, recipe: Recipe) -> pycolmap.Reconstruction:
    """The largest model, without refinement; read again where it is in `out`."""
    with open_run(images, out, recipe) as run:
        features, _ = stages.extract(run)
        with features:
            pairs = make_pairs(run, features)
            with stages.match(run, pairs, features) as matches:
                verified = stages.fill_database(run, features, pairs, matches)
        return find_poses(run, verified, {})[0]


def at_later_times(
    reference: Mapping[str, CameraPose], seconds: float
) -> dict[str, CameraPose]:
    """The poses so much later, without those beyond the last one."""
    names = sorted(reference, key=lambda name: float(Path(name).stem))
    times = np.array([float(Path(name).stem) for name in names])
    turns = [
        pycolmap.Rigid3d(pycolmap.Rotation3d(reference[name].rotation), np.zeros(3))
        for name in names
    ]
    found = {}
    for name, time_s in zip(names, times + seconds, strict=True):
        row = int(np.searchsorted(times, time_s, side="right")) - 1
        if row + 1 < len(times):
            share = (time_s - times[row]) / (times[row + 1] - times[row])
            turn = pycolmap.Rigid3d.interpolate(turns[row], turns[row + 1], share)
            first, second = (reference[names[k]].centre for k in (row, row + 1))
            found[name] = CameraPose(
                rotation=turn.rotation.matrix(),
                centre=(1 - share) * first + share * second,
            )
    return found


def compare(scene: Path, label: str, models: Path) -> None:
    """Prints one row before and one after."""
    images = ImageSet.scan(scene / "images")
    recipe = Recipe.model_validate({"name": label.lower(), **FRONTENDS[label]})
    model = reconstruct(images, models / f"{scene.name}-{label}", recipe)
    reference = read_reference(scene)
    late_s = LATE_S.get(scene.name)
    later = None if late_s is None else at_later_times(reference, late_s)

    def show(when: str, rest: str = "| | |") -> None:
        adjusted = refine_model(model, MappingConfig())
        show_row(when, evaluate_model(adjusted, reference), rest)
        if later is not None:
            show_row(f"{when}, later", evaluate_model(adjusted, later), "| | |")

    def show_row(when: str, found: Evaluation, rest: str) -> None:
        print(
            f"| {scene.name} | {label} | {when} | {auc_cell(found)}"
            f" | {found.mean_reprojection_error_px:.3f} {rest}",
            flush=True,
        )

    show("before")
    start = time.process_time()
    stats = refine_keypoints(
        *(model, ModelArrays.of(model), images, RefinementConfig()),
        max_size=recipe.features.max_size,
    )
    seconds = time.process_time() - start
    share = stats.num_moved / max(stats.num_observations, 1)
    show(
        "after",
        f"| {share:.0%} by {stats.median_move_px:.2f} px"
        f" | {1e3 * seconds / max(stats.num_observations, 1):.2f} |",
    )


def main() -> None:
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("scenes", nargs="*", default=SCENES)
    parser.add_argument("--models", type=Path, help="where models are kept")
    options = parser.parse_args()
    use_shared_weights()
    pycolmap.logging.minloglevel = 2
    print(
        "| scene | features | keypoints | AUC@1/3/5 | reprojection px | moved"
        " | CPU ms an observation |"
    )
    print("|---" * 7 + "|")
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.scenes:
            for label in FRONTENDS:
                models = options.models or Path(scratch)
                compare(scene_folder(name), label, models)


if __name__ == "__main__":
    main()
