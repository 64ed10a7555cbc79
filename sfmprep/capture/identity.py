"""What photographs and masks are, by their content: neither their place nor their time.

A folder that was copied or moved holds the same photographs; one file that was replaced
by another of equal size holds others.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sfmprep.capture.image_set import ImageSet
from sfmprep.capture.masks import mask_path
from sfmprep.devices import num_cores
from sfmprep.errors import ImageError
from sfmprep.progress import Progress, silent
from sfmprep.threads import thread_pool

_MAX_THREADS = 8
_HEX_DIGITS = 64  # of a SHA-256
_SETTLED_NS = 2_000_000_000  # the coarsest clock of a file system, FAT's


class FileDigest(NamedTuple):
    """The content of a file, and by what it is seen to be untouched; fits in JSON."""

    num_bytes: int
    mtime_ns: int  # -1 if it was so new that another change might not show
    ctime_ns: int  # which changes too where a copy brings size and time of the old file
    sha256: str

    @classmethod
    def from_json(cls, row: Sequence[Any]) -> FileDigest:
        """Reads one that was written as a list.

        One of an earlier version, which knew less of the file, tells its content alone:
        the file is read again, and found equal or not.

        Raises:
            ValueError, TypeError: it is none.
        """
        *seen, sha256 = row
        if not isinstance(sha256, str) or len(sha256) != _HEX_DIGITS:
            raise ValueError(f"{sha256!r} is no checksum")
        num_bytes, mtime_ns, ctime_ns = map(int, seen) if len(seen) == 3 else (-1,) * 3
        return cls(num_bytes, mtime_ns, ctime_ns, sha256)


def content_sha256(
    images: ImageSet,
    known: Mapping[str, FileDigest] | None = None,
    *,
    progress: Progress = silent,
) -> dict[str, FileDigest]:
    """Hashes the files of all images, in threads, but for those that did not change.

    A file whose size and times are those in `known` is not read. So the caller stores
    what is returned and passes it again; entries of other images are not taken over,
    and a copied folder with new times is hashed again and found equal.

    Args:
        images: The capture.
        known: What an earlier call returned, for whatever folder; by image name.
        progress: Wraps the loop over files.

    Returns:
        By image name, in the order of `images.names`.

    Raises:
        ImageError: a file cannot be read.
    """
    paths = {name: images.path(name) for name in images.names}
    return files_sha256(paths, known, progress=progress)


def masks_sha256(
    images: ImageSet,
    known: Mapping[str, FileDigest] | None = None,
    *,
    progress: Progress = silent,
) -> dict[str, FileDigest]:
    """Hashes the mask files as `content_sha256` does the images.

    Returns:
        By the name of the image, for those that have a mask file; none without a mask
        root. Transparency is part of the image's own content.

    Raises:
        ImageError: a file cannot be read.
    """
    found = {name: mask_path(images, name) for name in images.names}
    paths = {name: path for name, path in found.items() if path is not None}
    return files_sha256(paths, known, progress=progress)


def signature(digests: Mapping[str, FileDigest]) -> str:
    """One SHA-256 of all names and contents, in whatever order; also of none."""
    content = sorted((name, digest.sha256) for name, digest in digests.items())
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def masks_signature(images: ImageSet) -> str | None:
    """A checksum of the content of all masks; None without a mask root.

    Raises:
        ImageError: a mask cannot be read.
    """
    return None if images.mask_root is None else signature(masks_sha256(images))


def files_sha256(
    paths: Mapping[str, Path],
    known: Mapping[str, FileDigest] | None = None,
    *,
    progress: Progress = silent,
) -> dict[str, FileDigest]:
    """Hashes files as `content_sha256` does those of images, by whatever name.

    Raises:
        ImageError: a file cannot be read.
    """
    known = known or {}
    num_threads = min(num_cores(), _MAX_THREADS)
    with thread_pool(num_threads, "sfmprep-identity") as pool:
        digests: Iterable[FileDigest] = pool.map(
            lambda item: _digest(item[1], known.get(item[0])), paths.items()
        )
        found = progress(digests, desc="identify", total=len(paths))
        return dict(zip(paths, found, strict=True))


def _digest(path: Path, known: FileDigest | None) -> FileDigest:
    try:
        with path.open("rb", buffering=0) as file:
            # before the bytes, so that a change meanwhile shows the next time
            stat, now = os.fstat(file.fileno()), time.time_ns()
            seen = stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
            if known is not None and known[:3] == seen:
                return known
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ImageError(
            f"{path}: the file cannot be read: {error.strerror}"
        ) from error
    size, modified, changed = seen
    settled = now - modified > _SETTLED_NS
    return FileDigest(size, modified if settled else -1, changed, sha256)
