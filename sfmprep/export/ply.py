"""The seed cloud as the PLY file that INRIA's 3DGS, nerfstudio and Brush read.

Binary little endian; per vertex `x y z nx ny nz` as float32, `red green blue` as uchar
and `scale` as float32: the suggested standard deviation of the splat, in world units.
It is last, and not called `scale_0`, by which Brush knows the logarithms of a trained
splat; readers that do not know it pass over it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap

from sfmprep.geometry.normals import SurfaceShapes

_VERTEX = np.dtype(
    [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")]
    + [(name, "u1") for name in ("red", "green", "blue")]
    + [("scale", "<f4")]
)
_PLY_TYPES = {"<f4": "float", "|u1": "uchar"}


def write_ply(
    path: Path, model: pycolmap.Reconstruction, shapes: SurfaceShapes
) -> None:
    """Writes the points of `model` by ascending id; no point gives an empty cloud.

    Args:
        path: The file.
        model: Its points' positions and colours are written.
        shapes: Of these very points.
    """
    points = [model.points3D[i] for i in shapes.point_ids.tolist()]
    vertices = np.zeros(len(points), _VERTEX)
    if points:
        xyz = np.array([point.xyz for point in points])
        rgb = np.array([point.color for point in points])
        vertices["x"], vertices["y"], vertices["z"] = xyz.T
        vertices["nx"], vertices["ny"], vertices["nz"] = shapes.normals.T
        vertices["red"], vertices["green"], vertices["blue"] = rgb.T
        vertices["scale"] = shapes.scales
    properties = "".join(
        f"property {_PLY_TYPES[_VERTEX[name].str]} {name}\n"
        for name in _VERTEX.names or ()
    )
    header = (
        "ply\nformat binary_little_endian 1.0\n"
        f"element vertex {len(points)}\n{properties}end_header\n"
    )
    path.write_bytes(header.encode("ascii") + vertices.tobytes())
