"""Poses by time, and the times of photographs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from sfmprep.errors import ConfigError
from sfmprep.known_poses.poses import Axes, Convention, Direction, KnownPoses, told
from sfmprep.types import Float64

_FRAME = re.compile(r"(\d+)h(\d+)m(\d+)s(\d+)")  # as frames of films are called
_NUMBER = re.compile(r"\d+(\.\d+)?")
_UNITS = {"seconds": 1.0, "milliseconds": 1e-3, "microseconds": 1e-6, "ns": 1e-9}


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    """Poses by time, in rising order; two or more."""

    times: Float64  # [N] seconds
    rotations: Float64  # [N, 3, 3] as they are read
    vectors: Float64  # [N, 3]
    convention: Convention
    is_told: bool
    path: Path

    def read_as(self, axes: Axes | None, direction: Direction | None) -> Trajectory:
        """The same, in the convention that the user tells, as far as he does."""
        return replace(self, **told(self.convention, self.is_told, axes, direction))

    def at(self, names: Sequence[str], times: Float64, offset: float) -> KnownPoses:
        """Poses at times of images, plus an offset in seconds.

        Rotations are turned evenly between two poses (slerp), and vectors moved on a
        line. Images outside of the trajectory, by more than the median of its steps,
        are left out.
        """
        wanted = times + offset
        step = float(np.median(np.diff(self.times)))
        inside = (wanted > self.times[0] - step) & (wanted < self.times[-1] + step)
        wanted = wanted[inside].clip(self.times[0], self.times[-1])
        turned = Slerp(self.times, Rotation.from_matrix(self.rotations))(wanted)
        vectors = [np.interp(wanted, self.times, v) for v in self.vectors.T]
        return KnownPoses(
            names=tuple(n for n, k in zip(names, inside, strict=True) if k),
            rotations=turned.as_matrix().reshape(-1, 3, 3),
            vectors=np.stack(vectors, axis=1),
            convention=self.convention,
            is_told=self.is_told,
            source="a trajectory",
        )


def image_times(
    names: Sequence[str], trajectory: Trajectory, offset: float | None = None
) -> Float64:
    """The times [N] of images, seconds, by their file names.

    A name is a time where it is a number, of a unit in which most of the images lie
    within the trajectory, or that of a frame of a film, such as `00h01m02s345`.

    Args:
        names: File names of images, one or more.
        trajectory: Poses by time.
        offset: Seconds that will be added; None where that is not known.

    Raises:
        ConfigError: the names are no times, or none of them lies in the trajectory.
    """
    stems = [PurePosixPath(name).stem for name in names]
    frames = [_FRAME.fullmatch(stem) for stem in stems]
    first, last = float(trajectory.times[0]), float(trajectory.times[-1])
    if all(frames):
        parts = [[int(part) for part in f.groups()] for f in frames if f]
        found = [np.array(parts, np.float64) @ [3600, 60, 1, 1e-3]]
    elif all(_NUMBER.fullmatch(stem) for stem in stems):
        found = [np.array([float(s) for s in stems]) * u for u in _UNITS.values()]
    else:
        other = next(s for s in stems if not _NUMBER.fullmatch(s))
        raise ConfigError(
            f"poses {trajectory.path} are by time, but the name of {other!r} is no"
            " time. Expected names such as 1311868169.163498.jpg, or a table with the"
            " header name,x,y,z,qw,qx,qy,qz (.csv)."
        )
    moved = [times + (offset or 0.0) for times in found]
    shares = [float(((t >= first) & (t <= last)).mean()) for t in moved]
    best = int(np.argmax(shares))
    if not shares[best]:
        times = found[0]
        raise ConfigError(
            f"poses {trajectory.path} are from {first:.3f} to {last:.3f} s, but the"
            f" images from {times.min():.3f} to {times.max():.3f} s"
            f"{f' plus {offset:g} s' if offset else ''}: no time is common to both."
            " Give a trajectory in the time base of the images, or"
            " --time-offset, which is added to the times of the images."
        )
    return np.asarray(found[best], np.float64)
