from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest

from sfmprep.config import SiftConfig
from sfmprep.coords import upright_pixels
from sfmprep.errors import StoreError
from sfmprep.models.extractors.sift import Sift, _grey
from sfmprep.types import ImageBatch


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Smooth coloured noise [H, W, 3] uint8."""
    noise = np.random.default_rng(0).normal(size=(200, 280, 3))
    smooth = cv2.GaussianBlur(noise, None, 2.5)
    return np.clip(128 + 45 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def batch_of(
    image: np.ndarray, size: tuple[int, int] | None = None, orientation: int = 1
) -> ImageBatch:
    return ImageBatch(
        pixels=image.transpose(2, 0, 1)[None].astype(np.float32) / 255,
        sizes=np.int32([size or (image.shape[1], image.shape[0])]),
        orientations=np.int32([orientation]),
    )


def test_grey_is_what_colmap_reads_from_the_file(tmp_path: Path) -> None:
    colours = np.random.default_rng(1).integers(0, 256, (300, 400, 3), np.uint8)
    path = tmp_path / "colours.png"
    cv2.imwrite(str(path), colours[..., ::-1])
    expected = pycolmap.Bitmap.read(path, as_rgb=False).to_array()
    np.testing.assert_array_equal(_grey(batch_of(colours).pixels[0]), expected)


def test_features_are_those_in_a_database_of_colmap(
    picture: np.ndarray, tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "picture.png"), picture[..., ::-1])
    pycolmap.extract_features(
        tmp_path / "database.db",
        tmp_path,
        extraction_options=pycolmap.FeatureExtractionOptions(
            use_gpu=False, num_threads=1
        ),
        device=pycolmap.Device.cpu,
    )
    with pycolmap.Database.open(tmp_path / "database.db") as database:
        (image,) = database.read_all_images()
        shapes = database.read_keypoints(image.image_id)  # x, y, a11, a12, a21, a22
        descriptors = database.read_descriptors(image.image_id).data
    features = Sift(SiftConfig()).extract(batch_of(picture))[0]
    assert features.scale is not None
    assert features.angle is not None
    scale = np.hypot(shapes[:, 2], shapes[:, 4])
    angle = np.arctan2(shapes[:, 4], shapes[:, 2])
    rows = np.lexsort((features.angle, *features.xy.T))
    expected = np.lexsort((angle, *shapes[:, :2].T))
    assert len(features) > 100
    np.testing.assert_array_equal(features.descriptors[rows], descriptors[expected])
    np.testing.assert_allclose(features.xy[rows], shapes[expected, :2], atol=1e-4)
    np.testing.assert_allclose(features.scale[rows], scale[expected], rtol=1e-5)
    np.testing.assert_allclose(features.angle[rows], angle[expected], atol=1e-4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_angle_points_the_same_way_on_the_stored_pixels(
    picture: np.ndarray, orientation: int
) -> None:
    sift = Sift(SiftConfig())
    seen = sift.extract(batch_of(picture))[0]
    features = sift.extract(
        batch_of(
            upright_pixels(picture, orientation),
            size=(picture.shape[1], picture.shape[0]),
            orientation=orientation,
        )
    )[0]
    assert seen.angle is not None
    assert seen.scale is not None
    assert features.angle is not None
    assert features.scale is not None
    # The gradient turns with the pixels, so the stored picture gives the same angles.
    agreeing = 0
    for xy, scale, angle in zip(
        features.xy, features.scale, features.angle, strict=True
    ):
        near = np.linalg.norm(seen.xy - xy, axis=1) < 0.05
        near &= np.abs(seen.scale - scale) < 0.02 * scale
        agreeing += bool((np.cos(seen.angle[near] - angle) > 0.999).any())
    assert agreeing > 0.9 * len(features)


def test_scale_grows_with_the_file(picture: np.ndarray) -> None:
    sift = Sift(SiftConfig())
    small = sift.extract(batch_of(picture))[0]
    large = sift.extract(batch_of(picture, size=(840, 600)))[0]
    assert small.scale is not None
    assert small.angle is not None
    assert large.scale is not None
    assert large.angle is not None
    np.testing.assert_allclose(large.scale, 3 * small.scale, rtol=1e-6)
    np.testing.assert_allclose(large.angle, small.angle, atol=1e-6)


def test_largest_keypoints_are_kept(picture: np.ndarray) -> None:
    every_one = Sift(SiftConfig()).extract(batch_of(picture))[0]
    largest = Sift(SiftConfig(max_keypoints=30)).extract(batch_of(picture))[0]
    assert len(largest) == 30
    np.testing.assert_array_equal(largest.xy, every_one.xy[:30])


def test_a_full_disk_is_an_error_that_names_it(
    picture: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StoreError) as caught:
        Sift(SiftConfig()).extract(batch_of(picture))
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "sfmprep-sift-"))
    assert message.endswith(
        "/images/0000.pgm cannot be written (No space left on device), but COLMAP"
        " extracts SIFT from files. Make room there, or set TMPDIR to another folder."
    )
    assert not list(tmp_path.iterdir())
