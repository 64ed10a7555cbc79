"""Dense bundle adjustment against DROID's reference, and against known scenes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sfmprep.config import DroidConfig
from sfmprep.mapping.dense_adjustment import (
    DenseWindow,
    Edges,
    adjust_dense,
    jacobians,
    project,
)
from sfmprep.models.flow.droid import Droid
from sfmprep.models.flow.raft_network import convex_upsampled
from tests.support.batches import batch_of
from tests.support.droid import (
    Arrays,
    assert_close,
    assert_poses,
    edges,
    official_tensors,
    read_fixture,
    window,
)


@pytest.fixture(scope="module")
def arrays(shared: Path) -> Arrays:
    return read_fixture(shared)


@pytest.mark.shared
def test_places_and_jacobians_equal_the_reference(arrays) -> None:
    found = project(window(arrays), edges(arrays))
    assert_close(found.places, arrays["coords1_0"])
    np.testing.assert_array_equal(found.is_valid, arrays["valid_0"])
    derived = jacobians(window(arrays), edges(arrays))
    assert_close(derived.source[:, ::3, ::4], arrays["Ji"])
    assert_close(derived.other[:, ::3, ::4], arrays["Jj"])
    assert_close(derived.inverse_depth[:, ::3, ::4, :, None], arrays["Jz"])


@pytest.mark.shared
def test_updates_and_adjustment_in_turns_equal_the_reference(
    arrays, shared: Path, tmp_path: Path
) -> None:
    path = tmp_path / "droid.pth"
    torch.save(official_tensors(shared), path)
    droid = Droid(DroidConfig(weights=path))
    images = droid.prepare(batch_of(*arrays["image/rgb"]))
    between = edges(arrays)
    pairs = [
        (images[i], images[j]) for i, j in zip(arrays["ii"], arrays["jj"], strict=True)
    ]
    now, hidden, target = window(arrays), None, None
    for step in (0, 1):
        places = project(now, between).places
        target = places if target is None else target
        found = droid.update(pairs, hidden, places, target, between.source)
        hidden = found.hidden
        delta, weight = (each.permute(0, 2, 3, 1) for each in found[1:3])
        target = places + delta
        assert_close(hidden[:, ::32], arrays[f"hidden_{step}"])
        assert_close(delta, arrays[f"delta_{step}"])
        assert_close(weight, arrays[f"weight_{step}"])
        assert_close(found.damping, arrays[f"eta_{step}"])
        assert_close(found.mask[:, ::96], arrays[f"upmask_{step}"])
        for _ in range(2):
            now = adjust_dense(now, between, target, weight, found.damping, num_fixed=1)
        assert_poses(now, arrays[f"poses_{step}"])
        assert_close(now.inverse_depths, arrays[f"disps_{step}"])
        left = (target - project(now, between).places).abs().mean((1, 2, 3))
        assert_close(left, arrays[f"residual_{step}"])
        if step == 0:
            depths = now.inverse_depths[:, None].float()
            full = convex_upsampled(depths, found.mask)[:, 0]
            assert_close(full[:, ::8, ::8], arrays["disps_up_0"])


@pytest.mark.shared
def test_exact_targets_lead_where_they_lead_the_reference(arrays) -> None:
    target, weight = (torch.from_numpy(arrays[f"ba/{k}"]) for k in ("target", "weight"))
    now = window(arrays)
    damping = torch.full_like(now.inverse_depths, 1e-6)
    for step in range(8):
        now = adjust_dense(now, edges(arrays), target, weight, damping, num_fixed=2)
        if step in (0, 7):
            assert_poses(now, arrays[f"ba/poses_{step}"])
            assert_close(now.inverse_depths, arrays[f"ba/disps_{step}"])
    now = window(arrays, 1.1)
    for _ in range(3):
        now = adjust_dense(
            *(now, edges(arrays), target, weight, damping),
            num_fixed=1,
            with_depths=False,
        )
    # the reference adds its damping between poses too, which is a slip of it
    assert_poses(now, arrays["ba/motion_only_poses"], share=1e-3)
    assert torch.equal(now.inverse_depths, window(arrays, 1.1).inverse_depths)


# ------------------------------------------------------------------- without a fixture
def scene(num_frames: int = 4) -> tuple[DenseWindow, Edges]:
    """Frames side by side and a little turned, before hills."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return 2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1

    twist = 0.03 * noise(num_frames, 3, 3)
    shifts = 0.2 * torch.arange(num_frames)[:, None] + 0.05 * noise(num_frames, 3)
    turns = torch.linalg.matrix_exp(twist - twist.mT)
    made = DenseWindow(
        rotations=turns @ turns[0].T,
        translations=shifts - shifts[0],
        inverse_depths=0.6 + 0.3 * noise(num_frames, 6, 8),
        camera=torch.tensor([7.0, 6.5, 3.6, 2.7], dtype=torch.float64),
    )
    pairs = [(i, j) for i in range(num_frames) for j in range(num_frames) if i != j]
    rows = torch.tensor(pairs)
    return made, Edges(source=rows[:, 0], other=rows[:, 1])


def test_jacobians_are_the_differences_of_places() -> None:
    made, between = scene()
    derived, step = jacobians(made, between), 1e-6
    places = project(made, between).places
    deeper = replace(made, inverse_depths=made.inverse_depths + step)
    measured = (project(deeper, between).places - places) / step
    torch.testing.assert_close(measured, derived.inverse_depth, atol=1e-4, rtol=1e-4)
    for axis in range(6):
        matrix = torch.zeros(4, 4, dtype=torch.float64)
        if axis < 3:
            matrix[axis, 3] = step
        else:
            i, j = [(2, 1), (0, 2), (1, 0)][axis - 3]
            matrix[i, j], matrix[j, i] = step, -step
        move = torch.linalg.matrix_exp(matrix)
        for frame in range(4):
            rotations, shifts = made.rotations.clone(), made.translations.clone()
            shifts[frame] = move[:3, :3] @ shifts[frame] + move[:3, 3]
            rotations[frame] = move[:3, :3] @ rotations[frame]
            moved = replace(made, rotations=rotations, translations=shifts)
            measured = (project(moved, between).places - places) / step
            expected = torch.zeros_like(measured)
            for ends, by in (
                (between.source, derived.source),
                (between.other, derived.other),
            ):
                expected[ends == frame] += by[ends == frame][..., axis]
            torch.testing.assert_close(measured, expected, atol=1e-3, rtol=1e-4)


def test_a_scene_is_found_again_from_exact_targets() -> None:
    truth, between = scene()
    target = project(truth, between).places
    now = replace(
        truth,
        rotations=truth.rotations.clone(),
        translations=truth.translations.clone(),
        inverse_depths=torch.full_like(truth.inverse_depths, 0.6),
    )
    now.rotations[2:], now.translations[2:] = now.rotations[1], now.translations[1]
    damping = torch.zeros_like(truth.inverse_depths)
    for _ in range(300):  # poses are damped much
        now = adjust_dense(
            *(now, between, target, torch.ones_like(target), damping), num_fixed=2
        )
    torch.testing.assert_close(now.rotations, truth.rotations, atol=1e-3, rtol=0)
    torch.testing.assert_close(now.translations, truth.translations, atol=5e-3, rtol=0)
    off = (now.inverse_depths - truth.inverse_depths).abs()
    assert off.median() < 0.01


def test_what_counts_for_nothing_moves_nothing() -> None:
    truth, between = scene()
    target = project(truth, between).places + 5
    damping = torch.ones_like(truth.inverse_depths)
    nothing = torch.zeros_like(target)
    now = adjust_dense(truth, between, target, nothing, damping, num_fixed=1)
    for mine, theirs in (
        (now.rotations, truth.rotations),
        (now.translations, truth.translations),
        (now.inverse_depths, truth.inverse_depths),
    ):
        torch.testing.assert_close(mine, theirs)


def test_a_system_without_a_solution_moves_nothing() -> None:
    truth, between = scene()
    target = torch.full_like(project(truth, between).places, torch.nan)
    damping = torch.ones_like(truth.inverse_depths)
    now = adjust_dense(
        truth, between, target, torch.ones_like(target), damping, num_fixed=1
    )
    assert now is truth
