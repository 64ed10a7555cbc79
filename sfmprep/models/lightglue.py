"""LightGlue as a matcher: batches of pairs, with adaptive depth and width.

Paper: Lindenberger, Sarlin, Pollefeys, "LightGlue: Local Feature Matching at Light
Speed", ICCV 2023. Ported from cvg/LightGlue and kornia (kornia.feature.LightGlue), both
Apache-2.0. Changed: pairs of different keypoint counts share a batch, each with the
result that it has alone. Padding is masked, a pair that is confident leaves the batch,
and points are pruned for each pair by itself.

What the networks saw in training, and see here: pixel centres at integers, minus half
the image size (W, H), over half the longer side, upright. The half pixel is one of the
file on disk, as in cvg/LightGlue, whatever the size that the extractor saw.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfmprep.config import LightGlueConfig
from sfmprep.coords import (
    centre_from_colmap,
    upright_matrix,
    upright_size,
    upright_xy,
)
from sfmprep.errors import ConfigError
from sfmprep.models.lightglue_network import (
    LightGlueNetwork,
    LightGlueShape,
    confidence_threshold,
    load_network,
)
from sfmprep.models.pair_batches import (
    group_by_size,
    is_row,
    pad_rows,
    sorted_matches,
    unit_descriptors,
)
from sfmprep.types import Features, Float32, Matches
from sfmprep.weights import resolve_weights

logger = logging.getLogger(__name__)

_SHAPES: Mapping[str, LightGlueShape] = {
    "aliked-lightglue": LightGlueShape(input_dim=128),
    "superpoint-lightglue": LightGlueShape(input_dim=256),
    "disk-lightglue": LightGlueShape(input_dim=128),
    "sift-lightglue": LightGlueShape(input_dim=128, has_scale_and_angle=True),
    "lighterglue": LightGlueShape(input_dim=64, dim=96, num_heads=1, num_layers=6),
    "lighterglue-l3": LightGlueShape(input_dim=64, dim=96, num_heads=1, num_layers=3),
}

# Keypoints, padding included, of a batch. A CPU gains nothing from more than fills its
# caches; a GPU is filled by some sixteen pairs of 4096 keypoints.
_CPU_BUDGET = 4096
_GPU_BUDGET = 1 << 17

# Longer side in pixels of the images that sift-lightglue was trained with, which its
# scales are pixels of.
_SIFT_TRAINING_SIZE = 1024


class LightGlue:
    """Matches with a public LightGlue checkpoint.

    Points are pruned in images of more than so many keypoints: 0 on a CPU, 1024 on a
    GPU, 1536 there with half precision. These are the values of cvg/LightGlue; below
    them the gathering costs more than it saves.

    Args:
        config: The checkpoint and its thresholds.
        device: Where to run, as torch names it.
        half_precision: Run the layers in float16 where autocast deems it safe; CUDA
            only.

    Raises:
        ConfigError: `half_precision` without a CUDA device.
        WeightsError: the weights are missing, damaged or do not fit.
    """

    def __init__(
        self,
        config: LightGlueConfig,
        *,
        device: str = "cpu",
        half_precision: bool = False,
    ) -> None:
        kind = torch.device(device).type
        if half_precision and kind != "cuda":
            raise ConfigError(
                f"half_precision=True with {device=}, but only CUDA devices gain from"
                " it. Leave it out."
            )
        weights = resolve_weights(config.model, config.weights)
        network = load_network(
            weights, _SHAPES[config.model], is_cut=config.model == "lighterglue-l3"
        )
        if not network.adaptive and (
            config.depth_confidence is not None or config.width_confidence is not None
        ):
            logger.info(
                "%s: %s has no confidence heads, so adaptive depth and width are off"
                " (the matches are as good, but take longer)",
                config.model,
                weights.path.name,
            )
        self._config = config
        self._device = device
        self._half_precision = half_precision
        self._sha256 = weights.sha256
        self._network: LightGlueNetwork = network.to(device)
        self._depth = config.depth_confidence if network.adaptive else None
        self._width = config.width_confidence if network.adaptive else None
        self._budget = _CPU_BUDGET if kind == "cpu" else _GPU_BUDGET
        self._max_unpruned = 0 if kind != "cuda" else 1536 if half_precision else 1024

    @property
    def weights_sha256(self) -> str:
        """The checksum of the weights in use."""
        return self._sha256

    @torch.inference_mode()
    def match(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        """Matches each pair; see `protocols.Matcher`.

        Raises:
            ConfigError: the features are not those that the checkpoint is for.
        """
        results = [Matches.none()] * len(pairs)
        filled = [k for k, (a, b) in enumerate(pairs) if len(a) and len(b)]
        sizes = [(len(pairs[k][0]), len(pairs[k][1])) for k in filled]
        for group in group_by_size(sizes, lambda m, n: m + n, self._budget):
            chosen = [filled[g] for g in group]
            for item, matches in self._match_batch([pairs[k] for k in chosen]):
                results[chosen[item]] = matches
        return results

    def _match_batch(
        self, pairs: list[tuple[Features, Features]]
    ) -> Iterator[tuple[int, Matches]]:
        """Yields item and matches of each pair, in the order in which they finish.

        A pair whose points were all pruned in one image is not yielded.
        """
        last = self._network.shape.num_layers - 1
        sides = (self._embed([a for a, _ in pairs]), self._embed([b for _, b in pairs]))
        batch = _Batch(
            items=torch.arange(len(pairs), device=self._device),
            num_points=sides[0].counts + sides[1].counts,
            sides=sides,
        )
        for layer in range(last):
            self._advance(layer, batch)
            if self._depth is not None:
                is_done = self._is_confident(layer, batch, self._depth)
                if is_done.any():
                    yield from self._assign(layer, batch.take(is_done))
                    batch = batch.take(~is_done)
            if self._width is not None:
                for side in batch.sides:
                    self._prune(layer, side, self._width)
                is_left = (batch.sides[0].counts > 0) & (batch.sides[1].counts > 0)
                if not is_left.all():
                    batch = batch.take(is_left)
            if not len(batch.items):
                return
        self._advance(last, batch)
        yield from self._assign(last, batch)

    def _embed(self, images: list[Features]) -> _Side:
        """Makes the tokens and rotations of one side of a batch."""
        shape = self._network.shape
        descriptors = [unit_descriptors(features) for features in images]
        for rows in descriptors:
            if rows.shape[1] != shape.input_dim:
                raise ConfigError(
                    f"{self._config.model} matches descriptors of length"
                    f" {shape.input_dim}, but these have {rows.shape[1]}. Name the"
                    " matcher that goes with the features in the recipe."
                )
        positions = [
            _scaled_positions(features, with_scale_and_angle=shape.has_scale_and_angle)
            for features in images
        ]
        return _Side(
            tokens=self._network.input_proj(pad_rows(descriptors, self._device)),
            rotation=self._network.posenc(pad_rows(positions, self._device)),
            rows=torch.arange(max(map(len, images)), device=self._device).repeat(
                len(images), 1
            ),
            counts=torch.tensor([len(i) for i in images], device=self._device),
        )

    def _advance(self, layer: int, batch: _Batch) -> None:
        side0, side1 = batch.sides
        with torch.autocast("cuda", torch.float16, enabled=self._half_precision):
            side0.tokens, side1.tokens = self._network.transformers[layer](
                (side0.tokens, side1.tokens),
                (side0.rotation, side1.rotation),
                (side0.mask, side1.mask),
            )

    def _is_confident(self, layer: int, batch: _Batch, depth: float) -> Tensor:
        """Which pairs [B] have so large a share of keypoints whose match is decided.

        Pruned keypoints count as decided.
        """
        threshold = confidence_threshold(layer, self._network.shape.num_layers)
        undecided = torch.zeros_like(batch.num_points)
        for side in batch.sides:
            side.confidence = self._network.token_confidence[layer](side.tokens)
            undecided += ((side.confidence < threshold) & side.is_real).sum(1)
        return 1 - undecided / batch.num_points > depth

    def _prune(self, layer: int, side: _Side, width: float) -> None:
        """Drops keypoints that are confidently unmatchable."""
        head = self._network.assignment(layer)
        kept = head.get_matchability(side.tokens) > 1 - width
        if side.confidence is not None:
            threshold = confidence_threshold(layer, self._network.shape.num_layers)
            kept |= side.confidence <= threshold
        kept |= (side.counts <= self._max_unpruned)[:, None]
        side.keep(kept & side.is_real)

    def _assign(self, layer: int, batch: _Batch) -> Iterator[tuple[int, Matches]]:
        """Yields the mutually best assignments, pair by pair to bound the memory."""
        head = self._network.assignment(layer)
        side0, side1 = batch.sides
        counts = zip(side0.counts.tolist(), side1.counts.tolist(), strict=True)
        for b, (item, (m, n)) in enumerate(
            zip(batch.items.tolist(), counts, strict=True)
        ):
            scores = head(side0.tokens[b, :m], side1.tokens[b, :n])
            best, column = scores.max(1)
            best = best.exp()
            is_mutual = scores.argmax(0)[column] == torch.arange(m, device=self._device)
            row = (is_mutual & (best > self._config.min_score)).nonzero().squeeze(1)
            yield (
                item,
                sorted_matches(
                    side0.rows[b, row], side1.rows[b, column[row]], best[row]
                ),
            )


@dataclass(kw_only=True)
class _Side:
    """The keypoints of the first or of the second images of a batch."""

    tokens: Tensor  # [B, N, D]
    rotation: Tensor  # [B, 1, N, D / heads / 2] complex
    rows: Tensor  # [B, N] which rows of the features these keypoints are
    counts: Tensor  # [B] so many of N are keypoints; padding comes after them
    confidence: Tensor | None = None  # [B, N] as of the last layer

    @property
    def is_real(self) -> Tensor:
        """Which tokens are no padding, [B, N]."""
        return is_row(self.counts, self.rows.shape[1])

    @property
    def mask(self) -> Tensor | None:
        """Which keys may be attended to, [B, 1, 1, N], or None for all."""
        is_real = self.is_real
        return None if is_real.all() else is_real[:, None, None]

    def take(self, chosen: Tensor) -> _Side:
        """Returns the images `chosen` [B] bool, with no more padding than they need."""
        counts = self.counts[chosen]
        longest = int(counts.max()) if len(counts) else 0
        confidence = self.confidence
        return _Side(
            tokens=self.tokens[chosen, :longest],
            rotation=self.rotation[chosen, :, :longest],
            rows=self.rows[chosen, :longest],
            counts=counts,
            confidence=None if confidence is None else confidence[chosen, :longest],
        )

    def keep(self, kept: Tensor) -> None:
        """Drops the keypoints that are not `kept` [B, N] bool, padding included."""
        if kept.all():
            return
        self.counts = kept.sum(1)
        first = torch.argsort(kept.byte(), dim=1, descending=True, stable=True)
        first = first[:, : int(self.counts.max())]
        self.tokens = torch.take_along_dim(self.tokens, first[..., None], 1)
        self.rotation = torch.take_along_dim(self.rotation, first[:, None, :, None], 2)
        self.rows = torch.take_along_dim(self.rows, first, 1)
        self.confidence = None


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Pairs that have not finished."""

    items: Tensor  # [B] which of the pairs of the call
    num_points: Tensor  # [B] keypoints of both images before any was pruned
    sides: tuple[_Side, _Side]

    def take(self, chosen: Tensor) -> _Batch:
        """Returns the pairs `chosen` [B] bool."""
        return _Batch(
            items=self.items[chosen],
            num_points=self.num_points[chosen],
            sides=(self.sides[0].take(chosen), self.sides[1].take(chosen)),
        )


def _scaled_positions(features: Features, *, with_scale_and_angle: bool) -> Float32:
    """Returns positions as the networks take them, [N, 2] or [N, 4] float32.

    The scale is in pixels of an image reduced to `_SIFT_TRAINING_SIZE`, the angle in
    radians, upright.

    Raises:
        ConfigError: the features have no scale or angle, but the network needs them.
    """
    stored, orientation = features.image_size, features.orientation
    size = np.array(upright_size(stored, orientation), np.float32)
    xy = centre_from_colmap(upright_xy(features.xy, stored, orientation))
    positions: Float32 = (xy - size / 2) / (size.max() / 2)
    if not with_scale_and_angle:
        return positions
    if features.scale is None or features.angle is None:
        raise ConfigError(
            "sift-lightglue needs the scale and the angle of each keypoint, but the"
            " features have none. Use SIFT features, or another matcher."
        )
    scale = features.scale * (_SIFT_TRAINING_SIZE / size.max())
    direction = np.stack([np.cos(features.angle), np.sin(features.angle)], 1)
    upright = direction @ upright_matrix(orientation).T
    angle = np.arctan2(upright[:, 1], upright[:, 0])
    return np.column_stack([positions, scale, angle]).astype(np.float32)
