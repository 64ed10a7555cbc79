from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from sfmprep.config import XFeatConfig
from sfmprep.errors import WeightsError
from sfmprep.models.extractors.xfeat import XFeat, XFeatNetwork
from sfmprep.types import ImageBatch


class BrightPixelNetwork(torch.nn.Module):
    """Stands in for the network: its heat map is the picture itself."""

    def forward(self, grey: torch.Tensor) -> tuple[torch.Tensor, ...]:
        cells = F.pixel_unshuffle(20 * grey, 8)
        logits = torch.cat([cells, 10 + 0 * cells[:, :1]], dim=1)
        maps = cells, logits, torch.ones_like(cells[:, :1])
        return tuple(each.permute(0, 2, 3, 1) for each in maps)


def batch_of(image: np.ndarray) -> ImageBatch:
    """One picture [H, W, 3] in 0..1."""
    return ImageBatch(
        pixels=image.astype(np.float32).transpose(2, 0, 1)[None],
        sizes=np.int32([[image.shape[1], image.shape[0]]]),
        orientations=np.int32([1]),
    )


def random_weights(path: Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    tensors = XFeatNetwork().state_dict()
    save_file(tensors, path)
    return tensors


def kornia_features(
    weights: Path, batch: ImageBatch, config: XFeatConfig
) -> dict[str, np.ndarray]:
    kornia = pytest.importorskip("kornia.feature.xfeat", reason="kornia >= 0.9")
    model = kornia.XFeat(config.max_keypoints, config.min_score)
    model.net.load_state_dict(load_file(weights))
    found = model.eval().detectAndCompute(torch.from_numpy(batch.pixels))[0]
    return {key: value.numpy() for key, value in found.items()}


@pytest.mark.shared
@pytest.mark.parametrize("size", [(640, 416), (611, 407)])
def test_features_are_those_of_kornia(real_weights: Path, shared: Path, size) -> None:
    photo = cv2.imread(str(shared / "data/scenes/fountain-P11/images/0005.jpg"))
    photo = cv2.resize(photo[..., ::-1] / 255.0, size, interpolation=cv2.INTER_AREA)
    batch, config = batch_of(photo), XFeatConfig()
    features = XFeat(config).extract(batch)[0]
    expected = kornia_features(real_weights / "xfeat.safetensors", batch, config)

    # kornia multiplies the integer keypoint, this adapter the centre of its pixel.
    inner = np.array([side // 32 * 32 for side in size])
    cells = np.rint(features.xy * inner / size - 0.5).astype(int)
    expected_cells = np.rint(expected["keypoints"] * inner / size).astype(int)
    np.testing.assert_allclose(features.xy, (cells + 0.5) * size / inner, atol=1e-3)

    index = {tuple(cell): row for row, cell in enumerate(expected_cells)}
    assert {tuple(cell) for cell in cells} == set(index)
    rows = [index[tuple(cell)] for cell in cells]
    np.testing.assert_allclose(features.scores, expected["scores"][rows], atol=1e-4)
    cosine = (features.descriptors * expected["descriptors"][rows]).sum(1)
    assert cosine.min() > 0.999


@pytest.mark.shared
def test_half_precision_backbone_finds_the_same_features(
    real_weights: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = cv2.imread(str(shared / "data/scenes/fountain-P11/images/0005.jpg"))
    photo = cv2.resize(photo, (320, 208), interpolation=cv2.INTER_AREA) / 255.0
    expected = XFeat(XFeatConfig()).extract(batch_of(photo))[0]
    prepare = XFeatNetwork.prepare
    monkeypatch.setattr(
        XFeatNetwork, "prepare", lambda self, _: prepare(self, torch.float16)
    )
    half = XFeat(XFeatConfig()).extract(batch_of(photo))[0]
    # The keypoint head stays in float32, so positions do not move at all.
    rows = {tuple(xy): row for row, xy in enumerate(half.xy.tolist())}
    row = [rows[tuple(xy)] for xy in expected.xy.tolist()]
    assert len(rows) == len(half) == len(expected) > 100
    np.testing.assert_allclose(half.scores[row], expected.scores, atol=0.005)
    assert (half.descriptors[row] * expected.descriptors).sum(1).min() > 0.9995


@pytest.mark.parametrize("size", [(320, 256), (333, 270)])
def test_peak_of_the_heat_map_is_at_its_pixel_centre(tmp_path: Path, size) -> None:
    random_weights(tmp_path / "xfeat.safetensors")
    extractor = XFeat(
        XFeatConfig(weights=tmp_path / "xfeat.safetensors", min_score=0.3)
    )
    extractor._network = BrightPixelNetwork()
    # A dot drawn in the resized picture, so that it has its maximum at a pixel there.
    inner = (320, 256)
    column, row = np.meshgrid(np.arange(13, 310, 23), np.arange(13, 246, 23))
    centres = np.column_stack([column.flat, row.flat]) + 0.5
    x, y = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
    x, y = x * inner[0] / size[0], y * inner[1] / size[1]
    image = sum(np.exp(-((x - c) ** 2 + (y - r) ** 2) / 2) for c, r in centres)
    xy = extractor.extract(batch_of(np.repeat(image[..., None], 3, axis=2)))[0].xy
    expected = centres * size / np.array(inner)
    distance = np.linalg.norm(xy[None] - expected[:, None], axis=2)
    assert len(xy) == len(expected)
    np.testing.assert_allclose(distance.min(1), 0, atol=1e-3)


def test_image_smaller_than_the_network_is_enlarged(tmp_path: Path) -> None:
    random_weights(tmp_path / "xfeat.safetensors")
    config = XFeatConfig(weights=tmp_path / "xfeat.safetensors", min_score=0.0)
    image = np.random.default_rng(0).random((20, 27, 3))
    features = XFeat(config).extract(batch_of(image))[0]
    assert len(features) > 0
    assert (features.xy < (27, 20)).all()


def test_tensors_of_the_fine_matcher_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "xfeat.safetensors"
    tensors = random_weights(path)
    save_file(tensors | {"fine_matcher.0.weight": torch.zeros(2)}, path)
    XFeat(XFeatConfig(weights=path))


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    path = tmp_path / "xfeat.safetensors"
    tensors = random_weights(path)
    del tensors["block3.1.layer.0.weight"]
    save_file(tensors, path)
    with pytest.raises(WeightsError, match=r"block3\.1\.layer\.0\.weight"):
        XFeat(XFeatConfig(weights=path))


def test_unknown_tensor_is_named(tmp_path: Path) -> None:
    path = tmp_path / "xfeat.safetensors"
    tensors = random_weights(path)
    save_file(tensors | {"block9.weight": torch.zeros(2)}, path)
    with pytest.raises(WeightsError, match=r"block9\.weight"):
        XFeat(XFeatConfig(weights=path))
