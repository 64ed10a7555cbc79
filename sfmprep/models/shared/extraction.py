"""What the networks that look at images share: parts of a batch, padding, features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from sfmprep import coords
from sfmprep.models.shared.out_of_memory import run_halving
from sfmprep.progress import batched
from sfmprep.types import Features, Float32, ImageBatch

T = TypeVar("T")

_LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601), as OpenCV's grey
_BATCH_PIXELS = 1 << 24  # of a batch on CUDA: 7 GB in ALIKED, in float32


def best_batch_size(device: torch.device, max_size: int) -> int:
    """How many square images of `max_size` pixels a side go through a network at once.

    On a CPU one, whose layers stay in the cache: three took 1.35 times as long as one
    by one in XFeat, 1.17 times in ALIKED. On CUDA as many as a small one has memory
    for; there it was not measured.
    """
    if device.type == "cpu":
        return 1
    return max(1, _BATCH_PIXELS // max_size**2)


def in_parts(
    run: Callable[[ImageBatch], list[T]], batch: ImageBatch, *, batch_size: int
) -> list[T]:
    """Runs parts of up to `batch_size` images, smaller ones where memory ends.

    Raises:
        DeviceError: a single image does not fit into the memory of the device.
    """

    def run_items(items: Sequence[int]) -> list[T]:
        part = slice(items[0], items[-1] + 1)
        return run(
            ImageBatch(
                pixels=batch.pixels[part],
                sizes=batch.sizes[part],
                orientations=batch.orientations[part],
            )
        )

    return [
        found
        for items in batched(range(len(batch)), batch_size)
        for found in run_halving(run_items, items)
    ]


def padded_grey(
    batch: ImageBatch, *, multiple: int, device: torch.device
) -> torch.Tensor:
    """The luma of images, [B, 1, H, W] in 0..1, with zeros at the right and below.

    Sides are padded to multiples of `multiple`: by less than a cell of that size, so
    every cell begins in the image.
    """
    pixels = torch.from_numpy(batch.pixels).to(device)
    grey = (pixels * pixels.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)
    right, bottom = (-side % multiple for side in batch.network_size)
    return F.pad(grey, (0, right, 0, bottom))


def only_row(part: torch.Tensor, row: int) -> torch.Tensor:
    """One image of a batch, which does not keep the others in memory."""
    return part if len(part) == 1 else part[row : row + 1].clone()


def features_of(
    batch: ImageBatch,
    *,
    image: torch.Tensor,  # [N] int64, rising
    xy: torch.Tensor,  # [N, 2] pixel centres at integers
    scores: torch.Tensor,  # [N] falling within each image
    descriptors: torch.Tensor,  # [N, D]
    size: tuple[int, int] | None = None,
) -> list[Features]:
    """Brings keypoints of a batch to the host, in one transfer.

    Args:
        batch: The images.
        image: Which image of the batch a keypoint is of.
        xy: Network pixels, float32 or whole.
        scores: Higher is better, float32.
        descriptors: Unit rows, float32.
        size: (W, H) of the network pixels where it is not `batch.network_size`.

    Returns:
        One for each image of the batch, in COLMAP pixels of the file on disk.
    """
    rows = torch.cat([image[:, None], xy, scores[:, None], descriptors], dim=1)
    table: Float32 = rows.cpu().numpy()
    ends = np.searchsorted(table[:, 0], np.arange(1, len(batch)))
    return [
        Features(
            xy=coords.stored_from_network(
                coords.resize_xy(
                    coords.colmap_from_centre(part[:, 1:3]),
                    size or batch.network_size,
                    batch.network_size,
                ),
                batch,
                item,
            ),
            scores=part[:, 3].copy(),
            descriptors=part[:, 4:].copy(),
            image_size=(int(batch.sizes[item, 0]), int(batch.sizes[item, 1])),
            orientation=int(batch.orientations[item]),
        )
        for item, part in enumerate(np.split(table, ends))
    ]
