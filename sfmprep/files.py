"""Small files: written whole or not at all, read with an error that helps."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sfmprep.errors import StoreError


def write_text(path: Path, text: str) -> None:
    """Writes a small file whole or not at all.

    Raises:
        StoreError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, "utf-8")
        part.replace(path)
    except OSError as error:
        raise not_written(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def not_written(path: Path, error: OSError) -> StoreError:
    """The error of a file or folder that the system did not let be written."""
    return StoreError(
        f"{path} cannot be written ({error.strerror}). Give an output folder that you"
        " may write to, on a disk with free space."
    )


_NO_NAME = "standard output, or another file without a name"


def in_words(error: OSError) -> str:
    """What the system says of a file or folder, where, and what to do."""
    where = error.filename2 or error.filename or _NO_NAME
    if isinstance(where, bytes):
        where = os.fsdecode(where)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        advice = "Free some disk space"
    elif error.errno == errno.ENOENT:
        advice = "It is gone: put it back if it was moved"
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        advice = "Make its folder one that may be written to"
    else:
        advice = "See whether its disk is there and sound"
    return (
        f"{where}: {error.strerror or error}. {advice}, and run the same command again."
    )


def read_table(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise damaged(path, error) from error
    except OSError as error:
        raise not_read(path, error) from error


@contextmanager
def as_written(path: Path) -> Iterator[None]:
    """Takes what a block stumbles over in the content of a file for damage of it.

    Raises:
        StoreError: it did.
    """
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, why: object) -> StoreError:
    """The error of a small file that is not as it was written."""
    return StoreError(
        f"{path} is damaged ({why}). Delete it; the next run makes it again."
    )


def not_read(path: Path, error: OSError) -> StoreError:
    """The error of a file that is there, but that the system does not give."""
    return StoreError(
        f"{path} cannot be read ({error.strerror}). Make it readable, or see whether"
        " its disk is still there, and run again."
    )


def below(folder: Path, path: Path) -> Path:
    """Where a file lies in a folder that holds files of another machine."""
    path = path.absolute()
    return folder / path.relative_to(path.anchor)
