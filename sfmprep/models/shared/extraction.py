"""What the networks that look at images share: padding, rows of a batch, features."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from sfmprep import coords
from sfmprep.types import Features, Float32, ImageBatch

_LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601), as OpenCV's grey


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
