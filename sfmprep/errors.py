"""What can go wrong, as types.

    SfmprepError                 exit code 1
    ├── ConfigError              exit code 2: the call or the recipe is wrong
    ├── ImageError               a photograph cannot be used
    ├── StoreError               a store is damaged, busy or made otherwise
    ├── WeightsError             weights are missing or not what they should be
    ├── DeviceError              a device is too small, or a process on it failed
    └── ReconstructionError      COLMAP found no model, or none worth exporting

Every message says what happened, where, what was expected and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class SfmprepError(Exception):
    """The root of all errors that sfmprep raises on purpose."""

    exit_code = 1


class ConfigError(SfmprepError):
    """A recipe, an option or an argument is wrong."""

    exit_code = 2


class ImageError(SfmprepError):
    """An image, or the folder of images, cannot be used."""


class StoreError(SfmprepError):
    """A store is damaged, in use, full, or was made with another configuration."""


class WeightsError(SfmprepError):
    """Weights are missing, cannot be fetched, or are not the expected ones."""


class DeviceError(SfmprepError):
    """A device, such as a GPU, has too little memory, or its process failed."""


class ReconstructionError(SfmprepError):
    """No camera poses could be found from the matches."""


def did_you_mean(word: str, known: Iterable[str], *, most: int = 1) -> str:
    """The end of a message about a wrong word: ` Did you mean 'this'?`, or nothing.

    Of dotted keys, those that end like the word are meant before those of its section,
    and those before all that look alike. No more than `most` are named.
    """
    keys = list(known)
    section, _, last = word.rpartition(".")
    # of an end that several keys have, the first
    ends = {key.rpartition(".")[2]: key for key in reversed(keys)}
    inside = [key for key in keys if section and key.rpartition(".")[0] == section]
    close = [key for key in keys if "." in key and key.rpartition(".")[2] == last]
    close = close or [
        f"{section}.{end}"
        for end in _close(last, [key.rpartition(".")[2] for key in inside], most)
    ]
    close = close or _close(word, keys, most)
    if not section:
        close = close or [ends[end] for end in _close(word, list(ends), most)]
    close = close[:most]
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def _close(word: str, known: Sequence[str], most: int) -> list[str]:
    return difflib.get_close_matches(word, known, n=most)
