"""What the tests of DROID share: its fixture, and the window that it begins with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from sfmprep.mapping.dense_adjustment import DenseWindow, Edges
from tests.support.fixtures import shared_filled

Arrays = Mapping[str, np.ndarray]
TOLERANCE = 1e-4  # of the largest value


def read_fixture(shared: Path) -> Arrays:
    """The arrays of the reference implementation."""
    with np.load(shared / "fixtures" / "droid" / "fixture.npz") as file:
        return dict(file)


def official_tensors(shared: Path) -> dict[str, torch.Tensor]:
    """Tensors by the keys of the official file, the last layers with rows to cut."""
    keys = shared / "fixtures" / "droid" / "droid_keys.json"
    found = shared_filled(keys, gain=1.0, prefix="module.")
    for layer in ("weight.2", "delta.2"):
        for kind in ("weight", "bias"):
            name = f"module.update.{layer}.{kind}"
            found[name] = torch.cat((found[name], torch.full_like(found[name], 7)))
    return found


def edges(arrays: Arrays) -> Edges:
    """Those of the fixture."""
    source, other = (torch.from_numpy(arrays[key]) for key in ("ii", "jj"))
    return Edges(source=source, other=other)


def window(arrays: Arrays, share: float = 1) -> DenseWindow:
    """That of the fixture before any step, its inverse depths times `share`."""
    poses = arrays["poses0"].astype(np.float64)
    return DenseWindow(
        rotations=torch.from_numpy(Rotation.from_quat(poses[:, 3:]).as_matrix()),
        translations=torch.from_numpy(poses[:, :3].copy()),
        inverse_depths=share * torch.from_numpy(arrays["disps0"]).double(),
        camera=torch.from_numpy(arrays["intrinsics_8"]).double(),
    )


def assert_close(mine: object, theirs: np.ndarray, share: float = TOLERANCE) -> None:
    """Equal up to a share of the largest value."""
    allowed = share * float(np.abs(theirs).max())
    np.testing.assert_allclose(np.asarray(mine), theirs, rtol=0, atol=allowed)


def assert_poses(
    mine: DenseWindow, theirs: np.ndarray, share: float = TOLERANCE
) -> None:
    """Equal to rows of translation and quaternion (x, y, z, w)."""
    poses = theirs.astype(np.float64)
    assert_close(mine.translations, poses[:, :3], share)
    assert_close(mine.rotations, Rotation.from_quat(poses[:, 3:]).as_matrix(), share)
