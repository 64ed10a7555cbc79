"""Images of an earlier export that would come out the same, which are not made again.

`dataset.json` says of each image what it was made from: a checksum of the photograph
and its mask, of the lens before and after, and of all settings that its pixels hang on.
A file that somebody changed since is made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sfmprep.config import ExportConfig
from sfmprep.export.listing import LISTING, images_of
from sfmprep.export.targets import Layout
from sfmprep.geometry.undistort import Undistortion

_VERSION = 1  # raised by hand when pixels change


@dataclass(frozen=True, kw_only=True, eq=False)
class EarlierExport:
    """Datasets that are being replaced, and what the photographs hold now."""

    folder: Path  # in which they lie as in the output folder; need not exist
    contents: Mapping[str, str]  # checksum of each photograph and its mask, by name


@dataclass(frozen=True, kw_only=True, eq=False)
class EarlierImages:
    """The images of one earlier dataset."""

    folder: Path
    made_from: Mapping[str, str] = field(default_factory=dict)  # by the file's name
    began: float = 0.0  # when its first file was written
    seconds: float = 0.0  # when it was complete

    @classmethod
    def read(cls, folder: Path) -> EarlierImages:
        """Those in a folder; none where there is no dataset that tells."""
        known = {
            name: entry["made_from"]
            for name, entry in images_of(folder).items()
            if "made_from" in entry
        }
        try:
            began, seconds = (
                (folder / name).stat().st_mtime
                for name in ("sparse/0/cameras.bin", LISTING)
            )
        except OSError:
            return cls(folder=folder)
        return cls(folder=folder, made_from=known, began=began, seconds=seconds)

    def take(self, names: Mapping[Path, Path]) -> bool:
        """Puts files into new places, if all of them are as they were written.

        Args:
            names: Where each goes, by where it lies below the folder.
        """
        files = {self.folder / name: target for name, target in names.items()}
        for file in files:
            try:
                if not self.began <= file.stat().st_mtime <= self.seconds:
                    return False
            except OSError:
                return False
        for file, target in files.items():
            target.unlink(missing_ok=True)  # of a try before
            try:
                os.link(file, target)
            except OSError:  # another file system, or one without links
                shutil.copyfile(file, target)
            os.utime(target)  # of this dataset from now on
        return True


def made_from(
    content: str,
    view: Undistortion | None,
    layout: Layout,
    config: ExportConfig,
    *,
    with_masks: bool,
) -> str:
    """A checksum of all that the files of one image in a dataset hang on.

    Args:
        content: The checksum of the photograph and its mask.
        view: The lens; None where photographs stay as they are stored.
        layout: Of the folder.
        config: Sizes and quality.
        with_masks: Whether masks are written.
    """
    is_stored = layout.pixels == "stored"
    lenses = [] if view is None or is_stored else [view.source, view.target]
    told = [
        *(_VERSION, content, str(layout), with_masks),
        [[lens.model_name, lens.width, lens.height, *lens.params] for lens in lenses],
        None if view is None else view.orientation,
        [] if is_stored else [config.jpeg_quality, *config.downscales],
    ]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]
