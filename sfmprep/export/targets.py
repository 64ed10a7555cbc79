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


@dataclass(frozen=True)
class Layout:
    """How images and masks lie in a folder."""

    pixels: Literal["upright", "stored"]
    """upright: warped, in several sizes; stored: byte by byte as they were."""
    masks: Literal["files", "alpha", "appended"]
    """files: masks/STEM.png; alpha: in the image; appended: colmap_masks/NAME.png."""

    @property
    def has_json(self) -> bool:
        """Whether transforms.json goes with it."""
        return self.pixels == "upright" and self.masks == "files"

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
        return dict(names)


# consumers.md: gsplat reads no masks, so those of its neighbours do not disturb it.
# COLMAP's masks are not in `masks`: Brush would take them for those of the images.
LAYOUTS: dict[Target, Layout] = {
    "nerfstudio": Layout("upright", "files"),
    "gsplat": Layout("upright", "files"),
    "brush": Layout("upright", "files"),
    "3dgs": Layout("upright", "alpha"),
    "colmap": Layout("stored", "appended"),
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
        if layout.masks == "alpha" and not with_masks:
            layout = replace(layout, masks="files")
        readers.setdefault(layout, []).append(target)
    return tuple(
        Folder(f"{FOLDERS_BELOW}/{targets[0]}" if number else "", layout, (*targets,))
        for number, (layout, targets) in enumerate(readers.items())
    )


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix


def _with_suffix(name: str, suffix: str) -> str:
    return PurePosixPath(name).stem + suffix
