"""The seed cloud as the PLY file that INRIA's 3DGS, nerfstudio and Brush read.

Binary little endian; per vertex `x y z nx ny nz` as float32 and `red green blue` as
uchar. The normals are zero: the names must be there, no trainer uses the values.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap

_VERTEX = np.dtype(
    [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")]
    + [(name, "u1") for name in ("red", "green", "blue")]
)
_PLY_TYPES = {"<f4": "float", "|u1": "uchar"}


def write_ply(path: Path, model: pycolmap.Reconstruction) -> None:
    """Writes the points of `model` by ascending id; no point gives an empty cloud."""
    points = [model.points3D[i] for i in sorted(model.points3D)]
    vertices = np.zeros(len(points), _VERTEX)
    if points:
        xyz = np.array([point.xyz for point in points])
        rgb = np.array([point.color for point in points])
        vertices["x"], vertices["y"], vertices["z"] = xyz.T
        vertices["red"], vertices["green"], vertices["blue"] = rgb.T
    properties = "".join(
        f"property {_PLY_TYPES[_VERTEX[name].str]} {name}\n"
        for name in _VERTEX.names or ()
    )
    header = (
        "ply\nformat binary_little_endian 1.0\n"
        f"element vertex {len(points)}\n{properties}end_header\n"
    )
    path.write_bytes(header.encode("ascii") + vertices.tobytes())
