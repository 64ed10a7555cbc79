"""Networks of whole images against the fixtures of their originals, and their files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sfmprep.config import EigenPlacesConfig, MegaLocConfig, NetVladConfig
from sfmprep.errors import WeightsError
from sfmprep.models.build import build_retriever
from sfmprep.models.retrieval import netvlad
from sfmprep.models.retrieval.eigenplaces import EigenPlacesNetwork
from sfmprep.models.retrieval.megaloc import MegaLoc, MegaLocNetwork
from sfmprep.models.retrieval.netvlad import NetVlad, NetVladNetwork, read_mat
from sfmprep.models.shared.extraction import imagenet_normalised
from sfmprep.models.shared.vit import learned_positions
from sfmprep.weights import load_tensors
from tests.support.batches import batch_of
from tests.support.fixtures import filled

Arrays = Mapping[str, np.ndarray]
pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def fixtures(shared: Path) -> dict[str, Arrays]:
    return {
        name: dict(np.load(shared / "fixtures" / name / "fixture.npz"))
        for name in ("eigenplaces", "megaloc", "netvlad")
    }


def assert_close(found: Tensor, expected: np.ndarray, *, atol: float) -> None:
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=atol)


def relative(found: Tensor, expected: np.ndarray) -> None:
    assert_close(found, expected, atol=1e-4 * np.abs(expected).max())


def pixels_of(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32) / 255)


# ------------------------------------------------------------------------- EigenPlaces
@pytest.mark.parametrize(("depth", "dimensions"), [(18, 256), (50, 2048)])
def test_eigenplaces_equals_the_original(
    depth: int, dimensions: int, shared: Path, fixtures, tmp_path: Path
) -> None:
    fixture = fixtures["eigenplaces"]
    variant = f"ResNet{depth}"
    tensors = filled(shared / "fixtures" / "eigenplaces", f"{variant}_{dimensions}")
    network = EigenPlacesNetwork(depth, dimensions).eval()
    network.load_state_dict(tensors)
    x = imagenet_normalised(pixels_of(fixture["images"]))
    steps = {0: ("conv1", 16, 4), 4: ("layer1", 0, 4), 5: ("layer2", 0, 2)}
    steps |= {6: ("layer3", 0, 1), 7: ("layer4", 0, 1)}
    with torch.inference_mode():
        for number, layer in enumerate(network.backbone):
            x = layer(x)
            if number in steps:
                name, channels, step = steps[number]
                expected = fixture[f"{variant}/{name}"]
                channels = channels or x.shape[1] // expected.shape[1]
                relative(x[:1, ::channels, ::step, ::step], expected)
            if number == 2:
                assert x.min() == 0
        unit = torch.nn.functional.normalize(x, dim=1)
        mean = network.aggregation["1"](unit)
        assert_close(mean, fixture[f"{variant}/gem"], atol=1e-5)
        linear = network.aggregation["3"](mean)
        relative(linear[:, ::4], fixture[f"{variant}/fc_ch4"])
    path = tmp_path / "weights.safetensors"
    save_file(tensors, path)
    made = build_retriever(
        EigenPlacesConfig(model=f"eigenplaces-r{depth}-{dimensions}", weights=path)
    )
    for images, name in (("images", ""), ("portrait/image", "portrait_")):
        rows = made.embed(batch_of(*fixture[images]))
        expected = fixture[f"{variant}/{name}descriptor"]
        np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-5)


# ----------------------------------------------------------------------------- MegaLoc
@pytest.fixture(scope="module")
def megaloc(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> MegaLoc:
    path = tmp_path_factory.mktemp("megaloc") / "weights.safetensors"
    save_file(filled(shared / "fixtures" / "megaloc", "fixture"), path)
    return MegaLoc(MegaLocConfig(weights=path))


def test_megaloc_equals_the_original(megaloc: MegaLoc, fixtures) -> None:
    fixture, network = fixtures["megaloc"], megaloc._network
    seen = imagenet_normalised(pixels_of(fixture["images"]))
    with torch.inference_mode():
        backbone = network.backbone
        x = backbone.patch_embed(seen)
        assert_close(x[:, :, ::16], fixture["patch_tokens_ch16"], atol=1e-5)
        places = learned_positions(backbone.pos_embed[:, 1:], (7, 9))
        expected = fixture["position_embedding_7x9_ch16"]
        assert_close(places[:, :, ::16], expected, atol=1e-5)
        x = backbone.embedded(seen)
        assert_close(x[:1, 0, ::4], fixture["cls_at_input_ch4"], atol=1e-5)
        for number, block in enumerate(backbone.blocks):
            x = block(x)
            if number != 1:
                expected = fixture[f"tokens_block{number}_ch16"]
                assert_close(x[:, :, ::16], expected, atol=1e-5)
        token, patches = backbone(seen)
        assert_close(token[:, ::4], fixture["cls_token_ch4"], atol=1e-5)
        expected = fixture["patch_features_ch16"].reshape(2, 12, 63)
        assert_close(patches.mT[:, ::16], expected, atol=1e-5)
        transport = network.aggregator.agg
        scores = transport.scores(patches)
        assert_close(scores, fixture["scores"], atol=1e-4)
        shares = transport.log_shares(scores)
        assert_close(shares, fixture["log_transport"], atol=1e-4)
        found = transport(token, patches)
        assert_close(found, fixture["aggregated"], atol=2e-6)
    rows = megaloc.embed(batch_of(*fixture["images"]))
    np.testing.assert_allclose(rows, fixture["descriptor"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["resized", "mixed"])
def test_megaloc_resizes_as_the_original(name: str, megaloc: MegaLoc, fixtures) -> None:
    fixture = fixtures["megaloc"]
    seen = imagenet_normalised(pixels_of(fixture[f"{name}/image"]))
    resized = megaloc._network.resized(seen)[:, :, ::3, ::3]
    assert_close(resized, fixture[f"{name}/network_input_step3"], atol=1e-5)
    rows = megaloc.embed(batch_of(*fixture[f"{name}/image"]))
    np.testing.assert_allclose(rows, fixture[f"{name}/descriptor"], atol=2e-6, rtol=0)


def test_the_official_keys_of_megaloc_fit_the_network(shared: Path) -> None:
    path = shared / "fixtures" / "megaloc" / "state_dict_keys.json"
    full = {k: shape for k, (shape, _) in json.loads(path.read_text())["full"].items()}
    tensors = {key: torch.empty(shape, device="meta") for key, shape in full.items()}
    with torch.device("meta"):
        network = MegaLocNetwork(tensors)
    mine = {key: list(value.shape) for key, value in network.state_dict().items()}
    assert mine == full


def test_another_file_is_not_megaloc(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"conv.weight": torch.zeros(1)}, path)
    with pytest.raises(WeightsError) as told:
        MegaLoc(MegaLocConfig(weights=path))
    assert str(told.value) == (
        f"weights of megaloc: {path} holds another network (it lacks"
        " 'backbone.patch_embed.proj.weight'). Correct the key `weights` of the recipe"
        " or remove it."
    )


# ----------------------------------------------------------------------------- NetVLAD
@pytest.fixture(scope="module")
def netvlad_tensors(shared: Path, fixtures) -> dict[str, Tensor]:
    average = torch.from_numpy(fixtures["netvlad"]["average_image"])
    made = filled(shared / "fixtures" / "netvlad", "fixture")
    return {**made, "average_image": average}


@pytest.fixture(scope="module")
def netvlad_file(netvlad_tensors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("netvlad") / "weights.safetensors"
    save_file(netvlad_tensors, path)
    return path


def test_netvlad_equals_the_original(netvlad_file: Path, fixtures) -> None:
    fixture = fixtures["netvlad"]
    made = NetVlad(NetVladConfig(weights=netvlad_file))
    with torch.inference_mode():
        x = made._network.features(pixels_of(fixture["images"]))
        _, shares = made._network.netvlad.assigned(x)
        vlad = made._network.netvlad(x)
    relative(x[:, ::16], fixture["features_ch16"])
    assert_close(shares, fixture["soft_assignment"], atol=1e-5)
    assert_close(vlad[:, ::8], fixture["vlad_step8"], atol=1e-5)
    rows = made.embed(batch_of(*fixture["images"]))
    np.testing.assert_allclose(rows, fixture["descriptor"], rtol=0, atol=1e-5)


def test_the_authors_file_of_netvlad_is_read(
    netvlad_tensors, tmp_path: Path, monkeypatch
) -> None:
    """Laid out as MATLAB's structs are once scipy has read them."""

    def layer(*weights: np.ndarray) -> SimpleNamespace:
        return SimpleNamespace(weights=weights)

    made = {name: tensor.numpy() for name, tensor in netvlad_tensors.items()}
    layers = [layer() for _ in range(34)]
    for name in made:
        if name.startswith("backbone.") and name.endswith("weight"):
            place = int(name.split(".")[1])
            bias = made[f"backbone.{place}.bias"]
            layers[place] = layer(made[name].transpose(2, 3, 1, 0), bias)
    scores = made["netvlad.score_proj.weight"][..., 0].T
    layers[30] = layer(scores, -made["netvlad.centers"])
    layers[33] = layer(made["whiten.weight"].T, made["whiten.bias"])
    average = np.broadcast_to(made["average_image"], (224, 224, 3))
    meta = SimpleNamespace(normalization=SimpleNamespace(averageImage=average))
    net = SimpleNamespace(layers=layers, meta=meta)
    monkeypatch.setattr("scipy.io.loadmat", lambda path, **_: {"net": net})
    found = read_mat(tmp_path / "Pitts30K_struct.mat")
    assert found.keys() == netvlad_tensors.keys()
    for name, tensor in netvlad_tensors.items():
        assert torch.equal(found[name], tensor), name


def test_a_broken_file_of_netvlad_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "half.mat"
    path.write_bytes(b"MATLAB 5.0 MAT-file, broken off")
    with pytest.raises(WeightsError, match=r"half\.mat cannot be read .*Pitts30K"):
        NetVlad(NetVladConfig(weights=path))


def test_the_layers_of_netvlad_are_where_the_keys_say(netvlad_tensors) -> None:
    named = {int(k.split(".")[1]) for k in netvlad_tensors if k.startswith("backbone")}
    assert set(netvlad._conv_places()) == named
    with torch.device("meta"):
        assert NetVladNetwork(64).state_dict().keys() == netvlad_tensors.keys()


@pytest.mark.parametrize("lost", ["netvlad.centers", "average_image"])
def test_a_missing_tensor_of_netvlad_is_named(
    lost: str, netvlad_file: Path, tmp_path: Path
) -> None:
    tensors = load_tensors(SimpleNamespace(path=netvlad_file, name="netvlad"))
    del tensors[lost]
    path = tmp_path / "short.safetensors"
    save_file(tensors, path)
    with pytest.raises(WeightsError, match=f"does not fit .*{lost}"):
        NetVlad(NetVladConfig(weights=path))


def test_a_file_of_the_other_depth_is_refused(shared: Path, tmp_path: Path) -> None:
    path = tmp_path / "r18.safetensors"
    save_file(filled(shared / "fixtures" / "eigenplaces", "ResNet18_256"), path)
    with pytest.raises(WeightsError, match="does not fit the network"):
        build_retriever(EigenPlacesConfig(weights=path))
