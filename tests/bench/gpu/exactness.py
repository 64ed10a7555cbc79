"""What half precision changes, and what happens where memory ends."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.nn import functional

from sfmprep.capture.batches import load_batches
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import (
    AlikedConfig,
    CompactConfig,
    LightGlueConfig,
    NearestConfig,
    XFeatConfig,
)
from sfmprep.models.build import build_extractor, build_matcher
from sfmprep.models.shared import adapter
from sfmprep.types import Features, Matches
from tests.bench.gpu.images import SCENE, batch_of_scene
from tests.bench.gpu.matching import lightglue_of, random_features
from tests.bench.gpu.told import PeakMemory, Told


def precision(told: Told) -> None:
    """What half precision, and the device, change against float32 on a CPU."""
    size = 320 if told.is_small else 1024
    photographs = ImageSet.scan(SCENE / "images")
    names = photographs.names[4:6]
    entries = json.loads((SCENE / "reference.json").read_text())["images"]
    cases = {
        "XFeat + LighterGlue": (
            XFeatConfig(max_keypoints=2048, max_size=size),
            LightGlueConfig(model="lighterglue"),
        ),
        "compact + its matcher": (
            CompactConfig(max_keypoints=2048, max_size=size),
            LightGlueConfig(model="compact-lightglue"),
        ),
        "ALIKED + nearest": (
            AlikedConfig(model="aliked-n16", max_size=size),
            NearestConfig(),
        ),
    }
    for name, (extraction, matching) in cases.items():
        found: dict[str, Any] = {}
        features: dict[str, list[Features]] = {}
        matches: dict[str, Matches] = {}
        for where, device, kind in (
            ("CPU", "cpu", "float32"),
            ("float32", told.device, "float32"),
            ("half", told.device, "half"),
        ):
            with _half_everywhere(told.is_small and kind == "half"):
                extractor = build_extractor(extraction, device=device, precision=kind)  # type: ignore[call-overload]
                features[where] = [
                    each
                    for _, batch in load_batches(photographs, names, max_size=size)
                    for each in extractor.extract(batch)
                ]
                kind = kind if matching.has_half else "float32"
                matcher = build_matcher(matching, device=device, precision=kind)  # type: ignore[arg-type]
                [matches[where]] = matcher.match([tuple(features["CPU"])])
            first, second = features["CPU"]
            index = matches[where].index
            found[where] = {
                "keypoints": [len(f) for f in features[where]],
                "same_keypoints": same_keypoints(features["CPU"], features[where]),
                "matches": len(index),
                **same_matches(matches["CPU"], matches[where]),
                "inlier_share": _inlier_share(
                    first.xy[index[:, 0]],
                    second.xy[index[:, 1]],
                    [entries[n] for n in names],
                ),
            }
            told[name] = found


def _half_everywhere(is_wanted: bool) -> Any:
    """Half precision on a CPU too, which sfmprep refuses as it is slow there."""
    if is_wanted:
        return mock.patch.object(adapter, "use_half", lambda precision, device: True)
    return mock.MagicMock()


def same_keypoints(ours: Sequence[Features], others: Sequence[Features]) -> float:
    """Share of keypoints that have another one within a tenth of a pixel."""
    near = [
        np.linalg.norm(a.xy[:, None] - b.xy[None], axis=2).min(1) < 0.1
        for a, b in zip(ours, others, strict=True)
    ]
    return float(np.concatenate(near).mean())


def same_matches(ours: Matches, others: Matches) -> dict[str, float]:
    """Share of matches in common, and how far their scores are apart."""
    a, b = (
        dict(zip(map(tuple, m.index.tolist()), m.scores.tolist(), strict=True))
        for m in (ours, others)
    )
    both = a.keys() & b.keys()
    return {
        "same_matches": len(both) / max(len(a), len(b), 1),
        "max_score_difference": max((abs(a[k] - b[k]) for k in both), default=0.0),
    }


def _inlier_share(xy0: Any, xy1: Any, entries: Sequence[dict[str, Any]]) -> float:
    """Share of matches within 3 pixels of the true epipolar lines, in both images."""
    if not len(xy0):
        return 0.0
    (k0, r0, t0), (k1, r1, t1) = (
        (np.array(e["K"]), np.array(e["R"]), np.array(e["t"])) for e in entries
    )
    rotation = r1 @ r0.T
    x, y, z = t1 - rotation @ t0
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    fundamental = np.linalg.inv(k1).T @ cross @ rotation @ np.linalg.inv(k0)
    first, second = (np.column_stack([xy, np.ones(len(xy))]) for xy in (xy0, xy1))
    lines1, lines0 = first @ fundamental.T, second @ fundamental
    error = np.abs((second * lines1).sum(1))
    lengths = [np.linalg.norm(lines[:, :2], axis=1) for lines in (lines0, lines1)]
    return float((error / np.minimum(*lengths) < 3).mean())


# ------------------------------------------------------------------------------ memory
def memory(told: Told) -> None:
    """A cap on the memory: batches halve, nothing is lost, the size is remembered."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("sfmprep")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    count, num_pairs = (96, 4) if told.is_small else (2048, 64)
    features = [random_features(k, count, 64) for k in range(8)]
    half = "float32" if told.is_small else "half"
    matcher = lightglue_of("compact-lightglue", told.device, half)
    sides = [matcher.prepare(f) for f in features]
    pairs = [(sides[k % 8], sides[(k // 8 + 1) % 8]) for k in range(num_pairs)]
    matcher._limits = dataclasses.replace(
        matcher._limits, keypoints=2 * count * num_pairs
    )
    with PeakMemory() as peak:
        expected = matcher.match(pairs)
    told["uncapped_peak_bytes"] = peak.bytes
    with _cap(told, peak.bytes // 3):
        found = matcher.match(pairs)
        said_then = len(said)
        again = matcher.match(pairs)
    told["lightglue"] = {
        "same_matches": [
            min(
                same_matches(a, b)["same_matches"]
                for a, b in zip(expected, f, strict=True)
            )
            for f in (found, again)
        ],
        "remembered": matcher._adapter.pairs._most,
        "said": said[:said_then],
        "said_again": said[said_then:],
    }
    del said[:]
    size = 256 if told.is_small else 1600
    extractor: Any = build_extractor(
        AlikedConfig(model="aliked-n16", max_size=size), device=told.device
    )
    batch = batch_of_scene(size, 2 if told.is_small else 6)
    extractor.batch_size = len(batch)
    with PeakMemory() as peak:
        whole = extractor.extract(batch)
    with _cap(told, peak.bytes // 2):
        parts = extractor.extract(batch)
    told["aliked"] = {
        "same_keypoints": same_keypoints(whole, parts),
        "remembered": extractor._adapter.images._most,
        "said": list(said),
    }


class _cap:  # noqa: N801 - a context
    """So many bytes and no more; on a CPU more than one at once is too much."""

    def __init__(self, told: Told, num_bytes: int) -> None:
        self._told, self._bytes = told, num_bytes
        self._patches = [
            mock.patch.object(functional, name, _for_one(getattr(functional, name)))
            for name in ("scaled_dot_product_attention", "avg_pool2d")
        ]

    def __enter__(self) -> None:
        if self._told.is_small:
            for patch in self._patches:
                patch.start()
            return
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(self._told.device).total_memory
        share = min(1.0, (torch.cuda.memory_reserved() + self._bytes) / total)
        torch.cuda.set_per_process_memory_fraction(share)

    def __exit__(self, *_: object) -> None:
        if self._told.is_small:
            mock.patch.stopall()
        else:
            torch.cuda.set_per_process_memory_fraction(1.0)


def _for_one(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def run(x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if len(x) > 1:
            raise torch.OutOfMemoryError("out of memory, as if")
        return function(x, *args, **options)

    return run
