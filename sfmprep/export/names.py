"""Names that every trainer can read: flat, ASCII, unique and in the same order.

Trainers sort files by name, look masks up by stem, and some cut a name at its first
dot; sub-folders are dropped by some and kept by others.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from pathlib import PurePosixPath

_PLAIN = re.compile(r"[ -~]+")
_LOSSLESS = {".png", ".tif", ".tiff", ".bmp"}
_KEPT_SUFFIXES = {".jpg", ".jpeg", ".png"}
_SPELLED = str.maketrans(
    {"ä": "ae", "ö": "oe", "ü": "ue", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue", "ß": "ss"}
)
_MAX_STEM = 200  # file systems stop at 255 bytes
# Folders and a second suffix, and what Windows refuses (Microsoft, "Naming Files,
# Paths, and Namespaces").
_UNSAFE = set('./\\<>:"|?*')
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9]) *", re.IGNORECASE)


def flat_names(names: Sequence[str]) -> dict[str, str]:
    """Maps each name to the one it is exported under, in the same order.

    A name stays if it is printable ASCII without folder, has no dot in its stem, ends
    in .jpg, .jpeg or .png, is no longer than 200 characters and can be a file's name on
    Windows. Otherwise its path is spelled in ASCII letters, with `-` between folders
    because that, unlike `_`, keeps `cam1/a` before `cam10/a`; a device of Windows, such
    as `aux`, gets `_` behind it. If two names would then differ only in case or suffix,
    or the order would change, every name gets its number in front.

    Args:
        names: Sorted unique POSIX paths; may be empty.
    """
    flat = [_flat(name) for name in names]
    stems = {PurePosixPath(name).stem.lower() for name in flat}
    if len(stems) < len(flat) or any(a >= b for a, b in pairwise(flat)):
        digits = max(4, len(str(len(flat))))
        flat = [f"{i:0{digits}d}_{name}" for i, name in enumerate(flat, 1)]
    return dict(zip(names, flat, strict=True))


def _flat(name: str) -> str:
    path = PurePosixPath(name)
    stem, suffix = name.removesuffix(path.suffix), path.suffix
    plain = _PLAIN.fullmatch(stem) and not set(stem) & _UNSAFE
    if not plain:
        stem = "-".join(_ascii(part) for part in PurePosixPath(stem).parts)
    if _DEVICE.fullmatch(stem):
        stem += "_"
    if suffix.lower() not in _KEPT_SUFFIXES:
        suffix = ".png" if suffix.lower() in _LOSSLESS else ".jpg"
    return stem[:_MAX_STEM] + (suffix if plain else suffix.lower())


def _ascii(text: str) -> str:
    """Spells `text` with ASCII letters, digits, `-` and `_`, at least one of them."""
    spelled = unicodedata.normalize("NFC", text).translate(_SPELLED)
    decomposed = unicodedata.normalize("NFKD", spelled)
    letters = "".join(c for c in decomposed if not unicodedata.combining(c))
    return re.sub(r"[^A-Za-z0-9-]+", "_", letters)
