"""What flows between stages: frozen records that check themselves.

All arrays are numpy. `xy` is float32 in COLMAP pixels of the file on disk: the centre
of the first pixel is (0.5, 0.5). `image_size` is (W, H) of the file on disk.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]
Index = NDArray[np.int64]  # rows of other arrays, and counts
Ids = NDArray[np.uint64]  # COLMAP's, of points
Bytes = NDArray[np.uint8]  # pixels and colours
Mask = NDArray[np.bool_]
Array = NDArray[np.generic]
Pair = tuple[str, str]  # names of two images


def _expect(name: str, array: Array, shape: tuple[int | None, ...], kind: str) -> None:
    """Raises ValueError unless `array` has this shape (None: any) and dtype kind."""
    fits = array.ndim == len(shape) and all(
        want is None or have == want
        for have, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        want = tuple("any" if s is None else s for s in shape)
        raise ValueError(f"{name}.shape={array.shape} but expected {want}")
    if array.dtype.kind not in kind:
        raise ValueError(f"{name}.dtype={array.dtype} but expected kind {kind!r}")


def _expect_xy(name: str, array: Array, rows: int) -> None:
    _expect(name, array, (rows, 2), "f")
    if array.dtype != np.float32:  # float16 is 0.6 px off at 2000 px
        raise ValueError(f"{name}.dtype={array.dtype} but expected float32")


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageBatch:
    """Images of one size, as a network sees them: upright, resized, RGB.

    `orientations` are the EXIF orientations (1..8) that were applied to make the pixels
    upright; `sizes` are those of the files on disk, before that.
    """

    pixels: Float32  # [B, 3, H, W] in 0..1
    sizes: Int32  # [B, 2] (W, H) of the file on disk
    orientations: Int32  # [B] EXIF orientation, 1 = as stored

    def __post_init__(self) -> None:
        batch = len(self.pixels)
        _expect("pixels", self.pixels, (batch, 3, None, None), "f")
        _expect("sizes", self.sizes, (batch, 2), "i")
        _expect("orientations", self.orientations, (batch,), "i")

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def network_size(self) -> tuple[int, int]:
        """(W, H) of the pixels in this batch."""
        return self.pixels.shape[3], self.pixels.shape[2]


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """Keypoints and descriptors of one image; every array has N rows, N may be 0."""

    xy: Float32  # [N, 2] COLMAP pixels of the file on disk
    scores: Float32  # [N] higher is better
    descriptors: Array  # [N, D] float16 or float32 unit rows, or uint8 (SIFT)
    image_size: tuple[int, int]  # (W, H) of the file on disk
    orientation: int = 1  # EXIF: the descriptors are those of the upright image
    scale: Float32 | None = None  # [N] pixels
    angle: Float32 | None = None  # [N] radians

    def __post_init__(self) -> None:
        rows = len(self.xy)
        _expect_xy("xy", self.xy, rows)
        _expect("scores", self.scores, (rows,), "f")
        _expect("descriptors", self.descriptors, (rows, None), "fu")
        for name, column in (("scale", self.scale), ("angle", self.angle)):
            if column is not None:
                _expect(name, column, (rows,), "f")

    def __len__(self) -> int:
        return len(self.xy)

    def take(self, rows: NDArray[Any] | slice) -> Features:
        """Some rows, by a mask, numbers or a slice; they may be none."""
        columns: dict[str, Any] = {
            field.name: value[rows]
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), np.ndarray)
        }
        return replace(self, **columns)


@dataclass(frozen=True, kw_only=True, eq=False)
class Matches:
    """Matches of one pair, one-to-one; M may be 0."""

    index: Int32  # [M, 2] rows of the first and of the second image's features
    scores: Float32  # [M] in 0..1, higher is better

    def __post_init__(self) -> None:
        rows = len(self.index)
        _expect("index", self.index, (rows, 2), "i")
        _expect("scores", self.scores, (rows,), "f")

    def __len__(self) -> int:
        return len(self.index)

    def reversed(self) -> Matches:
        """The same matches seen from the second image."""
        return Matches(
            index=np.ascontiguousarray(self.index[:, ::-1]), scores=self.scores
        )

    @staticmethod
    def none() -> Matches:
        """No match at all."""
        return Matches(index=np.empty((0, 2), np.int32), scores=np.empty(0, np.float32))


@dataclass(frozen=True, kw_only=True, eq=False)
class DenseMatches:
    """Correspondences of one pair without shared keypoints; M may be 0."""

    xy0: Float32  # [M, 2] COLMAP pixels of the first file on disk
    xy1: Float32  # [M, 2] COLMAP pixels of the second file on disk
    scores: Float32  # [M] in 0..1, higher is better

    def __post_init__(self) -> None:
        rows = len(self.xy0)
        _expect_xy("xy0", self.xy0, rows)
        _expect_xy("xy1", self.xy1, rows)
        _expect("scores", self.scores, (rows,), "f")

    def __len__(self) -> int:
        return len(self.xy0)
