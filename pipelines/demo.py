"""The main job on a scene that is rendered here, so that its true poses are known."""

from __future__ import annotations

from pathlib import Path

from sfmprep.config import Recipe
from sfmprep.demo.courtyard import render_demo_scene
from sfmprep.evaluation.poses import Evaluation, evaluate_model
from sfmprep.evaluation.reference import read_reference
from sfmprep.pipelines.artefacts import read_result
from sfmprep.pipelines.reconstruct import reconstruct
from sfmprep.progress import Progress, silent
from sfmprep.report.schema import Report


def reconstruct_demo(
    out: Path, recipe: Recipe, *, device: str = "cpu", progress: Progress = silent
) -> tuple[Report, Evaluation]:
    """Renders into `out/scene`, reconstructs into `out/dataset`, and evaluates."""
    scene, dataset = out / "scene", out / "dataset"
    render_demo_scene(scene, progress=progress)
    report = reconstruct(
        scene / "images", dataset, recipe, device=device, progress=progress
    )
    return report, evaluate_model(read_result(dataset), read_reference(scene))
