"""Row 3 of the table: matches of photographs and their known homographies.

Each photograph is matched with a copy of itself that is warped (rotation, scale, a
mild perspective, a shift), brightened or darkened, gamma-changed and blurred. A match
is right within t pixels if the warp takes its first keypoint there. Counted are the
matches whose first keypoint the copy shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np

from sfmprep.progress import Progress, silent
from sfmprep.train.compare.columns import Column
from sfmprep.train.pairs.views import shifted, transform
from sfmprep.types import Bytes, Features, Float32, Float64, ImageBatch

THRESHOLDS_PX = (1, 3, 5)
NUM_KEYPOINTS = 1024


@dataclass(frozen=True, kw_only=True)
class WarpRange:
    """From where the warps and the changes of light of one set are drawn, evenly."""

    rotation_deg: float  # up to this, either way
    scale: float  # up to this, or down to its inverse; evenly in the logarithm
    perspective: float = 0.15  # change of depth from the middle to the border
    shift: float = 0.1  # of the sides
    gain: tuple[float, float] = (0.5, 1.5)
    offset: float = 0.15  # of white, either way
    gamma: float = 2.0  # up to this, or down to its inverse
    blur_px: float = 2.0  # standard deviation, from 0 to this


SETS: Mapping[str, WarpRange] = MappingProxyType(
    {
        "a": WarpRange(rotation_deg=15, scale=1.5),
        "b": WarpRange(rotation_deg=45, scale=2.0),
    }
)


def homography_settings() -> dict[str, Any]:
    """What the figures depend on beside the column and the photographs."""
    return {
        "sets": {name: asdict(warps) for name, warps in SETS.items()},
        "thresholds_px": THRESHOLDS_PX,
        "num_keypoints": NUM_KEYPOINTS,
    }


def measure_homographies(
    names: Sequence[str],
    photographs: Iterable[Bytes],  # [H, W, 3] RGB
    column: Column,
    *,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Matches each photograph with one warped copy of every set.

    A warp depends on nothing but its set, the name and the size of the photograph.

    Returns:
        By set: the number of `photographs`, of `matches` that were counted, and
        `within`, the share of them in per cent by threshold in pixels (0 without
        matches).
    """
    matches = dict.fromkeys(SETS, 0)
    right = {name: np.zeros(len(THRESHOLDS_PX), np.int64) for name in SETS}
    for name, photograph in progress(
        zip(names, photographs, strict=True), desc="homographies", total=len(names)
    ):
        pixels = np.divide(photograph, 255, dtype=np.float32)
        features = _extract(pixels, column)
        for chosen, warps in SETS.items():
            seed = hashlib.sha256(f"{chosen}/{name}".encode()).digest()
            rng = np.random.default_rng(int.from_bytes(seed[:8], "big"))
            size = pixels.shape[1], pixels.shape[0]
            homography = random_homography(rng, size, warps)
            copy = change_light(warp_pixels(pixels, homography), rng, warps)
            errors = _match_errors(features, _extract(copy, column), homography, column)
            matches[chosen] += len(errors)
            right[chosen] += [np.count_nonzero(errors <= t) for t in THRESHOLDS_PX]
    return {
        chosen: {
            "photographs": len(names),
            "matches": matches[chosen],
            "within": {
                str(t): 100 * int(count) / max(matches[chosen], 1)
                for t, count in zip(THRESHOLDS_PX, right[chosen], strict=True)
            },
        }
        for chosen in SETS
    }


def random_homography(
    rng: np.random.Generator, size: tuple[int, int], warps: WarpRange
) -> Float64:
    """Draws a warp [3, 3] of COLMAP pixels about the middle of an image of (W, H)."""
    angle = np.radians(rng.uniform(-1, 1) * warps.rotation_deg)
    scale = warps.scale ** rng.uniform(-1, 1)
    half = np.array(size) / 2
    depth = rng.uniform(-1, 1, 2) * warps.perspective / half
    shift = rng.uniform(-1, 1, 2) * warps.shift * np.array(size)
    turn = scale * np.array(
        [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    )
    turned = np.block([[turn, np.zeros((2, 1))], [depth, np.ones((1, 1))]])
    return shifted(turned @ shifted(np.eye(3), -half), half + shift)


def warp_pixels(pixels: Float32, homography: Float64) -> Float32:
    """Warps an image [H, W, 3] by a homography of COLMAP pixels; the rest is black."""
    # OpenCV's pixel centres are at integers
    half = np.full(2, 0.5)
    centred = shifted(homography @ shifted(np.eye(3), half), -half)
    size = pixels.shape[1], pixels.shape[0]
    # twice the size and back: without it, shrinking to a half would alias
    double = np.diag([2.0, 2.0, 1.0])
    double[:2, 2] = 0.5
    large = cv2.warpPerspective(pixels, double @ centred, (2 * size[0], 2 * size[1]))
    return np.asarray(cv2.resize(large, size, interpolation=cv2.INTER_AREA), np.float32)


def change_light(
    pixels: Float32, rng: np.random.Generator, warps: WarpRange
) -> Float32:
    """Draws and applies gamma, brightness and blur to [H, W, 3] in 0..1, as 8 bits."""
    lit = pixels**warps.gamma ** rng.uniform(-1, 1)
    lit = lit * rng.uniform(*warps.gain) + rng.uniform(-1, 1) * warps.offset
    blur_px = max(rng.uniform(0, warps.blur_px), 1e-3)
    blurred = cv2.GaussianBlur(np.clip(lit, 0, 1).astype(np.float32), (0, 0), blur_px)
    return np.asarray(np.rint(blurred * 255) / 255, np.float32)


def _extract(pixels: Float32, column: Column) -> Features:
    size = pixels.shape[1], pixels.shape[0]
    batch = ImageBatch(
        pixels=np.ascontiguousarray(pixels.transpose(2, 0, 1))[None],
        sizes=np.array([size], np.int32),
        orientations=np.ones(1, np.int32),
    )
    return column.extractor.extract(batch)[0]


def _match_errors(
    features0: Features, features1: Features, homography: Float64, column: Column
) -> Float64:
    """Distances in pixels of the matches whose first keypoint the copy shows."""
    (matches,) = column.matcher.match([(features0, features1)])
    true_xy = transform(homography, features0.xy[matches.index[:, 0]])
    inside = ((true_xy >= 0) & (true_xy < features1.image_size)).all(axis=1)
    gap = true_xy - features1.xy[matches.index[:, 1]]
    return np.asarray(np.linalg.norm(gap[inside], axis=1))
