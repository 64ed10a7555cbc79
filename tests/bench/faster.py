"""What makes networks faster on this CPU, and what it costs: 8 and 16 bits, and more.

Each way takes its turn at every photograph, or every wide pair, on one core, so that
other work on the machine hardly changes the ratios. Poses are found as those of
`models.md`, of photographs of 640 pixels.
"""

from __future__ import annotations

import shutil
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfmprep.config import (
    AlikedConfig,
    CompactConfig,
    LightGlueConfig,
    NearestConfig,
    StrongerConfig,
)
from sfmprep.devices import multiplies_bfloat16
from sfmprep.evaluation.poses import pose_auc
from sfmprep.models.build import build_extractor, build_matcher
from sfmprep.models.extractors.aliked_network import AlikedNetwork
from sfmprep.models.extractors.compact_network import CompactNetwork
from sfmprep.types import Features
from sfmprep.weights import weights_here
from tests.bench.models import MAX_KEYPOINTS, MAX_SIZE, Bench, WidePair
from tests.bench.two_view import LIMITS_DEG

_RATIO = 0.9
_SEEDS = 8
_NUM_EXTRACTED = 2 * MAX_KEYPOINTS  # as in the packaged recipe
_USED = "float32 (used)"
_FULL, _HALF = "float32, stops early (used)", "half the keypoints"
# With half the keypoints a pair is plainly strong that has four times the matches that
# the ladder asks of a strong one to be verified.
_MANY = 4 * StrongerConfig.model_fields["min_num_inliers"].default

Row = dict[str, Any]
Of = Mapping[tuple[str, str], Features]


@dataclass
class _Told:
    """What one way of doing it took, and found."""

    seconds: list[float] = field(default_factory=list)
    found: list[int] = field(default_factory=list)
    errors_deg: list[float] = field(default_factory=list)  # some of each pair

    def row(self, what: str, how: str, first: _Told) -> Row:
        auc = pose_auc(np.array(self.errors_deg), LIMITS_DEG)
        return {
            "what": what,
            "how": how,
            "ratio": sum(self.seconds) / sum(first.seconds),
            "seconds": statistics.median(self.seconds),
            "found": statistics.mean(self.found),
            "pairs": len(self.errors_deg) // _SEEDS,
            "auc": [auc[limit] for limit in LIMITS_DEG],
        }


def measure(num_pairs: int) -> Iterator[Row]:
    """Yields a row for each way, the first of each kind as it was before."""
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        bench = Bench(num_pairs)
        compact: Of = {}
        for config in (CompactConfig(), AlikedConfig()):
            if all(weights_here(*each) for each in config.needed_weights()):
                features, rows = _extractors(bench, config)
                compact = compact or features
                yield from rows
        for what, ways in (
            ("nearest neighbours", _nearest()),
            ("compact matcher", _compact_matchers()),
        ):
            yield from _matchers(bench, what, ways, compact)
    finally:
        torch.set_num_threads(cores)


# ------------------------------------------------------------------------ the ways
def _extractors(
    bench: Bench, config: CompactConfig | AlikedConfig
) -> tuple[Of, list[Row]]:
    """A network in float32 and with its pyramid in bfloat16; features of the first."""
    config = config.model_copy(
        update={"max_keypoints": _NUM_EXTRACTED, "max_size": MAX_SIZE}
    )
    ways = {_USED: build_extractor(config, precision="float32")}
    if multiplies_bfloat16():
        ways["convolutions in bfloat16"] = _in_bfloat16(config)
    told = {how: _Told() for how in ways}
    features: dict[str, dict[tuple[str, str], Features]] = {how: {} for how in ways}
    for key, batch in bench.batches():
        for how, extractor in ways.items():
            if not features[how]:
                extractor.extract(batch)  # the first one is slower
            [found], seconds = _timed(lambda e=extractor, b=batch: e.extract(b))
            features[how][key] = found
            told[how].seconds.append(seconds)
            told[how].found.append(len(found))
    nearest = build_matcher(NearestConfig(ratio=_RATIO), precision="float32")
    for how in ways:
        for pair, _, xy in _matched(bench, nearest, features[how]):
            told[how].errors_deg += _errors_deg(bench, pair, xy)
    first = told[_USED]
    rows = [each.row(config.name, how, first) for how, each in told.items()]
    return features[_USED], rows


def _nearest() -> Iterator[tuple[str, Any, int]]:
    config = NearestConfig(ratio=_RATIO)
    yield "float32", build_matcher(config, precision="float32"), _NUM_EXTRACTED
    if multiplies_bfloat16():
        yield "search in bfloat16 (used)", build_matcher(config), _NUM_EXTRACTED


def _compact_matchers() -> Iterator[tuple[str, Any, int]]:
    def built(**settings: Any) -> Any:
        config = LightGlueConfig(model="compact-lightglue", **settings)
        return build_matcher(config, precision="float32")

    yield _FULL, built(), MAX_KEYPOINTS
    yield "never stops early", built(depth_confidence=None), MAX_KEYPOINTS
    yield _HALF, built(), MAX_KEYPOINTS // 2
    yield "twice the keypoints", built(), 2 * MAX_KEYPOINTS
    if multiplies_bfloat16():
        matcher = built()
        matcher._network.transformers.to(torch.bfloat16)
        yield "layers in bfloat16", matcher, MAX_KEYPOINTS
        with mock.patch.object(F, "scaled_dot_product_attention", _in_parts):
            yield "the same, attention as products", matcher, MAX_KEYPOINTS
    matcher = built()
    _quantise(matcher._network.transformers)
    yield "linear layers in int8", matcher, MAX_KEYPOINTS
    if shutil.which("g++"):
        matcher = built()
        for layer in matcher._network.transformers:
            layer.compile(dynamic=True)
        yield "torch.compile", matcher, MAX_KEYPOINTS


def _in_bfloat16(config: CompactConfig | AlikedConfig) -> Any:
    """An extractor whose convolutions are in bfloat16, as they are in half on CUDA."""
    extractor: Any = build_extractor(config, precision="float32")
    is_compact = isinstance(config, CompactConfig)
    network = CompactNetwork() if is_compact else AlikedNetwork(config.model)
    adapter = replace(extractor._adapter, dtype=torch.bfloat16)
    extractor._network = adapter.load(network)
    return extractor


def _in_parts(
    queries: Tensor, keys: Tensor, values: Tensor, attn_mask: Tensor | None = None
) -> Tensor:
    """Attention as two products, which are in bfloat16: torch's own is in float32."""
    assert attn_mask is None  # one pair at a time has no padding
    scaled = (keys * keys.shape[-1] ** -0.5).mT
    parts = [(part @ scaled).softmax(-1) @ values for part in queries.split(256, -2)]
    return torch.cat(parts, -2)


class _Int8(nn.Module):
    """A linear layer with weights of 8 bits, and inputs as they come."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight  # whose type the attention asks
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a move to another package
            [self.inner] = torch.ao.quantization.quantize_dynamic(
                nn.Sequential(linear), {nn.Linear}, dtype=torch.qint8
            )

    def forward(self, x: Tensor) -> Tensor:
        """As the layer."""
        out: Tensor = self.inner(x)
        return out


def _quantise(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, _Int8(child))
        else:
            _quantise(child)


# ----------------------------------------------------------------------- measuring
def _matchers(
    bench: Bench, what: str, ways: Iterator[tuple[str, Any, int]], features: Of
) -> Iterator[Row]:
    told: dict[str, _Told] = {}
    for how, matcher, num in ways:
        told[how] = _Told()
        few = {key: each.take(slice(num)) for key, each in features.items()}
        for pair, matches, xy in _matched(bench, matcher, few, told[how].seconds):
            told[how].found.append(len(matches))
            told[how].errors_deg += _errors_deg(bench, pair, xy)
        first = next(iter(told.values()))
        yield told[how].row(what, how, first)
        if how == _HALF:
            again = f"half, and all where that finds fewer than {_MANY}"
            yield _either(told[_HALF], told[_FULL]).row(what, again, first)


def _either(few: _Told, all_: _Told) -> _Told:
    """Pairs with the keypoints of the one, and those with few matches with all."""
    told = _Told()
    for k, found in enumerate(few.found):
        is_strong = found >= _MANY
        one = few if is_strong else all_
        told.found.append(one.found[k])
        told.errors_deg += one.errors_deg[_SEEDS * k : _SEEDS * (k + 1)]
        told.seconds.append(few.seconds[k] + (0 if is_strong else all_.seconds[k]))
    return told


def _matched(
    bench: Bench, matcher: Any, features: Of, seconds: list[float] | None = None
) -> Iterator[tuple[Any, Any, tuple[Any, Any]]]:
    """The wide pairs with their matches; the first is matched twice, to warm up."""
    for number, pair in enumerate(bench.pairs):
        first, second = (features[pair.scene, name] for name in pair.names)
        sides = matcher.prepare(first), matcher.prepare(second)
        if not number:
            matcher.match([sides])
        [matches], taken = _timed(lambda sides=sides: matcher.match([sides]))
        if seconds is not None:
            seconds.append(taken)
        index = matches.index
        yield pair, matches, (first.xy[index[:, 0]], second.xy[index[:, 1]])


def _errors_deg(bench: Bench, pair: WidePair, xy: tuple[Any, Any]) -> list[float]:
    """Of several seeds of RANSAC, whose chance is as large as what is compared."""
    return [bench.error_deg(pair, *xy, seed=seed) for seed in range(_SEEDS)]


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and CPU seconds of this process."""
    start = time.process_time()
    return run(), time.process_time() - start
