"""S2LD against the fixture of its released network, and what its adapter promises.

The weights are those of the fixture: made by a formula, with which images do match.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from sfmprep import coords
from sfmprep.config import S2ldConfig
from sfmprep.errors import WeightsError
from sfmprep.models.semidense import dual_softmax
from sfmprep.models.semidense.dual_softmax import (
    MutualMatches,
    mutual_matches,
)
from sfmprep.models.semidense.s2ld import S2ld, network_tensors
from sfmprep.models.semidense.s2ld_layers import Transformer
from sfmprep.models.semidense.s2ld_network import WINDOW_REACH, S2ldMaps, S2ldNetwork
from sfmprep.types import DenseMatches, ImageBatch
from tests.support.confidences import confidence_matrix

ATOL = 1e-4
ATOL_PX = 1e-3
HALF_ATOL_PX = 0.05
CASES = ("A", "B")  # C has masks, for images of a batch that differ in size

Arrays = Mapping[str, np.ndarray]


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "fixtures" / "s2ld"


@pytest.fixture(scope="module")
def fixture(folder: Path) -> Arrays:
    with np.load(folder / "fixture.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def keys(folder: Path) -> dict[str, tuple[list[int], str]]:
    return json.loads((folder / "state_dict_keys.json").read_text())


@pytest.fixture(scope="module")
def tensors(folder: Path, keys, fixture: Arrays) -> dict[str, torch.Tensor]:
    spec = importlib.util.spec_from_file_location("fill", folder / "fill_weights.py")
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    arrays = {key: fill.fill_one(key, shape) for key, (shape, _) in keys.items()}
    digest = hashlib.sha256()
    for key in sorted(arrays):
        digest.update(key.encode() + arrays[key].tobytes())
    assert digest.hexdigest() == str(fixture["meta/weights_sha256"])
    return {key: torch.from_numpy(np.asarray(array)) for key, array in arrays.items()}


@pytest.fixture(scope="module")
def network(tensors) -> S2ldNetwork:
    network = S2ldNetwork()
    network.load_state_dict(tensors)
    return network.eval()


@pytest.fixture(scope="module")
def weights(tensors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("s2ld") / "s2ld.safetensors"
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def matcher(weights: Path) -> S2ld:
    return S2ld(S2ldConfig(weights=weights))


def grey(fixture: Arrays, case: str, side: int) -> torch.Tensor:
    pixels = torch.from_numpy(fixture[f"{case}/image{side}"]).float() / 255
    return pixels.reshape(-1, 1, *pixels.shape[-2:])


def batch_of(pixels: torch.Tensor, *, scale: int = 1, orientation: int = 1):
    """Grey [N, 1, H, W] as a batch of photographs, `scale` times as large on disk."""
    count, _, height, width = pixels.shape
    size = coords.upright_size((width * scale, height * scale), orientation)
    return ImageBatch(
        pixels=np.repeat(pixels.numpy(), 3, axis=1),
        sizes=np.full((count, 2), size, np.int32),
        orientations=np.full(count, orientation, np.int32),
    )


def near(got: torch.Tensor, expected: np.ndarray, atol: float = ATOL) -> None:
    np.testing.assert_allclose(got.numpy(), expected, rtol=ATOL, atol=atol)


def same(first: DenseMatches, second: DenseMatches, atol: float = 0) -> None:
    np.testing.assert_allclose(first.xy0, second.xy0, rtol=0, atol=atol)
    np.testing.assert_allclose(first.xy1, second.xy1, rtol=0, atol=atol)
    np.testing.assert_allclose(first.scores, second.scores, rtol=0, atol=atol)


# --------------------------------------------------------------------------- network
@pytest.mark.shared
def test_state_dict_is_the_official_one(keys) -> None:
    network = S2ldNetwork()
    own = {
        key: (list(tensor.shape), str(tensor.dtype))
        for key, tensor in network.state_dict().items()
    }
    assert len(keys) == 273
    assert list(own) == list(keys)
    assert own == {key: tuple(entry) for key, entry in keys.items()}
    assert sum(each.numel() for each in network.parameters()) == 16_187_888


@pytest.mark.shared
@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_network_computes_what_the_released_one_does(
    network: S2ldNetwork, fixture: Arrays, case: str
) -> None:
    maps = [network.extract(grey(fixture, case, side)) for side in (0, 1)]
    for side, each in enumerate(maps):
        near(each.fine[:, ::32], fixture[f"{case}/feat_f{side}_ch32"])
        near(each.offsets, fixture[f"{case}/det_offset{side}"])
        near(each.scores, fixture[f"{case}/det_score{side}"])
        near(each.coarse[:, ::4], fixture[f"{case}/adjusted{side}_ch4"])
        near(each.keypoints, fixture[f"{case}/keypoints{side}"], ATOL_PX)
    tokens = network.coarse(*maps)
    for side, each in enumerate(tokens):
        near(each[..., ::4], fixture[f"{case}/coarse_out{side}_ch4"])
    confidences = confidence_matrix(*tokens)
    for axis, name in ((2, "row"), (1, "col")):
        largest, place = confidences.max(axis)
        near(largest, fixture[f"{case}/conf_{name}max"])
        sure = fixture[f"{case}/conf_{name}max"] > 0.01
        expected = fixture[f"{case}/conf_{name}arg"]
        np.testing.assert_array_equal(place.numpy()[sure], expected[sure])
    grids = maps[0].grid, maps[1].grid
    found = network.coarse_matches(*tokens, *grids)
    for column, name in zip(found[:3], ("b_ids", "i_ids", "j_ids"), strict=True):
        np.testing.assert_array_equal(column.numpy(), fixture[f"{case}/{name}"])
    near(found.confidence, fixture[f"{case}/mconf"])
    windows = network.windows(*maps, *tokens, *found[:3])
    for side, each in enumerate(windows):
        near(each[..., ::16], fixture[f"{case}/fine_in{side}_ch16"])
    for side, each in enumerate(network.s2ld_fine(*windows)):
        near(each[..., ::16], fixture[f"{case}/fine_out{side}_ch16"])
    places = network.fine(*maps, *tokens, *found[:3])
    near(places, fixture[f"{case}/expec_f"])
    scales = [
        torch.from_numpy(fixture[f"{case}/scale{side}"])[found.batch]
        if f"{case}/scale{side}" in fixture
        else 1
        for side in (0, 1)
    ]
    xy0 = maps[0].keypoints[found.batch, found.first]
    xy1 = maps[1].keypoints[found.batch, found.second] + places[:, :2] * WINDOW_REACH
    near(xy0 * scales[0], fixture[f"{case}/mkpts0_f"], ATOL_PX)
    near(xy1 * scales[1], fixture[f"{case}/mkpts1_f"], ATOL_PX)
    scores = maps[0].scores.flatten(1)[found.batch, found.first]
    near(scores, fixture[f"{case}/mscore"])


@pytest.mark.shared
@torch.inference_mode()
def test_every_transformer_layer_computes_what_the_released_one_does(
    network: S2ldNetwork, fixture: Arrays
) -> None:
    maps = [network.extract(grey(fixture, "A", side)) for side in (0, 1)]
    tokens = [network.tokens(each) for each in maps]
    layers = network.s2ld_coarse.layers
    for index in range(8):
        if index:
            part = Transformer(256, num_layers=0)
            part.layers.extend(layers[: index + 1])
            found = part(*tokens, first_layer=1)
        else:
            found = tokens
        for side, each in enumerate(found):
            expected = fixture[f"A/coarse_layer{index}_feat{side}_ch32"]
            near(each[..., ::32], expected)


@pytest.mark.shared
@torch.inference_mode()
def test_lower_threshold_gives_the_matches_of_the_released_network(
    network: S2ldNetwork, fixture: Arrays
) -> None:
    maps = [network.extract(grey(fixture, "A", side)) for side in (0, 1)]
    tokens = network.coarse(*maps)
    grids = maps[0].grid, maps[1].grid
    found = network.coarse_matches(*tokens, *grids, min_confidence=0.05)
    np.testing.assert_array_equal(found.first.numpy(), fixture["A005/i_ids"])
    np.testing.assert_array_equal(found.second.numpy(), fixture["A005/j_ids"])
    near(found.confidence, fixture["A005/mconf"])
    places = network.fine(*maps, *tokens, *found[:3])
    near(places, fixture["A005/expec_f"])


@torch.inference_mode()
def test_sums_before_projections_change_nothing() -> None:
    torch.manual_seed(2)
    layer = Transformer(256, num_layers=1).eval().double().layers[0]
    x, source = torch.randn(2, 70, 256).double(), torch.randn(2, 300, 256).double()
    queries, keys = (
        torch.nn.functional.elu(each) + 1
        for each in (layer.q_proj(x), layer.k_proj(source))
    )
    heads = [each.view(2, -1, 8, 32) for each in (queries, keys, layer.v_proj(source))]
    weights = torch.einsum("nlhd,nshd->nlsh", *heads[:2])
    message = torch.einsum("nlsh,nshd->nlhd", weights, heads[2])
    message = message / (weights.sum(2)[..., None] + 1e-6)
    message = layer.norm1(layer.merge(message.flatten(2)))
    expected = x + layer.norm2(layer.mlp(torch.cat((x, message), dim=2)))
    found = layer(x, source)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_gradient_reaches_every_weight() -> None:
    torch.manual_seed(0)
    network = S2ldNetwork().train()
    maps = [network.extract(torch.rand(2, 1, 64, 48)) for _ in range(2)]
    tokens = network.coarse(*maps)
    corner = torch.tensor([0, 1]), torch.tensor([0, 47]), torch.tensor([5, 0])
    places = network.fine(*maps, *tokens, *corner)
    confidences = confidence_matrix(*tokens).clamp(1e-6, 1 - 1e-6)
    loss = places.square().sum() - confidences.log().mean()
    (loss + sum(each.scores.sum() + each.keypoints.sum() for each in maps)).backward()
    for name, each in network.named_parameters():
        assert each.grad is not None, name
        assert each.grad.isfinite().all() and each.grad.any(), name


def test_keypoint_outside_of_the_image_has_the_nearest_window() -> None:
    network = S2ldNetwork().eval()
    maps = S2ldMaps(
        coarse=torch.zeros(1, 256, 2, 2),
        fine=torch.rand(1, 128, 8, 8),
        offsets=torch.full((1, 2, 2, 2), -1.2),
        scores=torch.zeros(1, 1, 2, 2),
    )
    inside = maps._replace(offsets=torch.zeros(1, 2, 2, 2))
    tokens, zero = torch.zeros(1, 4, 256), torch.zeros(1, dtype=torch.int64)
    with torch.inference_mode():
        found = network.windows(maps, inside, tokens, tokens, zero, zero, zero)
    assert torch.equal(*found)


@pytest.mark.parametrize("shape", [(1, 1, 64, 60), (1, 1, 60, 64), (1, 1, 8, 2056)])
def test_sides_that_the_network_cannot_take(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 8 up to 2048"):
        S2ldNetwork().extract(torch.zeros(shape))


# --------------------------------------------------------------------- dual softmax
def similar(seed: int, count0: int, count1: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of which some belong together."""
    torch.manual_seed(seed)
    tokens0 = torch.randn(2, count0, 32)
    tokens1 = torch.randn(2, count1, 32)
    both = min(count0, count1) // 2
    tokens1[:, :both] = tokens0[:, -both:] + torch.randn(2, both, 32) * 0.3
    return tokens0, tokens1


def of_matrix(confidences: torch.Tensor, least: float) -> list[torch.Tensor]:
    """The definition: more than the threshold, and the largest of row and column."""
    best = confidences > least
    best &= confidences == confidences.amax(1, keepdim=True)
    best &= confidences == confidences.amax(2, keepdim=True)
    return [*best.nonzero().unbind(1), confidences[best]]


def assert_equal(found: MutualMatches, expected: list[torch.Tensor]) -> None:
    for column, other in zip(found[:3], expected, strict=False):
        assert torch.equal(column, other)
    torch.testing.assert_close(found.confidence, expected[3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("least", [0.01, 0.2, 0.7])
@pytest.mark.parametrize("block_rows", [1, 7, 60, 61, 1000])
def test_blocks_give_what_the_whole_matrix_gives(least: float, block_rows: int) -> None:
    tokens = similar(block_rows, 61, 83)
    found = mutual_matches(*tokens, min_confidence=least, block_rows=block_rows)
    expected = of_matrix(confidence_matrix(*tokens), least)
    assert len(found.first) > 10
    assert_equal(found, expected)


def test_similarities_that_overflow_a_plain_softmax() -> None:
    tokens0, tokens1 = (each * 40 for each in similar(3, 50, 40))
    found = mutual_matches(tokens0, tokens1, block_rows=9)
    assert len(found.first) > 10
    assert_equal(found, of_matrix(confidence_matrix(tokens0, tokens1), 0.2))


def test_equal_tokens_are_matched_once() -> None:
    tokens = torch.eye(4)[[0, 0, 1]] * 8
    found = mutual_matches(tokens[None], tokens[None])
    assert found.first.tolist() == [0, 2]
    assert found.second.tolist() == [0, 2]
    assert found.confidence[0] == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize("counts", [(0, 5), (5, 0), (0, 0)])
def test_no_tokens_have_no_matches(counts: tuple[int, int]) -> None:
    tokens0, tokens1 = (torch.ones(2, count, 8) for count in counts)
    found = mutual_matches(tokens0, tokens1)
    assert [len(column) for column in found] == [0, 0, 0, 0]


def test_threshold_that_leaves_nothing_out() -> None:
    with pytest.raises(ValueError, match="min_confidence=0.0 but expected at least"):
        mutual_matches(torch.ones(1, 1, 8), torch.ones(1, 1, 8), min_confidence=0.0)


def test_whole_matrix_is_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    held = []

    def watched(*arguments):
        block = similarity(*arguments)
        held.append(tuple(block.shape))
        return block

    similarity = dual_softmax._similarity
    monkeypatch.setattr(dual_softmax, "_similarity", watched)
    mutual_matches(*similar(0, 61, 83), block_rows=20)
    assert held == [(20, 83), (20, 83), (20, 83), (1, 83)] * 2


# -------------------------------------------------------------------------- adapter
@pytest.mark.shared
@pytest.mark.parametrize("case", ["A", "B"])
@pytest.mark.parametrize("scale", [1, 3])
def test_matches_are_in_colmap_pixels_of_the_file(
    matcher: S2ld, fixture: Arrays, case: str, scale: int
) -> None:
    pair = tuple(
        matcher.prepare(batch_of(grey(fixture, case, side), scale=scale))[0]
        for side in (0, 1)
    )
    (found,) = matcher.match([pair])
    order = np.argsort(-fixture[f"{case}/mconf"], kind="stable")
    for side, xy in enumerate((found.xy0, found.xy1)):
        expected = fixture[f"{case}/mkpts{side}_f"][order] * scale
        np.testing.assert_allclose(xy, expected, atol=ATOL_PX * scale)
    np.testing.assert_allclose(found.scores, fixture[f"{case}/mconf"][order], atol=ATOL)


@pytest.mark.shared
def test_matches_start_at_keypoints_each_at_most_once(
    matcher: S2ld, fixture: Arrays
) -> None:
    first, second = (
        matcher.prepare(batch_of(grey(fixture, "B", side), scale=3))[0]
        for side in (0, 1)
    )
    third = matcher.prepare(batch_of(grey(fixture, "A", 1), scale=3))[0]
    assert first.keypoints.shape == ((12 - 4) * (16 - 4), 2)
    before = first.keypoints.copy()
    for pair in ((first, second), (second, first), (first, third), (first, first)):
        (found,) = matcher.match([pair])
        assert len(found) > 10
        keypoints = set(map(tuple, pair[0].keypoints.tolist()))
        starts = set(map(tuple, found.xy0.tolist()))
        assert starts <= keypoints and len(starts) == len(found)
        assert (np.diff(found.scores) <= 0).all()
        assert found.scores.max() <= 1 and found.scores.min() > 0.2
    np.testing.assert_array_equal(first.keypoints, before)


@pytest.mark.shared
def test_second_points_lie_in_the_window_of_a_keypoint(
    matcher: S2ld, fixture: Arrays
) -> None:
    first, second = (
        matcher.prepare(batch_of(grey(fixture, "B", side)))[0] for side in (0, 1)
    )
    (found,) = matcher.match([(first, second)])
    steps = np.abs(found.xy1[:, None] - second.keypoints).max(2)
    assert (steps.min(1) <= WINDOW_REACH).all()


@pytest.mark.shared
def test_batch_is_as_its_images_one_by_one(weights: Path, fixture: Arrays) -> None:
    pixels = torch.cat([grey(fixture, "A", side) for side in (0, 1)])
    matcher = S2ld(S2ldConfig(weights=weights))
    matcher.batch_size = 2
    together = matcher.prepare(batch_of(pixels))
    apart = [matcher.prepare(batch_of(each[None]))[0] for each in pixels]
    pairs = [(0, 1), (1, 0), (0, 0)]
    found = matcher.match([(together[i], together[j]) for i, j in pairs])
    for (i, j), matches in zip(pairs, found, strict=True):
        same(matches, *matcher.match([(apart[i], apart[j])]), atol=ATOL_PX)
    assert [each.num_bytes for each in together] == [each.num_bytes for each in apart]


@pytest.mark.shared
def test_memory_is_that_of_tokens_and_fine_map(matcher: S2ld, fixture: Arrays) -> None:
    (image,) = matcher.prepare(batch_of(grey(fixture, "A", 0)))
    cells = 12 * 16
    assert image.num_bytes == 4 * (cells * 256 + 16 * cells * 128 + cells * 3)


@pytest.mark.shared
@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_orientation_turns_the_points(
    matcher: S2ld, fixture: Arrays, orientation: int
) -> None:
    pixels = [grey(fixture, "B", side) for side in (0, 1)]
    upright = [matcher.prepare(batch_of(each, scale=2))[0] for each in pixels]
    batches = [batch_of(each, scale=2, orientation=orientation) for each in pixels]
    turned = [matcher.prepare(each)[0] for each in batches]
    (expected,), (found,) = matcher.match([upright]), matcher.match([turned])
    for xy, other, batch in (
        (found.xy0, expected.xy0, batches[0]),
        (found.xy1, expected.xy1, batches[1]),
    ):
        stored = coords.stored_xy(other, tuple(batch.sizes[0]), orientation)
        np.testing.assert_allclose(xy, stored, atol=ATOL_PX)


@pytest.mark.shared
def test_sides_that_are_no_multiple_of_8_are_padded(
    matcher: S2ld, network: S2ldNetwork, fixture: Arrays
) -> None:
    pixels = grey(fixture, "A", 0)[:, :, :90, :125]
    (image,) = matcher.prepare(batch_of(pixels))
    padded = torch.zeros(1, 1, 96, 128)
    padded[:, :, :90, :125] = pixels
    with torch.inference_mode():
        expected = network.extract(padded).keypoints.numpy().reshape(12, 16, 2)
    inner = expected[2:-2, 2:-2].reshape(-1, 2)
    np.testing.assert_allclose(image.keypoints, inner, atol=ATOL_PX)
    assert (image.keypoints > 0).all() and (image.keypoints < (125, 90)).all()


@pytest.mark.shared
@pytest.mark.parametrize("size", [(1, 1), (8, 40), (39, 32), (200, 7)])
def test_small_and_blank_images_have_no_matches(
    matcher: S2ld, fixture: Arrays, size: tuple[int, int]
) -> None:
    (small,) = matcher.prepare(batch_of(torch.zeros(1, 1, *size)))
    (other,) = matcher.prepare(batch_of(grey(fixture, "A", 0)))
    for found in matcher.match([(small, other), (other, small), (small, small)]):
        assert found.xy0.shape == found.xy1.shape == (0, 2)
        assert found.scores.shape == (0,)
    assert matcher.match([]) == []


@pytest.mark.shared
def test_one_match(weights: Path, fixture: Arrays) -> None:
    second, best = np.sort(fixture["A/mconf"])[-2:]
    config = S2ldConfig(weights=weights, min_score=float(second + best) / 2)
    matcher = S2ld(config)
    pair = tuple(
        matcher.prepare(batch_of(grey(fixture, "A", side)))[0] for side in (0, 1)
    )
    (found,) = matcher.match([pair])
    assert found.scores == pytest.approx([best], abs=ATOL)
    row = fixture["A/mconf"].argmax()
    np.testing.assert_allclose(found.xy1[0], fixture["A/mkpts1_f"][row], atol=ATOL_PX)


def test_settings_that_the_network_cannot_serve() -> None:
    with pytest.raises(ValidationError, match="max_size"):
        S2ldConfig(max_size=2049)
    with pytest.raises(ValidationError, match="min_score"):
        S2ldConfig(min_score=0.0)


# -------------------------------------------------------------------------- weights
def test_absent_weights_are_to_be_brought() -> None:
    with pytest.raises(WeightsError) as caught:
        S2ld(S2ldConfig())
    assert str(caught.value) == (
        "weights of s2ld are not here, and sfmprep may not fetch them: Merical/S2LD"
        " states no licence. Ask its author for the file and name it in the recipe"
        " (`weights: PATH`), or put it as s2ld.safetensors into the folder"
        " SFMPREP_WEIGHTS names."
    )


@pytest.mark.shared
def test_files_of_the_authors_are_read(tensors, tmp_path: Path) -> None:
    prefixed = {f"matcher.{key}": tensor for key, tensor in tensors.items()}
    prefixed["matcher.pos_encoding.pe"] = torch.zeros(1, 256, 4, 4)
    for name, content in (
        ("bare.pt", tensors),
        ("training.ckpt", {"epoch": 3, "state_dict": prefixed}),
    ):
        torch.save(content, tmp_path / name)
        matcher = S2ld(S2ldConfig(weights=tmp_path / name))
        digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        assert matcher.identity["weights_sha256"] == digest


@pytest.mark.shared
def test_incomplete_weights_are_refused(tensors, tmp_path: Path) -> None:
    lacking = {f"wrong.{key}": tensor for key, tensor in tensors.items()}
    save_file(lacking, tmp_path / "s2ld.safetensors")
    with pytest.raises(WeightsError, match="does not fit the network"):
        S2ld(S2ldConfig(weights=tmp_path / "s2ld.safetensors"))


def test_other_entries_of_a_training_checkpoint_are_left_out() -> None:
    one = torch.ones(1)
    found = network_tensors({"state_dict.matcher.a.b": one, "optimizer.state.0": one})
    assert found == {"a.b": one}


# ------------------------------------------------------------------- half precision
@pytest.mark.shared
@torch.inference_mode()
def test_half_precision_moves_points_little(tensors, fixture: Arrays) -> None:
    network = S2ldNetwork()
    network.load_state_dict(tensors)
    network.prepare(torch.float16)
    maps = [network.extract(grey(fixture, "B", side)) for side in (0, 1)]
    for side, each in enumerate(maps):
        assert each.fine.dtype == torch.float16
        near(each.keypoints, fixture[f"B/keypoints{side}"], HALF_ATOL_PX)
    tokens = network.coarse(*maps)
    found = network.coarse_matches(*tokens, maps[0].grid, maps[1].grid)
    places = network.fine(*maps, *tokens, *found[:3])
    assert found.confidence.dtype == places.dtype == torch.float32
    rows = {pair: row for row, pair in enumerate(pairs_of(fixture, "B"))}
    cells = zip(found.first.tolist(), found.second.tolist(), strict=True)
    steps = [
        np.abs(places[number, :2].numpy() - fixture["B/expec_f"][rows[pair], :2]).max()
        for number, pair in enumerate(cells)
        if pair in rows
    ]
    assert len(steps) >= len(rows) - 1 and len(found.first) <= len(rows) + 1
    assert max(steps) * WINDOW_REACH < HALF_ATOL_PX


def pairs_of(fixture: Arrays, case: str) -> list[tuple[int, int]]:
    columns = fixture[f"{case}/i_ids"].tolist(), fixture[f"{case}/j_ids"].tolist()
    return list(zip(*columns, strict=True))


@pytest.mark.gpu
@pytest.mark.shared
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["float32", "half"])
def test_gpu_gives_what_the_cpu_gives(
    matcher: S2ld, weights: Path, fixture: Arrays, precision: str
) -> None:
    on_gpu = S2ld(S2ldConfig(weights=weights), device="cuda", precision=precision)
    atol = 0.01 if precision == "float32" else HALF_ATOL_PX
    batches = [batch_of(grey(fixture, "B", side)) for side in (0, 1)]
    pair = tuple(matcher.prepare(each)[0] for each in batches)
    pair_on_gpu = tuple(on_gpu.prepare(each)[0] for each in batches)
    for image, other in zip(pair, pair_on_gpu, strict=True):
        np.testing.assert_allclose(other.keypoints, image.keypoints, atol=atol)
    (expected,) = matcher.match([pair])
    (found,) = on_gpu.match([pair_on_gpu])
    apart = np.abs(expected.xy0[:, None] - found.xy0).max(2)
    again = apart.min(1) < atol
    assert again.sum() >= len(expected) - 1 and len(found) <= len(expected) + 1
    steps = np.abs(expected.xy1 - found.xy1[apart.argmin(1)]).max(1)
    assert steps[again].max() < atol
