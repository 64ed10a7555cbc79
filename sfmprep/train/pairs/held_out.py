"""Which training photographs no training sees: `evaluate` measures on them."""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePosixPath

_CROP = re.compile(r"_c\d+$")
_ONE_IN = 8  # 65 files, of 53 photographs, of the 687 files of ../shared/data/train


def photograph_of(name: str) -> str:
    """The photograph that a file shows or is cut from.

    `a_c1.jpg` and `a_c2.jpg` are crops of `a.jpg`; the folder and the suffix of the
    file do not count.
    """
    return _CROP.sub("", PurePosixPath(name).stem)


def is_held_out(name: str) -> bool:
    """Whether a photograph is kept aside for evaluation, by the sha256 of its name.

    All crops of a photograph are on the same side. Different photographs of one place,
    such as neighbours of an aerial survey, need not be.
    """
    digest = hashlib.sha256(photograph_of(name).encode()).digest()
    return int.from_bytes(digest[:4], "big") % _ONE_IN == 0
