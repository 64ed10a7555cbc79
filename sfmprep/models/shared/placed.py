"""Prepared images: what kind they are, and where they lie in their files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from sfmprep import coords
from sfmprep.types import Float32, ImageBatch

K = TypeVar("K")


@dataclass(frozen=True, kw_only=True)
class Placed:
    """The way from one image of a batch to its file, without its pixels."""

    network_size: tuple[int, int]  # (W, H) of the batch
    size: tuple[int, int]  # (W, H) of the file on disk
    orientation: int  # EXIF

    @staticmethod
    def of(batch: ImageBatch, item: int) -> Placed:
        """That of image `item` of a batch."""
        return Placed(
            network_size=batch.network_size,
            size=(int(batch.sizes[item, 0]), int(batch.sizes[item, 1])),
            orientation=int(batch.orientations[item]),
        )

    def stored(self, xy: Float32) -> Float32:
        """Maps COLMAP pixels of the batch to those of the file on disk."""
        upright = coords.upright_size(self.size, self.orientation)
        return coords.stored_xy(
            coords.resize_xy(xy, self.network_size, upright),
            self.size,
            self.orientation,
        )


def prepared_as(
    kind: type[K], pairs: Sequence[tuple[object, object]]
) -> list[tuple[K, K]]:
    """The pairs, all of whose images are of the kind that one matcher prepares.

    Raises:
        ValueError: an image was prepared by another kind of matcher.
    """

    def checked(image: object) -> K:
        if not isinstance(image, kind):
            raise ValueError(
                f"got a {type(image).__name__} but expected {kind.__name__}"
            )
        return image

    return [(checked(first), checked(second)) for first, second in pairs]
