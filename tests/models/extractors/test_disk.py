from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from kornia.feature import DISK
from safetensors.torch import save_file

from sfmprep.config import DiskConfig
from sfmprep.errors import WeightsError
from sfmprep.models.extractors.disk import Disk
from sfmprep.types import ImageBatch


@pytest.fixture(scope="module")
def network() -> DISK:
    torch.manual_seed(0)
    return DISK().eval()


@pytest.fixture
def weights(network: DISK, tmp_path: Path) -> Path:
    path = tmp_path / "disk.safetensors"
    save_file(network.state_dict(), path)
    return path


def random_batch(size: tuple[int, int]) -> ImageBatch:
    pixels = np.random.default_rng(0).random((1, 3, size[1], size[0]), np.float32)
    return ImageBatch(pixels=pixels, sizes=np.int32([size]), orientations=np.int32([1]))


@pytest.mark.parametrize("size", [(96, 64), (91, 70)])
def test_features_are_those_of_kornia(network: DISK, weights: Path, size) -> None:
    batch = random_batch(size)
    features = Disk(DiskConfig(weights=weights)).extract(batch)[0]
    with torch.inference_mode():
        heatmap, dense = network.heatmap_and_dense_descriptors(
            torch.nn.functional.pad(
                torch.from_numpy(batch.pixels), (0, -size[0] % 16, 0, -size[1] % 16)
            )
        )
    x, y = (features.xy - 0.5).astype(int).T
    assert len(features) > 20
    np.testing.assert_array_equal(features.xy % 1, 0.5)
    np.testing.assert_allclose(features.scores, heatmap[0, 0].numpy()[y, x], atol=1e-5)
    described = dense[0].numpy()[:, y, x].T
    described /= np.linalg.norm(described, axis=1, keepdims=True)
    np.testing.assert_allclose(features.descriptors, described, atol=1e-5)

    with torch.inference_mode():
        expected = network(torch.from_numpy(batch.pixels), pad_if_not_divisible=True)
    # Versions of kornia differ at the border and in ties, not inside.
    inside = {
        (x, y)
        for x, y in expected[0].keypoints.int().tolist()
        if 2 <= x < size[0] - 2 and 2 <= y < size[1] - 2
    }
    assert set(zip(x.tolist(), y.tolist(), strict=True)) == inside


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (9, 40)])
def test_tiny_image_has_features_or_none(weights: Path, size) -> None:
    (features,) = Disk(DiskConfig(weights=weights)).extract(random_batch(size))
    assert features.image_size == size
    assert np.isfinite(features.descriptors).all()


def test_authors_checkpoint_gives_the_same_features(
    network: DISK, weights: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "depth-save.pth"
    torch.save(
        {"extractor": network.state_dict(), "optimizer": {"lr": torch.ones(1)}},
        checkpoint,
    )
    batch = random_batch((64, 48))
    first = Disk(DiskConfig(weights=weights)).extract(batch)[0]
    second = Disk(DiskConfig(weights=checkpoint)).extract(batch)[0]
    np.testing.assert_array_equal(first.xy, second.xy)
    np.testing.assert_array_equal(first.descriptors, second.descriptors)


def test_min_score_drops_lower_logits(weights: Path) -> None:
    batch = random_batch((96, 64))
    some = Disk(DiskConfig(weights=weights)).extract(batch)[0]
    threshold = float(np.median(some.scores))
    fewer = Disk(DiskConfig(weights=weights, min_score=threshold)).extract(batch)[0]
    assert 0 < len(fewer) < len(some)
    assert fewer.scores.min() > threshold


@pytest.mark.parametrize("prefix", ["", "extractor."])
def test_missing_tensor_is_named(network: DISK, tmp_path: Path, prefix: str) -> None:
    tensors = {f"{prefix}{key}": value for key, value in network.state_dict().items()}
    missing = sorted(tensors)[0]
    del tensors[missing]
    path = tmp_path / "disk.safetensors"
    save_file(tensors, path)
    with pytest.raises(WeightsError, match=missing.removeprefix(prefix)):
        Disk(DiskConfig(weights=path))
