"""Pairs to train the matcher with: sampled, extracted, labelled and batched.

A batch depends on the seed and its number alone, not on which thread made it or where
an earlier run was cut.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import numpy as np
import pycolmap
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfmprep.coords import centre_from_colmap
from sfmprep.errors import ConfigError, ReconstructionError
from sfmprep.models.matchers.lightglue import scaled_positions
from sfmprep.models.matchers.pair_batches import is_row, pad_rows, unit_descriptors
from sfmprep.models.protocols import Extractor
from sfmprep.train.network import Keypoints, PairBatch
from sfmprep.train.pairs.labels import label_keypoints
from sfmprep.train.pairs.parallax import sample_parallax
from sfmprep.train.pairs.photographs import Photograph
from sfmprep.train.pairs.posed import Capture, PosedPair, sample_posed
from sfmprep.train.pairs.views import (
    Views,
    as_tensor_image,
    photometric,
    sample_homography,
)
from sfmprep.types import Array, Features, Float32, ImageBatch, Mask

Kind: TypeAlias = Literal["homography", "parallax", "posed", "unrelated"]

WARM_UP_BATCHES = 250  # of the easier task, before there is parallax
_FIRST_SHARES: dict[Kind, float] = {"homography": 0.9, "unrelated": 0.1}
_SHARES: dict[Kind, float] = {
    "homography": 0.25,
    "parallax": 0.45,
    "posed": 0.25,
    "unrelated": 0.05,
}

# Keypoints of an image. Attention over few is cheap, but a true match shares its score
# with as many rivals as there are, and photographs have thousands.
_MIN_COUNT, MAX_COUNT = 96, 1024
_COUNT = 256  # of a crop of the named size; crops for more keypoints are larger
_MULTIPLE = 32  # of the sides of larger crops

# A crop is a window of an image up to this much larger. Only its scale matters: the
# encoding of positions is of their differences.
_MAX_WINDOW_RATIO = 6.0
_MAX_SIZE_RATIO = 1.4  # of one image to the other

_PHOTOMETRIC_SHARE = 0.7  # of parallax and posed images; homographies always change


class PairBatches:
    """Endless batches of pairs, by number.

    Args:
        photographs: What views are made of.
        captures: Reconstructed ones, for real pairs; may be empty.
        extractor: Its features are what the matcher learns to match. It is called in
            the thread that makes the batches, so it should run on the CPU.
        seed: Of all that is random.
        size: Side of crops of up to 256 keypoints, pixels; of more, they are larger.
        batch: Pairs of 256 keypoints; of more keypoints fewer pairs, and vice versa.
        warm_up: So many batches are of homographies and unrelated pairs alone.
        sources: What each photograph shows, by any name: unrelated pairs are of two
            that differ. Without it, each photograph shows something else.
    """

    def __init__(
        self,
        photographs: Sequence[Photograph],
        captures: Sequence[Capture],
        extractor: Extractor,
        *,
        seed: int,
        size: int,
        batch: int,
        warm_up: int = 0,
        sources: Sequence[Hashable] | None = None,
    ) -> None:
        self._photographs = photographs
        self._captures = captures
        self._extractor = extractor
        self._seed = seed
        self._size = size
        self._batch = batch
        self._warm_up = warm_up
        self._sources = range(len(photographs)) if sources is None else sources

    def __getitem__(self, index: int) -> PairBatch:
        rng = np.random.default_rng((self._seed, index))
        count = round(np.exp(rng.uniform(np.log(_MIN_COUNT), np.log(MAX_COUNT))))
        number = max(2, round(self._batch * _COUNT / count))
        size = self._size
        if count > _COUNT:
            larger = round(size * (count / _COUNT) ** 0.5 / _MULTIPLE) * _MULTIPLE
            size = max(size, larger)
        shares = _FIRST_SHARES if index < self._warm_up else _SHARES
        if len(set(self._sources)) < 2:
            shares = {kind: x for kind, x in shares.items() if kind != "unrelated"}
        weights = np.array(list(shares.values()))
        kinds = rng.choice(list(shares), number, p=weights / weights.sum())
        pairs = [
            sample_pair(
                rng,
                kind,
                self._photographs,
                captures=self._captures,
                sources=self._sources,
                size=size,
            )
            for kind in kinds
        ]
        return make_batch(
            pairs,
            self._extractor,
            count=count,
            window_scales=_window_scales(rng, number),
        )


def read_capture(folder: Path) -> Capture:
    """Reads the dataset in a folder that `sfmprep reconstruct` made.

    Raises:
        ConfigError: the folder holds no `images` and `sparse/0`.
        ImageError: a photograph is missing or cannot be decoded.
        ReconstructionError: `sparse/0` cannot be read, or no two photographs share
            enough points.
    """
    images, model = folder / "images", folder / "sparse" / "0"
    if not (images.is_dir() and model.is_dir()):
        raise ConfigError(
            f"{folder} is no reconstructed capture: expected the folders images and"
            " sparse/0 in it. Run `sfmprep reconstruct PHOTOS "
            f"{folder}` first."
        )
    try:
        reconstruction = pycolmap.Reconstruction(str(model))
    except ValueError as error:
        raise ReconstructionError(
            f"{model} cannot be read ({error}); expected a COLMAP model. Run"
            f" `sfmprep reconstruct` into {folder} again, or leave this capture out."
        ) from error
    return Capture.read(images, reconstruction)


def sample_pair(
    rng: np.random.Generator,
    kind: Kind,
    photographs: Sequence[Photograph],
    *,
    captures: Sequence[Capture] = (),
    sources: Sequence[Hashable] | None = None,
    size: int,
) -> Views | PosedPair:
    """Samples two images of S by S pixels and what is known of their correspondence.

    Without captures, posed pairs are parallax pairs. Unrelated pairs are of two
    `sources`, which the photographs then must have; each is its own without them.
    """
    row, other = rng.choice(len(photographs), 2, replace=False)
    first = photographs[row]
    if kind == "homography":
        return sample_homography(rng, first, size)
    if kind == "unrelated":
        if sources is not None and sources[row] == sources[other]:
            rows = [k for k, each in enumerate(sources) if each != sources[row]]
            other = rng.choice(rows)
        return _unrelated(rng, first, photographs[other], size)
    if kind == "posed" and captures:
        capture = captures[int(rng.integers(len(captures)))]
        return _relit(rng, sample_posed(rng, capture, size))
    return _relit(rng, sample_parallax(rng, first, size).views())


def _unrelated(
    rng: np.random.Generator, first: Photograph, second: Photograph, size: int
) -> Views:
    """Two photographs that show nothing in common."""
    nowhere = np.full((size, size, 2), np.nan, np.float32)
    return Views(
        image0=sample_homography(rng, first, size).image0,
        image1=sample_homography(rng, second, size).image1,
        to1=nowhere,
        to0=nowhere,
    )


_Pair = TypeVar("_Pair", Views, PosedPair)


def _relit(rng: np.random.Generator, pair: _Pair) -> _Pair:
    """Changes light and sharpness of most images, of each by itself."""

    def relit(image: Float32) -> Float32:
        if rng.random() > _PHOTOMETRIC_SHARE:
            return image
        pixels = (image.transpose(1, 2, 0) * 255 + 0.5).astype(np.uint8)
        return as_tensor_image(photometric(rng, np.ascontiguousarray(pixels)))

    return replace(pair, image0=relit(pair.image0), image1=relit(pair.image1))


def _window_scales(rng: np.random.Generator, number: int) -> Float32:
    """How large a share of its image each crop is, [B, 2] in 0..1."""
    share = np.exp(rng.uniform(-np.log(_MAX_WINDOW_RATIO), 0, number))
    ratio = np.exp(rng.uniform(0, np.log(_MAX_SIZE_RATIO), number))
    shares = np.stack([share, share / ratio], 1)
    swapped = rng.random(number) < 0.5
    shares[swapped] = shares[swapped, ::-1]
    return shares.astype(np.float32)


def make_batch(
    pairs: Sequence[Views | PosedPair],
    extractor: Extractor,
    *,
    count: int,
    window_scales: Float32 | None = None,
) -> PairBatch:
    """Extracts, labels and stacks pairs; all images are extracted in one call.

    Args:
        pairs: One or more, of one size.
        extractor: Of the keypoints.
        count: The most keypoints of an image, best scores first.
        window_scales: [B, 2] how large a share of its image's longer side each crop is,
            or None where crops are whole images.
    """
    images = [image for pair in pairs for image in (pair.image0, pair.image1)]
    side = images[0].shape[1]
    extracted = extractor.extract(
        ImageBatch(
            pixels=np.stack(images),
            sizes=np.full((len(images), 2), side, np.int32),
            orientations=np.ones(len(images), np.int32),
        )
    )
    matches, unmatchable = [], []
    for number, pair in enumerate(pairs):
        xy0, xy1 = (
            centre_from_colmap(features.xy[:count])
            for features in extracted[2 * number : 2 * number + 2]
        )
        index, *alone = label_keypoints(pair, xy0, xy1)
        matches.append(np.column_stack([np.full(len(index), number), index]))
        unmatchable.append(alone)
    scales = np.ones((len(pairs), 2)) if window_scales is None else window_scales
    first, second = (
        _stack(
            extracted[k::2], [alone[k] for alone in unmatchable], scales[:, k], count
        )
        for k in range(2)
    )
    return PairBatch(
        sides=(first, second),
        matches=torch.from_numpy(np.concatenate(matches).astype(np.int64)),
    )


def _stack(
    extracted: Sequence[Features],
    unmatchable: Sequence[Mask],  # B times [N_b]
    scales: NDArray[np.floating],  # [B]
    count: int,
) -> Keypoints:
    # An image without any keypoint gets one of zeros, which no loss asks about:
    # attention to nothing would not be a number.
    counts = [max(1, min(len(features), count)) for features in extracted]
    length = max(counts)

    def stacked(rows: Iterable[Array]) -> Tensor:
        return pad_rows([torch.from_numpy(row[:count]) for row in rows], length)

    return Keypoints(
        descriptors=stacked(unit_descriptors(features) for features in extracted),
        positions=stacked(
            scaled_positions(features, with_scale_and_angle=False) * np.float32(scale)
            for features, scale in zip(extracted, scales, strict=True)
        ),
        is_real=is_row(counts, length, torch.device("cpu")),
        is_unmatchable=stacked(alone[:, None] for alone in unmatchable)[..., 0],
    )
