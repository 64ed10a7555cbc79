"""The capture of all runs: eight photographs of the demo scene, every stage at work."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfmprep.demo.courtyard import render_demo_scene
from sfmprep.models.protocols import DenseImage
from sfmprep.types import DenseMatches, Float32, ImageBatch

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


@dataclass(frozen=True, kw_only=True, eq=False)
class _Seen:
    pixels: Float32
    keypoints: Float32
    num_bytes: int = 1000


class Flow:
    """Finds a grid's points in the other image by optical flow; needs no weights."""

    batch_size = 1
    identity = {"weights_sha256": "flow"}

    def prepare(self, batch: ImageBatch) -> list[DenseImage]:
        width, height = batch.network_size
        x, y = np.meshgrid(
            np.arange(24, width - 24, 16), np.arange(24, height - 24, 16)
        )
        grid = np.stack([x.ravel(), y.ravel()], 1).astype(np.float32) + np.float32(0.5)
        return [_Seen(pixels=pixels.mean(0), keypoints=grid) for pixels in batch.pixels]

    def match(
        self, pairs: Sequence[tuple[DenseImage, DenseImage]]
    ) -> list[DenseMatches]:
        return [self._match(first, second) for first, second in pairs]

    def _match(self, first: Any, second: Any) -> DenseMatches:
        import cv2

        grey = [np.uint8(255 * each.pixels) for each in (first, second)]
        start = first.keypoints[:, None]
        there, found, _ = cv2.calcOpticalFlowPyrLK(*grey, start, None)
        back, again, _ = cv2.calcOpticalFlowPyrLK(*grey[::-1], there, None)
        away = np.linalg.norm(back - start, axis=2)[:, 0]
        good = (found[:, 0] > 0) & (again[:, 0] > 0) & (away < 0.5)
        return DenseMatches(
            xy0=start[good, 0],
            xy1=there[good, 0],
            scores=np.full(int(good.sum()), 0.9, np.float32),
        )


def use_flow() -> None:
    """In this process and those forked from it, `xfeat-star` is `Flow`."""
    from sfmprep.config import XFeatStarConfig

    semidense: Any = importlib.import_module("sfmprep.pipelines.semidense")
    semidense.build_dense_matcher = lambda *_, **__: Flow()
    XFeatStarConfig.needed_weights = lambda _: []  # type: ignore[method-assign]


def render(folder: Path) -> Path:
    """Photographs of the demo scene; returns their folder."""
    render_demo_scene(folder, num_images=NUM_IMAGES, size=SIZE)
    return folder / "images"


def command(images: Path, out: Path, *more: str) -> list[str]:
    """The call of a run, on one core: with more, models differ in the last digits."""
    place = [str(images), str(out)]
    return ["reconstruct", *place, "--num-threads", "1", "--set", *SETTINGS, *more]
