"""The photographs of a capture: which there are, and which share a camera.

Names are POSIX paths relative to the root folder. `image_file` reads the single file.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sfmprep.capture.developed import Developed, Film
from sfmprep.capture.folder import (
    EXTENSIONS,
    describe_passed_over,
    expect_folder,
    find_files,
    is_image,
)
from sfmprep.capture.image_file import ImageInfo, read_info, read_pixels
from sfmprep.capture.panorama import Panorama
from sfmprep.errors import ImageError
from sfmprep.progress import Progress, silent
from sfmprep.threads import thread_pool

_SCAN_THREADS = 8
_MAX_LISTED = 5

Grouping = Literal["auto", "single", "per-folder", "per-image"]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """The images of a folder and its sub-folders."""

    root: Path
    names: tuple[str, ...]  # sorted POSIX paths relative to root
    infos: Mapping[str, ImageInfo]  # one for each of `names`
    unreadable: Mapping[str, str]  # name -> reason; these are not among `names`
    mask_root: Path | None = None
    passed_over: tuple[str, ...] = ()  # films, RAW and other files that are not read
    keep_damaged: bool = False  # use what is left of a damaged file
    developed: Developed | None = None  # what films, RAW files and panoramas became
    # files with the content of another one, which is used: its name
    copies: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def path(self, name: str) -> Path:
        """Where the image `name` lies."""
        if self.developed is not None and name in self.developed.names:
            return self.developed.folder / name
        return self.root / name

    def expect_there(self, *names: str) -> None:
        """Makes sure that files are where they were; those of all images by default.

        Raises:
            ImageError: one is gone.
        """
        for path in map(self.path, names or self.names):
            if not os.path.isfile(path):  # also where its disk is away
                raise ImageError(
                    f"{path} is gone since the photographs were read. Put it back, or"
                    " see whether its disk is still there, and run the same command"
                    " again."
                )

    @property
    def source(self) -> Path:
        """What the capture was made from: a folder, or a film."""
        return self.root if self.developed is None else self.developed.source

    @property
    def films(self) -> tuple[Film, ...]:
        """The films of which frames are among the images."""
        return () if self.developed is None else self.developed.films

    @property
    def panoramas(self) -> tuple[Panorama, ...]:
        """The panoramas of which views are among the images."""
        return () if self.developed is None else self.developed.panoramas

    @cached_property
    def views_of_panoramas(self) -> Mapping[str, str]:
        """The panorama of each image that was cut from one, by name."""
        return {view: p.name for p in self.panoramas for view in p.views}

    @property
    def developed_sha256(self) -> Mapping[str, str]:
        """The checksum of each file that images were made of, by name."""
        return {} if self.developed is None else self.developed.checksums

    def read_pixels(self, name: str) -> NDArray[np.uint8]:
        """The pixels of the image `name`, as `image_file.read_pixels` gives them."""
        return read_pixels(self.path(name), keep_damaged=self.keep_damaged)

    @classmethod
    def scan(
        cls,
        root: Path,
        *,
        mask_root: Path | None = None,
        keep_damaged: bool = False,
        developed: Developed | None = None,
        progress: Progress = silent,
    ) -> ImageSet:
        """Finds all images below `root` and reads their headers, not their pixels.

        Files with one of `EXTENSIONS` count, in any case. Hidden files and folders,
        `__MACOSX` and `mask_root` are passed over. Links are followed, but no folder is
        entered twice. Truncated JPEG and PNG files are found by their missing end. A
        name with a line break or another control character, which would break COLMAP's
        text files, makes its image unreadable.

        Args:
            root: The folder of photographs.
            mask_root: A folder of masks, or the mask of all images; it may lie inside
                `root`.
            keep_damaged: Use what is left of damaged photographs.
            developed: What films and RAW files became. These images join those of
                `root`, or are all of them: then `root` is the folder where they lie.
            progress: Wraps the loop over files.

        Raises:
            ImageError: a folder is missing or is a file, `mask_root` is `root`, or no
                image can be read.
        """
        if developed is None or root.exists() is False:
            expect_folder(root, "image")
        if mask_root is not None and not mask_root.is_file():
            expect_folder(mask_root, "mask")
            if mask_root.samefile(root):
                raise ImageError(
                    f"{root} is given as the folder of images and of masks, but they"
                    " are told apart by folder. Move the masks to their own one."
                )
        unreadable: dict[str, str] = {}
        files = sorted(find_files(root, mask_root, unreadable)) if root.is_dir() else []
        cut = {} if developed is None else developed.checksums  # panoramas
        paths = {
            name: root / name
            for name in files
            if is_image(name) and name not in cut and root / name != mask_root
        }
        passed_over = [name for name in files if not is_image(name)]
        if developed is not None:
            if not paths:
                root = developed.folder
            paths |= {name: developed.folder / name for name in developed.names}
            passed_over = [n for n in passed_over if n not in developed.checksums]
            unreadable |= developed.failures
        found = sorted(paths)
        infos: dict[str, ImageInfo] = {}
        with thread_pool(_SCAN_THREADS, "sfmprep-scan") as pool:
            answers = pool.map(
                lambda name: _info_or_reason(paths[name], keep_damaged), found
            )
            for name, answer in progress(
                zip(found, answers, strict=True), desc="scan", total=len(found)
            ):
                if isinstance(answer, ImageInfo):
                    infos[name] = answer
                else:
                    unreadable[name] = answer
        if not infos:
            raise ImageError(_explain_nothing(root, unreadable, passed_over))
        return cls(
            *(root, tuple(infos), infos, unreadable, mask_root, tuple(passed_over)),
            keep_damaged=keep_damaged,
            developed=developed,
        )

    def camera_groups(self, how: Grouping) -> list[tuple[str, ...]]:
        """Groups the names by the camera that took them.

        `auto` puts together what has the same make, model, lens, focal length, zoom,
        size on disk and folder; frames without EXIF share a camera if size and folder
        agree.

        Returns:
            Groups in the order of their first names; none where there is no image.
        """
        groups: defaultdict[object, list[str]] = defaultdict(list)
        for name in self.names:
            groups[self._camera_key(name, how)].append(name)
        return [tuple(group) for group in groups.values()]

    def _camera_key(self, name: str, how: Grouping) -> object:
        match how:
            case "single":
                return None
            case "per-image":
                return name
            case "per-folder":
                return PurePosixPath(name).parent
            case "auto":
                info = self.infos[name]
                return (
                    PurePosixPath(name).parent,
                    info.size,
                    info.make,
                    info.model,
                    info.lens_model,
                    info.focal_length_mm,
                    info.focal_length_35mm,
                    info.digital_zoom,
                )


def _info_or_reason(path: Path, keep_damaged: bool) -> ImageInfo | str:
    try:
        return read_info(path, keep_damaged=keep_damaged)
    except ImageError as error:
        return str(error)


def _explain_nothing(
    root: Path, unreadable: Mapping[str, str], passed_over: Sequence[str]
) -> str:
    """Why a folder holds no image that can be used, and what to do."""
    if unreadable:
        listed = [f"\n  {n!r}: {reason}" for n, reason in sorted(unreadable.items())]
        more = len(listed) - _MAX_LISTED
        return (
            f"none of the {len(listed)} image files in {root} can be read:"
            + "".join(listed[:_MAX_LISTED])
            + (f"\n  and {more} more" if more > 0 else "")
            + "\nCopy them from the camera again, or give another folder."
        )
    return (
        f"no image in {root} or its sub-folders. Expected files that end in"
        f" {' '.join(EXTENSIONS)}; hidden ones do not count."
        + (
            f" Not read: {describe_passed_over(root, passed_over)}"
            if passed_over
            else ""
        )
    )
