"""Real photographs with real weights: every image registers, poses are right."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfmprep import load_recipe
from sfmprep.evaluation.poses import evaluate_model
from sfmprep.evaluation.reference import read_reference
from sfmprep.pipelines.artefacts import read_result
from sfmprep.pipelines.reconstruct import reconstruct

SMALL = [
    *("features.max_size=800", "features.max_keypoints=1024"),
    "export.downscales=[]",
]
ALIKED = ("splat", ["features.type=aliked", *SMALL])
XFEAT = ("fast", SMALL[-1:])  # which needs its full size


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scene", "recipe", "least_auc"),
    [
        # AUC in per cent at 1, 3 and 5 degrees: what hloc and COLMAP reach, less noise
        ("fountain-P11", ALIKED, (66, 88.5, 93)),
        ("Herz-Jesus-P8", ALIKED, (72, 91, 95)),
        ("Herz-Jesus-P8", XFEAT, (66, 88.5, 93)),
    ],
)
def test_every_image_registers_with_the_pose_that_was_measured(
    scene: str,
    recipe: tuple[str, list[str]],
    least_auc: tuple[float, ...],
    shared: Path,
    real_weights: Path,
    tmp_path: Path,
) -> None:
    folder = shared / "data" / "scenes" / scene

    report = reconstruct(folder / "images", tmp_path / "out", load_recipe(*recipe))

    assert {image.status for image in report.images} == {"registered"}
    auc = evaluate_model(read_result(tmp_path / "out"), read_reference(folder)).auc
    assert all(auc[k] >= least for k, least in zip((1, 3, 5), least_auc, strict=True))


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.usefixtures("genuine_weights")
def test_splat_uses_the_authors_aliked_and_lightglue(
    shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shared / "data" / "scenes" / "Herz-Jesus-P8"
    with caplog.at_level("INFO", "sfmprep"):
        report = reconstruct(
            folder / "images", tmp_path / "out", load_recipe("splat", SMALL)
        )

    assert (
        "features: aliked-n16 + nearest, then aliked-lightglue"
        " (weights: Apache-2.0, BSD-3-Clause)" in caplog.messages
    )
    assert {image.status for image in report.images} == {"registered"}
    auc = evaluate_model(read_result(tmp_path / "out"), read_reference(folder)).auc
    assert all(auc[k] >= least for k, least in ((1, 66), (3, 88.5), (5, 93)))
