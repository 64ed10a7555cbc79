"""The photographs that training makes its views of, and those that are kept aside."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import overload

import cv2
import numpy as np

from sfmprep.errors import ImageError
from sfmprep.types import Bytes

Photograph = Bytes  # [H, W, 3] RGB

_SUFFIXES = {".jpg", ".jpeg", ".png"}
_CROP = re.compile(r"_c\d+$")
_ONE_IN = 8  # 65 files, of 53 photographs, of the 687 files of ../shared/data/train


class Photographs(Sequence[Photograph]):
    """A folder of photographs, decoded into memory in the order of their names.

    Those kept aside for the evaluation are left out.

    Args:
        folder: Where they lie, at any depth.
        max_size: Longer side in pixels that larger ones are reduced to.
        held_out: Whether to read only those kept aside, instead.

    Raises:
        ImageError: the folder holds none, or one cannot be read.
    """

    def __init__(
        self, folder: Path, *, max_size: int = 640, held_out: bool = False
    ) -> None:
        paths = sorted(
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in _SUFFIXES and is_held_out(path.name) == held_out
        )
        if not paths:
            raise ImageError(
                f"{folder} holds no photograph (*.jpg, *.png) to train with."
                " Name a folder that does."
            )
        self.max_size = max_size
        self.names = tuple(path.relative_to(folder).as_posix() for path in paths)
        self._pixels = [_read(path, max_size) for path in paths]

    def __len__(self) -> int:
        return len(self._pixels)

    @overload
    def __getitem__(self, index: int) -> Photograph: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Photograph]: ...
    def __getitem__(self, index: int | slice) -> Photograph | Sequence[Photograph]:
        return self._pixels[index]


def _read(path: Path, max_size: int) -> Photograph:
    data = np.frombuffer(path.read_bytes(), np.uint8)
    pixels = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if data.size else None
    if pixels is None:
        raise ImageError(
            f"{path} cannot be decoded; delete it or put a good copy there"
        )
    factor = max_size / max(pixels.shape[:2])
    if factor < 1:
        pixels = cv2.resize(
            pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA
        )
    return pixels.astype(np.uint8, copy=False)


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
