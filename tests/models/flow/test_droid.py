"""DROID's encoders, correlation and files of weights; see also `dense_adjustment`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sfmprep.config import DroidConfig
from sfmprep.errors import WeightsError
from sfmprep.models.flow.droid import Droid
from sfmprep.models.flow.droid_network import DroidNetwork
from sfmprep.models.flow.raft_network import RaftNetwork
from tests.support.batches import batch_of
from tests.support.droid import (
    Arrays,
    assert_close,
    edges,
    official_tensors,
    read_fixture,
)


@pytest.fixture(scope="module")
def arrays(shared: Path) -> Arrays:
    return read_fixture(shared)


@pytest.fixture(scope="module")
def official(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Droid:
    path = tmp_path_factory.mktemp("droid") / "droid.pth"
    torch.save(official_tensors(shared), path)
    return Droid(DroidConfig(weights=path))


@pytest.mark.shared
def test_encoders_equal_the_reference(arrays, official) -> None:
    images = official.prepare(batch_of(*arrays["image/rgb"]))
    for name, found in (
        ("fmaps", [image.features for image in images]),
        ("net", [image.hidden for image in images]),
        ("inp", [image.context for image in images]),
    ):
        assert_close(torch.stack(found)[:, ::32], arrays[name])


@pytest.mark.shared
def test_correlation_equals_the_reference(arrays, official) -> None:
    images = official.prepare(batch_of(*arrays["image/rgb"]))
    features = torch.stack([image.features for image in images])
    between = edges(arrays)
    correlation = DroidNetwork.correlation(
        features[between.source], features[between.other]
    )
    places = torch.from_numpy(arrays["coords1_0"]).permute(0, 3, 1, 2)
    assert_close(correlation.at(places)[:, ::28], arrays["corr_0"])


@pytest.mark.shared
def test_rows_that_are_not_used_are_cut(shared, official) -> None:
    expected = official_tensors(shared)
    for name, tensor in official._network.state_dict().items():
        whole = expected[f"module.{name}"]
        has_more = name.startswith(("update.weight.2", "update.delta.2"))
        assert len(whole) == (4 if has_more else len(tensor))
        assert torch.equal(tensor, whole[: len(tensor)])


def test_of_a_pair_the_places_are_taken_over_as_they_are(tmp_path: Path) -> None:
    """What `flow` does alone, `update` does with targets that are met."""
    torch.manual_seed(0)
    path = tmp_path / "droid.pth"
    torch.save(DroidNetwork().state_dict(), path)
    made = Droid(DroidConfig(weights=path, num_iterations=3))
    rng = np.random.default_rng(0)
    images = made.prepare(batch_of(*rng.integers(0, 255, (2, 64, 80, 3), np.uint8)))
    row, column = torch.meshgrid(torch.arange(8), torch.arange(10), indexing="ij")
    grid = torch.stack((column, row), -1)[None].float()
    places, hidden = grid, None
    for _ in range(3):
        found = made.update([tuple(images)], hidden, places, places, torch.tensor([0]))
        hidden, places = found.hidden, places + found.delta.permute(0, 2, 3, 1)
    cells = 8 * (places - grid)[0].numpy()
    [(flow, sure)] = made.confident_flow([tuple(images)])
    assert flow.shape == (64, 80, 2) and sure.shape == (64, 80)
    assert ((sure > 0) & (sure < 1)).all()
    inside = flow.reshape(8, 8, 10, 8, 2)[1:-1, :, 1:-1]
    near = np.stack(
        [cells[1 + y : 7 + y, 1 + x : 9 + x] for y in (-1, 0, 1) for x in (-1, 0, 1)]
    )
    low, high = near.min(0)[:, None, :, None], near.max(0)[:, None, :, None]
    assert ((inside > low - 1e-4) & (inside < high + 1e-4)).all()
    np.testing.assert_array_equal(made.flow([tuple(images)])[0], flow)


# ---------------------------------------------------------------- files of weights
def refused(tensors: dict[str, torch.Tensor], tmp_path: Path) -> str:
    path = tmp_path / "droid.safetensors"
    save_file(tensors, path)
    with pytest.raises(WeightsError) as caught:
        Droid(DroidConfig(weights=path))
    return str(caught.value).replace(str(path), "FILE")


def test_the_file_of_another_network_is_refused(tmp_path: Path) -> None:
    told = refused(RaftNetwork(is_small=True).state_dict(), tmp_path)
    assert told.startswith(
        "weights of droid: FILE does not fit the network (Error(s) in loading"
    )
    assert told.endswith(
        "Expected the tensors of princeton-vl/DROID-SLAM; correct the key `weights` of"
        " the recipe or remove it."
    )


def test_missing_keys_are_refused(tmp_path: Path) -> None:
    tensors = DroidNetwork().state_dict()
    del tensors["update.gru.convz_glo.bias"]
    assert "update.gru.convz_glo.bias" in refused(tensors, tmp_path)


def test_a_head_with_too_few_rows_is_refused(tmp_path: Path) -> None:
    tensors = DroidNetwork().state_dict()
    tensors["update.delta.2.weight"] = tensors["update.delta.2.weight"][:1].clone()
    assert "update.delta.2.weight" in refused(tensors, tmp_path)


def test_half_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "droid.pth"
    torch.save(DroidNetwork().state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(WeightsError, match=r"droid.pth cannot be read .*good copy"):
        Droid(DroidConfig(weights=path))


def test_without_a_file_it_is_asked_for() -> None:
    with pytest.raises(WeightsError) as caught:
        Droid(DroidConfig())
    assert str(caught.value) == (
        "weights of droid are not here, and sfmprep may not fetch them:"
        " princeton-vl/DROID-SLAM states no checksum of its file. Ask its author for"
        " the file and name it in the recipe (`weights: PATH`), or put it as"
        " droid.safetensors into the folder SFMPREP_WEIGHTS names."
    )
