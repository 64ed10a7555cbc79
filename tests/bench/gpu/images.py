"""Extraction: images a second, the network alone and with decoding."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from sfmprep.capture.batches import load_batches
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import (
    AlikedConfig,
)
from sfmprep.frontend.extract import extract_features
from sfmprep.models.build import build_extractor
from sfmprep.stores.tables import FeatureStore
from sfmprep.types import ImageBatch
from tests.bench.gpu.told import PeakMemory, Told, rate
from tests.bench.measure import timed
from tests.bench.shared import SHARED

SCENE = SHARED / "data" / "scenes" / "fountain-P11"


def batch_of_scene(size: int, count: int) -> ImageBatch:
    """As many photographs of one size; they come again if there are fewer."""
    photographs = ImageSet.scan(SCENE / "images")
    found = [b for _, b in load_batches(photographs, photographs.names, max_size=size)]
    chosen = [found[k % len(found)] for k in range(count)]
    return ImageBatch(
        pixels=np.concatenate([b.pixels for b in chosen]),
        sizes=np.concatenate([b.sizes for b in chosen]),
        orientations=np.concatenate([b.orientations for b in chosen]),
    )


def aliked(told: Told) -> None:
    """Images a second at 1600 pixels: the network alone, and with decoding."""
    size, counts = (256, (1, 2)) if told.is_small else (1600, (1, 2, 4, 6, 12))
    kinds = ("float32",) if told.is_small else ("half", "float32")
    config = AlikedConfig(model="aliked-n16", max_size=size)
    batch = batch_of_scene(size, counts[-1])
    told["size"] = batch.network_size
    for kind in kinds:
        extractor: Any = build_extractor(config, device=told.device, precision=kind)  # type: ignore[call-overload]
        told[kind] = found = {"batch_size": extractor.batch_size, "batched": {}}
        for count in counts:
            extractor.batch_size = count
            some = ImageBatch(
                pixels=batch.pixels[:count],
                sizes=batch.sizes[:count],
                orientations=batch.orientations[:count],
            )
            with PeakMemory() as peak:
                images_per_s = rate(lambda s=some, e=extractor: e.extract(s), count)
            found["batched"][count] = {
                "images_per_s": images_per_s,
                "peak_bytes": peak.bytes,
            }
            told[kind] = found
        extractor.batch_size = found["batch_size"]
        few = min(found["batch_size"], counts[-1])
        some = ImageBatch(
            pixels=batch.pixels[:few],
            sizes=batch.sizes[:few],
            orientations=batch.orientations[:few],
        )
        found["hottest"] = told.hottest(lambda s=some, e=extractor: e.extract(s))
        told[kind] = found
        with _many_photographs(2 if told.is_small else 120) as photographs:
            store = FeatureStore(None, {})
            seconds = timed(
                lambda p=photographs, e=extractor, s=store: extract_features(
                    p, e, s, max_size=size
                )
            )
        found["with_decoding_images_per_s"] = len(photographs.names) / seconds
        told[kind] = found


class _many_photographs:  # noqa: N801 - a context
    """The photographs of the scene over and over, as links."""

    def __init__(self, count: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        found = sorted((SCENE / "images").iterdir())
        for k in range(count):
            link = Path(self._folder.name) / f"{k:04d}.jpg"
            link.symlink_to(found[k % len(found)].resolve())

    def __enter__(self) -> ImageSet:
        return ImageSet.scan(Path(self._folder.name))

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()
