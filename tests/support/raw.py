"""A small RAW file: a DNG of a Bayer sensor, as Adobe's specification 1.4 has it."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def write_dng(path: Path, colours: NDArray[np.uint8], *, orientation: int = 1) -> Path:
    """Writes linear colours [H, W, 3] RGB as an RGGB mosaic of 16 bits."""
    height, width = colours.shape[:2]
    mosaic = colours[..., 1].astype("<u2") * 257
    mosaic[::2, ::2] = colours[::2, ::2, 0].astype("<u2") * 257
    mosaic[1::2, 1::2] = colours[1::2, 1::2, 2].astype("<u2") * 257
    one = [(1, 1), (0, 1), (0, 1), (0, 1), (1, 1), (0, 1), (0, 1), (0, 1), (1, 1)]
    tags: list[tuple[int, int, list[object]]] = [
        (254, 4, [0]),
        (256, 4, [width]),
        (257, 4, [height]),
        (258, 3, [16]),
        (259, 3, [1]),
        (262, 3, [32803]),
        (271, 2, [b"Maker\0"]),
        (272, 2, [b"Model 1\0"]),
        (273, 4, [0]),  # set below
        (274, 3, [orientation]),
        (277, 3, [1]),
        (278, 4, [height]),
        (279, 4, [mosaic.nbytes]),
        (284, 3, [1]),
        (33421, 3, [2, 2]),
        (33422, 1, [0, 1, 1, 2]),
        (50706, 1, [1, 4, 0, 0]),
        (50708, 2, [b"Maker Model 1\0"]),
        (50714, 4, [0]),
        (50717, 4, [65535]),
        (50721, 10, one),
        (50728, 5, [(1, 1)] * 3),
        (50778, 3, [21]),
    ]
    codes = {1: "B", 2: "s", 3: "H", 4: "I", 5: "II", 10: "ii"}
    end = 8 + 2 + 12 * len(tags) + 4
    entries, extra = b"", b""
    place_of_pixels = 0
    for tag, kind, values in tags:
        if kind == 2:
            data = bytes(values[0])  # type: ignore[call-overload]
            count = len(data)
        else:
            data = b"".join(
                struct.pack("<" + codes[kind], *(v if isinstance(v, tuple) else (v,)))
                for v in values
            )
            count = len(values)
        if tag == 273:
            place_of_pixels = 8 + 2 + len(entries) + 8
        if len(data) > 4:
            data, extra = struct.pack("<I", end + len(extra)), extra + data
            extra += bytes(len(extra) % 2)
        entries += struct.pack("<HHI", tag, kind, count) + data.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags))
    content = bytearray(head + entries + bytes(4) + extra)
    content[place_of_pixels : place_of_pixels + 4] = struct.pack("<I", len(content))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(content) + mosaic.tobytes())
    return path
