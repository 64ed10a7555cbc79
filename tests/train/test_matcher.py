"""The matcher's losses, gradients, start, interruptions and export."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sfmprep.config import LightGlueConfig
from sfmprep.errors import ConfigError, ReconstructionError, StoreError
from sfmprep.models.matchers.lightglue import LightGlue
from sfmprep.models.matchers.lightglue_network import LightGlueShape
from sfmprep.train import checkpoints
from sfmprep.train.matcher import data as matcher_data
from sfmprep.train.matcher import session as matcher_training
from sfmprep.train.matcher import train as matcher
from sfmprep.train.matcher.assignment import (
    Assignment,
    assignment_loss,
    confidence_loss,
    decisions,
    layer_loss,
)
from sfmprep.train.matcher.data import (
    PairBatches,
    make_batch,
    read_capture,
    sample_pair,
)
from sfmprep.train.matcher.session import AssignmentTraining, ConfidenceTraining
from sfmprep.train.matcher.train import export_weights, train_matcher
from sfmprep.train.matcher.validation import (
    mutual_best,
    nearest_neighbours,
    validate,
)
from sfmprep.train.network import Keypoints, PairBatch, build_network, layer_tokens
from sfmprep.train.pairs.photographs import is_held_out
from sfmprep.train.pairs.views import Views
from sfmprep.types import Features, ImageBatch
from tests.support.run_logs import read_log

SIZE = 96
SMALL = LightGlueShape(input_dim=64, dim=64, num_heads=2, num_layers=3)
SINKHORN = replace(SMALL, head="sinkhorn")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Few pairs, and one thread: small networks mostly wait for others."""
    monkeypatch.setattr(matcher, "_VALIDATION_PAIRS", 2)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Corners:
    """Corners, described by the 8 by 8 pixels around them."""

    batch_size = 4
    identity = {"weights_sha256": None}

    def extract(self, batch: ImageBatch) -> list[Features]:
        return [self._extract(pixels) for pixels in batch.pixels]

    def _extract(self, pixels: np.ndarray) -> Features:
        grey = np.ascontiguousarray(pixels.mean(0))
        found = cv2.goodFeaturesToTrack(grey, 60, 0.01, 3)
        xy = np.zeros((0, 2), np.float32) if found is None else found[:, 0]
        patches = [cv2.getRectSubPix(grey, (8, 8), tuple(map(float, at))) for at in xy]
        rows = np.array(patches, np.float32).reshape(-1, 64)
        rows -= rows.mean(1, keepdims=True)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True) + 1e-6
        return Features(
            xy=xy + np.float32(0.5),
            scores=np.linspace(1, 0, len(xy), dtype=np.float32),
            descriptors=rows,
            image_size=(grey.shape[1], grey.shape[0]),
        )


def textures(number: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (number, 20, 20, 3), dtype=np.uint8)
    return [cv2.resize(image, (160, 160)) for image in small]


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    names = [f"{k}.png" for k in range(40)]
    aside = [name for name in names if is_held_out(name)][:2]
    others = [name for name in names if not is_held_out(name)][:4]
    for name, image in zip(aside + others, textures(6), strict=True):
        cv2.imwrite(str(folder / name), image)
    return folder


def some_batch(count: int = 60, kind: str = "homography") -> PairBatch:
    rng = np.random.default_rng(1)
    pairs = [sample_pair(rng, kind, textures(4), size=SIZE) for _ in range(2)]
    return make_batch(pairs, Corners(), count=count)


def random_batch(seed: int, *counts: tuple[int, int]) -> PairBatch:
    """Pairs of so many keypoints, of which the first three match."""
    generator = torch.Generator().manual_seed(seed)
    sides = []
    for k in range(2):
        lengths = torch.tensor([pair[k] for pair in counts])
        longest = int(lengths.max())
        is_real = torch.arange(longest) < lengths[:, None]
        rows = torch.randn(len(counts), longest, 64, generator=generator)
        sides.append(
            Keypoints(
                descriptors=torch.nn.functional.normalize(rows, dim=2)
                * is_real[..., None],
                positions=torch.rand(len(counts), longest, 2, generator=generator),
                is_real=None if is_real.all() else is_real,
                is_unmatchable=is_real & (torch.arange(longest) >= 4),
            )
        )
    matches = [(pair, k, k) for pair in range(len(counts)) for k in range(3)]
    return PairBatch(sides=(sides[0], sides[1]), matches=torch.tensor(matches))


def trained(network, batch: PairBatch, steps: int) -> list[dict[str, float]]:
    training = AssignmentTraining(network, device="cpu")
    losses = [training.advance(batch) for _ in range(steps)]
    return [{name: float(loss) for name, loss in each.items()} for each in losses]


# -------------------------------------------------------------------------- the start
def test_untrained_assignment_is_the_dual_softmax_of_descriptors():
    network = build_network(SMALL, seed=0)
    batch = random_batch(0, (80, 70), (80, 70))
    first, second = (side.descriptors for side in batch.sides)
    cosine = first @ second.mT / 0.02
    expected = cosine.log_softmax(1) + cosine.log_softmax(2) + 2 * math.log(0.5)
    for layer, tokens in enumerate(layer_tokens(network, batch)):
        scores = network.assignment(layer)(*tokens)
        torch.testing.assert_close(scores, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("kept", [(80, 80), (80, 50)])
def test_untrained_matches_are_mutual_nearest_neighbours(kept):
    network = build_network(SMALL, seed=0)
    first = random_batch(0, (80, 80), (80, 80)).sides[0]
    noise = torch.randn(first.descriptors.shape, generator=torch.Generator())
    rows = first.descriptors.flip(1) + 0.07 * noise
    is_real = torch.arange(80) < torch.tensor(kept)[:, None]
    second = Keypoints(
        descriptors=torch.nn.functional.normalize(rows, dim=2) * is_real[..., None],
        positions=first.positions,
        is_real=is_real,
        is_unmatchable=is_real,
    )
    batch = PairBatch(sides=(first, second), matches=torch.zeros(0, 3).long())
    certain = [row for row in nearest_neighbours(batch).tolist() if sum(row[1:]) == 79]
    assert len(certain) == sum(kept)
    for layer, tokens in enumerate(layer_tokens(network, batch)):
        scores = network.assignment(layer)(*tokens, None, is_real)
        found = mutual_best(scores, math.log(0.1)).tolist()
        assert set(map(tuple, found)) <= set(map(tuple, certain))
        assert len(found) > 0.9 * len(certain)


def test_untrained_confidence_stops_nothing():
    network = build_network(SMALL, seed=0)
    tokens = layer_tokens(network, random_batch(0, (20, 20)))[0][0]
    assert float(network.token_confidence[0](tokens).detach().max()) < 0.1


# ------------------------------------------------------------------------- the losses
@pytest.mark.parametrize(
    ("shape", "part"),
    [
        (SMALL, "similarity"),
        (SMALL, "matchable"),
        (SMALL, "unmatchable"),
        (SINKHORN, "transport"),
        (SINKHORN, "unmatchable"),
    ],
)
def test_a_step_lowers_each_part_of_the_loss(shape, part):
    network = build_network(shape, seed=0)
    batch = some_batch()

    def loss() -> torch.Tensor:
        found = assignment_loss(network, layer_tokens(network, batch), batch)
        return found[part]

    before = loss()
    before.backward()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad
    assert float(loss().detach()) < float(before.detach())


def test_one_step_lowers_the_loss(monkeypatch):
    monkeypatch.setattr(matcher_training, "_WARM_UP", 1)
    first, second = trained(build_network(SMALL, seed=0), some_batch(), 2)
    assert sum(second.values()) < sum(first.values())


def test_perfect_assignment_has_no_loss():
    network = build_network(SMALL, seed=0)
    batch = random_batch(0, (3, 3))
    head = network.assignment(0)
    with torch.no_grad():
        head.final_proj.weight.mul_(30)
        head.matchability.bias.fill_(30)
        rows = network.input_proj(batch.sides[0].descriptors)
        loss = layer_loss(head, (rows, rows), batch)
    assert float(sum(loss.values())) == pytest.approx(0, abs=1e-4)


def test_the_loss_by_transport_is_that_of_its_logarithms():
    network = build_network(SINKHORN, seed=0)
    batch = random_batch(0, (6, 8))
    tokens = layer_tokens(network, batch)[-1]
    head = network.assignment(2)
    with torch.no_grad():
        head.bin_score.fill_(5)
        loss = layer_loss(head, tokens, batch)
        found = head.transport(*tokens)
    expected = -np.mean([float(found.scores[0, k, k]) for k in range(3)])
    assert float(loss["transport"]) == pytest.approx(expected, rel=1e-5)
    alone = -(found.bin0[0, 4:].mean() + found.bin1[0, 4:].mean()) / 2
    assert float(loss["unmatchable"]) == pytest.approx(float(alone), rel=1e-5)


def test_perfect_transport_has_no_loss():
    network = build_network(SINKHORN, seed=0)
    batch = random_batch(0, (3, 3))
    with torch.no_grad():
        rows = network.input_proj(batch.sides[0].descriptors)
        network.assignment(2).bin_score.fill_(0)
        loss = layer_loss(network.assignment(2), (rows, rows), batch)
    assert float(sum(loss.values())) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("shape", [SMALL, SINKHORN])
def test_padding_does_not_change_the_loss(shape):
    network = build_network(shape, seed=0)
    torch.nn.init.normal_(network.transformers[0].cross_attn.ffn[-1].weight, std=0.1)
    both = random_batch(0, (9, 12), (14, 6))
    total = assignment_loss(network, layer_tokens(network, both), both)
    alone = []
    for pair, counts in enumerate([(9, 12), (14, 6)]):
        sides = [
            Keypoints(
                descriptors=side.descriptors[pair : pair + 1, :count],
                positions=side.positions[pair : pair + 1, :count],
                is_real=None,
                is_unmatchable=side.is_unmatchable[pair : pair + 1, :count],
            )
            for side, count in zip(both.sides, counts, strict=True)
        ]
        matches = both.matches[:3]
        one = PairBatch(sides=tuple(sides), matches=matches)
        alone.append(assignment_loss(network, layer_tokens(network, one), one))
    for name in total.keys() - {"unmatchable"}:  # as many matches in both
        mean = sum(float(loss[name].detach()) for loss in alone) / 2
        assert float(total[name].detach()) == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("shape", [SMALL, SINKHORN])
def test_pairs_without_any_keypoint_have_a_finite_loss(shape):
    black = np.zeros((3, SIZE, SIZE), np.float32)
    nowhere = np.full((SIZE, SIZE, 2), np.nan, np.float32)
    pair = Views(image0=black, image1=black, to1=nowhere, to0=nowhere)
    batch = make_batch([pair], Corners(), count=50)
    network = build_network(shape, seed=0)
    loss = sum(assignment_loss(network, layer_tokens(network, batch), batch).values())
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_decision_is_none_where_unmatchable_is_likelier():
    scores = torch.tensor([[[-0.1, -9.0], [-9.0, -3.0]]])
    alone = torch.nn.functional.logsigmoid(torch.tensor([[-4.0, 4.0]]))
    decided0, decided1 = decisions(Assignment(scores, alone, alone))
    assert decided0.tolist() == [[0, -1]]
    assert decided1.tolist() == [[0, -1]]


# ---------------------------------------------------------------------- the gradients
def test_every_layer_and_head_learns_from_deep_supervision():
    network = build_network(SMALL, seed=0)
    batch = some_batch()
    loss = sum(assignment_loss(network, layer_tokens(network, batch), batch).values())
    loss.backward()
    for layer in range(SMALL.num_layers):
        transformer = network.transformers[layer]
        assert transformer.self_attn.ffn[-1].weight.grad.abs().max() > 0
        assert transformer.cross_attn.ffn[-1].weight.grad.abs().max() > 0
        assert network.assignment(layer).final_proj.weight.grad.abs().max() > 0
        assert network.assignment(layer).matchability.weight.grad.abs().max() > 0
    assert all(p.grad is None for p in network.token_confidence.parameters())


def test_loss_of_the_first_layer_reaches_no_later_one():
    network = build_network(SMALL, seed=0)
    batch = some_batch()
    first = layer_tokens(network, batch)[0]
    sum(layer_loss(network.assignment(0), first, batch).values()).backward()
    assert network.transformers[0].cross_attn.ffn[-1].weight.grad.abs().max() > 0
    later = [*network.transformers[1:].parameters()]
    assert all(parameter.grad is None for parameter in later)


def test_confidence_training_changes_nothing_else_and_lowers_its_loss(monkeypatch):
    monkeypatch.setattr(matcher_training, "_WARM_UP", 1)
    network = build_network(SMALL, seed=0)
    batch = some_batch()
    trained(network, batch, 10)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    training = ConfidenceTraining(network, device="cpu")
    losses = [float(training.advance(batch)["confidence"]) for _ in range(10)]
    assert losses[-1] < losses[0]
    changed = {
        name
        for name, value in network.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed
    assert all(name.startswith("token_confidence.") for name in changed)


def test_confidence_loss_is_small_where_all_layers_agree():
    network = build_network(SMALL, seed=0)  # whose layers are all the same
    batch = random_batch(0, (20, 12), (9, 30))
    layers = layer_tokens(network, batch)
    unsure = float(confidence_loss(network, layers, batch).detach())
    for head in network.token_confidence:
        torch.nn.init.constant_(head.token[0].bias, 8.0)
    assert float(confidence_loss(network, layers, batch).detach()) < 1e-3 < unsure


# --------------------------------------------------------------------------- the data
def test_unrelated_photographs_have_no_match():
    batch = some_batch(kind="unrelated")
    assert len(batch.matches) == 0
    assert all(side.is_unmatchable.float().mean() > 0.9 for side in batch.sides)


def test_true_matches_lie_where_the_homography_says():
    rng = np.random.default_rng(1)
    pairs = [sample_pair(rng, "homography", textures(4), size=SIZE) for _ in range(3)]
    batch = make_batch(pairs, Corners(), count=60)
    num_seen = 0
    for pair, row0, row1 in batch.matches.tolist():
        xy0, xy1 = (
            (side.positions[pair, row].numpy() + 1) * SIZE / 2
            for side, row in zip(batch.sides, (row0, row1), strict=True)
        )
        column, line = np.rint(xy0).astype(int)
        distance = np.linalg.norm(pairs[pair].to1[line, column] - xy1)
        assert distance < 5 or np.isnan(distance)  # beside what the other shows
        num_seen += bool(distance < 5)
    assert num_seen > 10


def test_window_scales_shrink_positions_alone():
    rng = np.random.default_rng(1)
    pairs = [sample_pair(rng, "homography", textures(4), size=SIZE) for _ in range(2)]
    scales = np.array([[0.5, 0.25], [1.0, 0.5]], np.float32)
    whole = make_batch(pairs, Corners(), count=60)
    windows = make_batch(pairs, Corners(), count=60, window_scales=scales)
    for k in range(2):
        expected = whole.sides[k].positions * torch.from_numpy(scales[:, k, None, None])
        assert torch.equal(windows.sides[k].positions, expected)
        assert torch.equal(windows.sides[k].descriptors, whole.sides[k].descriptors)


def test_batch_depends_on_seed_and_number_alone():
    def batch(seed: int, index: int) -> torch.Tensor:
        source = PairBatches(textures(4), [], Corners(), seed=seed, size=SIZE, batch=2)
        return source[index].sides[0].descriptors

    assert torch.equal(batch(0, 3), batch(0, 3))
    assert not torch.equal(batch(0, 3)[0, :5], batch(0, 4)[0, :5])
    assert not torch.equal(batch(0, 3)[0, :5], batch(1, 3)[0, :5])


def test_folder_without_a_dataset_is_no_capture(tmp_path):
    with pytest.raises(ConfigError, match="sparse/0"):
        read_capture(tmp_path)


def test_broken_model_is_explained(tmp_path):
    for name in ("images", "sparse/0"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(ReconstructionError, match="sfmprep reconstruct"):
        read_capture(tmp_path)


def test_unrelated_photographs_are_of_two_sources(monkeypatch):
    monkeypatch.setattr(matcher_data, "_unrelated", lambda _, *pair: pair[:2])
    for seed in range(8):
        rng = np.random.default_rng(seed)
        more = {"sources": [0, 0, 0, 1], "size": SIZE}
        pair = sample_pair(rng, "unrelated", [0, 1, 2, 3], **more)
        assert (pair[0] == 3) != (pair[1] == 3)


def test_one_source_has_no_unrelated_pairs(monkeypatch):
    kinds = []
    monkeypatch.setattr(
        matcher_data, "sample_pair", lambda _, kind, *__, **___: kinds.append(kind)
    )
    monkeypatch.setattr(matcher_data, "make_batch", lambda *_, **__: None)
    more = {"seed": 0, "size": SIZE, "batch": 200}
    PairBatches(textures(4), [], Corners(), sources=[7] * 4, **more)[0]
    assert "unrelated" not in kinds
    PairBatches(textures(4), [], Corners(), **more)[0]
    assert "unrelated" in kinds


def test_crops_for_many_keypoints_are_larger(monkeypatch):
    sizes = {}
    monkeypatch.setattr(matcher_data, "sample_pair", lambda *_, size, **__: size)
    monkeypatch.setattr(
        matcher_data,
        "make_batch",
        lambda pairs, _, count, **__: sizes.update({count: pairs[0]}),
    )
    for least in (256, 100):
        sizes.clear()
        batches = PairBatches(textures(4), [], Corners(), seed=0, size=least, batch=16)
        for index in range(60):
            batches[index]
        assert min(sizes) < 128
        assert max(sizes) > 800
        for count, size in sizes.items():
            assert size == least or (count > 256 and size > least and size % 32 == 0)
            assert size == pytest.approx(least * max(1, count / 256) ** 0.5, abs=16)


# ------------------------------------------------------------------------ the training
def train(out: Path, photographs: Path, steps: int, **more) -> dict:
    train_matcher(
        data=photographs,
        out=out,
        minutes=10,
        extractor=Corners(),
        size=SIZE,
        batch=1,
        steps=steps,
        **more,
    )
    part = more.get("part", "assignment")
    return checkpoints.load(out / matcher._FILES[part])


def flat(tree: object) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    values = tree.values() if isinstance(tree, dict) else tree
    return [
        tensor
        for value in values
        if isinstance(value, dict | list | torch.Tensor)
        for tensor in flat(value)
    ]


@pytest.mark.parametrize("head", ["lightglue", "sinkhorn"])
def test_cut_training_equals_an_uncut_one(head, photographs, tmp_path):
    whole = train(tmp_path / "whole", photographs, 4, head=head)
    train(tmp_path / "cut", photographs, 2, head=head)
    pieces = train(tmp_path / "cut", photographs, 4, head=head)
    assert pieces["step"] == whole["step"] == 4
    for part in ("weights", "moments"):
        for found, expected in zip(flat(pieces[part]), flat(whole[part]), strict=True):
            assert torch.equal(found, expected)
    for name, mean in whole["mean"].items():  # kept in halves
        torch.testing.assert_close(pieces["mean"][name], mean, atol=1e-3, rtol=2e-3)


def test_finished_training_is_left_as_it_is(photographs, tmp_path):
    train(tmp_path, photographs, 1)
    before = (tmp_path / "matcher.pt").read_bytes()
    train(tmp_path, photographs, 1)
    assert (tmp_path / "matcher.pt").read_bytes() == before


def test_checkpoint_is_at_most_16_megabytes(photographs, tmp_path):
    train(tmp_path, photographs, 1)
    assert (tmp_path / "matcher.pt").stat().st_size <= 16_000_000


def test_log_compares_with_nearest_neighbours(photographs, tmp_path):
    train(tmp_path, photographs, 2)
    rows = read_log(tmp_path / "matcher.jsonl")
    names = set().union(*rows)
    assert {"similarity", "pairs_per_s", "homography_recall"} <= names
    assert {"parallax_precision", "parallax_nearest_precision"} <= names


@pytest.mark.parametrize("head", ["lightglue", "sinkhorn"])
def test_exported_weights_match_in_lightglue(head, photographs, tmp_path):
    state = train(tmp_path, photographs, 2, head=head)
    train(tmp_path, photographs, 2, part="confidence")
    path = tmp_path / "compact-lightglue.safetensors"
    export_weights(tmp_path / "matcher.pt", path)
    config = LightGlueConfig(model="compact-lightglue", weights=path, min_score=0.0)
    rng = np.random.default_rng(1)
    pair = sample_pair(rng, "homography", textures(4), size=SIZE)
    batch = make_batch([pair], Corners(), count=60)
    network = build_network(replace(matcher._SHAPE, head=head), seed=0)
    network.load_state_dict(state["weights"] | state["mean"])
    tokens = layer_tokens(network, batch)[-1]
    expected = mutual_best(network.assignment(5)(*tokens), -1e9)[:, 1:].tolist()
    features = Corners().extract(
        ImageBatch(
            pixels=np.stack([pair.image0, pair.image1]),
            sizes=np.full((2, 2), SIZE, np.int32),
            orientations=np.ones(2, np.int32),
        )
    )
    [found] = LightGlue(config).match([tuple(features)])
    assert len(expected) > 10
    same = set(map(tuple, expected)) & set(map(tuple, found.index.tolist()))
    assert len(same) >= 0.95 * max(len(expected), len(found))  # halves turn a few


def test_training_goes_on_from_exported_weights(photographs, tmp_path):
    train(tmp_path / "first", photographs, 2)
    path = tmp_path / "compact-lightglue.safetensors"
    export_weights(tmp_path / "first" / "matcher.pt", path)
    state = train(tmp_path / "second", photographs, 1, init=path)
    first = checkpoints.load(tmp_path / "first" / "matcher.pt")["mean"]
    for name, mean in state["mean"].items():  # one step of the warm-up away
        torch.testing.assert_close(mean, first[name], atol=1e-4, rtol=1e-2)


def test_confidence_needs_a_trained_assignment(photographs, tmp_path):
    with pytest.raises(StoreError, match="assignment"):
        train(tmp_path, photographs, 1, part="confidence")


def test_confidence_of_another_assignment_is_left_out(photographs, tmp_path, caplog):
    train(tmp_path, photographs, 1)
    train(tmp_path, photographs, 1, part="confidence")
    path = tmp_path / "w.safetensors"
    export_weights(tmp_path / "matcher.pt", path)
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    train(tmp_path, photographs, 2)
    export_weights(tmp_path / "matcher.pt", path)
    assert "--confidence" in caplog.text
    bias = load_file(path)["token_confidence.0.token.0.bias"]
    assert float(bias) == -4


def test_training_goes_on_as_it_began_alone(photographs, tmp_path):
    train(tmp_path, photographs, 1)
    with pytest.raises(StoreError, match="began with seed 0"):
        train(tmp_path, photographs, 2, seed=1)
    state = checkpoints.load(tmp_path / "matcher.pt")
    del state["began"]  # as before it was recorded
    checkpoints.save(tmp_path / "matcher.pt", state)
    assert train(tmp_path, photographs, 2, seed=1)["began"]["seed"] == 1


def test_checkpoint_of_another_size_is_refused(photographs, tmp_path):
    checkpoints.save(tmp_path / "matcher.pt", {"shape": {"dim": 8}})
    with pytest.raises(StoreError, match="another folder"):
        train(tmp_path, photographs, 1)


def test_another_head_is_refused(photographs, tmp_path):
    train(tmp_path, photographs, 1)
    with pytest.raises(StoreError) as error:
        train(tmp_path, photographs, 2, head="sinkhorn")
    assert str(error.value) == (
        f"{tmp_path / 'matcher.pt'} holds a network with the head lightglue, but"
        " sinkhorn was asked for. Name its own, or train into another folder."
    )


def test_another_head_starts_from_the_projection_of_the_first(photographs, tmp_path):
    train(tmp_path / "first", photographs, 1)
    path = tmp_path / "w.safetensors"
    export_weights(tmp_path / "first" / "matcher.pt", path)
    before = load_file(path)
    start = matcher._training(
        "assignment",
        tmp_path,
        path,
        shape=replace(matcher._SHAPE, head="sinkhorn"),
        seed=5,
        device="cpu",
    )
    after = start.mean_network().state_dict()
    last = "log_assignment.5."
    assert float(after[f"{last}bin_score"]) == 25
    assert {k for k in before if k not in after} == {
        f"{last}matchability.{k}" for k in ("weight", "bias")
    }
    for name in before.keys() & after.keys():
        torch.testing.assert_close(before[name].float(), after[name])


def test_one_photograph_is_too_few(tmp_path):
    name = next(f"{k}.png" for k in range(40) if not is_held_out(f"{k}.png"))
    cv2.imwrite(str(tmp_path / name), textures(1)[0])
    with pytest.raises(ConfigError, match="one photograph"):
        train(tmp_path / "out", tmp_path, 1)


@torch.no_grad()
def test_validation_tells_matcher_and_nearest_neighbours_apart():
    network = build_network(SMALL, seed=0)
    batch = some_batch()
    values = validate(network.eval(), {"homography": batch})
    assert 0 < values["homography_nearest_recall"] <= 1
    network.assignment(2).matchability.bias.fill_(-20)
    values = validate(network, {"homography": batch})
    assert values["homography_recall"] == 0
    assert values["homography_nearest_recall"] > 0
