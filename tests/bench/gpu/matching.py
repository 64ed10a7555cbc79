"""Matchers alone: pairs a second, by how many go in at once."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from sfmprep.config import (
    LightGlueConfig,
    LoftrConfig,
    S2ldConfig,
    XFeatStarConfig,
)
from sfmprep.models.build import build_dense_matcher, build_matcher
from sfmprep.models.matchers.lightglue import SHAPES
from sfmprep.models.matchers.lightglue_network import LightGlueNetwork
from sfmprep.models.semidense.loftr import loftr_network
from sfmprep.models.semidense.s2ld_network import S2ldNetwork
from sfmprep.types import Features
from tests.bench import plain
from tests.bench.gpu.images import batch_of_scene
from tests.bench.gpu.told import PeakMemory, Told, rate
from tests.support.flops import flops as flops_of_pair


def lightglue(told: Told) -> None:
    """Pairs a second at 2048 keypoints, by how many go in at once."""
    count = 96 if told.is_small else 2048
    sizes = (1, 2) if told.is_small else (1, 2, 4, 8, 16, 32, 64, 128, 256)
    half = "float32" if told.is_small else "half"
    told["keypoints"], told["precision"] = count, half
    for model in ("aliked-lightglue", "lighterglue", "compact-lightglue"):
        _lightglue(told, model, count, sizes, half)


def _lightglue(
    told: Told, model: str, count: int, sizes: Sequence[int], half: str
) -> None:
    shape = SHAPES[model]
    found: dict[str, Any] = {"flops_per_pair": flops_of_pair(shape, count, count)}
    features = [random_features(k, count, shape.input_dim) for k in range(8)]
    with _weights_of(model) as path:
        if path is not None:
            found["plain_one_by_one"] = _plain_rate(told, model, features)
            told[model] = found
        matcher = lightglue_of(model, told.device, half, path)
        sides = [matcher.prepare(f) for f in features]
        pairs = [(sides[k % 8], sides[(k // 8 + 1) % 8]) for k in range(sizes[-1])]
        found["batched"] = {}
        for size in sizes:
            matcher._limits = dataclasses.replace(
                matcher._limits, keypoints=2 * count * size
            )
            some = pairs[:size]
            with PeakMemory() as peak:
                pairs_per_s = rate(partial(matcher.match, some), size)
            found["batched"][size] = {
                "pairs_per_s": pairs_per_s,
                "peak_bytes": peak.bytes,
                "most": matcher._adapter.pairs._most,
            }
            told[model] = found
        default = lightglue_of(model, told.device, half, path)
        found["default"] = rate(partial(default.match, pairs), len(pairs))
        found["default_keypoints"] = default._limits.keypoints
        told[model] = found
        some = pairs[:32]
        found["hottest"] = told.hottest(partial(default.match, some))
        exact = lightglue_of(model, told.device, "float32", path)
        found["float32"] = rate(partial(exact.match, some), len(some))
        told[model] = found


def random_features(seed: int, count: int, dim: int) -> Features:
    """As many keypoints; every image shows the same points, in an order of its own."""
    rng = np.random.default_rng(0)
    xy, rows = rng.uniform(0, (1600, 1200), (count, 2)), rng.normal(size=(count, dim))
    rng = np.random.default_rng(seed)
    order = rng.permutation(count)
    rows = rows[order] + rng.normal(scale=0.1, size=(count, dim))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return Features(
        xy=xy[order].astype(np.float32),
        scores=np.ones(count, np.float32),
        descriptors=rows.astype(np.float32),
        image_size=(1600, 1200),
    )


class _weights_of:  # noqa: N801 - a context, as contextmanager would name it
    """A file of weights: genuine ones where they are here, else random ones."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._folder = tempfile.TemporaryDirectory()

    def __enter__(self) -> Path | None:
        if self._model != "aliked-lightglue":
            return None
        torch.manual_seed(0)
        network = LightGlueNetwork(SHAPES[self._model], adaptive=True)
        path = Path(self._folder.name) / "random.safetensors"
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, path)
        return path

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


def lightglue_of(
    model: str, device: str, precision: str, path: Path | None = None
) -> Any:
    """A matcher without early stopping; genuine weights, or those of a file."""
    config = LightGlueConfig(
        model=model,  # type: ignore[arg-type]
        weights=path,
        depth_confidence=None,
        width_confidence=None,
    )
    return build_matcher(config, device=device, precision=precision)  # type: ignore[arg-type]


def _plain_rate(told: Told, model: str, features: Sequence[Features]) -> float:
    """Pairs a second of kornia's network, one by one in float32."""
    shape = SHAPES[model]
    network = plain.lightglue(
        None,
        told.device,
        input_dim=shape.input_dim,
        descriptor_dim=shape.dim,
        num_heads=shape.num_heads,
        n_layers=shape.num_layers,
        depth_confidence=-1,
        width_confidence=-1,
    )
    sides = [
        {
            "keypoints": torch.from_numpy(f.xy)[None].to(told.device),
            "descriptors": torch.from_numpy(f.descriptors)[None].to(told.device),
            "image_size": torch.tensor([f.image_size], device=told.device),
        }
        for f in features[: 2 if told.is_small else 8]
    ]
    pairs = list(zip(sides, sides[1:], strict=False))
    return rate(lambda: plain.match_lightglue(network, pairs), len(pairs))


def dense(told: Told) -> None:
    """Images prepared and pairs matched a second, without a detector.

    LoFTR and S2LD have random weights, in which cells differ enough to be matched.
    """
    sizes = (128,) if told.is_small else (640, 1024)
    half = "float32" if told.is_small else "half"
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        loftr, s2ld = Path(folder) / "loftr.ckpt", Path(folder) / "s2ld.ckpt"
        networks = loftr_network("loftr-outdoor"), S2ldNetwork()
        with torch.no_grad():
            for name, parameter in networks[1].named_parameters():
                if name.startswith("backbone") and parameter.dim() == 4:
                    torch.nn.init.kaiming_normal_(parameter, mode="fan_out")
            networks[0].backbone.layer3_outconv.weight.mul_(3)
            networks[1].backbone.layer3_outconv.weight.mul_(30)
        torch.save({"state_dict": networks[0].state_dict()}, loftr)
        torch.save(networks[1].state_dict(), s2ld)
        for size in sizes:
            for name, config in {
                "loftr": LoftrConfig(weights=loftr, max_size=size, min_score=0.01),
                "s2ld": S2ldConfig(weights=s2ld, max_size=size, min_score=0.01),
                "xfeat-star": XFeatStarConfig(max_size=size),
            }.items():
                made = build_dense_matcher(config, device=told.device, precision=half)  # type: ignore[arg-type]
                count = 1 if told.is_small else 8
                batch = batch_of_scene(size, count + 1)
                with PeakMemory() as peak:
                    images_per_s = rate(
                        lambda m=made, b=batch: m.prepare(b), len(batch)
                    )
                    sides = made.prepare(batch)
                    pairs = list(zip(sides, sides[1:], strict=False))
                    pairs_per_s = rate(lambda m=made, p=pairs: m.match(p), len(pairs))
                told[f"{name} {size}"] = {
                    "size": batch.network_size,
                    "images_per_s": images_per_s,
                    "pairs_per_s": pairs_per_s,
                    "matches": sum(map(len, made.match(pairs))) / len(pairs),
                    "peak_bytes": peak.bytes,
                }
