"""SuperPoint against the fixture of its open training, and against Hugging Face's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sfmprep.config import SuperPointConfig
from sfmprep.errors import WeightsError
from sfmprep.models.extractors.superpoint import SuperPoint, SuperPointNetwork
from sfmprep.models.shared.extraction import cell_heatmaps
from tests.support.batches import batch_of
from tests.support.fixtures import filled

Arrays = Mapping[str, np.ndarray]


@pytest.fixture(scope="module")
def fixture(shared: Path) -> Arrays:
    with np.load(shared / "fixtures" / "superpoint_open" / "fixture.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def weights(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("superpoint") / "open.safetensors"
    save_file(filled(shared / "fixtures" / "superpoint_open"), path)
    return path


def extractor(weights: Path, **settings: object) -> SuperPoint:
    return SuperPoint(SuperPointConfig(weights=weights, **settings))


def pictures(images: np.ndarray) -> list[np.ndarray]:
    return [np.repeat(image[..., None], 3, axis=2) for image in images]


@pytest.mark.shared
def test_maps_equal_those_of_the_reference(fixture: Arrays, weights: Path) -> None:
    network = extractor(weights)._network
    grey = torch.from_numpy(fixture["images"]).float()[:, None] / 255
    with torch.inference_mode():
        logits, dense = network(grey)
    close = {"atol": 1e-4, "rtol": 0}
    np.testing.assert_allclose(
        logits.permute(0, 3, 1, 2)[:, ::8], fixture["logits_ch8"], **close
    )
    np.testing.assert_allclose(
        cell_heatmaps(logits), fixture["score_map"], atol=1e-5, rtol=0
    )
    np.testing.assert_allclose(
        dense.permute(0, 3, 1, 2)[:, ::16],
        fixture["dense_descriptors_ch16"],
        atol=1e-5,
        rtol=0,
    )


@pytest.mark.shared
def test_keypoints_are_those_of_the_first_round_of_the_reference(
    fixture: Arrays, weights: Path
) -> None:
    found = extractor(weights).extract(batch_of(*pictures(fixture["images"])))
    for number, features in enumerate(found):
        first = fixture[f"kp{number}/is_first_round"]
        expected = fixture[f"kp{number}/xy"][first] + 0.5
        mine = {tuple(xy): row for row, xy in enumerate(features.xy.tolist())}
        assert mine.keys() == {tuple(xy) for xy in expected.tolist()}
        rows = [mine[tuple(xy)] for xy in expected.tolist()]
        np.testing.assert_allclose(
            features.scores[rows], fixture[f"kp{number}/score"][first], atol=1e-5
        )
        np.testing.assert_allclose(
            features.descriptors[rows][:, ::8],
            fixture[f"kp{number}/descriptors_ch8"][first],
            atol=1e-5,
        )


@pytest.mark.shared
def test_the_last_rows_have_keypoints_too(fixture: Arrays, weights: Path) -> None:
    """The reference leaves out what is beyond whole cells; here it is padded."""
    picture = fixture["odd/image"]
    [features] = extractor(weights).extract(batch_of(*pictures(picture[None])))
    height, width = picture.shape
    assert features.xy[:, 1].max() > fixture["odd/xy"][:, 1].max()
    assert (features.xy < (width - 4, height - 4)).all()


@pytest.fixture(scope="module")
def reference() -> torch.nn.Module:
    """The network of v1 as Hugging Face's transformers (Apache-2.0) has it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.SuperPointConfig(
        keypoint_threshold=0.016, border_removal_distance=4
    )
    model = transformers.SuperPointForKeypointDetection(config).eval()
    for parameter in model.parameters():  # as large as keeps activations alive
        is_bias = parameter.ndim == 1
        std = 0.1 if is_bias else (2 / parameter[0].numel()) ** 0.5
        torch.nn.init.normal_(parameter, std=std)
    return model


def as_v1(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Its tensors under the names of superpoint_v1.pth."""
    heads = {"conv_score_": "P", "conv_descriptor_": "D"}
    found = {}
    for name, tensor in model.state_dict().items():
        *place, layer, kind = name.split(".")
        stem, step = layer[:-1], layer[-1]
        stage = heads.get(stem) or str(int(place[-1]) + 1)
        found[f"conv{stage}{step}.{kind}"] = tensor.contiguous()
    return found


def test_v1_equals_the_public_reimplementation(
    reference: torch.nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "v1.safetensors"
    save_file(as_v1(reference), path)
    picture = np.random.default_rng(0).integers(0, 256, (96, 128), np.uint8)
    grey = torch.from_numpy(np.repeat(picture[None, None], 3, axis=1)).float() / 255
    with torch.inference_mode():
        theirs = reference(grey)
    count = int(theirs.mask[0].sum())
    xy = (theirs.keypoints[0, :count] * torch.tensor((128, 96))).round().numpy()
    [features] = SuperPoint(
        SuperPointConfig(model="superpoint-v1", weights=path, min_score=0.016)
    ).extract(batch_of(*pictures(picture[None])))
    mine = {tuple(row): k for k, row in enumerate((features.xy - 0.5).tolist())}
    both = [k for k, row in enumerate(xy.tolist()) if tuple(row) in mine]
    assert len(both) == len(mine) > 20  # theirs are more by further rounds
    rows = [mine[tuple(xy[k].tolist())] for k in both]
    np.testing.assert_allclose(features.scores[rows], theirs.scores[0][both], atol=1e-5)
    np.testing.assert_allclose(
        features.descriptors[rows], theirs.descriptors[0][both], atol=1e-4
    )


def test_a_file_of_neither_layout_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"conv.weight": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="does not fit the network"):
        extractor(path)
    tensors = SuperPointNetwork(has_norms=True).state_dict()
    del tensors["detector.1.conv.bias"]
    save_file(tensors, path)
    with pytest.raises(WeightsError, match="detector.1.conv.bias"):
        extractor(path)
