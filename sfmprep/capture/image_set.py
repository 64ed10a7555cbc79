"""The photographs of a capture: which there are, and which share a camera.

Names are POSIX paths relative to the root folder. `image_file` reads the single file.
"""

from __future__ import annotations

import os
import shlex
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from sfmprep.capture.image_file import ImageInfo, read_info
from sfmprep.errors import ImageError
from sfmprep.progress import Progress, silent

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".tif", ".tiff"),
    *(".bmp", ".webp", ".heic", ".heif", ".avif", ".jp2"),
)
_FILM_EXTENSIONS = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm")
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

    def __len__(self) -> int:
        return len(self.names)

    def path(self, name: str) -> Path:
        """Where the image `name` lies."""
        return self.root / name

    @classmethod
    def scan(
        cls, root: Path, *, mask_root: Path | None = None, progress: Progress = silent
    ) -> ImageSet:
        """Finds all images below `root` and reads their headers, not their pixels.

        Files with one of `EXTENSIONS` count, in any case. Hidden files and folders,
        `__MACOSX` and `mask_root` are passed over. Links are followed, but no folder is
        entered twice. Truncated JPEG and PNG files are found by their missing end.

        Args:
            root: The folder of photographs.
            mask_root: A folder of masks; it may lie inside `root`.
            progress: Wraps the loop over files.

        Raises:
            ImageError: a folder is missing or is a file, `mask_root` is `root`, or no
                image can be read.
        """
        _expect_folder(root, "image")
        if mask_root is not None:
            _expect_folder(mask_root, "mask")
            if mask_root.samefile(root):
                raise ImageError(
                    f"{root} is given as the folder of images and of masks, but they"
                    " are told apart by folder. Move the masks to their own one."
                )
        unreadable: dict[str, str] = {}
        found = sorted(_find_images(root, mask_root, unreadable))
        infos: dict[str, ImageInfo] = {}
        pool = ThreadPoolExecutor(_SCAN_THREADS, "sfmprep-scan")
        try:
            answers = pool.map(lambda name: _info_or_reason(root / name), found)
            for name, answer in progress(
                zip(found, answers, strict=True), desc="scan", total=len(found)
            ):
                if isinstance(answer, ImageInfo):
                    infos[name] = answer
                else:
                    unreadable[name] = answer
        finally:
            pool.shutdown(cancel_futures=True)
        if not infos:
            raise ImageError(_explain_nothing(root, unreadable))
        return cls(root, tuple(infos), infos, unreadable, mask_root)

    def camera_groups(self, how: Grouping) -> list[tuple[str, ...]]:
        """Groups the names by the camera that took them.

        `auto` puts together what has the same make, model, lens, focal length, size on
        disk and folder; frames without EXIF share a camera if size and folder agree.

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
                )


# -------------------------------------------------------------------------- scanning
def _expect_folder(path: Path, what: str) -> None:
    if path.is_dir():
        return
    if path.suffix.lower() in _FILM_EXTENSIONS and path.exists():
        raise ImageError(
            f"{path} is a film but expected a folder of photographs."
            f" {_frames_hint(path)}"
        )
    if path.exists():
        raise ImageError(
            f"{path} is a file but expected the {what} folder. Give the folder it lies"
            f" in: {path.parent}"
        )
    raise ImageError(
        f"the {what} folder {path} does not exist. Check the path for typing errors."
    )


def _frames_hint(film: Path) -> str:
    return (
        "Take frames from it first, for example:"
        f" ffmpeg -i {shlex.quote(str(film))} -vf fps=2 -q:v 2 FRAMES/%05d.jpg"
    )


def _find_images(
    root: Path, mask_root: Path | None, unreadable: dict[str, str]
) -> Iterator[str]:
    """Yields the names of what could be an image, in no order."""
    entered = set() if mask_root is None else {_identity(mask_root)}
    folders, links = deque([root]), deque[Path]()
    while folders or links:
        # real folders come first, so that a link never takes a folder's name from it
        folder = folders.popleft() if folders else links.popleft()
        if _identity(folder) in entered:
            continue
        entered.add(_identity(folder))
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            name = folder.relative_to(root).as_posix()
            unreadable[name] = f"the folder cannot be listed: {error.strerror}"
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            path = Path(entry.path)
            if path.is_dir():  # unlike the entry's, it bears links that point in a ring
                (links if entry.is_symlink() else folders).append(path)
            elif path.suffix.lower() in EXTENSIONS and (
                entry.is_symlink() or entry.is_file()
            ):
                name = path.relative_to(root).as_posix()
                printable = os.fsencode(name).decode("utf-8", "backslashreplace")
                if printable == name:
                    yield name
                else:
                    unreadable[printable] = "its name is not UTF-8; rename it"


def _info_or_reason(path: Path) -> ImageInfo | str:
    try:
        return read_info(path)
    except ImageError as error:
        return str(error)


def _identity(folder: Path) -> tuple[int, int]:
    stat = folder.stat()
    return stat.st_dev, stat.st_ino


def _explain_nothing(root: Path, unreadable: Mapping[str, str]) -> str:
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
    films = (p for p in root.iterdir() if p.suffix.lower() in _FILM_EXTENSIONS)
    film = min(films, default=None)
    return (
        f"no image in {root} or its sub-folders. Expected files that end in"
        f" {' '.join(EXTENSIONS)}; hidden ones do not count."
        + (f" It holds a film. {_frames_hint(film)}" if film else "")
    )
