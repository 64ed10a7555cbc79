"""DUSt3R and MASt3R against the fixture of the originals, and their files."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sfmprep.config import PointmapConfig
from sfmprep.errors import WeightsError
from sfmprep.models.semidense import pointmap_network
from sfmprep.models.semidense.pointmap_heads import DptHead
from sfmprep.models.semidense.pointmap_search import (
    anchored,
    by_descriptors,
    by_points,
)
from sfmprep.models.semidense.pointmaps import Pointmaps, cropped
from sfmprep.types import ImageBatch
from tests.support.fixtures import shared_filled
from tests.support.pointmaps import pointmap_tensors

Arrays = Mapping[str, np.ndarray]
TOLERANCE = 1e-4  # of the largest value
_KEYS = {"dust3r-linear": "dust3r_linear", "dust3r-dpt": "dust3r_dpt"}


@pytest.fixture(scope="module")
def fixture(shared: Path) -> Arrays:
    with np.load(shared / "fixtures" / "pointmaps" / "fixture.npz") as file:
        return dict(file)


@pytest.fixture(scope="module", params=["dust3r-linear", "dust3r-dpt", "mast3r"])
def model(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def matcher(model: str, shared: Path, tmp_path_factory: pytest.TempPathFactory):
    """The matcher of the fixture, whose heads are a quarter as wide."""
    tensors = shared_filled(
        shared / "fixtures" / "pointmaps" / f"{_KEYS.get(model, model)}_tiny_keys.json",
        gain=0.85,
    )
    path = tmp_path_factory.mktemp("pointmaps") / f"{model}.pth"
    torch.save({"args": argparse.Namespace(model="x"), "model": tensors}, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pointmap_network, "_HEAD_DIM", 16)
        yield Pointmaps(PointmapConfig(model=model, weights=path, min_score=0))


@pytest.fixture(scope="module")
def sides(matcher: Pointmaps, fixture: Arrays):
    """The pictures of the fixture, prepared."""
    return {name: matcher.prepare(picture(fixture, name))[0] for name in "ABC"}


def picture(fixture: Arrays, name: str) -> ImageBatch:
    pixels = fixture[f"image/{name}"].astype(np.float32) / 255
    return batch_of(pixels)


def batch_of(*images: np.ndarray) -> ImageBatch:
    height, width = images[0].shape[:2]
    return ImageBatch(
        pixels=np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)),
        sizes=np.int32([[width, height]] * len(images)),
        orientations=np.ones(len(images), np.int32),
    )


def assert_close(found: Tensor, expected: np.ndarray) -> None:
    found = found.detach().numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < TOLERANCE * np.abs(expected).max()


def step(shape: tuple[int, ...], expected: np.ndarray) -> int:
    return shape[0] // expected.shape[0]


@pytest.mark.shared
@pytest.mark.parametrize("pair", ["AB", "BA", "AC"])
def test_maps_equal_those_of_the_originals(
    matcher: Pointmaps, model: str, sides, fixture: Arrays, pair: str
) -> None:
    with torch.inference_mode():
        maps = matcher._pointmaps([(sides[pair[0]], sides[pair[1]])])
    network = _KEYS.get(model, model)
    names = ("pts3d", "conf", "desc", "desc_conf")
    compared = 0
    for side, found in enumerate(maps, 1):
        for name, values in zip(names, found, strict=True):
            expected = fixture.get(f"{network}/{pair}/{name}_{side}")
            if expected is not None:
                every = step(values[0].shape, expected)
                assert_close(values[0, ::every, ::every], expected)
                compared += 1
    assert compared == (8 if model == "mast3r" and pair != "AC" else 4)


@pytest.mark.shared
def test_tokens_and_levels_equal_those_of_the_originals(
    matcher: Pointmaps, model: str, sides, fixture: Arrays
) -> None:
    if model != "dust3r-dpt":
        pytest.skip("the fixture has them of one network")
    network = matcher._network
    first, second = sides["A"], sides["B"]
    assert_close(first.tokens[0, :, ::4], fixture["tokens/enc_A"])
    assert_close(second.tokens[0, :, ::4], fixture["tokens/enc_B"])
    pixels = torch.from_numpy(picture(fixture, "A").pixels)
    with torch.inference_mode():
        embedded = network.patch_embed(2 * pixels - 1)
        seen = network.decode((first.tokens, second.tokens), (first.grid, second.grid))
        head: DptHead = network.downstream_head1.dpt
        levels = head.levels(seen[0], first.grid)
        path4 = head.scratch["refinenet4"](levels[3], None)
        path1 = head.fused(levels)
        raw = head(seen[0], first.grid)
    assert_close(embedded[0, :, ::8], fixture["tokens/embed_A"])
    for side, tokens in enumerate(seen, 1):
        for layer in (1, 2, 6, 12):
            expected = fixture[f"tokens/dec{side}_{layer}"]
            assert_close(tokens[layer][0, :, ::4], expected)
    for number, level in enumerate(levels):
        assert_close(level[0, ::64], fixture[f"dpt/rn_{number}"])
    assert_close(path4[0, ::64], fixture["dpt/path4"])
    assert_close(path1[0, ::64], fixture["dpt/path1"])
    assert_close(raw[0, :, ::4, ::4], fixture["dpt/raw"])


@pytest.mark.shared
def test_mutual_pixels_equal_those_of_the_originals(
    matcher: Pointmaps, model: str, sides, fixture: Arrays
) -> None:
    """From every pixel and back to exactly it: all mutual matches."""
    with torch.inference_mode():
        maps = matcher._pointmaps([(sides["A"], sides["B"])])
    if model == "mast3r":
        rows = [side.descriptors[0].flatten(0, 1) for side in maps]
        find, expected = by_descriptors, fixture["mast3r/dense_index"]
    else:
        rows = [side.points[0].flatten(0, 1) for side in maps]
        find, expected = by_points, fixture[f"{_KEYS[model]}/match3d_index"]
    starts = torch.arange(len(rows[0]))
    kept, ends = anchored(
        find(*rows), find(*reversed(rows)), starts, width=96, tolerance=1
    )
    found = torch.stack((kept, ends), 1).numpy()
    np.testing.assert_array_equal(
        found[np.lexsort(found.T[::-1])], expected[np.lexsort(expected.T[::-1])]
    )


@pytest.mark.shared
def test_matches_from_the_grid_equal_those_of_the_original(
    matcher: Pointmaps, model: str, sides, fixture: Arrays
) -> None:
    if model != "mast3r":
        pytest.skip("the fixture has them of one network")
    [matches] = matcher.match([(sides["A"], sides["B"])])
    expected = np.hstack([fixture[f"mast3r/anchored5_xy{side}"] for side in (1, 2)])
    found = np.hstack([matches.xy0, matches.xy1]) - 0.5
    np.testing.assert_array_equal(
        found[np.lexsort(found.T)], expected[np.lexsort(expected.T)]
    )
    # those that both directions find have their confidence in the fixture
    both = np.hstack([fixture[f"mast3r/nonsym5_xy{side}"] for side in (1, 2)])
    quality = dict(zip(map(tuple, both), fixture["mast3r/nonsym5_conf"], strict=True))
    for row, score in zip(found, matches.scores, strict=True):
        value = quality[tuple(row.astype(int))]
        assert score == pytest.approx(value / (1 + value), abs=1e-5)


@pytest.mark.shared
def test_crops_equal_those_of_the_originals(shared: Path) -> None:
    with np.load(shared / "fixtures" / "pointmaps" / "geometry.npz") as file:
        rows = file["load/sizes"]
    seen = 0
    for size, width, height, *expected in rows.tolist():
        if size == 512:
            scale = size / max(width, height)
            resized = round(width * scale), round(height * scale)
            assert cropped(resized)[1] == tuple(expected), (width, height)
            seen += 1
    assert seen > 5


def test_the_middle_is_taken() -> None:
    assert cropped((512, 341)) == ((0, 2), (512, 336))
    assert cropped((512, 512)) == ((0, 64), (512, 384))
    assert cropped((15, 40)) == ((7, 4), (0, 32))


def test_starts_lie_in_the_middle_of_cells(weights: Path) -> None:
    made = Pointmaps(PointmapConfig(weights=weights))
    [image] = made.prepare(batch_of(np.zeros((40, 67, 3), np.float32)))
    # 64 x 32 of 67 x 40 pixels, from (1, 4) on
    assert image.keypoints.min(0).tolist() == [1 + 4.5, 4 + 4.5]
    assert image.keypoints.max(0).tolist() == [1 + 60.5, 4 + 28.5]
    assert len(image.keypoints) == 8 * 4


def test_a_search_in_blocks_takes_the_first_of_equal_products(monkeypatch) -> None:
    module = "sfmprep.models.semidense.pointmap_search._BLOCK"
    torch.manual_seed(0)
    queries, targets = torch.randn(40, 8), torch.randn(30, 8).repeat(3, 1)
    pixels = torch.arange(3, 37)
    expected = (queries[pixels] @ targets.T).argmax(1) % 30
    for block in (1, 300, 1 << 22):
        monkeypatch.setattr(module, block)
        found = by_descriptors(queries, targets)(pixels)
        assert found.tolist() == expected.tolist()


# ------------------------------------------------------------------------------- files
@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pointmaps") / "mast3r.safetensors"
    save_file(pointmap_tensors("mast3r"), path)
    return path


def test_a_file_of_another_network_is_named(tmp_path: Path, weights: Path) -> None:
    with pytest.raises(WeightsError) as told:
        Pointmaps(PointmapConfig(model="dust3r-dpt", weights=weights))
    assert str(told.value) == (
        f"weights of dust3r-dpt: {weights} holds mast3r. Expected the tensors of"
        " dust3r-dpt, which the key `model` of the recipe names; correct it or the key"
        " `weights`."
    )
    other = tmp_path / "other.safetensors"
    save_file({"conv.weight": torch.zeros(1)}, other)
    with pytest.raises(WeightsError, match="holds neither DUSt3R nor MASt3R"):
        Pointmaps(PointmapConfig(weights=other))


def test_a_file_without_its_second_decoder_is_refused(tmp_path: Path) -> None:
    tensors = pointmap_tensors("mast3r")
    path = tmp_path / "croco.safetensors"
    kept = {k: v for k, v in tensors.items() if not k.startswith("dec_blocks2.")}
    save_file(kept, path)
    with pytest.raises(WeightsError, match="holds neither DUSt3R nor MASt3R"):
        Pointmaps(PointmapConfig(weights=path))


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    tensors = pointmap_tensors("dust3r-linear")
    del tensors["dec_norm.bias"]
    path = tmp_path / "short.safetensors"
    save_file(tensors, path)
    with pytest.raises(WeightsError, match=r"does not fit .*dec_norm\.bias"):
        Pointmaps(PointmapConfig(model="dust3r-linear", weights=path))


def test_half_of_a_file_is_refused(tmp_path: Path, weights: Path) -> None:
    path = tmp_path / "half.safetensors"
    path.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(WeightsError, match="cannot be read"):
        Pointmaps(PointmapConfig(weights=path))


def test_doubled_tensors_are_one_and_must_agree(tmp_path: Path) -> None:
    tensors = pointmap_tensors("mast3r")
    scratch = "downstream_head1.dpt.scratch"
    twin = f"{scratch}.layer_rn.0.weight"
    tensors[twin] = tensors[f"{scratch}.layer1_rn.weight"].clone()
    path = tmp_path / "whole.pth"
    torch.save({"model": tensors, "epoch": 3}, path)
    assert Pointmaps(PointmapConfig(weights=path)).identity["weights_sha256"]
    tensors[twin] = tensors[twin] + 1
    torch.save({"model": tensors}, path)
    with pytest.raises(WeightsError) as told:
        Pointmaps(PointmapConfig(weights=path))
    assert str(told.value) == (
        f"weights of mast3r: {path} holds two different tensors for one, {twin}. Put a"
        " good copy in its place."
    )


@pytest.mark.shared
@pytest.mark.parametrize("name", ["dust3r_linear", "dust3r_dpt", "mast3r"])
def test_the_official_keys_fit_the_network(shared: Path, name: str) -> None:
    keys = shared / "fixtures" / "pointmaps" / f"{name}_official_keys.json"
    shapes = json.loads(keys.read_text())
    tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    found = pointmap_network.architecture(tensors)
    assert (found.encoder_depth, found.decoder_depth) == (24, 12)
    assert (found.encoder_width, found.decoder_width) == (1024, 768)
    with torch.device("meta"):
        network = pointmap_network.PointmapNetwork(found)
    mine = {key: list(value.shape) for key, value in network.state_dict().items()}
    assert mine == {k: v for k, v in shapes.items() if ".layer_rn." not in k}
