"""LightGlue as a matcher: batches of pairs, with adaptive depth and width.

Paper: Lindenberger, Sarlin, Pollefeys, "LightGlue: Local Feature Matching at Light
Speed", ICCV 2023. Ported from cvg/LightGlue and kornia (kornia.feature.LightGlue), both
Apache-2.0. Changed: pairs of different keypoint counts share a batch, each with the
result that it has alone. Padding is masked, a pair that is confident leaves the batch,
and points are pruned for each pair by itself. The host waits for the device once a
layer if the inference is adaptive, and once a batch for the matches.

What the networks saw in training, and see here: pixel centres at integers, minus half
the image size (W, H), over half the longer side, upright. The half pixel is one of the
file on disk, as in cvg/LightGlue, whatever the size that the extractor saw.

Measured on two cores (Zen 3) at 2048 keypoints, without adaptivity: nine layers of 256
take 1.52 s, 1.9 times less than kornia's; their 240e9 operations would take 1.2 s at
the rate of a large matrix product. LighterGlue takes 0.31 s, 1.8 times less, with a
bound of 0.23 s. Two thirds and more are `scaled_dot_product_attention`. Tried and left
out: one product of queries and keys for both directions of the cross-attention (1.5
times as long with four heads, equal with one), and `torch.compile` of a layer (equal at
96, at most 1.3 times as fast at 256, for 30 s of compiling with a C++ compiler).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack, cast

import numpy as np
import torch
from torch import Tensor

from sfmprep.config import LightGlueConfig
from sfmprep.coords import centre_from_colmap, upright_matrix, upright_size, upright_xy
from sfmprep.errors import ConfigError
from sfmprep.models.matchers.lightglue_batch import Batch, BatchSide, PreparedImage
from sfmprep.models.matchers.lightglue_network import (
    LightGlueNetwork,
    LightGlueShape,
    MatchAssignment,
    confidence_threshold,
)
from sfmprep.models.matchers.lightglue_weights import load_network
from sfmprep.models.matchers.pair_batches import (
    Candidates,
    collect_matches,
    match_in_groups,
    prepare_pairs,
    to_device,
    unit_descriptors,
)
from sfmprep.models.protocols import Side
from sfmprep.models.shared.adapter import Adapter, inference
from sfmprep.models.shared.out_of_memory import Memory, free_bytes
from sfmprep.models.shared.precision import Where
from sfmprep.types import Features, Float32, Matches

logger = logging.getLogger(__name__)

SHAPES: Mapping[str, LightGlueShape] = {
    "aliked-lightglue": LightGlueShape(input_dim=128),
    "superpoint-lightglue": LightGlueShape(input_dim=256),
    "disk-lightglue": LightGlueShape(input_dim=128),
    "sift-lightglue": LightGlueShape(input_dim=128, has_scale_and_angle=True),
    "lighterglue": LightGlueShape(input_dim=64, dim=96, num_heads=1, num_layers=6),
    "lighterglue-l3": LightGlueShape(input_dim=64, dim=96, num_heads=1, num_layers=3),
    "compact-lightglue": LightGlueShape(
        input_dim=64, dim=96, num_heads=1, num_layers=6, usual_keypoints=256
    ),
}

# No pair stops before so many layers. The compact matcher is sure of wide pairs too
# early: of 30 of `fox`, 15-30 degrees apart, at 640 pixels, those that could stop from
# the first layer on had 442 inliers and an AUC@5 of 71.4 (over 4 seeds of RANSAC), from
# the third on 464 and 77.1, and those that never stopped 465 and 75.0; in 0.23, 0.35
# and 0.64 CPU seconds a pair.
_FIRST_STOP: Mapping[str, int] = {"compact-lightglue": 3}

# Longer side in pixels of the images that sift-lightglue was trained with, which its
# scales are pixels of.
_SIFT_TRAINING_SIZE = 1024


@dataclass(frozen=True, kw_only=True)
class _Limits:
    """How batches are made on one kind of device."""

    keypoints: int  # of a batch, padding included
    similarities: int  # between keypoints, in memory at once
    max_unpruned: int  # images of so many keypoints or fewer are not pruned
    is_bucketed: bool  # whether few lengths of padded rows are better than short ones


# A CPU gains nothing from more than fills its caches. The values of `max_unpruned` are
# those of cvg/LightGlue; below them the gathering costs more than it saves.
_CPU = _Limits(keypoints=4096, similarities=1, max_unpruned=0, is_bucketed=False)


def _cuda_limits(adapter: Adapter, shape: LightGlueShape) -> _Limits:
    """As many keypoints as fill a GPU, some sixteen pairs of 4096, if there is room."""
    free = free_bytes(adapter.device)
    # A layer of float32 holds some 40 values for each of a token's: old and new tokens,
    # queries, keys, values and their rotations, and the perceptron's inner layers.
    fitting = free // 2 // (40 * 4 * shape.dim)
    return _Limits(
        keypoints=max(1, min(1 << 17, fitting)),
        similarities=max(1, min(1 << 26, free // 64)),
        max_unpruned=1536 if adapter.dtype == torch.float16 else 1024,
        is_bucketed=True,
    )


class LightGlue:
    """Matches with a public LightGlue checkpoint.

    In half precision are the attentions and perceptrons of the layers; tokens between
    them, rotations, confidences and the assignment stay in float32.
    """

    def __init__(self, config: LightGlueConfig, **where: Unpack[Where]) -> None:
        self._adapter = adapter = Adapter.of(config, **where)
        network = load_network(
            adapter.weights,
            SHAPES[config.model],
            is_cut=config.model == "lighterglue-l3",
        )
        if not network.adaptive and (
            config.depth_confidence is not None or config.width_confidence is not None
        ):
            logger.info(
                "%s: %s has no confidence heads, so adaptive depth and width are off"
                " (the matches are as good, but take longer)",
                config.model,
                adapter.weights.path.name,
            )
        self._config = config
        self._device = adapter.device
        self.identity = adapter.identity
        self._network: LightGlueNetwork = network.to(adapter.device)
        self._network.transformers.to(adapter.dtype)
        self._depth = config.depth_confidence if network.adaptive else None
        self._first_stop = _FIRST_STOP.get(config.model, 1)
        self._width = config.width_confidence if network.adaptive else None
        self._limits = _CPU
        if adapter.device.type == "cuda":
            self._limits = _cuda_limits(adapter, network.shape)

    @inference
    def prepare(self, features: Features) -> PreparedImage:
        """Makes the tokens and rotations of an image; see `protocols.Matcher`.

        Raises:
            ConfigError: the features are not those that the checkpoint is for.
            DeviceError: they do not fit into the memory of the device.
        """
        [prepared] = Memory().each(self._prepare, [features])
        return prepared

    def _prepare(self, features: Features) -> PreparedImage:
        network = self._network
        features = features.take(slice(self._config.max_keypoints))
        rows = unit_descriptors(features)
        if rows.shape[1] != network.shape.input_dim:
            raise ConfigError(
                f"{self._config.model} matches descriptors of length"
                f" {network.shape.input_dim}, but these have {rows.shape[1]}. Name the"
                " matcher that goes with the features in the recipe."
            )
        positions = scaled_positions(
            features, with_scale_and_angle=network.shape.has_scale_and_angle
        )
        return PreparedImage(
            tokens=network.input_proj(torch.from_numpy(rows).to(self._device)),
            rotation=network.posenc(torch.from_numpy(positions).to(self._device)),
        )

    @inference
    def match(self, pairs: Sequence[tuple[Side, Side]]) -> list[Matches]:
        """Matches each pair; see `protocols.Matcher`."""
        return match_in_groups(
            prepare_pairs(pairs, PreparedImage, self.prepare),
            self._match_batch,
            cost=lambda m, n: m + n,
            budget=self._limits.keypoints,
            memory=self._adapter.pairs,
            device=self._device.type,
        )

    def _match_batch(
        self, pairs: Sequence[tuple[PreparedImage, PreparedImage]]
    ) -> list[Matches]:
        finished = list(self._finished(pairs))
        items = [item for numbers, _ in finished for item in numbers]
        matches = collect_matches([candidates for _, candidates in finished])
        results = [Matches.none()] * len(pairs)  # for those with all points pruned
        for item, match in zip(items, matches, strict=True):
            results[item] = match
        return results

    def _finished(
        self, pairs: Sequence[tuple[PreparedImage, PreparedImage]]
    ) -> Iterator[tuple[list[int], Candidates]]:
        """Yields items and candidates of pairs, in the order in which they finish.

        A pair whose points were all pruned in one image is not yielded.
        """
        last = self._network.shape.num_layers - 1
        batch = Batch.stack(pairs, is_bucketed=self._limits.is_bucketed)
        for layer in range(last):
            self._advance(layer, batch)
            if self._depth is None and self._width is None:
                continue
            is_done, kept, counts = self._decide(layer, batch)
            if any(is_done):
                done = [b for b, is_true in enumerate(is_done) if is_true]
                yield from self._assign(layer, batch.take(done))
            left = [
                b
                for b, (m, n) in enumerate(zip(*counts, strict=True))
                if m and n and not is_done[b]
            ]
            if not left:
                return
            batch = batch.take(left, kept, counts)
        self._advance(last, batch)
        yield from self._assign(last, batch)

    def _advance(self, layer: int, batch: Batch) -> None:
        side0, side1 = batch.sides
        side0.tokens, side1.tokens = self._network.transformers[layer](
            (side0.tokens, side1.tokens),
            (side0.rotation, side1.rotation),
            (side0.mask, side1.mask),
        )

    def _decide(
        self, layer: int, batch: Batch
    ) -> tuple[list[bool], list[Tensor], list[list[int]]]:
        """Decides which pairs are done, and which keypoints of each side are kept.

        Returns:
            is_done: Whether so large a share of a pair's keypoints is decided; those
                that were pruned count as decided.
            kept: Per side, [B, N] bool.
            counts: Per side, how many are kept of each pair.
        """
        threshold = confidence_threshold(layer, self._network.shape.num_layers)
        undecided = torch.zeros(len(batch.items), dtype=torch.long, device=self._device)
        kept = []
        for side in batch.sides:
            is_unsure = None
            if self._depth is not None:
                confidence = self._network.token_confidence[layer](side.tokens)
                is_unsure = confidence <= threshold
                undecided += side.only_real(confidence < threshold).sum(1)
            kept.append(side.only_real(self._is_kept(layer, side, is_unsure)))
        # The one time in a layer that the host waits for the device.
        table = torch.stack([undecided, *(side.sum(1) for side in kept)]).tolist()
        may_stop = self._depth is not None and layer + 1 >= self._first_stop
        is_done = [
            may_stop and 1 - num / total > self._depth
            for num, total in zip(table[0], batch.num_points, strict=True)
        ]
        return is_done, kept, table[1:]

    def _is_kept(self, layer: int, side: BatchSide, is_unsure: Tensor | None) -> Tensor:
        """Which keypoints [B, N] are not confidently unmatchable."""
        is_small = [count <= self._limits.max_unpruned for count in side.counts]
        if self._width is None or all(is_small):
            return torch.ones(side.rows.shape, dtype=torch.bool, device=self._device)
        # only the last layer, at which nothing is pruned, may have another head
        head = cast(MatchAssignment, self._network.assignment(layer))
        kept = head.get_matchability(side.tokens) > 1 - self._width
        if is_unsure is not None:
            kept |= is_unsure
        if any(is_small):
            kept |= to_device(is_small, kept.device)[:, None]
        return kept

    def _assign(
        self, layer: int, batch: Batch
    ) -> Iterator[tuple[list[int], Candidates]]:
        """Yields the mutually best assignments, of some pairs at once."""
        head = self._network.assignment(layer)
        lengths = [side.rows.shape[1] for side in batch.sides]
        step = max(1, self._limits.similarities // (lengths[0] * lengths[1]))
        for start in range(0, len(batch.items), step):
            side0, side1 = (side.slice(start, start + step) for side in batch.sides)
            scores = head(side0.tokens, side1.tokens, side0.is_real, side1.is_real)
            best, column = scores.max(2)
            is_mutual = best == scores.amax(1).gather(1, column)
            best = best.exp().clamp(max=1)  # rows of a transport may hold a little more
            is_match = side0.only_real(is_mutual & (best > self._config.min_score))
            yield (
                batch.items[start : start + step],
                Candidates(
                    side0.rows, side1.rows.gather(1, column), best.where(is_match, -1)
                ),
            )


def scaled_positions(features: Features, *, with_scale_and_angle: bool) -> Float32:
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
