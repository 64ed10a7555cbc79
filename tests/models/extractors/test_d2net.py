"""D2-Net against the fixture of its reference implementation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.spatial import cKDTree

from sfmprep.config import D2NetConfig
from sfmprep.errors import WeightsError
from sfmprep.models.extractors.d2net import D2Net, D2NetNetwork, find_peaks
from tests.support.batches import batch_of
from tests.support.fixtures import filled

Arrays = Mapping[str, np.ndarray]


@pytest.fixture(scope="module")
def fixture(shared: Path) -> Arrays:
    with np.load(shared / "fixtures" / "d2net" / "fixture.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def tensors(shared: Path) -> dict[str, torch.Tensor]:
    return filled(shared / "fixtures" / "d2net")


@pytest.fixture(scope="module")
def weights(tensors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("d2net") / "d2net.safetensors"
    save_file(tensors, path)
    return path


@pytest.mark.shared
def test_features_and_peaks_equal_those_of_the_reference(
    fixture: Arrays, tensors: dict[str, torch.Tensor]
) -> None:
    network = D2NetNetwork().eval()
    network.load_state_dict(tensors)
    pixels = torch.from_numpy(fixture["image"]).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        dense = network(pixels)
        peaks = find_peaks(dense)
    assert list(dense.shape) == fixture["feature_shape"].tolist()
    np.testing.assert_allclose(
        dense[0, ::32], fixture["dense_features_ch32"], rtol=1e-5, atol=5e-3
    )
    _, y, x = peaks.is_peak.nonzero().unbind(1)
    expected = fixture["detections_cij"][:, 1:]
    order = np.lexsort(expected.T[::-1])
    np.testing.assert_array_equal(torch.stack((y, x), 1), expected[order])
    np.testing.assert_allclose(
        peaks.step[0, y, x],
        fixture["displacements_at_detections"][order],
        atol=1e-3,
    )


@pytest.mark.shared
@pytest.mark.parametrize("kind", ["single", "multi"])
def test_keypoints_equal_those_of_the_reference(
    fixture: Arrays, weights: Path, kind: str
) -> None:
    config = D2NetConfig(weights=weights, is_multiscale=kind == "multi")
    [features] = D2Net(config).extract(batch_of(fixture["image"]))
    y, x, inverse_scale = fixture[f"{kind}/keypoints_yxs"].T
    # its places are two pixels of the scaled image further up and left, and without
    # the half pixel
    shift = (2.5 * inverse_scale)[:, None]
    expected = np.stack((x, y), 1) + shift
    assert len(features) == len(expected)
    distance, row = cKDTree(expected).query(features.xy)
    assert (distance < 5e-3).all()
    assert len(set(row.tolist())) == len(expected)
    np.testing.assert_allclose(
        features.scores, fixture[f"{kind}/scores"][row], rtol=1e-4
    )
    np.testing.assert_allclose(
        features.descriptors[:, ::32],
        fixture[f"{kind}/descriptors_ch32"][row],
        atol=1e-5,
    )


def test_the_layout_of_the_public_files_is_read(tmp_path: Path) -> None:
    network = D2NetNetwork()
    torch.save({"model": network.state_dict(), "epoch_idx": 1}, tmp_path / "d.pth")
    loaded = D2Net(D2NetConfig(weights=tmp_path / "d.pth"))._network
    key = "dense_feature_extraction.model.21.bias"
    assert torch.equal(loaded.state_dict()[key], network.state_dict()[key])


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "d.pth")
    with pytest.raises(WeightsError, match="does not fit the network"):
        D2Net(D2NetConfig(weights=tmp_path / "d.pth"))
