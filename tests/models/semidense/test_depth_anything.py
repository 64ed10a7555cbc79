"""Depth Anything 3 against outputs of the original, and its files.

The golden numbers are of ByteDance-Seed/Depth-Anything-3 (2c21ea8, Apache-2.0) with a
backbone of 128 channels and heads of 32, weights by the formula of the shared fixtures
(gain 0.85, and 2.5 and 1 added to the bias of the fields of view), on pairs of the
picture `scene` and that moved by (6, -3). Left out are rays, given cameras, Gaussians.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sfmprep.config import DepthAnythingConfig
from sfmprep.errors import WeightsError
from sfmprep.geometry.pointmaps import focal_length
from sfmprep.models.semidense.depth_anything import DepthAnything, View
from tests.support.batches import batch_of

Arrays = Mapping[str, np.ndarray]
TOLERANCE = 1e-4  # of the largest value
SHIFTS = {"A": (0.0, 0.0), "B": (6.0, -3.0)}
RUNS = {"AB": ("AB", (56, 70)), "BA": ("BA", (56, 70)), "CD": ("AB", (84, 56))}


@pytest.fixture(scope="module")
def golden() -> Arrays:
    with np.load(Path(__file__).with_name("depth_anything_golden.npz")) as file:
        return dict(file)


@pytest.fixture(scope="module")
def recipe(shared: Path):
    path = shared / "fixtures" / "fill_weights.py"
    spec = importlib.util.spec_from_file_location("fill", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tensors(golden: Arrays, recipe) -> dict[str, Tensor]:
    keys = json.loads(golden["keys"].tobytes())
    made = recipe.fill({key: tuple(shape) for key, shape in keys.items()}, 0.85)
    made["model.cam_dec.fc_fov.0.bias"] += np.float32([2.5, 1])
    return {key: torch.from_numpy(array) for key, array in made.items()}


@pytest.fixture(scope="module")
def network(tensors, tmp_path_factory: pytest.TempPathFactory) -> DepthAnything:
    path = tmp_path_factory.mktemp("da3") / "model.safetensors"
    save_file(tensors, path)
    return DepthAnything(DepthAnythingConfig(weights=path))


def views(network: DepthAnything, recipe, names: str, size: tuple[int, int]):
    pictures = [recipe.image("scene", *size, SHIFTS[name]) for name in names]
    return [network.prepare(batch_of(picture))[0] for picture in pictures]


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.shared
@pytest.mark.parametrize("run", RUNS)
def test_depths_and_cameras_equal_those_of_the_original(
    run: str, network: DepthAnything, golden: Arrays, recipe
) -> None:
    names, size = RUNS[run]
    with torch.inference_mode():
        looks = network._look([tuple(views(network, recipe, names, size))])
    for k, look in enumerate(looks):
        assert_close(look.depth[::2, ::2].numpy(), golden[f"{run}/depth"][k])
        assert_close(look.confidence[::2, ::2].numpy(), golden[f"{run}/conf"][k])
        assert_close(look.world_from_cam.numpy(), golden[f"{run}/world_from_cam"][k])
        focal = np.array(size[::-1]) / 2 / look.tangents.numpy()
        assert_close(focal, golden[f"{run}/K"][k].diagonal()[:2])


@pytest.mark.shared
def test_points_are_in_the_first_camera(network: DepthAnything, golden, recipe) -> None:
    """Those of the first are its depths along its rays; others come by both poses."""
    first, second = network.points(*views(network, recipe, "AB", (84, 56)))
    assert_close(first.points[:, 2].reshape(84, 56)[::2, ::2], golden["CD/depth"][0])
    poses = [np.vstack((pose, (0, 0, 0, 1))) for pose in golden["CD/world_from_cam"]]
    back = np.linalg.inv(poses[1]) @ poses[0]
    own = second.points @ back[:3, :3].T + back[:3, 3]
    assert_close(own[:, 2].reshape(84, 56)[::2, ::2], golden["CD/depth"][1])
    along = first.points[:, 0] / first.points[:, 2]
    away = first.xy[:, 0] - 28
    assert along * golden["CD/K"][0, 0, 0] == pytest.approx(away, abs=1e-2)
    assert 0.3 < first.is_sure.mean() <= 0.6
    assert focal_length(first.points, first.xy - np.float32([28, 42])) > 0


@pytest.mark.shared
def test_views_may_have_different_sizes_and_are_cut_to_patches(
    network: DepthAnything, recipe
) -> None:
    picture = recipe.image("scene", 61, 79, (0.0, 0.0))
    [cut] = network.prepare(batch_of(picture))
    [same] = network.prepare(batch_of(picture[2:58, 4:74]))
    assert torch.equal(cut.tokens, same.tokens)
    [other] = network.prepare(batch_of(recipe.image("scene", 84, 56, (0.0, 0.0))))
    first, second = network.points(cut, other)
    assert len(first.xy) == 56 * 70
    assert first.xy[0].tolist() == [4.5, 2.5]
    assert len(second.xy) == 84 * 56
    assert np.isfinite(second.points).all()


@pytest.mark.shared
def test_a_batch_is_prepared_as_its_images_one_by_one(network, recipe) -> None:
    pictures = [recipe.image("scene", 56, 70, SHIFTS[name]) for name in "AB"]
    both = network.prepare(batch_of(*pictures))
    for picture, view in zip(pictures, both, strict=True):
        [alone] = network.prepare(batch_of(picture))
        assert isinstance(view, View)
        torch.testing.assert_close(view.tokens, alone.tokens, atol=1e-5, rtol=1e-5)


@pytest.mark.shared
def test_tiny_images_have_no_points(network: DepthAnything, recipe) -> None:
    [tiny] = network.prepare(batch_of(np.zeros((9, 40, 3), np.uint8)))
    assert not len(tiny)
    [view] = views(network, recipe, "A", (56, 70))
    with pytest.raises(ValueError, match="fewer than 14 pixels a side has no points"):
        network.points(view, tiny)


@pytest.mark.shared
def test_another_file_and_a_missing_key_are_named(tensors, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    config = DepthAnythingConfig(weights=path)
    save_file({"other": torch.zeros(3)}, path)
    with pytest.raises(WeightsError) as told:
        DepthAnything(config)
    assert str(told.value) == (
        f"weights of da3-base: {path} holds another network (it lacks"
        " 'backbone.pretrained.patch_embed.proj.weight'). Correct the key `weights` of"
        " the recipe or remove it."
    )
    kept = {k: v for k, v in tensors.items() if not k.endswith("blocks.7.norm1.weight")}
    save_file(kept, path)
    with pytest.raises(WeightsError, match=r"blocks\.7\.norm1\.weight"):
        DepthAnything(config)
