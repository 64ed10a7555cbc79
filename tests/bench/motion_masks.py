"""How much of what moves is masked, of a rendered scene with true masks and poses.

    python -m tests.bench.motion_masks FOLDER [NUM_IMAGES]

Renders the courtyard with three things that move, and without them, and maps each with
SIFT: as it is, with the true masks and with those that are found. Told are the share
of moving pixels that is masked, that of still ones, and the AUC at 1 degree.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

from sfmprep.config.load import load_recipe
from sfmprep.evaluation.poses import evaluate_model
from sfmprep.evaluation.reference import read_reference
from sfmprep.pipelines.artefacts import read_result
from sfmprep.pipelines.reconstruct import reconstruct
from tests.support.moving_things import render_moving_things


def main(folder: Path, num_images: int) -> None:
    """Prints a line for each run."""
    for name, is_still in (("moving", False), ("still", True)):
        scene = folder / name
        if not scene.exists():
            render_moving_things(scene, num_images=num_images, is_still=is_still)
        runs = {"none": [], "found": ["motion_masks={}"]}
        if not is_still:
            runs["true"] = [f"masks={scene / 'masks'}"]
        for masks, settings in runs.items():
            out = folder / f"{name}-{masks}"
            recipe = load_recipe("sift", ["pairs={type: sequential}", *settings])
            reconstruct(scene / "images", out, recipe)
            poses = read_reference(scene / "reference.json")
            auc = evaluate_model(read_result(out), poses).auc[1]
            print(f"{name}, masks {masks}: AUC at 1 degree {auc:.1f}", flush=True)
            if masks == "found":
                _print_shares(scene, out / "work" / "motion_masks")


def _print_shares(scene: Path, found: Path) -> None:
    masked = moving = lost = still = 0
    for path in sorted((scene / "images").iterdir()):
        mask = _black(found / f"{path.name}.png", path)
        truth = _black(scene / "masks" / f"{path.name}.png", path)
        masked, moving = masked + (mask & truth).sum(), moving + truth.sum()
        lost, still = lost + (mask & ~truth).sum(), still + (~truth).sum()
    if moving:
        print(f"  masked of what moves {masked / moving:.3f}")
    print(f"  masked of what stands still {lost / still:.4f}", flush=True)


def _black(mask: Path, image: Path) -> np.ndarray:
    """Where a mask is black; nowhere where there is none."""
    if not mask.is_file():
        return np.zeros(cv2.imread(str(image)).shape[:2], bool)
    return cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE) == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 40)
