"""Poses of 360° photographs, which those of the views cut from them follow from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sfmprep.capture.panorama import Panorama, View
from sfmprep.known_poses.names import of_images
from sfmprep.known_poses.poses import KnownPoses
from sfmprep.types import Float64


def of_photographs(
    poses: KnownPoses, names: Sequence[str], panoramas: Sequence[Panorama], where: str
) -> KnownPoses:
    """As `of_images`, where poses of panoramas are those of their views, turned.

    Args:
        poses: As they were read: of images, of panoramas, or of views already.
        names: The images, POSIX paths relative to their folder.
        panoramas: Whose views are among them; may be empty.
        where: The file of the poses, for messages.

    Raises:
        ConfigError: no pose is of an image.
    """
    views = {view for panorama in panoramas for view in panorama.views}
    if not views or not views.isdisjoint(poses.names):
        return of_images(poses, names, where)
    whole = {panorama.name: panorama for panorama in panoramas}
    others = [name for name in names if name not in views]
    found = of_images(poses, [*others, *whole], where)
    copies = {
        copy: name
        for name in found.names
        for copy in (whole[name].views if name in whole else (name,))
    }
    row_of = {name: row for row, name in enumerate(found.names)}
    rows = [row_of[copies[name]] for name in names if name in copies]
    kept = tuple(name for name in names if name in copies)
    return replace(
        found,
        names=kept,
        rotations=found.rotations[rows],
        vectors=found.vectors[rows],
        cameras={name: c for name, c in found.cameras.items() if name not in whole},
        turns=turns_of(kept, panoramas),
    )


def turns_of(names: Sequence[str], panoramas: Sequence[Panorama]) -> Float64 | None:
    """How images are turned against the panorama that they are views of.

    Returns:
        [N, 3, 3] view from panorama, with the axes of OpenCV, one for what is no view;
        None where there are no panoramas.
    """
    if not panoramas:
        return None
    turns = {
        name: View(*direction).rig_from_view.T
        for panorama in panoramas
        for name, direction in zip(panorama.views, panorama.directions, strict=True)
    }
    return np.array([turns.get(name, np.eye(3)) for name in names]).reshape(-1, 3, 3)
