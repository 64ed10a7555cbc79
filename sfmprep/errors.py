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
from collections.abc import Iterable


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

    Of dotted keys, those that end like the word are meant before those that look alike.
    No more than `most` are named.
    """
    keys = list(known)
    last = word.rpartition(".")[2]
    ends = {key.rpartition(".")[2]: key for key in reversed(keys)}
    alike = [key for key in keys if "." in key and key.rpartition(".")[2] == last]
    close = alike[:most] or difflib.get_close_matches(word, keys, n=most)
    if not close and "." not in word:
        close = [ends[end] for end in difflib.get_close_matches(word, ends, n=most)]
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
