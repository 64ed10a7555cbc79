"""Training of the compact features, on a few small pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sfmprep.config import CompactConfig
from sfmprep.errors import StoreError
from sfmprep.models.extractors.compact import Compact, soft_offset
from sfmprep.models.extractors.compact_network import CompactNetwork
from sfmprep.train.checkpoints import load
from sfmprep.train.extractor import adaptation
from sfmprep.train.extractor import train as extractor
from sfmprep.train.extractor.data import Batch, fit_basis, make_batch, project
from sfmprep.train.extractor.train import export_extractor, losses, train_extractor
from sfmprep.train.pairs.photographs import Photographs
from sfmprep.train.pairs.views import draw_gaussians
from sfmprep.types import Features, ImageBatch
from sfmprep.weights import ResolvedWeights, file_sha256
from tests.support.adapted import adapted
from tests.support.records import features
from tests.support.run_logs import read_log
from tests.support.textures import texture


@pytest.fixture(scope="module")
def batch() -> Batch:
    photographs = [texture(k) for k in range(2)]
    teachings = [adapted(k, p) for k, p in enumerate(photographs)]
    return make_batch(
        np.random.default_rng(0), photographs, teachings, num_pairs=2, size=96
    )


def test_places_of_a_pair_are_the_same_place(batch: Batch) -> None:
    for number, (rows0, rows1) in enumerate(batch.pairs):
        assert len(rows0) > 5
        assert (batch.view[rows0] == 2 * number).all()
        assert (batch.view[rows1] == 2 * number + 1).all()
        torch.testing.assert_close(batch.descriptors[rows0], batch.descriptors[rows1])


def test_target_is_highest_at_the_places(batch: Batch) -> None:
    whole = batch.xy.round().long()
    at = batch.target[batch.view, whole[:, 1], whole[:, 0]]
    assert (at >= 0.6 * batch.repeatability).all()
    assert batch.target.max() <= 1


def test_steps_lower_each_loss(batch: Batch) -> None:
    torch.manual_seed(0)
    network = CompactNetwork().train()
    temperature = torch.nn.Parameter(torch.tensor(2.7))
    optimiser = torch.optim.AdamW([*network.parameters(), temperature], lr=2e-3)
    of = (replace(batch, jitter=torch.zeros_like(batch.xy)),)
    before = {k: v.detach() for k, v in losses(network, temperature, *of).items()}
    for _ in range(60):
        optimiser.zero_grad()
        sum(losses(network, temperature, *of).values()).backward()
        optimiser.step()
    after = {k: v.detach() for k, v in losses(network, temperature, *of).items()}
    assert after.keys() == {"score", "position", "teacher", "contrast"}
    for name in after:
        assert after[name] < 0.95 * before[name], name


def test_gradients_reach_what_they_should(batch: Batch) -> None:
    network = CompactNetwork().train()
    temperature = torch.nn.Parameter(torch.tensor(2.7))
    still = replace(batch, jitter=torch.zeros_like(batch.xy))
    found = losses(network, temperature, still)

    def reached(name: str) -> set[str]:
        network.zero_grad()
        found[name].backward(retain_graph=True)
        return {
            key.split(".")[0]
            for key, value in network.named_parameters()
            if value.grad is not None and value.grad.abs().sum() > 0
        }

    encoder = {"stem", "block2", "block4", "block8", "block16", "lateral", "fusion"}
    heads = {"context", "detail", "score_head"}
    assert reached("score") == encoder | heads
    assert reached("position") == encoder | heads
    assert reached("teacher") == encoder | {"describer"}
    assert reached("contrast") == encoder | {"describer"}


def test_soft_offset_of_a_sharp_peak_is_its_place() -> None:
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    logits = -((x - 4.3) ** 2 + (y - 3.8) ** 2) / (2 * 0.5**2)
    at = torch.tensor([4]), torch.tensor([4])
    found = soft_offset(logits[None], torch.tensor([0]), *at)
    torch.testing.assert_close(found, torch.tensor([[0.3, -0.2]]), atol=0.04, rtol=0)


def test_folded_network_gives_the_same(batch: Batch) -> None:
    network = CompactNetwork()
    network(batch.images)  # running statistics
    network.eval()
    image, xy = batch.view, batch.xy
    with torch.no_grad():
        before = network(batch.images)
        described = network.describe(before, image, xy)
        network.prepare(torch.float32)
        after = network(batch.images)
        torch.testing.assert_close(after.logits, before.logits, atol=1e-4, rtol=1e-4)
        again = network.describe(after, image, xy)
        torch.testing.assert_close(again, described, atol=1e-4, rtol=1e-4)


# -------------------------------------------------------------------- the whole loop
@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of photographs and of what a teacher, who is not here, says of them."""
    import cv2

    folder = tmp_path / "photographs"
    folder.mkdir()
    for k in range(6):
        cv2.imwrite(str(folder / f"{k}.png"), texture(k, (160, 120)))
    monkeypatch.setattr(extractor, "adapt", _say_something)
    return folder


def _say_something(photographs: object, path: Path, **_: object) -> bool:
    from sfmprep.coords import colmap_from_centre
    from sfmprep.stores.tables import FeatureStore
    from sfmprep.types import Features

    with FeatureStore(path, {"teacher": "none"}) as store:
        for k, name in enumerate(photographs.names):  # type: ignore[attr-defined]
            if name in store:
                continue
            said = adapted(k, photographs[k])  # type: ignore[index]
            wide = np.pad(said.descriptors, ((0, 0), (0, 64)))
            features = Features(
                xy=colmap_from_centre(said.xy),
                scores=said.repeatability,
                descriptors=wide,
                image_size=(160, 120),
            )
            store.append([(name, features)])
    return True


def train(data: Path, out: Path, steps: int, **more: object) -> int:
    return train_extractor(
        data=data, out=out, minutes=5, num_pairs=1, size=64, max_steps=steps, **more
    )


def test_a_cut_run_equals_an_uncut_one(data: Path, tmp_path: Path) -> None:
    assert train(data, tmp_path / "whole", 4) == 4
    assert train(data, tmp_path / "cut", 2) == 2
    assert train(data, tmp_path / "cut", 4) == 4
    whole, cut = (load(tmp_path / name / "extractor.pt") for name in ("whole", "cut"))
    assert whole is not None and cut is not None
    for part in ("network", "mean"):
        for name, value in whole[part].items():
            torch.testing.assert_close(cut[part][name], value, atol=1e-6, rtol=1e-5)


def test_exported_weights_extract(data: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="Train the extractor first"):
        export_extractor(tmp_path / "extractor.pt", tmp_path / "w.safetensors")
    train(data, tmp_path, 2)
    path = tmp_path / "w.safetensors"
    export_extractor(tmp_path / "extractor.pt", path)
    assert path.stat().st_size < 1_500_000
    compact = Compact(CompactConfig(weights=path, min_score=0))
    pixels = texture(1, (96, 64)).transpose(2, 0, 1)[None].astype(np.float32) / 255
    [features] = compact.extract(
        ImageBatch(
            pixels=pixels,
            sizes=np.array([[96, 64]], np.int32),
            orientations=np.ones(1, np.int32),
        )
    )
    assert len(features) > 10
    rows = read_log(tmp_path / "extractor.jsonl")
    assert {"contrast", "steps_per_s"} <= rows[-1].keys()


def test_losses_of_r2d2_are_added_and_remembered(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    train(data, tmp_path / "first", 1)
    export_extractor(tmp_path / "first" / "extractor.pt", path)
    both = ("reliability", "repeatability")
    assert train(data, tmp_path / "more", 1, init=path, also=both) == 1
    rows = read_log(tmp_path / "more" / "extractor.jsonl")
    assert set(both) <= rows[-1].keys()
    assert not set(both) & read_log(tmp_path / "first" / "extractor.jsonl")[-1].keys()
    digest = file_sha256(path)
    with pytest.raises(StoreError) as caught:
        train(data, tmp_path / "more", 2, init=path)
    assert str(caught.value) == (
        f"{tmp_path / 'more' / 'extractor.pt'} began with {{'init_sha256': '{digest}',"
        " 'also': ['reliability', 'repeatability']}, but this call has"
        f" {{'init_sha256': '{digest}', 'also': []}}. Go on with the same weights and"
        " losses, or train into another folder."
    )


def test_the_teacher_is_turned_to_the_descriptors_that_training_starts_from() -> None:
    torch.manual_seed(0)
    network = CompactNetwork().eval()
    photographs = [texture(k, (96, 64)) for k in range(3)]
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(128, 64)))
    told = []
    for photograph in photographs:
        rng = np.random.default_rng(len(told))
        xy = rng.uniform(8, (88, 56), (60, 2)).astype(np.float32)
        pixels = torch.from_numpy(photograph.transpose(2, 0, 1).copy())[None] / 255
        with torch.no_grad():
            own = network.describe(
                network(pixels), torch.zeros(60).long(), torch.from_numpy(xy)
            )
        told.append(
            Features(
                xy=xy + np.float32(0.5),
                scores=np.ones(60, np.float32),
                descriptors=(own.numpy() @ turn.T).astype(np.float32),
                image_size=(96, 64),
            )
        )
    basis = fit_basis(network, photographs, told)
    np.testing.assert_allclose(basis.T @ basis, np.eye(64), atol=1e-4)
    said = project(told[0], basis).descriptors
    np.testing.assert_allclose(said, told[0].descriptors @ turn, atol=1e-3)


def test_adaptation_puts_repeated_places_where_they_are() -> None:
    size = (64, 48)
    xy = np.array([[20.3, 30.8], [50.0, 10.0]], np.float32)
    heights = np.array([1.0, 0.5], np.float32)
    heat = draw_gaussians(xy, heights, size, sigma=1.0, radius=3)
    found, heights = adaptation._peaks(torch.from_numpy(heat))
    np.testing.assert_allclose(found, xy, atol=0.02)
    np.testing.assert_allclose(heights, [0.93, 0.5], atol=0.05)


def test_an_adaptation_goes_on_and_refuses_another_seed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = ResolvedWeights(name="aliked-n16", path=tmp_path, sha256="0" * 64)
    monkeypatch.setattr(adaptation, "resolve_weights", lambda _: weights)
    for name in ("load_tensors", "load_strict"):
        monkeypatch.setattr(adaptation, name, lambda *_: None)
    seen: list[int] = []

    def teach(_: object, photograph: np.ndarray, *rest: object) -> Features:
        seen.append(len(photograph))
        return features(len(seen))

    monkeypatch.setattr(adaptation, "adapt_photograph", teach)
    photographs, path = Photographs(data), tmp_path / "adapted.h5"
    assert not adaptation.adapt(photographs, path, end=0)
    assert adaptation.adapt(photographs, path) and adaptation.adapt(photographs, path)
    assert len(seen) == len(photographs)
    with pytest.raises(StoreError) as caught:
        adaptation.adapt(photographs, path, seed=1)
    assert str(caught.value) == (
        f"{path} was made with other settings: seed is 0 there and 1 now. Choose"
        " another output folder, or delete the file."
    )
