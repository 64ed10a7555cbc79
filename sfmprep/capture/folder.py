"""A folder of photographs: which files count, and where they lie in known layouts."""

from __future__ import annotations

import os
import re
import shlex
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from sfmprep.errors import ImageError

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".tif", ".tiff"),
    *(".bmp", ".webp", ".heic", ".heif", ".avif", ".jp2"),
)
_FILM_EXTENSIONS = (
    *(".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mts", ".m2ts", ".mpg"),
    *(".mpeg", ".wmv", ".3gp", ".insv", ".360"),
)
_RAW_EXTENSIONS = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq"),
    *(".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw"),
    *(".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
)
_OTHER_EXTENSIONS = (
    *(".gif", ".jxl", ".exr", ".hdr", ".psd", ".tga", ".ppm", ".pgm", ".insp"),
)
# Control characters, and what ends a line or a paragraph
_CONTROL = ("Cc", "Zl", "Zp")
_KNOWN = {*EXTENSIONS, *_FILM_EXTENSIONS, *_RAW_EXTENSIONS, *_OTHER_EXTENSIONS}
# What lies beside the photographs in the scenes of nerfstudio, 3D Gaussian Splatting
# and COLMAP.
_PHOTOGRAPHS = ("images", "input")
_DERIVED = re.compile(
    r"(images|masks?|depths?|normals?)(_\d+)?|input|sparse|distorted|stereo|colmap"
)


def is_image(name: str) -> bool:
    """Whether a file is read as an image, by its ending in any case."""
    return _suffix(name) in EXTENSIONS


def is_film(name: str) -> bool:
    """Whether a file is taken for a film, by its ending in any case."""
    return _suffix(name) in _FILM_EXTENSIONS


def is_raw(name: str) -> bool:
    """Whether a file is taken for a RAW file, by its ending in any case."""
    return _suffix(name) in _RAW_EXTENSIONS


def without_twin(names: Iterable[str], images: Iterable[str]) -> list[str]:
    """Files that do not belong to an image: not RAW beside JPEG, no live photograph."""
    stems = {_stem(name) for name in images}
    return [name for name in names if _stem(name) not in stems]


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix("")).lower()


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def photograph_folder(root: Path) -> tuple[Path, list[str]]:
    """Where the photographs of a scene lie, and the folders beside them.

    A scene is a folder without images of its own that holds `images` or `input`, and
    beside it at least one of images_2, masks, depths, sparse or the like.

    Returns:
        The folder and sorted names; `root` and none where it is no scene.
    """
    try:
        entries = list(os.scandir(root))
    except OSError:
        return root, []  # whoever reads it says what is wrong
    folders = {entry.name for entry in entries if entry.is_dir()}
    own = next((name for name in _PHOTOGRAPHS if name in folders), None)
    beside = sorted(n for n in folders if n != own and _DERIVED.fullmatch(n))
    if own is None or not beside:
        return root, []
    if any(is_image(entry.name) and entry.is_file() for entry in entries):
        return root, []
    return root / own, beside


def expect_folder(path: Path, what: str) -> None:
    """Raises ImageError unless `path` is a folder."""
    if path.is_dir():
        return
    if path.suffix.lower() in _FILM_EXTENSIONS and path.exists():
        raise ImageError(
            f"{path} is a film but expected a folder of photographs."
            f" Take frames from it first, for example: {_frames_command(path)}"
        )
    if path.exists():
        raise ImageError(
            f"{path} is a file but expected the {what} folder. Give the folder it lies"
            f" in: {path.parent}"
        )
    raise ImageError(
        f"the {what} folder {path} does not exist. Check the path for typing errors."
    )


def _frames_command(film: Path) -> str:
    return f"ffmpeg -i {shlex.quote(str(film))} -vf fps=2 -q:v 2 FRAMES/%05d.jpg"


def find_files(
    root: Path, mask_root: Path | None, unreadable: dict[str, str]
) -> Iterator[str]:
    """Yields the names of images, films and RAW files below `root`, in no order.

    Args:
        root: A folder.
        mask_root: A folder that is not entered, or None.
        unreadable: Where names that cannot be used are noted, with the reason.
    """
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
            elif path.suffix.lower() in _KNOWN and (
                entry.is_symlink() or entry.is_file()
            ):
                name = path.relative_to(root).as_posix()
                printable = os.fsencode(name).decode("utf-8", "backslashreplace")
                if printable != name:
                    unreadable[printable] = "its name is not UTF-8; rename it"
                elif any(unicodedata.category(c) in _CONTROL for c in name):
                    unreadable[escaped(name)] = (
                        "its name has a tab, a line break or another control character;"
                        " rename it"
                    )
                else:
                    yield name


def escaped(name: str) -> str:
    """A name in one line: control characters are spelled as Python spells them."""
    return "".join(
        c.encode("unicode_escape").decode()
        if unicodedata.category(c) in _CONTROL
        else c
        for c in name
    )


def _identity(folder: Path) -> tuple[int, int]:
    stat = folder.stat()
    return stat.st_dev, stat.st_ino


def describe_passed_over(root: Path, names: Sequence[str]) -> str:
    """Counts the files that are not read, by kind, and says what to do with them."""
    parts = []
    for what, extensions, advice in (
        ("RAW", _RAW_EXTENSIONS, "develop them to JPEG or to TIFF of 16 bits"),
        ("film", _FILM_EXTENSIONS, None),
        ("other", _OTHER_EXTENSIONS, "save them as JPEG or PNG"),
    ):
        found = [name for name in names if _suffix(name) in extensions]
        if found:
            advice = advice or (
                "take frames from it first, for example:"
                f" {_frames_command(root / found[0])}"
            )
            plural = "" if len(found) == 1 else "s"
            parts.append(
                f"{len(found)} {what} file{plural}, such as {found[0]} ({advice})"
            )
    return "; ".join(parts)
