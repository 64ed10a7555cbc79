"""The matches of verified pairs, those that tell most of a camera's focal length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from functools import lru_cache

import numpy as np
import pycolmap

from sfmprep.mapping.focal_length import MIN_MATCHES, MIN_OWN_PAIRS, MatchedViews
from sfmprep.types import Float64

# Pairs of one camera that are read, those with the most matches: of one of many cameras
# fewer, so that a capture with one an image reads ten pairs an image and not all.
_POOL = 120
_MIN_POOL = 10
_CACHED_IMAGES = 1024

Scales = Mapping[str, float]
"""How many pixels of its file a pixel of what the features saw is, by image name."""


class ViewReader:
    """Reads the matches of pairs, with what is known of their images."""

    def __init__(
        self,
        database: pycolmap.Database,
        max_error_px: float,
        scales: Scales | None,
    ) -> None:
        self._database = database
        self._max_error_px = max_error_px
        self._scales = scales
        self._images = {image.image_id: image for image in database.read_all_images()}
        self._points = lru_cache(maxsize=_CACHED_IMAGES)(self._read_points)

    def _read_points(self, image_id: int) -> Float64:
        return self._database.read_keypoints(image_id)[:, :2].astype(np.float64)

    def cameras_of(self, pair: tuple[int, int]) -> tuple[int, int]:
        """Ids of the cameras that took two images."""
        first, second = (self._images[k].camera_id for k in pair)
        return first, second

    def name_of(self, camera_id: int) -> str:
        """What a camera took, in words: its first image by name, and how many more."""
        first, *others = sorted(
            image.name
            for image in self._images.values()
            if image.camera_id == camera_id
        )
        if not others:
            return first
        more = f"{len(others)} other images" if len(others) > 1 else "another image"
        return f"{first} and {more} of its camera"

    def read_telling(
        self,
        counts: Mapping[tuple[int, int], int],
        asked: Collection[int],
        *,
        inliers: bool,
    ) -> list[MatchedViews]:
        """The pairs of some cameras, those that tell most first."""
        chosen = self.choose(counts, asked)
        views = (self.read(pair, inliers=inliers) for pair in chosen)
        return sorted(views, key=_telling, reverse=True)

    def with_own_pairs(self, counts: Mapping[tuple[int, int], int]) -> set[int]:
        """Ids of the cameras with pairs of their own that can tell a focal length."""
        own = Counter(
            first
            for (first, second), count in (
                (self.cameras_of(pair), count) for pair, count in counts.items()
            )
            if first == second and count >= MIN_MATCHES
        )
        return {key for key, number in own.items() if number >= MIN_OWN_PAIRS}

    def choose(
        self, counts: Mapping[tuple[int, int], int], asked: Collection[int]
    ) -> list[tuple[int, int]]:
        """The pairs of some cameras that have most matches, those with most first."""
        limit = max(_POOL // max(len(asked), 1), _MIN_POOL)
        taken: Counter[tuple[int, bool]] = Counter()  # by camera, its own and shared
        chosen = []
        for pair in sorted(counts, key=lambda pair: (-counts[pair], pair)):
            cameras = set(self.cameras_of(pair))
            kinds = [(key, len(cameras) == 1) for key in cameras.intersection(asked)]
            if counts[pair] and any(taken[kind] < limit for kind in kinds):
                taken.update(kinds)
                chosen.append(pair)
        return chosen

    def read(self, pair: tuple[int, int], *, inliers: bool) -> MatchedViews:
        """The inliers of a pair, or all its matches."""
        if inliers:
            index = self._database.read_two_view_geometry(*pair).inlier_matches
        else:
            index = self._database.read_matches(*pair)
        images = [self._images[k] for k in pair]
        xy = [
            self._points(image.image_id)[column]
            for image, column in zip(images, np.asarray(index).T, strict=True)
        ]
        scale = max((self._scales or {}).get(image.name, 1.0) for image in images)
        return MatchedViews(
            camera_ids=self.cameras_of(pair),
            xy=(xy[0], xy[1]),
            max_error_px=self._max_error_px * scale,
        )


def _telling(views: MatchedViews) -> float:
    """Rises with the matches and, more slowly, with how far they moved together.

    The longest motions with few matches are often those of wrong pairs: ranked by the
    product, 17 images of `fox` tell 860 px for 576, and by the matches alone 20 of
    `tum-fr2-desk20` 620 for 521.
    """
    if not len(views.xy[0]):
        return 0.0
    moved = np.linalg.norm(views.xy[0] - views.xy[1], axis=1)
    return float(len(moved) * np.sqrt(np.median(moved)))
