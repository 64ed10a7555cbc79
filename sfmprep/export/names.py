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


def flat_names(names: Sequence[str]) -> dict[str, str]:
    """Maps each name to the one it is exported under, in the same order.

    A name stays if it is printable ASCII without folder, has no dot in its stem and
    ends in .jpg, .jpeg or .png. Otherwise its path is spelled in ASCII letters, with
    `-` between folders because that, unlike `_`, keeps `cam1/a` before `cam10/a`.
    If two names would then differ only in case or suffix, or the order would change,
    every name gets its number in front.

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
    suffix = path.suffix.lower()
    stem = name.removesuffix(path.suffix)
    plain = _PLAIN.fullmatch(stem) and not set(stem) & set("./\\")
    if plain and suffix in _KEPT_SUFFIXES:
        return name
    if suffix not in _KEPT_SUFFIXES:
        suffix = ".png" if suffix in _LOSSLESS else ".jpg"
    if not plain:
        stem = "-".join(_ascii(part) for part in PurePosixPath(stem).parts)
    return stem[:_MAX_STEM] + suffix


def _ascii(text: str) -> str:
    """Spells `text` with ASCII letters, digits, `-` and `_`, at least one of them."""
    spelled = unicodedata.normalize("NFC", text).translate(_SPELLED)
    decomposed = unicodedata.normalize("NFKD", spelled)
    letters = "".join(c for c in decomposed if not unicodedata.combining(c))
    return re.sub(r"[^A-Za-z0-9-]+", "_", letters)
