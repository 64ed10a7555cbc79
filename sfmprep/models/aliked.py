"""ALIKED as an extractor: keypoints from the score map, descriptors, COLMAP pixels."""

from __future__ import annotations

import textwrap

import torch
from torch import Tensor
from torch.nn import functional as F

from sfmprep.config import AlikedConfig
from sfmprep.coords import colmap_from_centre, stored_from_network
from sfmprep.errors import WeightsError
from sfmprep.models.aliked_network import AlikedNetwork
from sfmprep.types import Features, ImageBatch
from sfmprep.weights import load_tensors, resolve_weights

_TEMPERATURE = 0.1  # of the soft argmax; the weights were trained with it


class Aliked:
    """ALIKED (Zhao et al., TIM 2023) with the authors' weights.

    A keypoint is a strict maximum of the score map within `nms_radius`, at least that
    far from the border and not below `min_score`. The `max_keypoints` highest are kept
    and moved to sub-pixel positions. Their final score is the map's there, which may be
    a little below the maximum and below `min_score`.

    This is kornia's selection with a threshold. The original differs in two ways: its
    non-maximum suppression adds points on the flanks of stronger ones, and where no
    score reaches the threshold it lowers it to the mean.
    """

    batch_size = 1  # images go through the network one by one

    def __init__(self, config: AlikedConfig, *, device: str = "cpu") -> None:
        """Loads the weights.

        Raises:
            WeightsError: the weights cannot be had, or are not those of this model.
        """
        weights = resolve_weights(config.model, config.weights)
        tensors = load_tensors(weights)
        try:
            network = AlikedNetwork(config.model, tensors)
        except RuntimeError as error:
            raise WeightsError(
                f"weights of {config.model}: the tensors in {weights.path} are not"
                f" those of this model ({textwrap.shorten(str(error), 240)}). Name the"
                " model that the file is for, or remove the key `weights`."
            ) from error
        self._config = config
        self._device = torch.device(device)
        self._network = network.to(self._device)
        self._weights_sha256 = weights.sha256

    @property
    def weights_sha256(self) -> str:
        """The checksum of the weights in use."""
        return self._weights_sha256

    def extract(self, batch: ImageBatch) -> list[Features]:
        """Extracts the features of each image, one after the other.

        Returns:
            Features with float32 unit descriptors [N, 128] ([N, 64] for t16), in
            falling order of score; N is 0 where nothing was found.
        """
        return [self._extract(batch, item) for item in range(len(batch))]

    def _extract(self, batch: ImageBatch, item: int) -> Features:
        with torch.inference_mode():
            pixels = torch.from_numpy(batch.pixels[item]).to(self._device)
            maps = self._network(pixels)
            xy, scores = detect_keypoints(
                maps.scores,
                radius=self._config.nms_radius,
                min_score=self._config.min_score,
                max_keypoints=self._config.max_keypoints,
            )
            descriptors = self._network.describe(maps, xy)
        width, height = (int(side) for side in batch.sizes[item])
        centres = colmap_from_centre(xy.cpu().numpy())
        return Features(
            xy=stored_from_network(centres, batch, item),
            scores=scores.cpu().numpy(),
            descriptors=descriptors.cpu().numpy(),
            image_size=(width, height),
            orientation=int(batch.orientations[item]),
        )


def detect_keypoints(
    scores: Tensor,  # [H, W]
    *,
    radius: int,
    min_score: float,
    max_keypoints: int,
) -> tuple[Tensor, Tensor]:
    """Finds the highest strict maxima of a score map, with sub-pixel positions.

    The position is the mean of the window's pixels, weighted by their scores' soft
    maximum (differentiable keypoint detection, DKD).

    Returns:
        xy [N, 2] with pixel centres at integers and bilinear scores [N], falling; N is
        0 where no maximum reaches `min_score` or the map is smaller than a window.
    """
    height, width = scores.shape
    inner = scores[radius : height - radius, radius : width - radius]
    if min(inner.shape) < 1:
        return scores.new_empty(0, 2), scores.new_empty(0)
    is_keypoint = (inner > _largest_neighbour(scores, radius)) & (inner >= min_score)
    corner_y, corner_x = is_keypoint.nonzero(as_tuple=True)
    best = inner[corner_y, corner_x].topk(min(max_keypoints, len(corner_y))).indices
    corner_y, corner_x = corner_y[best], corner_x[best]

    side = torch.arange(2 * radius + 1, device=scores.device)
    windows = scores[
        corner_y[:, None, None] + side[:, None], corner_x[:, None, None] + side
    ]  # [N, 2 * radius + 1, 2 * radius + 1]
    soft = (windows.flatten(1) / _TEMPERATURE).softmax(dim=1).view_as(windows)
    shift = torch.stack((soft.sum(1) @ side.float(), soft.sum(2) @ side.float()), dim=1)
    xy = torch.stack((corner_x, corner_y), dim=1) + shift

    # To [-1, 1] and back, as in the original: the rounding decides which whole pixel
    # the descriptor truncates to.
    extent = torch.tensor((width - 1, height - 1), device=scores.device)
    grid = xy / extent * 2 - 1
    xy = extent * (grid + 1) / 2
    final = F.grid_sample(scores[None, None], grid[None, None], align_corners=True)
    final, order = final.flatten().sort(descending=True, stable=True)
    return xy[order], final


def _largest_neighbour(scores: Tensor, radius: int) -> Tensor:
    """Finds the largest other score of each full window: [H - 2r, W - 2r]."""
    height, width = scores.shape
    sides = F.max_pool2d(scores[None], (1, radius), stride=1)[0]
    sides = torch.maximum(sides[:, : width - 2 * radius], sides[:, radius + 1 :])
    rows = torch.maximum(sides, scores[:, radius : width - radius])
    ends = F.max_pool2d(rows[None], (radius, 1), stride=1)[0]
    ends = torch.maximum(ends[: height - 2 * radius], ends[radius + 1 :])
    return torch.maximum(ends, sides[radius : height - radius])
