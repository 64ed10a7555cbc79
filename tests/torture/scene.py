"""The capture of all runs: eight photographs of the demo scene, every stage at work."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from sfmprep.demo.courtyard import render_demo_scene
from tests.support.flow_matcher import Flow

NUM_IMAGES = 8
SIZE = (320, 240)
_WEAK = 10_000  # inliers: every pair climbs every rung
# what a folder without network does by itself, with few and small of everything
SETTINGS = (
    *("features.max_keypoints=400", "features.max_size=320", "export.downscales=[2]"),
    # so that the second round has pairs to propose
    *("pairs.type=sequential", "pairs.window=2", "pairs.quadratic=false"),
    *(f"beside.min_num_inliers={_WEAK}", "beside.per_image=1"),
    *("beside.features.max_keypoints=300", "beside.features.max_size=320"),
    *(f"stronger.min_num_inliers={_WEAK}", "stronger.per_image=1"),
    "dense={matcher: {type: xfeat-star, max_size: 320}, min_num_inliers: 10000,"
    " per_image: 1}",
    "refinement={}",
    *("database.camera_model=SIMPLE_RADIAL", "database.camera_params=[272,160,120,0]"),
)


def use_flow() -> None:
    """In this process and those forked from it, `xfeat-star` is `Flow`."""
    from sfmprep.config import XFeatStarConfig

    semidense: Any = importlib.import_module("sfmprep.pipelines.semidense")
    semidense.build_dense_matcher = lambda *_, **__: Flow(step=16)
    XFeatStarConfig.needed_weights = lambda _: []  # type: ignore[method-assign]


def render(folder: Path) -> Path:
    """Photographs of the demo scene; returns their folder."""
    render_demo_scene(folder, num_images=NUM_IMAGES, size=SIZE)
    return folder / "images"


def command(images: Path, out: Path, *more: str) -> list[str]:
    """The call of a run, on one core: with more, models differ in the last digits."""
    place = [str(images), str(out)]
    return ["reconstruct", *place, "--num-threads", "1", "--set", *SETTINGS, *more]
