from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sfmprep.config import LoftrConfig
from sfmprep.errors import WeightsError
from sfmprep.models.semidense.loftr import Loftr, loftr_network
from sfmprep.types import ImageBatch


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as the authors', of random weights that tell cells apart."""
    torch.manual_seed(0)
    network = loftr_network("loftr-outdoor")
    with torch.no_grad():
        network.backbone.layer3_outconv.weight.mul_(3)
    path = tmp_path_factory.mktemp("weights") / "loftr.ckpt"
    torch.save({"state_dict": network.state_dict()}, path)
    return path


def batch_of(*images: np.ndarray) -> ImageBatch:
    """Grey pictures [H, W] of one size in 0..1."""
    stack = np.stack(images).astype(np.float32)
    return ImageBatch(
        pixels=np.repeat(stack[:, None], 3, axis=1),
        sizes=np.tile(np.int32([[stack.shape[2], stack.shape[1]]]), (len(stack), 1)),
        orientations=np.ones(len(stack), np.int32),
    )


def noise(seed: int, height: int, width: int) -> np.ndarray:
    torch.manual_seed(seed)
    coarse = torch.rand(1, 1, height // 4, width // 4)
    fine = F.interpolate(coarse, (height, width), mode="bicubic")
    return fine.clamp(0, 1)[0, 0].numpy()


def kornia_matches(
    checkpoint: Path, model: str, image0: np.ndarray, image1: np.ndarray, score: float
) -> dict[str, np.ndarray]:
    network = loftr_network(model)
    network.load_state_dict(torch.load(checkpoint)["state_dict"])
    network.coarse_matching.thr = score
    with torch.inference_mode():
        found = network(
            {
                f"image{side}": torch.from_numpy(image)[None, None]
                for side, image in enumerate((image0, image1))
            }
        )
    return {key: value.numpy() for key, value in found.items()}


@pytest.mark.parametrize(
    ("model", "size1"), [("loftr-outdoor", (96, 128)), ("loftr-indoor", (120, 80))]
)
def test_matches_are_those_of_kornia(checkpoint: Path, model, size1) -> None:
    scene = noise(0, 160, 160)
    image0 = scene[:96, :128]
    image1 = scene[16 : 16 + size1[0], 8 : 8 + size1[1]]
    config = LoftrConfig(model=model, weights=checkpoint, min_score=0.01)
    matcher = Loftr(config)
    [prepared0] = matcher.prepare(batch_of(image0))
    [prepared1] = matcher.prepare(batch_of(image1))
    [matches] = matcher.match([(prepared0, prepared1)])
    expected = kornia_matches(checkpoint, model, image0, image1, config.min_score)

    order = np.lexsort(expected["keypoints0"].T)
    ours = np.lexsort(matches.xy0.T)
    assert len(ours) >= 10
    np.testing.assert_array_equal(matches.xy0[ours], expected["keypoints0"][order])
    np.testing.assert_allclose(
        matches.xy1[ours], expected["keypoints1"][order], rtol=0, atol=1e-3
    )
    np.testing.assert_allclose(
        matches.scores[ours], expected["confidence"][order], rtol=0, atol=1e-4
    )


def test_many_windows_are_measured_in_parts(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matcher = Loftr(LoftrConfig(weights=checkpoint, min_score=0.01))
    image0, image1 = matcher.prepare(
        batch_of(noise(0, 96, 128), noise(0, 100, 132)[4:, 4:])
    )
    [whole] = matcher.match([(image0, image1)])
    monkeypatch.setattr("sfmprep.models.semidense.loftr._FINE_WINDOWS", 3)
    [parts] = matcher.match([(image0, image1)])
    assert len(whole) > 6
    np.testing.assert_allclose(parts.xy1, whole.xy1, rtol=0, atol=1e-4)


def test_sides_that_are_no_multiple_of_a_cell_keep_their_pixels(
    checkpoint: Path,
) -> None:
    matcher = Loftr(LoftrConfig(weights=checkpoint))
    [image] = matcher.prepare(batch_of(noise(1, 91, 131)))
    assert image.grid == (12, 17)
    np.testing.assert_array_equal(image.keypoints.min(0), [16, 16])
    np.testing.assert_array_equal(image.keypoints.max(0), [8 * 14, 8 * 9])


def test_tensors_without_state_dict_are_read_too(
    checkpoint: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare.ckpt"
    torch.save(torch.load(checkpoint)["state_dict"], bare)
    assert Loftr(LoftrConfig(weights=bare)).identity["weights_sha256"]


def test_missing_weights_are_named() -> None:
    with pytest.raises(WeightsError, match=r"loftr-indoor .*loftr_indoor_ds_new\.ckpt"):
        Loftr(LoftrConfig(model="loftr-indoor"))


def test_other_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.ckpt"
    torch.save({"state_dict": {"backbone.conv1.weight": torch.zeros(2)}}, path)
    with pytest.raises(WeightsError, match="does not fit the network"):
        Loftr(LoftrConfig(weights=path))
