"""Some images of a capture as a process on another machine reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sfmprep.capture.image_set import ImageSet
from sfmprep.capture.masks import mask_path
from sfmprep.files import below


def only(images: ImageSet, names: Sequence[str]) -> ImageSet:
    """The capture with these of its images alone, in this order."""
    infos = {name: images.infos[name] for name in names}
    return replace(images, names=tuple(names), infos=infos)


def files_of(images: ImageSet, names: Iterable[str]) -> Iterator[Path]:
    """The files of images, and of their masks where they have one."""
    for name in names:
        yield images.path(name)
        if (mask := mask_path(images, name)) is not None:
            yield mask


def placed_below(images: ImageSet, folder: Path) -> ImageSet:
    """The capture where its files lie in `folder`, as `files.below` says."""
    developed, masks = images.developed, images.mask_root
    if developed is not None:
        developed = replace(developed, folder=below(folder, developed.folder))
    return replace(
        images,
        root=below(folder, images.root),
        mask_root=None if masks is None else below(folder, masks),
        developed=developed,
    )
