"""ALIKED against kornia's module, and the conventions of the extractor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from kornia.feature.aliked import ALIKED as KorniaAliked
from kornia.feature.aliked.aliked import DKD, ALIKEDFeatures, DeformableConv2d
from kornia.geometry.subpix import nms2d
from PIL import Image
from safetensors.torch import load_file, save_file

from sfmprep.config import AlikedConfig
from sfmprep.errors import WeightsError
from sfmprep.models.extractors import aliked_network
from sfmprep.models.extractors.aliked import Aliked, detect_keypoints
from sfmprep.models.extractors.aliked_network import AlikedNetwork, DeformableConv
from sfmprep.models.shared.precision import Precision
from sfmprep.types import Features, Float32, ImageBatch

MODELS = ("aliked-t16", "aliked-n16", "aliked-n16rot", "aliked-n32")


@pytest.fixture(scope="session")
def photograph(shared: Path) -> Float32:
    """A photograph [3, 213, 310]; neither side is a multiple of 32."""
    path = shared / "data" / "scenes" / "fountain-P11" / "images" / "0005.jpg"
    with Image.open(path) as image:
        small = image.convert("RGB").resize((310, 213), Image.Resampling.LANCZOS)
    return (np.asarray(small).transpose(2, 0, 1) / 255).astype(np.float32)


def batch_of(*pixels: Float32, sizes: tuple[int, int] | None = None) -> ImageBatch:
    _, height, width = pixels[0].shape
    count = len(pixels)
    return ImageBatch(
        pixels=np.stack(pixels),
        sizes=np.array([sizes or (width, height)] * count, np.int32),
        orientations=np.ones(count, np.int32),
    )


def tensors_of(reference: KorniaAliked) -> dict[str, torch.Tensor]:
    return {k: v for k, v in reference.state_dict().items() if "hw_grid" not in k}


def random_reference(model: str, seed: int = 0) -> KorniaAliked:
    """kornia's module with random weights and batch statistics; scores near 0.5."""
    torch.manual_seed(seed)
    reference = KorniaAliked(model).eval()
    for name, buffer in reference.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.2)
        elif name.endswith("running_var"):
            buffer.uniform_(0.3, 2)
    return reference


def prepared_network(dtype: torch.dtype) -> AlikedNetwork:
    network = AlikedNetwork("aliked-t16")
    network.load_state_dict(tensors_of(random_reference("aliked-t16")))
    network.prepare(dtype)
    return network


def assert_same_features(ours: Features, reference: ALIKEDFeatures) -> None:
    xy = reference.keypoints.numpy() + 0.5
    assert len(ours) == len(xy) > 50
    distance = np.linalg.norm(ours.xy[:, None] - xy[None], axis=2)
    row = distance.argmin(axis=1)
    assert len(set(row)) == len(xy)
    assert distance.min(axis=1).max() < 1e-3
    np.testing.assert_allclose(
        ours.scores, reference.keypoint_scores.numpy()[row], atol=1e-4
    )
    np.testing.assert_allclose(
        ours.descriptors, reference.descriptors.numpy()[row], atol=1e-4
    )


# ----------------------------------------------------------- without real weights
@pytest.mark.parametrize("radius", [1, 2, 3])
def test_keypoints_are_the_strict_maxima_that_kornia_finds(radius: int) -> None:
    torch.manual_seed(radius)
    # Few distinct values: ties are frequent and suppress each other.
    scores = torch.randint(1, 60, (2, 61, 83)) / 60
    size = 2 * radius + 1
    mask = nms2d(scores[:, None], (size, size), mask_only=True)[:, 0]
    mask[:, :radius] = mask[:, -radius:] = False
    mask[:, :, :radius] = mask[:, :, -radius:] = False
    image, xy, found = detect_keypoints(
        scores, radius=radius, min_score=0, max_keypoints=100_000
    )
    for item in range(2):
        expected, expected_scores, _ = DKD(radius=radius, top_k=100_000)(
            scores[item][None, None]
        )
        ours = image == item
        assert ours.sum() == mask[item].sum() > 10
        expected_xy = (expected[0] + 1) / 2 * torch.tensor([82, 60])
        order = torch.cdist(xy[ours], expected_xy).argmin(dim=1)
        torch.testing.assert_close(xy[ours], expected_xy[order], atol=1e-4, rtol=0)
        torch.testing.assert_close(
            found[ours], expected_scores[0][order], atol=1e-5, rtol=0
        )


def test_lower_maxima_are_dropped_and_the_highest_kept() -> None:
    scores = torch.zeros(1, 40, 40)
    for y, x, height in [(10, 10, 0.9), (10, 20, 0.5), (20, 30, 0.7), (30, 5, 0.1)]:
        scores[0, y, x] = height
    _, xy, _ = detect_keypoints(scores, radius=2, min_score=0.2, max_keypoints=10)
    assert {tuple(row) for row in xy.round().int().tolist()} == {
        (10, 10),
        (20, 10),
        (30, 20),
    }
    _, xy, _ = detect_keypoints(scores, radius=2, min_score=0.2, max_keypoints=2)
    assert xy.round().int().tolist() == [[10, 10], [30, 20]]


@pytest.mark.parametrize("shape", [(5, 5), (4, 40), (40, 4), (1, 1)])
def test_a_flat_or_tiny_score_map_has_no_keypoint(shape: tuple[int, int]) -> None:
    image, xy, scores = detect_keypoints(
        torch.full((2, *shape), 0.8), radius=2, min_score=0, max_keypoints=10
    )
    assert xy.shape == (0, 2) and scores.shape == image.shape == (0,)


def test_deformable_convolution_equals_kornia_beyond_the_border() -> None:
    torch.manual_seed(0)
    reference = DeformableConv2d(6, 5)
    reference.offset_conv.weight.data.mul_(20)
    ours = DeformableConv(6, 5)
    ours.load_state_dict(reference.state_dict())
    features = torch.randn(2, 6, 13, 17)
    offsets = reference.offset_conv(features)
    assert offsets.abs().max() > 17 / 4  # the clamp is at work
    torch.testing.assert_close(
        ours(features), reference(features), atol=1e-5, rtol=1e-5
    )


def test_random_network_equals_kornia(tmp_path: Path) -> None:
    reference = random_reference("aliked-t16")
    path = tmp_path / "random.safetensors"
    save_file(tensors_of(reference), path)
    pixels = torch.rand(3, 70, 101)
    with torch.inference_mode():
        _, scores = reference.extract_dense_map(pixels[None])
        reference.dkd.scores_th = float(scores.median())
        expected = reference(pixels[None])[0]
    config = AlikedConfig(
        model="aliked-t16", min_score=float(scores.median()), weights=path
    )
    ours = Aliked(config).extract(batch_of(pixels.numpy()))[0]
    assert_same_features(ours, expected)


def test_strips_and_chunks_leave_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    network = prepared_network(torch.float32)
    pixels = torch.rand(2, 3, 150, 90)
    image = torch.arange(300) // 100 % 2
    xy = torch.rand(300, 2) * torch.tensor([89, 149])
    with torch.inference_mode():
        whole = network(pixels)
        described = network.describe(whole, image, xy)
        monkeypatch.setattr(aliked_network, "_STRIP_PIXELS", 96 * 9)
        monkeypatch.setattr(aliked_network, "_COLUMN_PIXELS", 50)
        monkeypatch.setattr(aliked_network, "_KEYPOINTS", 7)
        cut = network(pixels)
        described_again = network.describe(cut, image, xy)
    torch.testing.assert_close(cut.scores, whole.scores, atol=1e-5, rtol=0)
    torch.testing.assert_close(described_again, described, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (31, 33)])
def test_images_of_any_size_give_valid_features(
    size: tuple[int, int], tmp_path: Path
) -> None:
    path = tmp_path / "random.safetensors"
    save_file(tensors_of(random_reference("aliked-t16")), path)
    config = AlikedConfig(
        model="aliked-t16", min_score=0, max_keypoints=9, nms_radius=1, weights=path
    )
    pixels = np.random.default_rng(0).random((3, *size), np.float32)
    features = Aliked(config).extract(batch_of(pixels))[0]
    assert features.descriptors.shape == (len(features), 64)
    assert np.isfinite(features.descriptors).all()
    assert (len(features) > 0) == (min(size) >= 3)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file(tensors_of(random_reference("aliked-t16")), path)
    with pytest.raises(WeightsError, match="aliked-n32.*other.safetensors"):
        Aliked(AlikedConfig(model="aliked-n32", weights=path))


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_weights_with_a_missing_or_unexpected_key_are_refused(
    change: str, tmp_path: Path
) -> None:
    tensors = tensors_of(random_reference("aliked-t16"))
    if change == "missing":
        del tensors["block4.bn2.running_var"]
    else:
        tensors["block5.conv1.weight"] = torch.zeros(1)
    path = tmp_path / "changed.safetensors"
    save_file(tensors, path)
    key = "block4.bn2.running_var" if change == "missing" else "block5.conv1.weight"
    with pytest.raises(WeightsError, match=key):
        Aliked(AlikedConfig(model="aliked-t16", weights=path))


# ------------------------------------------------------------- with real weights
@pytest.mark.shared
@pytest.mark.parametrize(
    ("model", "max_keypoints"), [*((model, 4096) for model in MODELS), (MODELS[2], 200)]
)
def test_photograph_gives_the_features_of_kornia(
    model: str, max_keypoints: int, photograph: Float32, real_weights: Path
) -> None:
    reference = KorniaAliked(model, max_num_keypoints=max_keypoints).eval()
    tensors = load_file(real_weights / f"{model}.safetensors")
    missing, unexpected = reference.load_state_dict(tensors, strict=False)
    assert (missing, unexpected) == (["dkd.hw_grid"], [])
    with torch.inference_mode():
        expected = reference(torch.from_numpy(photograph)[None])[0]
    extractor = Aliked(AlikedConfig(model=model, max_keypoints=max_keypoints))
    ours = extractor.extract(batch_of(photograph))[0]
    assert_same_features(ours, expected)


@pytest.mark.shared
def test_batch_equals_its_images_one_by_one(
    photograph: Float32, real_weights: Path
) -> None:
    extractor = Aliked(AlikedConfig())
    mirrored = np.ascontiguousarray(photograph[:, :, ::-1])
    blank = np.full_like(photograph, 0.5)
    together = extractor.extract(batch_of(photograph, blank, mirrored))
    for features, pixels in zip(together, (photograph, blank, mirrored), strict=True):
        alone = extractor.extract(batch_of(pixels))[0]
        np.testing.assert_array_equal(features.xy, alone.xy)
        np.testing.assert_array_equal(features.scores, alone.scores)
        np.testing.assert_array_equal(features.descriptors, alone.descriptors)
    assert len(together[0]) > 100 and len(together[1]) == 0
    assert together[1].xy.shape == (0, 2)
    assert together[1].descriptors.shape == (0, 128)


@pytest.mark.shared
def test_features_are_unit_rows_in_falling_order(
    photograph: Float32, real_weights: Path
) -> None:
    features = Aliked(AlikedConfig(max_keypoints=100)).extract(batch_of(photograph))[0]
    assert len(features) == 100
    assert (np.diff(features.scores) <= 0).all()
    norms = np.linalg.norm(features.descriptors, axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-5)


@pytest.mark.shared
def test_dot_at_row_and_column_gives_half_pixel_centre(real_weights: Path) -> None:
    # n16rot: the other models place their keypoints beside a dot, consistently. It
    # fires on dark dots rather than on bright ones, which are the same to geometry.
    extractor = Aliked(AlikedConfig(model="aliked-n16rot", min_score=0.01))
    y, x = np.mgrid[:96, :96]
    error = []
    for row, column in [(40, 41), (47, 50), (53, 44), (50, 55)]:
        dot = np.exp(-((y - row) ** 2 + (x - column) ** 2) / 2)
        pixels = np.repeat((0.95 - 0.7 * dot)[None], 3, axis=0).astype(np.float32)
        best = extractor.extract(batch_of(pixels))[0].xy[0]
        error.append(best - (column + 0.5, row + 0.5))
    assert np.abs(error).max() < 0.1
    assert np.abs(np.mean(error, axis=0)).max() < 0.03


@pytest.mark.shared
def test_coordinates_are_those_of_the_file_on_disk(
    photograph: Float32, real_weights: Path
) -> None:
    extractor = Aliked(AlikedConfig(max_keypoints=100))
    same = extractor.extract(batch_of(photograph))[0]
    double = extractor.extract(batch_of(photograph, sizes=(620, 426)))[0]
    assert double.image_size == (620, 426)
    np.testing.assert_allclose(double.xy, 2 * same.xy, rtol=1e-6)


@pytest.mark.shared
def test_weights_sha256_is_that_of_the_file(shared: Path, real_weights: Path) -> None:
    lines = (real_weights / "SHA256SUMS").read_text().splitlines()
    recorded = {line.split()[1].lstrip("*./"): line.split()[0] for line in lines}
    for model in MODELS:
        extractor = Aliked(AlikedConfig(model=model))
        assert extractor.identity["weights_sha256"] == recorded[f"{model}.safetensors"]


@pytest.mark.shared
def test_half_precision_pyramid_finds_the_same_features(
    photograph: Float32, real_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Aliked(AlikedConfig()).extract(batch_of(photograph))[0]
    prepare = AlikedNetwork.prepare
    monkeypatch.setattr(
        AlikedNetwork, "prepare", lambda self, _: prepare(self, torch.float16)
    )
    half = Aliked(AlikedConfig()).extract(batch_of(photograph))[0]
    distance = np.linalg.norm(expected.xy[:, None] - half.xy[None], axis=2)
    row, near = distance.argmin(axis=1), distance.min(axis=1) < 0.05
    assert near.mean() > 0.99
    np.testing.assert_allclose(half.scores[row][near], expected.scores[near], atol=0.01)
    cosine = (half.descriptors[row] * expected.descriptors).sum(axis=1)
    assert cosine[near].min() > 0.9995
    assert half.descriptors.dtype == np.float32


@pytest.mark.gpu
@pytest.mark.shared
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["float32", "half"])
def test_cuda_finds_the_keypoints_of_the_cpu(
    photograph: Float32, real_weights: Path, precision: Precision
) -> None:
    batch = batch_of(photograph)
    cpu = Aliked(AlikedConfig()).extract(batch)[0]
    cuda = Aliked(AlikedConfig(), device="cuda", precision=precision).extract(batch)[0]
    distance = np.linalg.norm(cpu.xy[:, None] - cuda.xy[None], axis=2)
    near = distance.min(axis=1) < 0.1
    # TF32 convolutions, torch's default, move scores by some 1e-3.
    assert near.mean() > 0.95
    paired = cuda.descriptors[distance.argmin(axis=1)]
    assert (cpu.descriptors * paired).sum(axis=1)[near].mean() > 0.99
