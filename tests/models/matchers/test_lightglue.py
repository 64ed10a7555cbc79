"""LightGlue against kornia's, its checkpoints, and what it refuses."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from kornia.feature import LightGlue as KorniaLightGlue
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sfmprep import coords
from sfmprep.config import LightGlueConfig, XFeatConfig
from sfmprep.errors import ConfigError, WeightsError
from sfmprep.models.extractors.xfeat import XFeat
from sfmprep.models.matchers.lightglue import (
    SHAPES,
    LightGlue,
    _Limits,
    scaled_positions,
)
from sfmprep.models.matchers.lightglue_network import (
    LightGlueNetwork,
    LightGlueShape,
    MatchAssignment,
    RotaryEncoding,
    TransformerLayer,
)
from sfmprep.models.shared import adapter
from sfmprep.types import Features
from tests.support.batches import photograph
from tests.support.flops import flops
from tests.support.lightglue import as_dict, assert_close_in_half, kornia_match

SIZE = (1024, 700)
SMALL = {"input_dim": 64, "descriptor_dim": 96, "num_heads": 1, "n_layers": 6}
KORNIA = {
    "lighterglue": SMALL,
    "aliked-lightglue": {"input_dim": 128},
    "superpoint-lightglue": {"input_dim": 256},
    "sift-lightglue": {"input_dim": 128, "add_scale_ori": True},
}


@pytest.fixture(autouse=True)
def _one_thread():
    """Small networks spend most of their time waiting for other threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_pair(seed: int, rows0: int, rows1: int, dim: int = 64, **more) -> tuple:
    """Two images that share most of their keypoints, shuffled and disturbed."""
    rng = np.random.default_rng(seed)
    total = max(rows0, rows1)
    xy = rng.uniform(1, np.array(SIZE) - 1, (total, 2)).astype(np.float32)
    rows = rng.normal(size=(total, dim)) + 1.5 * rng.normal(size=dim)
    sides = []
    for count in (rows0, rows1):
        chosen = rng.permutation(total)[:count]
        noisy = rows[chosen] + rng.normal(scale=0.3, size=(count, dim))
        noisy /= np.linalg.norm(noisy, axis=1, keepdims=True)
        sides.append(
            Features(
                xy=xy[chosen],
                scores=np.ones(count, np.float32),
                descriptors=noisy.astype(np.float32),
                image_size=SIZE,
                scale=rng.uniform(1, 9, count).astype(np.float32),
                angle=rng.uniform(-3, 3, count).astype(np.float32),
                **more,
            )
        )
    return tuple(sides)


def kornia_network(model: str = "lighterglue", **config) -> KorniaLightGlue:
    """A random network whose heads decide differently for different keypoints."""
    torch.manual_seed(0)
    settings = {
        "depth_confidence": -1,
        "width_confidence": -1,
        "filter_threshold": 0.0,
        **KORNIA[model],
        **config,
    }
    network = KorniaLightGlue(features=None, **settings).eval()
    with torch.no_grad():
        for head in network.token_confidence:
            head.token[0].weight *= 8
            head.token[0].bias += 2.2
        for head in network.log_assignment:
            head.matchability.weight *= 12
            head.matchability.bias -= 1.0
            head.final_proj.weight *= 6
    return network


def matcher(path: Path, model: str = "lighterglue", **config) -> LightGlue:
    settings = {
        "depth_confidence": None,
        "width_confidence": None,
        "min_score": 0.0,
        **config,
    }
    return LightGlue(LightGlueConfig(model=model, weights=path, **settings))


def save(tensors: dict[str, torch.Tensor], folder: Path) -> Path:
    path = folder / "weights.pth"
    torch.save(tensors, path)
    return path


def released(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names in the files of cvg/LightGlue's release."""
    renamed = {}
    for key, value in tensors.items():
        parts = key.split(".")
        if parts[0] == "transformers":
            parts[:3] = [parts[2], parts[1]]
        if parts[0] != "confidence_thresholds":
            renamed[".".join(parts)] = value
    return renamed


def xfeat_file(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names in xfeat-lighterglue.pt."""
    return {f"matcher.{key}": value for key, value in released(tensors).items()} | {
        "extractor.model.net.block1.0.layer.0.weight": torch.zeros(3)
    }


def disk_file(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """With the numbers that only disk_lightglue.pth has."""
    layers = range(SMALL["n_layers"])
    return tensors | {f"log_assignment.{k}.r": torch.ones(1) for k in layers}


# ------------------------------------------------------------------------ checkpoints
@pytest.mark.parametrize("layout", [dict, released, xfeat_file, disk_file])
def test_each_public_layout_loads_the_same_network(layout, tmp_path):
    network = kornia_network()
    path = save(layout(network.state_dict()), tmp_path)
    pair = random_pair(0, 90, 70)
    expected, _ = kornia_match(network, pair)
    found = as_dict(matcher(path).match([pair])[0])
    assert len(found) > 20
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("model", list(KORNIA))
def test_random_network_of_each_size_equals_kornia(model, tmp_path):
    network = kornia_network(model)
    path = save(network.state_dict(), tmp_path)
    pair = random_pair(1, 150, 200, KORNIA[model]["input_dim"])
    expected, _ = kornia_match(network, pair)
    found = as_dict(matcher(path, model).match([pair])[0])
    assert len(found) > 20
    assert found == pytest.approx(expected, abs=1e-4)


def test_missing_and_unexpected_tensors_are_named(tmp_path):
    tensors = kornia_network().state_dict()
    del tensors["transformers.2.cross_attn.to_v.bias"]
    tensors["transformers.2.cross_attn.to_w.bias"] = torch.zeros(96)
    with pytest.raises(WeightsError) as error:
        matcher(save(tensors, tmp_path))
    assert "transformers.2.cross_attn.to_v.bias" in str(error.value)
    assert "transformers.2.cross_attn.to_w.bias" in str(error.value)


def test_a_deeper_checkpoint_is_refused(tmp_path):
    path = save(kornia_network(n_layers=7).state_dict(), tmp_path)
    with pytest.raises(WeightsError, match=r"transformers\.6\."):
        matcher(path)


def test_extractor_tensors_are_refused_outside_of_the_xfeat_file(tmp_path):
    tensors = kornia_network().state_dict() | {"extractor.weight": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"extractor\.weight"):
        matcher(save(tensors, tmp_path))


def test_checkpoint_of_another_size_is_refused(tmp_path):
    path = save(kornia_network(input_dim=128).state_dict(), tmp_path)
    with pytest.raises(WeightsError, match=r"input_proj\.weight"):
        matcher(path)


@pytest.mark.parametrize(
    ("named", "reason"), [("sinkhorn", "bin_score"), (None, "matchability")]
)
def test_the_head_is_the_one_that_the_file_names(named, reason, tmp_path):
    holds = "lightglue" if named else "sinkhorn"
    shape = replace(SHAPES["compact-lightglue"], head=holds)
    path = tmp_path / "w.safetensors"
    tensors = LightGlueNetwork(shape, adaptive=True).state_dict()
    config = LightGlueConfig(model="compact-lightglue", weights=path)
    save_file(tensors, path, {"head": holds})
    assert LightGlue(config)._network.shape == shape
    save_file(tensors, path, {"head": named} if named else None)
    with pytest.raises(WeightsError, match=f"Missing key.*5.{reason}"):
        LightGlue(config)


def test_an_unknown_head_is_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    shape = SHAPES["compact-lightglue"]
    tensors = LightGlueNetwork(shape, adaptive=True).state_dict()
    save_file(tensors, path, {"head": "softassign"})
    with pytest.raises(WeightsError) as error:
        LightGlue(LightGlueConfig(model="compact-lightglue", weights=path))
    assert str(error.value) == (
        f"weights of compact-lightglue: {path} names the head 'softassign'; expected"
        " one of lightglue, sinkhorn. It was made by another version, or is damaged:"
        " put a good copy in its place."
    )


def test_without_heads_adaptivity_is_off_and_that_is_said_once(tmp_path, caplog):
    network = kornia_network()
    tensors = network.state_dict()
    for key in list(tensors):
        if key.startswith(("token_confidence", "log_assignment.3")):
            del tensors[key]
    path = save(tensors, tmp_path)
    with caplog.at_level(logging.INFO):
        found = matcher(path, depth_confidence=0.95, width_confidence=0.99)
    assert [r.levelname for r in caplog.records] == ["INFO"]
    assert "adaptive depth and width are off" in caplog.text
    pair = random_pair(2, 80, 80)
    expected, _ = kornia_match(network, pair)
    assert as_dict(found.match([pair])[0]) == pytest.approx(expected, abs=1e-4)


def test_nothing_is_said_where_adaptivity_was_not_asked_for(tmp_path, caplog):
    tensors = kornia_network().state_dict()
    del tensors["token_confidence.0.token.0.bias"]
    with caplog.at_level(logging.INFO):
        matcher(save(tensors, tmp_path))
    assert not caplog.records


@pytest.mark.shared
def test_three_layers_of_the_real_six_equal_the_real_three(real_weights):
    pair = random_pair(3, 200, 200)
    full = real_weights / "lighterglue.safetensors"
    cut = matcher(real_weights / "lighterglue-l3.safetensors", "lighterglue-l3")
    found = matcher(full, "lighterglue-l3").match([pair])[0]
    expected = cut.match([pair])[0]
    assert len(found) > 100
    np.testing.assert_array_equal(found.index, expected.index)
    np.testing.assert_array_equal(found.scores, expected.scores)


# ------------------------------------------------------------------------- adaptivity
ADAPTIVE = [(0.9, None), (None, 0.8), (0.9, 0.8)]


@pytest.mark.parametrize(("depth", "width"), ADAPTIVE)
def test_adaptive_depth_and_width_equal_kornia_in_a_batch(depth, width, tmp_path):
    network = kornia_network(depth_confidence=depth or -1, width_confidence=width or -1)
    path = save(network.state_dict(), tmp_path)
    sizes = [(300, 260), (120, 200), (40, 30), (260, 300), (9, 5), (280, 280)]
    pairs = [random_pair(k, *size) for k, size in enumerate(sizes)]
    found = matcher(path, depth_confidence=depth, width_confidence=width).match(pairs)
    reference = [kornia_match(network, pair) for pair in pairs]
    if depth is not None:
        assert len({stop for _, stop in reference}) > 1, "pairs must stop apart"
    for matches, (expected, _) in zip(found, reference, strict=True):
        assert as_dict(matches) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("depth", "width"), ADAPTIVE)
def test_adaptivity_changes_the_result_of_this_network(depth, width, tmp_path):
    path = save(kornia_network().state_dict(), tmp_path)
    pair = random_pair(0, 300, 260)
    plain = matcher(path).match([pair])[0]
    adaptive = matcher(path, depth_confidence=depth, width_confidence=width)
    assert as_dict(adaptive.match([pair])[0]) != pytest.approx(as_dict(plain))


def test_all_points_pruned_is_no_match(tmp_path):
    network = kornia_network()
    with torch.no_grad():
        for head in network.log_assignment:
            head.matchability.bias -= 1000
    path = save(network.state_dict(), tmp_path)
    pairs = [random_pair(0, 50, 40), random_pair(1, 30, 30)]
    assert [len(m) for m in matcher(path, width_confidence=0.99).match(pairs)] == [0, 0]


# -------------------------------------------------------------------- what it is given
@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("model", ["lighterglue", "sift-lightglue"])
def test_turned_files_match_like_upright_ones(orientation, model):
    # The stored keypoints and angles of the turned file, from the upright ones.
    upright, _ = random_pair(4, 60, 60)
    stored_size = coords.upright_size(SIZE, orientation)
    turn = coords.upright_matrix(orientation)
    direction = np.stack([np.cos(upright.angle), np.sin(upright.angle)], 1) @ turn
    stored = Features(
        xy=coords.stored_xy(upright.xy, stored_size, orientation),
        scores=upright.scores,
        descriptors=upright.descriptors,
        image_size=stored_size,
        orientation=orientation,
        scale=upright.scale,
        angle=np.arctan2(direction[:, 1], direction[:, 0]),
    )
    with_scale = model == "sift-lightglue"
    np.testing.assert_allclose(
        scaled_positions(stored, with_scale_and_angle=with_scale),
        scaled_positions(upright, with_scale_and_angle=with_scale),
        atol=1e-5,
    )


def test_positions_are_pixel_centres_minus_half_the_size_over_half_the_longer_side():
    corners = Features(
        xy=np.array([[0.5, 0.5], [8, 4], [15.5, 7.5]], np.float32),
        scores=np.ones(3, np.float32),
        descriptors=np.eye(3, dtype=np.float32),
        image_size=(16, 8),
        scale=np.array([1, 2, 3], np.float32),
        angle=np.zeros(3, np.float32),
    )
    expected = [[-1, -0.5], [-0.0625, -0.0625], [0.875, 0.375]]
    plain = scaled_positions(corners, with_scale_and_angle=False)
    np.testing.assert_allclose(plain, expected)
    full = scaled_positions(corners, with_scale_and_angle=True)
    np.testing.assert_allclose(full[:, 2], [64, 128, 192])


def test_descriptors_of_another_length_are_refused(tmp_path):
    path = save(kornia_network().state_dict(), tmp_path)
    with pytest.raises(ConfigError, match="length 64, but these have 128"):
        matcher(path).match([random_pair(0, 5, 5, dim=128)])


def test_sift_lightglue_needs_scale_and_angle():
    bare = Features(
        xy=np.ones((1, 2), np.float32),
        scores=np.ones(1, np.float32),
        descriptors=np.ones((1, 128), np.float32),
        image_size=SIZE,
    )
    with pytest.raises(ConfigError, match="scale and the angle"):
        scaled_positions(bare, with_scale_and_angle=True)


def test_attention_is_sharper_the_more_keys_there_are():
    torch.manual_seed(0)
    sharp = TransformerLayer(32, 1, usual_keypoints=256).eval()
    plain = TransformerLayer(32, 1).eval()
    plain.load_state_dict(sharp.state_dict())
    counts = 700, 90
    factors = [np.log(count) / np.log(256) for count in counts]
    tokens = [torch.randn(1, count, 32) for count in counts]
    rotations = [RotaryEncoding(2, 32)(torch.rand(1, n, 2)) for n in counts]

    def by_hand(queries, keys, values, factor):  # [N, D]
        weights = (factor * queries @ keys.mT / 32**0.5).softmax(-1)
        return weights @ values

    with torch.inference_mode():
        found = sharp(tuple(tokens), tuple(rotations), (None, None))
        alone = []
        for x, rotation, factor in zip(tokens, rotations, factors, strict=True):
            # queries are linear in a third of the rows of one matrix
            layer = copy.deepcopy(plain.self_attn)
            layer.Wqkv.weight[0::3] *= factor
            layer.Wqkv.bias[0::3] *= factor
            alone.append(layer(x, rotation, None))
        cross = sharp.cross_attn
        queries = [cross.to_qk(x)[0] for x in alone]
        values = [cross.to_v(x)[0] for x in alone]
        for k in (0, 1):
            message = by_hand(queries[k], queries[1 - k], values[1 - k], factors[1 - k])
            update = cross.ffn(torch.cat([alone[k][0], cross.to_out(message)], -1))
            torch.testing.assert_close(found[k][0], alone[k][0] + update)
        unlike = plain(tuple(tokens), tuple(rotations), (None, None))
    assert (found[0] - unlike[0]).abs().max() > 1e-3


def test_half_precision_on_a_cpu_is_refused():
    config = LightGlueConfig(model="lighterglue")
    with pytest.raises(ConfigError, match="only CUDA"):
        LightGlue(config, precision="half")


# ----------------------------------------------------------- as on a GPU, and on a GPU
SEVERAL = [(300, 260), (120, 200), (40, 30), (260, 300), (9, 5), (300, 260), (70, 70)]


@pytest.mark.parametrize("model", ["lighterglue", "compact-lightglue"])
@pytest.mark.parametrize(("depth", "width"), [(None, None), *ADAPTIVE])
@pytest.mark.parametrize("similarities", [1, 200_000, 1 << 26])
def test_large_padded_batches_equal_single_pairs(
    depth, width, similarities, model, tmp_path
):
    path = save(kornia_network().state_dict(), tmp_path)
    pairs = [random_pair(k, *size) for k, size in enumerate(SEVERAL)]
    config = {"depth_confidence": depth, "width_confidence": width}
    single = matcher(path, model, **config)
    expected = [single.match([pair])[0] for pair in pairs]
    batched = matcher(path, model, **config)
    batched._limits = _Limits(
        keypoints=1 << 17, similarities=similarities, max_unpruned=0, is_bucketed=True
    )
    for found, alone in zip(batched.match(pairs), expected, strict=True):
        assert as_dict(found) == pytest.approx(as_dict(alone), abs=1e-4)


def test_small_images_are_not_pruned_where_that_costs_more(tmp_path):
    path = save(kornia_network().state_dict(), tmp_path)
    pairs = [random_pair(0, 60, 50), random_pair(1, 300, 260)]
    plain = [as_dict(m) for m in matcher(path).match(pairs)]
    pruning = matcher(path, width_confidence=0.8)
    pruning._limits = _Limits(
        keypoints=1 << 17, similarities=1, max_unpruned=100, is_bucketed=True
    )
    small, large = pruning.match(pairs)
    assert as_dict(small) == pytest.approx(plain[0], abs=1e-4)
    assert as_dict(large) != pytest.approx(plain[1], abs=1e-4)


def test_out_of_memory_halves_the_batch(tmp_path, monkeypatch):
    path = save(kornia_network().state_dict(), tmp_path)
    pairs = [random_pair(k, 40 + k, 50) for k in range(5)]
    expected = matcher(path).match(pairs)
    tight = matcher(path)
    sizes = []
    whole = tight._advance

    def advance(layer, batch):
        sizes.append(len(batch.items))
        if len(batch.items) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        whole(layer, batch)

    monkeypatch.setattr(tight, "_advance", advance)
    for found, alone in zip(tight.match(pairs), expected, strict=True):
        assert as_dict(found) == pytest.approx(as_dict(alone), abs=1e-4)
    assert set(sizes) == {5, 3, 2, 1}


def test_half_precision_moves_scores_by_less_than_two_percent(tmp_path, monkeypatch):
    # On a CPU, which does half precision slowly, but by the same code.
    path = save(kornia_network().state_dict(), tmp_path)
    pairs = [random_pair(k, 150 - 50 * k, 100) for k in range(2)]
    expected = matcher(path).match(pairs)
    monkeypatch.setattr(adapter, "use_half", lambda precision, device: True)
    half = matcher(path)
    assert half._network.transformers[0].self_attn.Wqkv.weight.dtype == torch.half
    assert half.prepare(pairs[0][0]).tokens.dtype == torch.float32
    for found, exact in zip(half.match(pairs), expected, strict=True):
        assert_close_in_half(found, exact)


def test_the_compact_matcher_stops_from_its_third_layer_on(monkeypatch):
    config = LightGlueConfig(model="compact-lightglue", depth_confidence=0.0)
    sure = LightGlue(config)
    layers = []
    advance = LightGlue._advance
    monkeypatch.setattr(
        *(LightGlue, "_advance"),
        lambda self, layer, batch: (layers.append(layer), advance(self, layer, batch)),
    )
    sure.match([random_pair(0, 40, 50)])
    assert layers == [0, 1, 2]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "half"])
@pytest.mark.parametrize(("depth", "width"), [(None, None), (0.9, 0.8)])
def test_gpu_equals_cpu(precision, depth, width, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if precision == "half" and depth is not None:
        pytest.skip("rounding moves the layer at which a pair stops")
    path = save(kornia_network().state_dict(), tmp_path)
    config = LightGlueConfig(
        model="lighterglue",
        weights=path,
        depth_confidence=depth,
        width_confidence=width,
        min_score=0.0,
    )
    pairs = [random_pair(k, 400 - 90 * k, 300) for k in range(3)]
    expected = LightGlue(config).match(pairs)
    found = LightGlue(config, device="cuda", precision=precision).match(pairs)
    for a, b in zip(found, expected, strict=True):
        if precision == "half":
            assert_close_in_half(a, b)
        else:
            assert as_dict(a) == pytest.approx(as_dict(b), abs=1e-3)


@pytest.mark.gpu
def test_auto_precision_is_half_on_a_gpu(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    path = save(kornia_network().state_dict(), tmp_path)
    config = LightGlueConfig(model="lighterglue", weights=path)
    network = LightGlue(config, device="cuda")._network
    assert network.transformers[0].self_attn.Wqkv.weight.dtype == torch.half
    assert network.assignment(5).final_proj.weight.dtype == torch.float32


# -------------------------------------------------------------------------- the network
@pytest.mark.parametrize(
    "model", ["lighterglue", "superpoint-lightglue", "sift-lightglue"]
)
def test_flops_are_those_that_torch_counts(model, tmp_path):
    shape = SHAPES[model]
    torch.manual_seed(0)
    network = LightGlueNetwork(shape, adaptive=False)
    path = save(network.state_dict(), tmp_path)
    plain = matcher(path, model)
    pair = random_pair(0, 37, 23, shape.input_dim)
    # torch does not count its fused attention on a CPU.
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        plain.match([pair])
    assert counter.get_total_flops() == flops(shape, 37, 23)


def test_nine_layers_at_2048_keypoints_are_240_gflop():
    assert flops(SHAPES["superpoint-lightglue"], 2048, 2048) == pytest.approx(
        240e9, rel=0.005
    )


@torch.no_grad()
def test_padding_does_not_change_the_assignment_and_is_never_the_best():
    torch.manual_seed(0)
    head = MatchAssignment(16)
    x0, x1 = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    real0 = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    real1 = torch.tensor([[True] * 4 + [False] * 3, [True] * 7])
    scores = head(x0, x1, real0, real1)
    torch.testing.assert_close(scores[0, :5, :4], head(x0[:1], x1[:1, :4])[0])
    torch.testing.assert_close(scores[1, :3, :7], head(x0[1:, :3], x1[1:])[0])
    assert scores[0, :5, 4:].max() < -1e29
    assert scores[1, 3:, :7].max() < -1e29


@torch.no_grad()
def test_a_folded_network_gives_the_same_tokens():
    torch.manual_seed(0)
    shape = LightGlueShape(input_dim=8, dim=32, num_heads=2, num_layers=1)
    network = LightGlueNetwork(shape, adaptive=False)
    tokens = (torch.randn(2, 9, 32), torch.randn(2, 7, 32))
    rotations = tuple(network.posenc(torch.randn(2, n, 2)) for n in (9, 7))
    (layer,) = network.transformers
    expected = layer(tokens, rotations, (None, None))
    network.fold()
    for found, plain in zip(
        layer(tokens, rotations, (None, None)), expected, strict=True
    ):
        torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)


# --------------------------------------------------------------------------- real data
@pytest.mark.shared
@pytest.mark.slow
def test_real_lighterglue_on_real_photographs_equals_kornia(shared, real_weights):
    from safetensors.torch import load_file

    scenes = shared / "data" / "scenes"
    fountain = sorted((scenes / "fountain-P11" / "images").iterdir())
    church = sorted((scenes / "Herz-Jesus-P8" / "images").iterdir())
    photographs = [photograph(path, 800) for path in (*fountain[4:7:2], *church[2:5:2])]
    xfeat = XFeat(XFeatConfig(max_keypoints=1024))
    features = [xfeat.extract(batch)[0] for batch in photographs]
    pairs = [tuple(features[:2]), tuple(features[2:]), (features[0], features[2])]

    network = KorniaLightGlue(
        features=None, depth_confidence=-1, width_confidence=-1, **SMALL
    ).eval()
    tensors = load_file(real_weights / "lighterglue.safetensors")
    network.load_state_dict(tensors, strict=False)

    found = LightGlue(LightGlueConfig(model="lighterglue")).match(pairs)
    assert [len(m) > 250 for m in found] == [True, True, False]
    for pair, matches in zip(pairs, found, strict=True):
        expected, _ = kornia_match(network, pair)
        assert as_dict(matches) == pytest.approx(expected, abs=1e-3)
