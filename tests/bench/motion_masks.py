"""How much of what moves is masked, of a rendered scene with true masks and poses.

    python -m tests.bench.motion_masks FOLDER [IMAGES]   (or: make bench-motion-masks)

Renders the courtyard with three things that move, and without them, and maps each with
SIFT: as it is, with the true masks and with those that are found by the poses of the
first, as `--masks motion` does. `examples/motion_masks.md` is written from it: the
share of moving pixels that is masked, that of still ones, and the AUC at 1 degree.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import MotionMasksConfig
from sfmprep.config.load import load_recipe
from sfmprep.evaluation.poses import evaluate_model
from sfmprep.evaluation.reference import read_reference
from sfmprep.frontend.motion_masks import find_motion, write_masks
from sfmprep.geometry.views import ModelArrays
from sfmprep.models.build import build_flow_estimator
from sfmprep.pipelines.artefacts import read_result
from sfmprep.pipelines.reconstruct import reconstruct
from sfmprep.types import Mask
from tests.support.moving_things import render_moving_things

ROOT = Path(__file__).resolve().parents[2]
SCENES = ("moving", "still")
_SETTINGS = ("pairs={type: sequential}", "second_round=null")


class Shares(NamedTuple):
    """Of the pixels of a scene, 0..1."""

    found: float | None  # masked of what moves; None where nothing does
    lost: float  # masked of what stands still


class Row(NamedTuple):
    """One run."""

    scene: str
    masks: str
    auc: float  # at 1 degree, per cent
    shares: Shares | None


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("num_images", type=int, nargs="?", default=40)
    parser.add_argument("--scenes", nargs="*", choices=SCENES, default=SCENES)
    page = ROOT / "examples" / "motion_masks.md"
    parser.add_argument("--page", type=Path, default=page)
    options = parser.parse_args()
    rows = []
    for name in options.scenes:
        scene, is_still = options.folder / name, name == "still"
        if not scene.exists():
            render_moving_things(
                scene, num_images=options.num_images, is_still=is_still
            )
        rows.append(_run(scene, "none", None))
        _find(scene)
        rows.append(_run(scene, "found", _found(scene)))
        if not is_still:
            rows.append(_run(scene, "true", scene / "masks"))
    options.page.write_text(_page(rows, options.num_images), "utf-8")


def _run(scene: Path, masks: str, folder: Path | None) -> Row:
    out = scene.with_name(f"{scene.name}-{masks}")
    given = [] if folder is None else [f"masks={folder}"]
    recipe = load_recipe("sift", [*_SETTINGS, *given])
    reconstruct(scene / "images", out, recipe)
    poses = read_reference(scene / "reference.json")
    auc = evaluate_model(read_result(out), poses).auc[1]
    shares = _shares(scene, folder) if masks == "found" and folder else None
    row = Row(scene.name, masks, auc, shares)
    print(_line(row), flush=True)
    return row


def _found(scene: Path) -> Path:
    return scene.with_name(f"{scene.name}-motion")


def _find(scene: Path) -> None:
    """Masks by the poses of the run without masks."""
    config, images = MotionMasksConfig(), ImageSet.scan(scene / "images")
    model = ModelArrays.of(read_result(scene.with_name(f"{scene.name}-none")))
    estimator = build_flow_estimator(config.flow)
    still = dict(find_motion(images, [model], estimator, config))
    write_masks(images, still, _found(scene))


def _shares(scene: Path, found: Path) -> Shares:
    masked = moving = lost = still = 0
    for path in sorted((scene / "images").iterdir()):
        mask = _black(found / f"{path.name}.png", path)
        truth = _black(scene / "masks" / f"{path.name}.png", path)
        masked, moving = masked + int((mask & truth).sum()), moving + int(truth.sum())
        lost, still = lost + int((mask & ~truth).sum()), still + int((~truth).sum())
    return Shares(masked / moving if moving else None, lost / still)


def _black(mask: Path, image: Path) -> Mask:
    """Where a mask is black; nowhere where there is none."""
    if not mask.is_file():
        picture = cv2.imread(str(image))
        assert picture is not None
        return np.zeros(picture.shape[:2], np.bool_)
    return np.asarray(cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE) == 0)


def _line(row: Row) -> str:
    cells = ["", ""]
    if row.shares is not None:
        found, lost = row.shares
        cells = ["" if found is None else f"{100 * found:.1f}", f"{100 * lost:.2f}"]
    return f"| {row.scene} | {row.masks} | {row.auc:.1f} | {' | '.join(cells)} |"


def _page(rows: list[Row], num_images: int) -> str:
    return "\n".join(
        [
            "# Masks of what moves",
            "",
            "`make bench-motion-masks`: the courtyard of the demo, rendered with exact"
            f" poses in {num_images} images, while a",
            "crate, a ball and a person of boxes move through it, and without them;"
            " SIFT, sequential pairs. Masks",
            "are none, those that are found by the poses of the first run, or the true"
            " ones. Per cent of the",
            "pixels that move, and of those that stand still, that are masked; AUC at"
            " 1 degree.",
            "",
            "| Scene | Masks | AUC@1 | Masked of what moves | of what stands still |",
            "|---|---|---|---|---|",
            *map(_line, rows),
            "",
        ]
    )


if __name__ == "__main__":
    main()
