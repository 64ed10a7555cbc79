"""The colours of points, from the photographs that see them."""

from __future__ import annotations

import numpy as np

from sfmprep.capture.image_set import ImageSet
from sfmprep.devices import num_cores
from sfmprep.geometry.views import Observations, Views
from sfmprep.progress import Progress, silent
from sfmprep.threads import thread_pool
from sfmprep.types import Bytes, Float32, Float64

_MAX_THREADS = 8


def point_colours(
    views: Views,
    images: ImageSet,
    observations: Observations,
    *,
    progress: Progress = silent,
) -> Bytes:
    """The mean colour [N, 3] RGB of every point in the photographs that see it.

    Every photograph is read once, and no more are in memory than there are threads.

    Raises:
        ImageError: A photograph cannot be read.
    """
    by_view = observations.by_view(len(views))
    seen = [view for view, rows in enumerate(by_view) if len(rows)]

    def sample(view: int) -> Float64:
        pixels = images.read_pixels(views.names[view])
        return bilinear(pixels, observations.xy[by_view[view]])

    sums = np.zeros((observations.num_points, 3))
    with thread_pool(min(_MAX_THREADS, num_cores())) as pool:
        samples = zip(seen, pool.map(sample, seen), strict=True)
        for view, colours in progress(samples, desc="colours", total=len(seen)):
            np.add.at(sums, observations.point[by_view[view]], colours)
    means = sums / np.maximum(observations.counts(), 1)[:, None]
    return np.rint(means).astype(np.uint8)


def bilinear(pixels: Bytes | Float32, xy: Float64) -> Float64:
    """Values [N, C] of a picture [H, W, C] at COLMAP pixels [N, 2]."""
    last = np.array(pixels.shape[1::-1]) - 1
    at = np.clip(xy - 0.5, 0, last)
    low = np.floor(at).astype(np.int64)
    high = np.minimum(low + 1, last)
    right, down = (at - low).T[:, :, None]
    top = pixels[low[:, 1], low[:, 0]] * (1 - right)
    top += pixels[low[:, 1], high[:, 0]] * right
    bottom = pixels[high[:, 1], low[:, 0]] * (1 - right)
    bottom += pixels[high[:, 1], high[:, 0]] * right
    colours: Float64 = top * (1 - down) + bottom * down
    return colours
