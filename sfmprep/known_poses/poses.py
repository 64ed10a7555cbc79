"""Known poses as arrays, and the conventions in which files hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NoReturn, get_args

import numpy as np
import pycolmap

from sfmprep.errors import ConfigError
from sfmprep.types import Float64

Axes = Literal["opencv", "opengl"]
Direction = Literal["cam_from_world", "world_from_cam"]

# x right, y up, z back, from x right, y down, z forward
_FLIP = np.diag([1.0, -1.0, -1.0])
_MAX_LENGTH_ERROR = 0.05  # of a quaternion: what few digits leave
_MAX_ROTATION_ERROR = 1e-2  # of R R^T, likewise


@dataclass(frozen=True)
class Convention:
    """How a rotation and a vector are to be read."""

    axes: Axes  # of the camera: y down and z forward, or y up and z back
    direction: Direction  # what the rotation and the vector do

    def __str__(self) -> str:
        axes = "OpenCV" if self.axes == "opencv" else "OpenGL"
        return f"{self.direction} with the axes of {axes}"


CONVENTIONS = tuple(
    Convention(axes, direction)
    for axes in get_args(Axes)
    for direction in get_args(Direction)
)


@dataclass(frozen=True, kw_only=True, eq=False)
class KnownPoses:
    """Poses of images; what their files call them is in `names`.

    A camera without a size has lengths in units of the image's longer side, and the
    principal point from its middle.
    """

    names: tuple[str, ...]
    rotations: Float64  # [N, 3, 3] as they are read
    vectors: Float64  # [N, 3]
    convention: Convention  # in which they are read
    is_told: bool  # whether the format, or the user, tells the convention
    source: str  # what the file is, for messages
    cameras: Mapping[str, pycolmap.Camera] = field(default_factory=dict)  # some images'
    turns: Float64 | None = None
    """[N, 3, 3] camera from what the pose is of, as view from panorama, both with the
    axes of OpenCV and in one place; None where the pose is that of the camera."""

    def __len__(self) -> int:
        return len(self.names)

    def cam_from_world(self) -> tuple[Float64, Float64]:
        """Rotations [N, 3, 3] camera from world, OpenCV axes, and centres [N, 3]."""
        return self.placed(self.convention)

    def placed(self, convention: Convention) -> tuple[Float64, Float64]:
        """The same, as if they were meant in another convention."""
        rotations, centres = converted(self.rotations, self.vectors, convention)
        return (rotations if self.turns is None else self.turns @ rotations), centres

    def read_as(self, axes: Axes | None, direction: Direction | None) -> KnownPoses:
        """The same, in the convention that the user tells, as far as he does."""
        return replace(self, **told(self.convention, self.is_told, axes, direction))

    def chosen(self, names: Mapping[str, str]) -> KnownPoses:
        """Those of some images, under other names: old to new, in that order."""
        row = {name: k for k, name in enumerate(self.names)}
        rows = [row[old] for old in names]
        return replace(
            self,
            names=tuple(names.values()),
            rotations=self.rotations[rows],
            vectors=self.vectors[rows],
            cameras={names[o]: c for o, c in self.cameras.items() if o in names},
            turns=None if self.turns is None else self.turns[rows],
        )


def told(
    convention: Convention,
    is_told: bool,
    axes: Axes | None,
    direction: Direction | None,
) -> dict[str, Any]:
    """The fields of poses that follow from what a user tells of their convention."""
    return {
        "convention": Convention(
            axes or convention.axes, direction or convention.direction
        ),
        "is_told": is_told or (axes is not None and direction is not None),
    }


def converted(
    rotations: Float64, vectors: Float64, convention: Convention
) -> tuple[Float64, Float64]:
    """Rotations camera from world in OpenCV axes, and centres.

    Args:
        rotations: [N, 3, 3].
        vectors: [N, 3] translations, or centres where the direction is world_from_cam.
        convention: Of both.
    """
    if convention.direction == "world_from_cam":
        turned, centres = rotations.swapaxes(1, 2), vectors
    else:
        turned, centres = rotations, -np.einsum("nji,nj->ni", rotations, vectors)
    if convention.axes == "opengl":
        turned = _FLIP @ turned
    return np.asarray(turned, np.float64), np.asarray(centres, np.float64)


def rotation_of_quaternion(wxyz: Sequence[float], where: str) -> Float64:
    """The rotation [3, 3] of a quaternion, scalar first.

    Raises:
        ConfigError: it is not finite, zero, or far from length 1.
    """
    values = np.array(wxyz, np.float64)
    length = float(np.linalg.norm(values))
    if not np.isfinite(length):
        refuse(where, "its quaternion is not four finite numbers")
    if length == 0:
        refuse(where, "its quaternion is zero, which is no rotation")
    if abs(length - 1) > _MAX_LENGTH_ERROR:
        refuse(
            where,
            f"its quaternion has the length {length:.3g}, expected 1; are the columns"
            " in another order?",
        )
    w, x, y, z = values / length
    return np.asarray(pycolmap.Rotation3d(np.array([x, y, z, w])).matrix(), np.float64)


def rotation_of_matrix(rows: object, where: str) -> Float64:
    """A matrix [3, 3] that is checked to be a rotation, its rounding taken away.

    Raises:
        ConfigError: it is not finite, not a rotation, or mirrors.
    """
    matrix = np.asarray(rows, np.float64)
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        refuse(where, "its rotation is not 3 x 3 finite numbers")
    off = float(np.abs(matrix @ matrix.T - np.eye(3)).max())
    if off > _MAX_ROTATION_ERROR:
        refuse(
            where,
            f"its matrix is no rotation: R R^T is off by {off:.2g}. Is there a scale"
            " in it?",
        )
    if np.linalg.det(matrix) < 0:
        refuse(
            where,
            "its matrix mirrors (its determinant is -1): the world or the camera is"
            " left-handed. Negate one axis of it.",
        )
    u, _, vt = np.linalg.svd(matrix)
    return np.asarray(u @ vt, np.float64)


def vector_of(numbers: object, where: str) -> Float64:
    """A vector [3] that is checked to be finite.

    Raises:
        ConfigError: it is not.
    """
    vector = np.asarray(numbers, np.float64)
    if vector.shape != (3,) or not np.isfinite(vector).all():
        refuse(where, "its position is not three finite numbers")
    return vector


def refuse(where: str, why: str) -> NoReturn:
    """Raises ConfigError: a pose cannot be used."""
    end = "" if why.endswith((".", "?")) else "."
    raise ConfigError(f"poses {where}: {why}{end}")
