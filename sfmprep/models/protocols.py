"""What the stages ask of a model: batch in, list out, numpy at the boundary.

A model never sees a path of an image. Its device and dtype go into its constructor.
A batch gives the same result as its items one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from sfmprep.coords import Placed
from sfmprep.types import (
    DenseMatches,
    Features,
    Float32,
    ImageBatch,
    Mask,
    Matches,
)


class Extractor(Protocol):
    """Finds and describes keypoints."""

    identity: Mapping[str, object]
    """What its results depend on, as JSON can hold it; see `models.identity`."""
    batch_size: int
    """How many images of one size it takes best at once, on its device."""

    def extract(self, batch: ImageBatch) -> list[Features]:
        """Extracts the features of each image of a batch.

        Returns, per image of the batch:
            1. `xy` in COLMAP pixels of the file on disk (not of the network's input),
            2. rows sorted by falling score, at most `max_keypoints` of them,
            3. zero rows where nothing was found (a blank image is no error).

        Raises:
            DeviceError: a single image does not fit into the memory of the device.
        """
        ...


class Retriever(Protocol):
    """Describes whole images, so that those of one place are alike."""

    identity: Mapping[str, object]
    """What its results depend on, as JSON can hold it; see `models.identity`."""
    batch_size: int
    """How many images of one size it takes best at once, on its device."""

    def embed(self, batch: ImageBatch) -> list[Float32]:
        """Describes each image of a batch by a unit row [D]; D is always the same.

        The product of two rows says how alike the images are, at most 1.

        Raises:
            DeviceError: a single image does not fit into the memory of the device.
        """
        ...


class Prepared(Protocol):
    """One image's features on the device of the matcher that prepared them."""

    @property
    def num_bytes(self) -> int:
        """How much memory of the device it holds."""
        ...

    def __len__(self) -> int:
        """How many keypoints the image has."""
        ...


Side: TypeAlias = Features | Prepared
"""What a pair is made of."""


class Matcher(Protocol):
    """Matches the features of image pairs."""

    identity: Mapping[str, object]
    """What its results depend on, as JSON can hold it; see `models.identity`."""

    def prepare(self, features: Features) -> Prepared:
        """Does what depends on one image alone, and leaves it on the device.

        The matches are the same as without. It may be kept as long as the matcher, and
        goes only into the matcher that made it.
        """
        ...

    def match(self, pairs: Sequence[tuple[Side, Side]]) -> list[Matches]:
        """Matches each pair; features are prepared on the way, each object once.

        Returns, per pair:
            1. `index` rows (i, j) of the first and second image's features,
            2. one-to-one, sorted by falling score,
            3. zero rows where either image has no feature.

        Raises:
            ConfigError: the features are not those that it can match.
            DeviceError: a single pair does not fit into the memory of the device.
        """
        ...


class DenseImage(Protocol):
    """One image on the device of the dense matcher that prepared it."""

    @property
    def num_bytes(self) -> int:
        """How much memory of the device it holds."""
        ...

    @property
    def keypoints(self) -> Float32:
        """Where its matches start, [K, 2] COLMAP pixels of the file on disk.

        The same whatever the partner. K is 0 where a match may start anywhere.
        """
        ...


class DenseMatcher(Protocol):
    """Matches image pairs without detecting keypoints first."""

    identity: Mapping[str, object]
    """What its results depend on, as JSON can hold it; see `models.identity`."""
    batch_size: int
    """How many images of one size it prepares best at once, on its device."""

    def prepare(self, batch: ImageBatch) -> list[DenseImage]:
        """Does what depends on one image alone, and leaves it on the device.

        It may be kept as long as the matcher, and goes only into the matcher that made
        it.

        Raises:
            DeviceError: a single image does not fit into the memory of the device.
        """
        ...

    def match(
        self, pairs: Sequence[tuple[DenseImage, DenseImage]]
    ) -> list[DenseMatches]:
        """Finds points of each second image for points of the first.

        The other direction is another pair: `(b, a)` starts from points of b.

        Returns, per pair:
            1. `xy0` where the match starts, each point at most once, and `xy1` where it
               was measured, COLMAP pixels of the files on disk,
            2. rows sorted by falling score,
            3. zero rows where nothing matches.

        Raises:
            ValueError: an image was prepared by another kind of matcher.
            DeviceError: a single pair does not fit into the memory of the device.
        """
        ...


class FlowImage(Protocol):
    """One image on the device of the flow estimator that prepared it."""

    @property
    def num_bytes(self) -> int:
        """How much memory of the device it holds."""
        ...


class FlowEstimator(Protocol):
    """Finds where each pixel of an image is in another that shows nearly the same."""

    identity: Mapping[str, object]
    """What its results depend on, as JSON can hold it; see `models.identity`."""
    batch_size: int
    """How many images of one size it prepares best at once, on its device."""

    def prepare(self, batch: ImageBatch) -> list[FlowImage]:
        """Does what depends on one image alone, and leaves it on the device.

        It may be kept as long as the estimator, and goes only into the estimator that
        made it.

        Raises:
            DeviceError: a single image does not fit into the memory of the device.
        """
        ...

    def flow(
        self,
        pairs: Sequence[tuple[FlowImage, FlowImage]],
        starts: Sequence[Float32 | None] | None = None,
    ) -> list[Float32]:
        """Estimates the flow from each first image to the second, of the same size.

        Args:
            pairs: Prepared images.
            starts: Flow [H, W, 2] to begin with, or None, of each pair.

        Returns:
            Per pair [H, W, 2]: how far (x, y) the content of a pixel of the first image
            has moved, in pixels of the batch; something for every pixel, right or not.

        Raises:
            ValueError: the images of a pair are of two sizes, or an image was prepared
                by another kind of estimator.
            DeviceError: a single pair does not fit into the memory of the device.
        """
        ...


@runtime_checkable
class ConfidentFlowEstimator(FlowEstimator, Protocol):
    """One that also tells how sure its flow is."""

    def confident_flow(
        self,
        pairs: Sequence[tuple[FlowImage, FlowImage]],
        starts: Sequence[Float32 | None] | None = None,
    ) -> list[tuple[Float32, Float32]]:
        """As `flow`, and how sure each pixel of it is: [H, W], 0..1.

        Raises:
            ValueError, DeviceError: as `flow`.
        """
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """What a pair says about one of its images; N is the pixels of the network."""

    points: Float32  # [N, 3] in the camera of the first image
    confidence: Float32  # [N] 1 and more
    is_sure: Mask  # [N] confident enough to count
    xy: Float32  # [N, 2] where the pixels are, COLMAP pixels of the batch
    placed: Placed


class MakesPointmaps(Protocol):
    """Gives the pixels of both images of a pair points in space."""

    identity: Mapping[str, object]
    """What its results depend on, as JSON can hold it; see `models.identity`."""

    def prepare(self, batch: ImageBatch) -> list[DenseImage]:
        """Does what depends on one image alone, and leaves it on the device.

        Raises:
            DeviceError: a single image does not fit into the memory of the device.
        """
        ...

    def points(self, first: DenseImage, second: DenseImage) -> tuple[Points, Points]:
        """Points of both images in the camera of the first.

        Raises:
            ValueError: an image has no pixels that the network takes.
            DeviceError: the pair does not fit into the memory of the device.
        """
        ...
