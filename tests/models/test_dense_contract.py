"""What `protocols.DenseMatcher` promises, asked of every dense matcher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from sfmprep.config import (
    LoftrConfig,
    PointmapConfig,
    S2ldConfig,
    XFeatStarConfig,
)
from sfmprep.errors import ConfigError
from sfmprep.models.build import build_dense_matcher
from sfmprep.models.identity import identity
from sfmprep.models.protocols import DenseMatcher
from sfmprep.models.semidense.loftr import loftr_network
from sfmprep.models.semidense.s2ld_network import S2ldMaps, S2ldNetwork
from sfmprep.types import DenseMatches, ImageBatch
from tests.support.pointmaps import pointmap_tensors

WIDTH, HEIGHT = 160, 128


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of random weights, in which cells differ enough to be matched."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    loftr = loftr_network("loftr-outdoor")
    torch.manual_seed(3)
    s2ld = S2ldNetwork()
    with torch.no_grad():
        for name, parameter in s2ld.named_parameters():
            if name.startswith("backbone") and parameter.dim() == 4:
                torch.nn.init.kaiming_normal_(parameter, mode="fan_out")
        loftr.backbone.layer3_outconv.weight.mul_(3)
        s2ld.backbone.layer3_outconv.weight.mul_(30)
    torch.save({"state_dict": loftr.state_dict()}, folder / "loftr.ckpt")
    torch.save(s2ld.state_dict(), folder / "s2ld.ckpt")
    for model in ("mast3r", "dust3r-linear"):
        torch.save({"model": pointmap_tensors(model)}, folder / f"{model}.ckpt")
    return folder


@pytest.fixture(
    scope="module",
    params=[
        *("loftr", "s2ld", "mast3r", "dust3r-linear"),
        pytest.param("xfeat-star", marks=pytest.mark.shared),
    ],
)
def matcher(request, random_weights: Path) -> DenseMatcher:
    match request.param:
        case "loftr":
            config = LoftrConfig(weights=random_weights / "loftr.ckpt", min_score=0.01)
        case "s2ld":
            config = S2ldConfig(weights=random_weights / "s2ld.ckpt", min_score=0.01)
        case "mast3r" | "dust3r-linear" as model:
            config = PointmapConfig(
                model=model, weights=random_weights / f"{model}.ckpt", min_score=0.01
            )
        case _:
            path = request.getfixturevalue("shared") / "weights" / "xfeat.safetensors"
            config = XFeatStarConfig(weights=path, min_similarity=0.5)
    made = build_dense_matcher(config)
    assert made.identity == identity(config)
    return made


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    """A picture [H, W, 3] in 0..1 with detail of several sizes."""
    rng = np.random.default_rng(5)
    size = (WIDTH + 64, HEIGHT + 64)
    picture = np.zeros((size[1], size[0], 3), np.float32)
    for step in (4, 16):
        coarse = rng.random((size[1] // step, size[0] // step, 3), np.float32) - 0.5
        picture += cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
    return (picture + 0.5).clip(0, 1)


def crop(scene: np.ndarray, x: int, y: int) -> np.ndarray:
    return scene[y : y + HEIGHT, x : x + WIDTH]


def batch_of(*images: np.ndarray, scale: int = 1, orientation: int = 1) -> ImageBatch:
    """Pictures of one size, of files `scale` times as large."""
    size = [scale * images[0].shape[1], scale * images[0].shape[0]]
    if orientation == 6:
        size.reverse()
    return ImageBatch(
        pixels=np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)),
        sizes=np.int32([size] * len(images)),
        orientations=np.full(len(images), orientation, np.int32),
    )


def assert_same(matches: DenseMatches, others: DenseMatches) -> None:
    """Allows for rounding: equal scores may change places, or fall out."""
    table = {tuple(xy): row for row, xy in enumerate(matches.xy0)}
    pairs = [
        (table[tuple(xy)], row)
        for row, xy in enumerate(others.xy0)
        if tuple(xy) in table
    ]
    assert len(pairs) >= 0.98 * max(len(matches), len(others))
    rows, others_rows = np.array(pairs).T
    difference = np.abs(matches.xy1[rows] - others.xy1[others_rows]).max(1)
    assert np.quantile(difference, 0.98) < 0.02
    np.testing.assert_allclose(
        np.sort(matches.scores[rows]), np.sort(others.scores[others_rows]), atol=2e-3
    )


@pytest.fixture(scope="module")
def prepared(matcher: DenseMatcher, scene: np.ndarray):
    """Two images, the second looking 16 pixels further right and 16 further down."""
    return matcher.prepare(batch_of(crop(scene, 16, 16), crop(scene, 32, 32)))


def test_rows_fall_by_score_and_start_at_distinct_keypoints(matcher, prepared) -> None:
    [matches] = matcher.match([(prepared[0], prepared[1])])
    assert len(matches) >= 5
    assert (np.diff(matches.scores) <= 0).all()
    assert ((matches.scores >= 0) & (matches.scores <= 1)).all()
    starts = {tuple(xy) for xy in matches.xy0}
    assert len(starts) == len(matches)
    assert starts <= {tuple(xy) for xy in prepared[0].keypoints}
    assert len(np.unique(prepared[0].keypoints, axis=0)) == len(prepared[0].keypoints)


def test_batch_of_pairs_equals_single_pairs(matcher, prepared, scene) -> None:
    portrait = matcher.prepare(batch_of(crop(scene, 0, 0)[:, :120]))
    images = [*prepared, *portrait]
    pairs = [(images[a], images[b]) for a in range(3) for b in range(3)]
    for pair, matches in zip(pairs, matcher.match(pairs), strict=True):
        assert_same(matches, matcher.match([pair])[0])


def test_batch_of_images_equals_single_images(matcher, prepared, scene) -> None:
    single = [
        matcher.prepare(batch_of(crop(scene, *corner)))[0]
        for corner in ((16, 16), (32, 32))
    ]
    assert single[0].num_bytes == prepared[0].num_bytes > 0
    assert_same(*matcher.match([tuple(single), tuple(prepared)]))


def test_other_direction_starts_from_the_other_image(matcher, prepared) -> None:
    forward, backward = matcher.match(
        [(prepared[0], prepared[1]), (prepared[1], prepared[0])]
    )
    keypoints = {tuple(xy) for xy in prepared[1].keypoints}
    assert {tuple(xy) for xy in backward.xy0} <= keypoints
    assert len(backward) >= 5 and len(forward) >= 5


def test_translation_is_recovered(matcher, prepared) -> None:
    [matches] = matcher.match([(prepared[0], prepared[1])])
    error = matches.xy1 - (matches.xy0 - np.float32([16, 16]))
    # Of random weights only the cells say where: the window reaches so far from them.
    reach = {"Loftr": 4.01, "S2ld": 8.01, "XFeatStar": 2, "Pointmaps": 1}
    assert (np.abs(error).max(1) <= reach[type(matcher).__name__]).mean() > 0.8


def test_blank_images_have_no_matches_and_are_no_error(matcher, prepared) -> None:
    [blank] = matcher.prepare(batch_of(np.full((HEIGHT, WIDTH, 3), 0.5, np.float32)))
    for matches in matcher.match([(blank, prepared[0]), (prepared[0], blank)]):
        assert len(matches) <= 0.05 * len(blank.keypoints)
        assert np.isfinite(matches.xy1).all()


@pytest.mark.parametrize(
    "size", [(20, 9), (1, 1), (8, 8), (16, 16), (500, 1), (1, 500)]
)
def test_tiny_images_are_no_error(matcher, prepared, size) -> None:
    noise = np.random.default_rng(6).random((*size[::-1], 3), np.float32)
    [tiny] = matcher.prepare(batch_of(noise))
    pairs = [(tiny, prepared[0]), (prepared[0], tiny), (tiny, tiny)]
    for (first, _), matches in zip(pairs, matcher.match(pairs), strict=True):
        assert len(matches) <= len(first.keypoints)
        assert np.isfinite(matches.xy0).all() and np.isfinite(matches.xy1).all()


def test_cells_of_loftr_and_s2ld_lie_at_the_same_places(
    random_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both were trained with COLMAP's intrinsics: cell (x, y) is at (8 x, 8 y)."""
    whole = S2ldNetwork.extract

    def without_offsets(network: S2ldNetwork, grey: torch.Tensor) -> S2ldMaps:
        maps = whole(network, grey)
        return maps._replace(offsets=torch.zeros_like(maps.offsets))

    monkeypatch.setattr(S2ldNetwork, "extract", without_offsets)
    batch = batch_of(np.full((HEIGHT, WIDTH, 3), 0.5, np.float32), scale=3)
    loftr, s2ld = (
        build_dense_matcher(config(weights=random_weights / file)).prepare(batch)[0]
        for config, file in ((LoftrConfig, "loftr.ckpt"), (S2ldConfig, "s2ld.ckpt"))
    )
    x, y = np.meshgrid(np.arange(2, WIDTH // 8 - 2), np.arange(2, HEIGHT // 8 - 2))
    expected = 3 * 8 * np.column_stack([x.flat, y.flat])
    np.testing.assert_allclose(loftr.keypoints, expected, atol=1e-4)
    np.testing.assert_allclose(s2ld.keypoints, expected, atol=1e-4)


def test_no_pairs_give_no_matches(matcher) -> None:
    assert matcher.match([]) == []


def test_coordinates_are_those_of_the_larger_file(matcher, prepared, scene) -> None:
    large = matcher.prepare(batch_of(crop(scene, 16, 16), crop(scene, 32, 32), scale=3))
    np.testing.assert_allclose(large[0].keypoints, 3 * prepared[0].keypoints, rtol=1e-6)
    small, matches = matcher.match([tuple(prepared), tuple(large)])
    np.testing.assert_allclose(matches.xy0, 3 * small.xy0, rtol=1e-6)
    np.testing.assert_allclose(matches.xy1, 3 * small.xy1, rtol=1e-4, atol=1e-3)


def test_turned_file_gets_coordinates_of_its_stored_pixels(
    matcher, prepared, scene
) -> None:
    """EXIF 6: shown after a quarter turn clockwise; stored (x, y) is (y, W - x)."""
    turned = matcher.prepare(
        batch_of(crop(scene, 16, 16), crop(scene, 32, 32), orientation=6)
    )

    def stored(xy: np.ndarray) -> np.ndarray:
        return np.stack([xy[:, 1], WIDTH - xy[:, 0]], 1)

    np.testing.assert_allclose(
        turned[0].keypoints, stored(prepared[0].keypoints), atol=1e-3
    )
    upright, matches = matcher.match([tuple(prepared), tuple(turned)])
    np.testing.assert_allclose(matches.xy0, stored(upright.xy0), atol=1e-3)
    np.testing.assert_allclose(matches.xy1, stored(upright.xy1), atol=1e-3)


def test_image_of_another_matcher_is_refused(matcher, prepared) -> None:
    class Foreign:
        num_bytes = 0
        keypoints = np.empty((0, 2), np.float32)

    with pytest.raises(ValueError, match="got a Foreign but expected"):
        matcher.match([(prepared[0], Foreign())])


CONFIGS: list[Callable[..., object]] = [
    *(LoftrConfig, S2ldConfig),
    *(XFeatStarConfig, PointmapConfig),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_half_precision_needs_a_gpu(config) -> None:
    with pytest.raises(ConfigError, match="only CUDA devices"):
        build_dense_matcher(config(), device="cpu", precision="half")
