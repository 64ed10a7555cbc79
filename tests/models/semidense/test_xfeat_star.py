from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sfmprep.config import XFeatStarConfig
from sfmprep.errors import WeightsError
from sfmprep.models.semidense.xfeat_star import XFeatStar
from sfmprep.types import DenseMatches, ImageBatch

LONG_SIDE = 640


def batch_of(image: np.ndarray, size: tuple[int, int] | None = None) -> ImageBatch:
    """One picture [H, W, 3] of bytes, of a file of (W, H) `size`."""
    height, width = image.shape[:2]
    return ImageBatch(
        pixels=np.ascontiguousarray(image.transpose(2, 0, 1)[None] / np.float32(255)),
        sizes=np.int32([size or (width, height)]),
        orientations=np.int32([1]),
    )


def photo(shared: Path, name: str) -> np.ndarray:
    """A photograph of fountain-P11, [H, W, 3] RGB at full size."""
    path = shared / "data/scenes/fountain-P11/images" / name
    return np.ascontiguousarray(cv2.imread(str(path))[..., ::-1])


def reduced(image: np.ndarray) -> ImageBatch:
    height, width = image.shape[:2]
    factor = LONG_SIDE / max(height, width)
    small = cv2.resize(
        image,
        (round(width * factor), round(height * factor)),
        interpolation=cv2.INTER_AREA,
    )
    return batch_of(small, (width, height))


def fundamental(shared: Path, name0: str, name1: str) -> np.ndarray:
    path = shared / "data/scenes/fountain-P11/reference.json"
    cameras = json.loads(path.read_text())["images"]
    first, second = (
        {key: np.array(cameras[name][key]) for key in ("R", "t", "K")}
        for name in (name0, name1)
    )
    turn = second["R"] @ first["R"].T
    x, y, z = second["t"] - turn @ first["t"]
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.linalg.inv(second["K"]).T @ cross @ turn @ np.linalg.inv(first["K"])


def epipolar_errors(matches: DenseMatches, matrix: np.ndarray) -> np.ndarray:
    """The mean distance of both points from their lines, pixels of the files."""
    first, second = (
        np.column_stack([xy, np.ones(len(xy))]) for xy in (matches.xy0, matches.xy1)
    )
    line1, line0 = first @ matrix.T, second @ matrix
    product = np.abs((second * line1).sum(1))
    lengths = (np.linalg.norm(line[:, :2], axis=1) for line in (line0, line1))
    return product * sum(1 / length for length in lengths) / 2


@pytest.fixture
def matcher(real_weights: Path) -> XFeatStar:
    return XFeatStar(XFeatStarConfig(max_size=LONG_SIDE))


@pytest.mark.shared
def test_places_fit_the_true_poses_four_times_as_well_as_cells(
    matcher: XFeatStar, shared: Path
) -> None:
    names = ("0004.jpg", "0005.jpg")
    matrix = fundamental(shared, *names)
    prepared = [matcher.prepare(reduced(photo(shared, name)))[0] for name in names]
    [matches] = matcher.match([tuple(prepared)])
    tree = prepared[1].keypoints
    nearest = [np.linalg.norm(tree - xy, axis=1).argmin() for xy in matches.xy1]
    cells = DenseMatches(xy0=matches.xy0, xy1=tree[nearest], scores=matches.scores)
    # In pixels of what the matcher saw.
    factor = LONG_SIDE / 1600
    error = factor * np.median(epipolar_errors(matches, matrix))
    assert len(matches) > 1000
    assert error < 0.5
    assert error < 0.4 * factor * np.median(epipolar_errors(cells, matrix))


@pytest.mark.shared
def test_places_follow_a_known_warp_without_a_shift(
    matcher: XFeatStar, shared: Path
) -> None:
    """Half a pixel of error in the anchor or the place would show in the median."""
    image = cv2.resize(
        photo(shared, "0005.jpg"), (LONG_SIDE, 416), interpolation=cv2.INTER_AREA
    )
    turn = cv2.getRotationMatrix2D((319.5, 207.5), 6, 0.93)
    warped = cv2.warpAffine(image, turn, (LONG_SIDE, 416))
    prepared = [matcher.prepare(batch_of(each))[0] for each in (image, warped)]
    forward, backward = matcher.match([tuple(prepared), tuple(prepared[::-1])])
    inverse = cv2.invertAffineTransform(turn)
    for matches, affine in ((forward, turn), (backward, inverse)):
        centres = matches.xy0 - 0.5
        truth = centres @ affine[:, :2].T + affine[:, 2] + 0.5
        error = matches.xy1 - truth
        assert len(matches) > 1000
        assert np.abs(np.median(error, axis=0)).max() < 0.12
        assert np.median(np.linalg.norm(error, axis=1)) < 0.8


@pytest.mark.shared
def test_reverse_of_a_match_moves_as_far_the_other_way(
    matcher: XFeatStar, shared: Path
) -> None:
    prepared = [
        matcher.prepare(reduced(photo(shared, name)))[0]
        for name in ("0004.jpg", "0006.jpg")
    ]
    forward, backward = matcher.match([tuple(prepared), tuple(prepared[::-1])])
    assert len(forward) == len(backward) > 500
    np.testing.assert_allclose(forward.scores, backward.scores, atol=1e-4)
    # Summed over all matches: xy1 is the other anchor and the movement.
    movement = forward.xy1.sum(0) - backward.xy0.sum(0)
    reverse = backward.xy1.sum(0) - forward.xy0.sum(0)
    assert np.abs(movement).max() > 50
    np.testing.assert_allclose(movement, -reverse, rtol=1e-2, atol=10)


@pytest.mark.shared
def test_fewer_keypoints_are_the_most_reliable_ones(
    matcher: XFeatStar, shared: Path
) -> None:
    batch = reduced(photo(shared, "0005.jpg"))
    [many] = matcher.prepare(batch)
    [few] = XFeatStar(XFeatStarConfig(max_keypoints=300)).prepare(batch)
    np.testing.assert_array_equal(few.keypoints, many.keypoints[:300])
    assert few.num_bytes < many.num_bytes


@pytest.mark.shared
def test_weights_without_the_fine_matcher_are_refused(
    real_weights: Path, tmp_path: Path
) -> None:
    tensors: dict[str, torch.Tensor] = {
        key: tensor
        for key, tensor in load_file(real_weights / "xfeat.safetensors").items()
        if not key.startswith("fine_matcher.")
    }
    path = tmp_path / "xfeat.safetensors"
    save_file(tensors, path)
    with pytest.raises(WeightsError, match="does not fit the network"):
        XFeatStar(XFeatStarConfig(weights=path))
