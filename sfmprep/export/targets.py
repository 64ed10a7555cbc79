"""What each trainer reads, and which trainers share a folder.

The first target's folder is the output folder itself. Those that do not agree with it
lie in `targets/NAME`: behind `sparse`, because Brush scans the whole tree, and of equal
models takes the first one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Literal

from sfmprep.config import ExportConfig, Target
from sfmprep.errors import ConfigError

FOLDERS_BELOW = "targets"
BESIDE = "_mask"  # ends the stem of a mask that lies beside its image


@dataclass(frozen=True)
class Layout:
    """How images and masks lie in a folder."""

    pixels: Literal["upright", "stored", "spheres"]
    """upright: warped, in several sizes; stored: byte by byte as they were; spheres:
    the panoramas that images were cut from, see `spheres.py`."""
    masks: Literal["files", "inverted", "alpha", "appended", "beside"]
    """files: masks/STEM.png; inverted: the same, but white is ignored; alpha: in the
    image; appended: colmap_masks/NAME.png; beside: STEM_mask.png next to the image."""
    with_json: bool = True
    """Whether transforms.json may lie beside the COLMAP model."""

    @property
    def has_json(self) -> bool:
        """Whether transforms.json goes with it."""
        in_files = self.pixels != "stored" and self.masks == "files"
        return self.with_json and in_files

    def file_names(self, names: Mapping[str, str]) -> dict[str, str]:
        """Maps original names to those of the files here, in the same order.

        Args:
            names: Original to exported name.
        """
        match self:
            case Layout(pixels="stored"):
                return {n: _with_suffix(new, _suffix(n)) for n, new in names.items()}
            case Layout(masks="alpha"):
                return {n: _with_suffix(new, ".png") for n, new in names.items()}
            case Layout(masks="beside"):
                return _apart_from_masks(names)
        return dict(names)


# consumers.md: gsplat reads no masks, so those of its neighbours do not disturb it.
# COLMAP's masks are not in `masks`: Brush would take them for those of the images.
LAYOUTS: dict[Target, Layout] = {
    "nerfstudio": Layout("upright", "files"),
    "gsplat": Layout("upright", "files"),
    "brush": Layout("upright", "files"),
    "3dgs": Layout("upright", "alpha"),
    # It opens transforms.json before sparse/, or after, as it happens, and then takes
    # the first camera for all images and starts from random points.
    "lichtfeld": Layout("upright", "files", with_json=False),
    # Its pages do not agree on which colour of a mask is ignored.
    "postshot": Layout("upright", "files"),
    "postshot-inverted": Layout("upright", "inverted"),
    "3dgrut": Layout("upright", "beside"),
    "colmap": Layout("stored", "appended"),
    "nerfstudio-360": Layout("spheres", "files"),
}
_PINHOLE_ONLY: tuple[Target, ...] = ("3dgs",)


@dataclass(frozen=True)
class Folder:
    """One dataset folder and who reads it."""

    name: str  # relative to the output folder; "" for itself
    layout: Layout
    targets: tuple[Target, ...]


def plan_folders(config: ExportConfig, *, with_masks: bool) -> tuple[Folder, ...]:
    """The folders that `config.targets` need, the output folder itself first.

    Args:
        config: Targets and what becomes of the lens.
        with_masks: Whether any image has a mask; without, alpha is no difference.

    Raises:
        ConfigError: A target cannot read distorted images.
    """
    readers: dict[Layout, list[Target]] = {}
    for target in dict.fromkeys(config.targets):
        if config.camera == "original" and target in _PINHOLE_ONLY:
            raise ConfigError(
                f"export.camera=original keeps the distortion of the lens, but {target}"
                f" reads pinhole images only. Leave {target} out of export.targets, or"
                " leave out export.camera=original"
            )
        layout = LAYOUTS[target]
        if layout.masks in ("alpha", "beside", "inverted") and not with_masks:
            layout = replace(layout, masks="files")
        readers.setdefault(layout, []).append(target)
    return tuple(
        Folder(f"{FOLDERS_BELOW}/{targets[0]}" if number else "", layout, (*targets,))
        for number, (layout, targets) in enumerate(readers.items())
    )


def _apart_from_masks(names: Mapping[str, str]) -> dict[str, str]:
    """The names, numbered where an image would be taken for the mask of another."""
    stems = {PurePosixPath(name).stem.lower() for name in names.values()}
    if not any(f"{stem}{BESIDE}" in stems for stem in stems):
        return dict(names)
    digits = max(4, len(str(len(names))))
    return {
        old: f"{number:0{digits}d}{_suffix(new)}"
        for number, (old, new) in enumerate(names.items(), 1)
    }


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix


def _with_suffix(name: str, suffix: str) -> str:
    return PurePosixPath(name).stem + suffix
