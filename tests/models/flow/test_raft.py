"""RAFT against the fixtures of its reference implementation."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sfmprep.config import RaftConfig
from sfmprep.errors import WeightsError
from sfmprep.models.flow.correlation import Correlation
from sfmprep.models.flow.raft import Raft
from sfmprep.models.flow.raft_network import RaftNetwork
from tests.support.batches import batch_of

Arrays = Mapping[str, np.ndarray]
KINDS = ["small", "basic"]


@pytest.fixture(scope="module")
def fixture(shared: Path) -> Arrays:
    with np.load(shared / "fixtures" / "raft" / "fixture.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def formula(shared: Path) -> ModuleType:
    path = shared / "fixtures" / "fill_weights.py"
    spec = importlib.util.spec_from_file_location("fill_weights", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def official(formula: ModuleType, shared: Path, kind: str) -> dict[str, torch.Tensor]:
    """Tensors by the keys of the official file."""
    path = shared / "fixtures" / "raft" / f"raft_{kind}_keys.json"
    shapes = json.loads(path.read_text())
    own = {
        name.removeprefix("module."): shape
        for name, shape in shapes.items()
        if ".downsample.1." not in name
    }
    filled = formula.fill(own, 1.2)
    found = {f"module.{n}": torch.from_numpy(a) for n, a in filled.items()}
    for name in shapes:  # the norms of shortcuts, which the file has twice
        if ".downsample.1." in name:
            twin = name.replace(".downsample.1.", ".norm3.")
            found[name] = found[twin].clone()
    assert found.keys() == shapes.keys()
    return found


@pytest.fixture(scope="module")
def weights(shared: Path, formula: ModuleType, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("raft")
    paths = {}
    for kind in KINDS:
        tensors = official(formula, shared, kind)
        paths[kind] = folder / f"raft-{kind}.pth"
        torch.save(tensors, paths[kind])
    return paths


def raft(weights: Mapping[str, Path], kind: str, num_iterations: int = 4) -> Raft:
    return Raft(
        RaftConfig(
            model=f"raft-{kind}", weights=weights[kind], num_iterations=num_iterations
        )
    )


def assert_close(mine: np.ndarray | torch.Tensor, theirs: np.ndarray) -> None:
    allowed = 1e-4 * float(np.abs(theirs).max())
    np.testing.assert_allclose(np.asarray(mine), theirs, rtol=0, atol=allowed)


def both(fixture: Arrays, made: Raft, odd: str = "") -> list:
    return made.prepare(batch_of(fixture[f"image/{odd}1"], fixture[f"image/{odd}2"]))


@pytest.mark.shared
@pytest.mark.parametrize("kind", KINDS)
def test_encoders_equal_the_reference(fixture, weights, formula, kind) -> None:
    made = raft(weights, kind)
    assert fixture[f"{kind}/weights_sha256"].tobytes().decode() == formula.digest(
        {name: tensor.numpy() for name, tensor in made._network.state_dict().items()}
    )
    first, second = both(fixture, made)
    step = 32
    assert_close(first.features[::step], fixture[f"{kind}/fmap1"])
    assert_close(second.features[::step], fixture[f"{kind}/fmap2"])
    assert_close(first.context[::step], fixture[f"{kind}/cnet"])


@pytest.mark.shared
@pytest.mark.parametrize("max_bytes", [0, 1 << 30], ids=["on demand", "kept"])
@pytest.mark.parametrize("kind", KINDS)
def test_correlation_equals_the_reference(fixture, weights, kind, max_bytes) -> None:
    made = raft(weights, kind)
    first, second = both(fixture, made)
    radius = {"small": 3, "basic": 4}[kind]
    correlation = Correlation(
        first.features[None], second.features[None], radius, max_bytes=max_bytes
    )
    target = torch.from_numpy(fixture[f"{kind}/coords"])[None]
    assert_close(correlation.at(target)[0, ::7], fixture[f"{kind}/corr"])


@pytest.mark.shared
@pytest.mark.parametrize("kind", KINDS)
def test_flow_of_each_iteration_equals_the_reference(fixture, weights, kind) -> None:
    for number in range(4):
        made = raft(weights, kind, number + 1)
        [flow] = made.flow([tuple(both(fixture, made))])
        step = 2 if number == 3 else 4
        expected = fixture[f"{kind}/flow_up_{number}"]
        assert_close(flow.transpose(2, 0, 1)[:, ::step, ::step], expected)


@pytest.mark.shared
@pytest.mark.parametrize("kind", KINDS)
def test_flow_of_cells_and_a_start_equal_the_reference(fixture, weights, kind) -> None:
    made = raft(weights, kind)
    first, second = both(fixture, made)
    inputs = first.features[None], second.features[None], first.context[None]
    with torch.inference_mode():
        low, _ = made._network(*inputs, None, 4)
        assert_close(low[0], fixture[f"{kind}/flow_low"])
        start = torch.from_numpy(fixture[f"{kind}/init_flow"])[None]
        low, full = made._network(*inputs, start, 2)
        assert_close(low[0], fixture[f"{kind}/init_flow_low"])
    made = raft(weights, kind, 2)
    per_pixel = (8 * start[0]).repeat_interleave(8, 1).repeat_interleave(8, 2)
    [flow] = made.flow(
        [(first, second)], [np.ascontiguousarray(per_pixel.permute(1, 2, 0).numpy())]
    )
    assert_close(flow, full[0].permute(1, 2, 0).numpy())


@pytest.mark.shared
@pytest.mark.parametrize("kind", KINDS)
def test_sides_that_are_no_multiples_of_8_equal_the_reference(
    fixture, weights, kind
) -> None:
    made = raft(weights, kind, 3)
    [flow] = made.flow([tuple(both(fixture, made, "odd"))])
    assert flow.shape == (125, 139, 2)
    assert_close(flow.transpose(2, 0, 1)[:, ::2, ::2], fixture[f"{kind}/odd_flow"])


def test_correlations_on_demand_equal_kept_ones_anywhere() -> None:
    generator = torch.Generator().manual_seed(0)
    features, others = torch.randn(2, 2, 8, 9, 11, generator=generator)
    kept = Correlation(features, others, 3, max_bytes=1 << 20)
    on_demand = Correlation(features, others, 3, max_bytes=0)
    assert kept._volumes is not None and on_demand._volumes is None
    target = 1e3 * torch.randn(2, 2, 9, 11, generator=generator)
    target[:, :, :4] = 20 * torch.rand(2, 2, 4, 11, generator=generator) - 5
    target[0, 0, 0, 0] = 1e30
    torch.testing.assert_close(kept.at(target), on_demand.at(target))
    assert not kept.at(target)[0, :, 0, 0].any()


def test_memory_of_correlations_on_demand_grows_with_the_pixels(monkeypatch) -> None:
    """What is gathered at once stays below a limit, whatever the picture."""
    monkeypatch.setattr("sfmprep.models.flow.correlation._MAX_WINDOW_BYTES", 1 << 12)
    features, others = torch.randn(2, 1, 8, 16, 16)
    sizes = []
    einsum = torch.einsum

    def watched(text: str, *tensors: torch.Tensor) -> torch.Tensor:
        sizes.append(4 * tensors[1].numel())
        return einsum(text, *tensors)

    monkeypatch.setattr(torch, "einsum", watched)
    Correlation(features, others, 3, max_bytes=0).at(torch.zeros(1, 2, 16, 16))
    assert max(sizes) <= 1 << 12


# ---------------------------------------------------------------- files of weights
def as_torchvision(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of the network under the names of torchvision's checkpoints."""
    is_small = "update_block.mask.0.weight" not in tensors
    found = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        *_, layer, kind = parts
        number = layer[-1]
        match parts:
            case ["fnet" | "cnet" as net, *middle, _, _]:
                net = {"fnet": "feature_encoder", "cnet": "context_encoder"}[net]
                place = ".".join((net, *(p for p in middle if p != "downsample")))
                if not middle and layer == "conv2":
                    place = f"{net}.conv"
                elif "downsample" in middle:
                    place += ".downsample.0"
                elif layer == "norm3":
                    place += ".downsample.1"
                else:
                    place += ".convnormrelu" + (number if middle else "")
                    place += ".0" if layer.startswith("conv") else ".1"
            case [_, "encoder", "conv", _]:
                place = "update_block.motion_encoder.conv.0"
            case [_, "encoder", _, _]:
                word = {"c": "convcorr", "f": "convflow"}[layer[4]]
                place = f"update_block.motion_encoder.{word}{number}.0"
            case [_, "gru", _, _]:
                unit, gate = ("1", layer) if is_small else (number, layer[:-1])
                place = f"update_block.recurrent_block.convgru{unit}.{gate}"
            case [_, "mask", step, _]:
                place = "mask_predictor." + {"0": "convrelu.0", "2": "conv"}[step]
            case _:
                place = name.removesuffix(f".{kind}")
        found[f"{place}.{kind}"] = tensor
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_torchvisions_names_lead_to_the_same_network(kind, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = RaftNetwork(is_small=kind == "small").state_dict()
    theirs = as_torchvision(tensors)
    assert len(theirs) == len(tensors)
    path = tmp_path / "torchvision.safetensors"
    save_file(theirs, path)
    made = raft({kind: path}, kind)._network.state_dict()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in made.items())


def test_the_file_of_the_other_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "raft.safetensors"
    save_file(RaftNetwork(is_small=True).state_dict(), path)
    with pytest.raises(WeightsError) as caught:
        raft({"basic": path}, "basic")
    assert str(caught.value).startswith(
        f"weights of raft-basic: {path} does not fit the network (Error(s) in loading"
    )
    assert str(caught.value).endswith(
        "Expected the tensors of princeton-vl/RAFT; correct the key `weights` of the"
        " recipe or remove it."
    )


def test_missing_keys_are_refused(tmp_path: Path) -> None:
    tensors = RaftNetwork(is_small=True).state_dict()
    del tensors["update_block.gru.convz.bias"]
    path = tmp_path / "raft.safetensors"
    save_file(tensors, path)
    with pytest.raises(WeightsError, match="update_block.gru.convz.bias"):
        raft({"small": path}, "small")


def test_half_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "raft.pth"
    torch.save(RaftNetwork(is_small=True).state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(WeightsError, match=r"raft.pth cannot be read .*good copy"):
        raft({"small": path}, "small")


def test_a_norm_that_differs_from_its_twin_is_refused(tmp_path: Path) -> None:
    tensors = RaftNetwork(is_small=False).state_dict()
    name = "cnet.layer2.0.norm3.bias"
    tensors["cnet.layer2.0.downsample.1.bias"] = tensors[name] + 1
    path = tmp_path / "raft.pth"
    torch.save({f"module.{n}": tensor for n, tensor in tensors.items()}, path)
    with pytest.raises(WeightsError) as caught:
        raft({"basic": path}, "basic")
    assert str(caught.value) == (
        f"raft.pth: cnet.layer2.0.downsample.1.bias and {name} differ but expected the"
        " same norm twice; take the official file."
    )


def test_weights_are_fetched_or_asked_for() -> None:
    with pytest.raises(WeightsError, match=r"download.pytorch.org/.*-01064c6d.pth"):
        Raft(RaftConfig())
    with pytest.raises(WeightsError, match=r"princeton-vl/RAFT .*Ask its author"):
        Raft(RaftConfig(model="raft-basic"))
