"""Why a capture gave no model, in plain words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap

from sfmprep.capture.image_set import ImageSet
from sfmprep.mapping.verify import VerifiedPairs

_ASKED = 20  # strongest pairs that are looked into
_SAME_PX = 1.0  # median motion of the matches of two copies
_FEW_INLIERS = 30


def explain_failure(
    images: ImageSet, verified: VerifiedPairs, database: Path | None = None
) -> str:
    """Says in plain words why a capture gave no model, and what to do.

    Args:
        images: The capture.
        verified: What verification left of it.
        database: Where the strongest pairs are looked into; None says less.
    """
    alone = len(images) - len(verified.images)
    if not verified.num_pairs:
        return (
            f"none of the {len(images)} images of {images.root} matches another: the"
            " photographs do not overlap, are blurred or show no texture"
            f"{', or their masks leave nothing of them' if images.mask_root else ''}."
            " Take them so that neighbours share two thirds of what they show."
        )
    if not verified.num_verified:
        return (
            f"{verified.num_pairs} pairs of images of {images.root} have matches, but"
            " no pair agrees on one geometry: the photographs probably do not overlap."
            " Take them so that neighbours share two thirds of what they show."
        )
    strongest = _strongest(database) if database is not None else []
    copies = sum(moved < _SAME_PX for _, moved in strongest)
    if copies > len(strongest) / 2:
        return (
            f"most verified pairs of images of {images.root} are copies of each other:"
            " their matches lie at the same places in both. Take each photograph from a"
            " place of its own, a step from the last."
        )
    if verified.num_rotation_only > verified.num_verified / 2:
        return (
            f"{verified.num_rotation_only} of {verified.num_verified} verified pairs of"
            f" {images.root} are explained without any depth: the camera only turned,"
            " or it saw one plane, or the images are copies of each other. Walk"
            " sideways between photographs."
        )
    if strongest and strongest[0][0] < _FEW_INLIERS:
        return (
            f"the strongest of {verified.num_verified} verified pairs of images of"
            f" {images.root} has {strongest[0][0]} matches that agree, too few to begin"
            " with. Take more photographs, a step apart, or try more keypoints (--set"
            " features.max_keypoints=8192)."
        )
    return (
        f"{verified.num_verified} pairs of images of {images.root} were verified"
        f" ({alone} images have none), but no two of them see the scene from"
        " sufficiently different places with enough matches. Take more photographs, a"
        " step apart, or try more keypoints (--set features.max_keypoints=8192)."
    )


def _strongest(database: Path) -> list[tuple[int, float]]:
    """Inliers of the strongest pairs, and how far they moved in the image, pixels."""
    found = []
    with pycolmap.Database.open(database) as opened:
        ids, counts = opened.read_two_view_geometry_num_inliers()
        order = sorted(zip(counts, ids, strict=True), reverse=True)[:_ASKED]
        for count, pair_id in order:
            if not count:
                break
            pair = pycolmap.pair_id_to_image_pair(pair_id)
            index = np.asarray(opened.read_two_view_geometry(*pair).inlier_matches)
            xy0, xy1 = (
                opened.read_keypoints(key)[column, :2]
                for key, column in zip(pair, index.T, strict=True)
            )
            moved = float(np.median(np.linalg.norm(xy0 - xy1, axis=1)))
            found.append((int(count), moved))
    return found
