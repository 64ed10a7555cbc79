"""Why a capture gave no model, in plain words."""

from __future__ import annotations

from sfmprep.capture.image_set import ImageSet
from sfmprep.mapping.verify import VerifiedPairs


def explain_failure(images: ImageSet, verified: VerifiedPairs) -> str:
    """Says in plain words why a capture gave no model, and what to do."""
    alone = len(images) - len(verified.images)
    if not verified.num_pairs:
        return (
            f"none of the {len(images)} images of {images.root} matches another: the"
            " photographs do not overlap, are blurred or show no texture. Take them so"
            " that neighbours share two thirds of what they show."
        )
    if not verified.num_verified:
        return (
            f"{verified.num_pairs} pairs of images of {images.root} have matches, but"
            " no pair agrees on one geometry: the photographs probably do not overlap."
            " Take them so that neighbours share two thirds of what they show."
        )
    if verified.num_rotation_only > verified.num_verified / 2:
        return (
            f"{verified.num_rotation_only} of {verified.num_verified} verified pairs of"
            f" {images.root} are explained without any depth: the camera only turned,"
            " or it saw one plane, or the images are copies of each other. Walk"
            " sideways between photographs."
        )
    return (
        f"{verified.num_verified} pairs of images of {images.root} were verified"
        f" ({alone} images have none), but no two of them see the scene from"
        " sufficiently different places with enough matches. Take more photographs, a"
        " step apart, or try more keypoints (--set features.max_keypoints=8192)."
    )
