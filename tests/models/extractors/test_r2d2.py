"""R2D2 against the fixture of its reference implementation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.spatial import cKDTree

from sfmprep.config import R2d2Config
from sfmprep.errors import WeightsError
from sfmprep.models.extractors.r2d2 import R2d2, R2d2Network
from tests.support.batches import batch_of
from tests.support.fixtures import filled

Arrays = Mapping[str, np.ndarray]


@pytest.fixture(scope="module")
def fixture(shared: Path) -> Arrays:
    with np.load(shared / "fixtures" / "r2d2" / "fixture.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def tensors(shared: Path) -> dict[str, torch.Tensor]:
    return filled(shared / "fixtures" / "r2d2", "r2d2")


@pytest.fixture(scope="module")
def weights(tensors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("r2d2") / "r2d2.safetensors"
    save_file(tensors, path)
    return path


def extractor(weights: Path, fixture: Arrays, **settings: object) -> R2d2:
    reliability, repeatability = fixture["thresholds_rel_rep"].tolist()
    return R2d2(
        R2d2Config(
            weights=weights,
            min_reliability=reliability,
            min_repeatability=repeatability,
            **settings,
        )
    )


@pytest.mark.shared
def test_maps_equal_those_of_the_reference(
    fixture: Arrays, tensors: dict[str, torch.Tensor]
) -> None:
    network = R2d2Network(32).eval()
    network.load_state_dict(tensors)
    pixels = torch.from_numpy(fixture["image"]).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        dense, repeatability, reliability = network(pixels)
        unit = torch.nn.functional.normalize(dense, dim=1)
    close = {"atol": 1e-5, "rtol": 0}
    np.testing.assert_allclose(repeatability[0], fixture["repeatability"], **close)
    np.testing.assert_allclose(reliability[0], fixture["reliability"], **close)
    np.testing.assert_allclose(
        unit[0, ::16, ::2, ::2], fixture["descriptors_ch16_step2"], **close
    )


@pytest.mark.shared
def test_keypoints_of_one_scale_are_those_of_the_reference(
    fixture: Arrays, weights: Path
) -> None:
    [features] = extractor(weights, fixture, min_size=128).extract(
        batch_of(fixture["image"][0])
    )
    height, width = fixture["image"].shape[1:3]
    expected = {
        (x + 0.5, y + 0.5)
        for y, x in fixture["detections_scale1_yx"].tolist()
        if 0 < y < height - 1 and 0 < x < width - 1  # ours have their whole window
    }
    assert {tuple(xy) for xy in features.xy.tolist()} == expected


@pytest.mark.shared
def test_keypoints_of_all_scales_are_those_of_the_reference(
    fixture: Arrays, weights: Path
) -> None:
    least = int(fixture["multiscale/min_size"])
    [features] = extractor(weights, fixture, min_size=least).extract(
        batch_of(fixture["image"][0])
    )
    xy, scale = fixture["multiscale/xys"][:, :2], fixture["multiscale/xys"][:, 2]
    # the reference leaves out the half pixel
    expected = xy + 0.5 * (scale / 32)[:, None]
    scores = fixture["multiscale/scores"]
    distance, nearest = cKDTree(expected).query(features.xy)
    assert (distance < 0.02).all()
    np.testing.assert_allclose(features.scores, scores[nearest], atol=1e-5)
    np.testing.assert_allclose(
        features.descriptors[:, ::16],
        fixture["multiscale/descriptors_ch16"][nearest],
        atol=1e-5,
    )
    # what is not here is at the border, or within a pixel of a better one
    here = set(nearest.tolist())
    size = np.array(fixture["image"].shape[2:0:-1])
    for row in set(range(len(expected))) - here:
        margin = np.minimum(expected[row], size - expected[row]).min()
        better = np.linalg.norm(expected - expected[row], axis=1)[scores > scores[row]]
        assert margin < 1.01 * scale[row] / 32 or better.min() <= 1.0


def test_the_layout_of_the_public_files_is_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for width in (32, 48):
        network = R2d2Network(width)
        state = {f"module.{k}": v for k, v in network.state_dict().items()}
        torch.save({"net": "Quad_L2Net_ConfCFS()", "state_dict": state}, tmp_path / "r")
        loaded = R2d2(R2d2Config(weights=tmp_path / "r"))._network
        assert torch.equal(loaded.sal.weight, network.sal.weight)


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "r")
    with pytest.raises(WeightsError, match="does not fit the network"):
        R2d2(R2d2Config(weights=tmp_path / "r"))
