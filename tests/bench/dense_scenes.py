"""Semi-dense matching alone, on real scenes: registered images, tracks and poses.

    python -m tests.bench.dense_scenes [--radii 1] [--keep FOLDER] [SCENE ...]

Needs the scenes and weights of `../shared` (SFMPREP_SHARED names another place). XFeat*
matches all pairs, and there is no detector: the features hold no keypoint. All else is
as in `reconstruct`. The second row of a scene comes after sub-pixel refinement. With
`--keep` the stores stay in that folder and are used again.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pycolmap

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import Recipe
from sfmprep.evaluation.poses import evaluate_model
from sfmprep.evaluation.reference import read_reference
from sfmprep.pairing.pairs import exhaustive_pairs
from sfmprep.pipelines import semidense, stages
from sfmprep.pipelines.poses import find_poses
from sfmprep.pipelines.run import Run, open_run
from sfmprep.stores.tables import FeatureStore, MatchStore
from sfmprep.types import Features
from tests.bench.shared import auc_cell, scene_folder, use_shared_weights

SCENES = ("fountain-P11", "Herz-Jesus-P8")


def recipe_of(radius: float) -> Recipe:
    """XFeat* for all pairs; the features are named but never extracted."""
    return Recipe.model_validate(
        {
            "name": "dense-alone",
            "features": {"type": "xfeat"},
            "matcher": {"type": "nearest"},
            "dense": {
                "matcher": {"type": "xfeat-star"},
                "pairs": "all",
                "radius": radius,
            },
        }
    )


def match(run: Run) -> stages.VerifiedPairs:
    """Fills the database with semi-dense matches alone."""
    images, recipe = run.images, run.recipe
    assert recipe.dense is not None
    pairs = exhaustive_pairs(images.names)
    nothing = np.zeros((0, 2), np.float32)
    with (
        FeatureStore(
            run.workspace.features, stages.open_store(run, "extract")
        ) as features,
        MatchStore(run.workspace.matches, stages.open_store(run, "match")) as matches,
    ):
        features.append(
            [
                (
                    name,
                    Features(
                        xy=nothing,
                        scores=nothing[:, 0],
                        descriptors=np.zeros((0, 64), np.float16),
                        image_size=info.size,
                        orientation=1,
                    ),
                )
                for name, info in images.infos.items()
                if name not in features
            ]
        )
        joined = semidense.join_semi_dense(
            *(run, recipe.dense, features, pairs, matches)
        )
        with joined[0] as keypoints, joined[1] as both:
            return stages.fill_database(run, keypoints, pairs, both)


def measure(scene: Path, radius: float, out: Path) -> None:
    """Prints one row without and one with refinement."""
    images = ImageSet.scan(scene / "images")
    recipe = recipe_of(radius)
    for refinement in (None, {}):
        changed = Recipe.model_validate(
            {**recipe.model_dump(), "refinement": refinement}
        )
        with open_run(images, out, changed) as run:
            model = find_poses(run, match(run), {})[0]
        found = evaluate_model(model, read_reference(scene))
        print(
            f"| {scene.name} | {radius:g} | {'no' if refinement is None else 'yes'}"
            f" | {model.num_reg_images()} of {len(images)} | {model.num_points3D()}"
            f" | {model.compute_mean_track_length():.2f} | {auc_cell(found)}"
            f" | {found.mean_reprojection_error_px:.2f} |",
            flush=True,
        )


def main() -> None:
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("scenes", nargs="*", default=SCENES)
    parser.add_argument("--radii", nargs="*", type=float, default=[1.0])
    parser.add_argument("--keep", type=Path, help="where the stores are kept")
    options = parser.parse_args()
    use_shared_weights()
    pycolmap.logging.minloglevel = 2
    print(
        "| scene | radius px | refined | registered | points | mean track length"
        " | AUC@1/3/5 | error px |"
    )
    print("|---" * 8 + "|")
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.scenes:
            for radius in options.radii:
                folder = (options.keep or Path(scratch)) / f"{name}-{radius:g}"
                measure(scene_folder(name), radius, folder)


if __name__ == "__main__":
    main()
