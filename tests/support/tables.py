"""Tables of poses that are off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from sfmprep.evaluation.reference import CameraPose


def write_table(
    path: Path, poses: dict[str, CameraPose], *, degrees: float = 2, off: float = 0.05
) -> Path:
    """A table of poses that are off: world from camera, OpenGL axes."""
    rng = np.random.default_rng(0)
    lines = ["name,x,y,z,qw,qx,qy,qz"]
    for name, pose in poses.items():
        turn = Rotation.from_rotvec(rng.normal(0, np.radians(degrees), 3)).as_matrix()
        rotation = np.diag([1.0, -1, -1]) @ turn @ pose.rotation
        x, y, z, w = Rotation.from_matrix(rotation.T).as_quat()
        centre = pose.centre + rng.normal(0, off, 3)
        lines.append(",".join(map(str, (name, *centre, w, x, y, z))))
    path.write_text("\n".join(lines))
    return path
