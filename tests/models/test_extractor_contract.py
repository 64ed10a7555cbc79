"""What every extractor promises, checked on each of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from kornia.feature import DISK
from PIL import Image, ImageOps
from safetensors.torch import save_file

from sfmprep.config import (
    AlikedConfig,
    CompactConfig,
    D2NetConfig,
    DiskConfig,
    R2d2Config,
    SiftConfig,
    SuperPointConfig,
    XFeatConfig,
)
from sfmprep.config.base import ModelConfig
from sfmprep.errors import ConfigError
from sfmprep.models.build import build_extractor
from sfmprep.models.extractors.d2net import D2NetNetwork
from sfmprep.models.extractors.r2d2 import R2d2Network
from sfmprep.models.extractors.superpoint import SuperPointNetwork
from sfmprep.models.identity import identity
from sfmprep.models.protocols import Extractor
from sfmprep.models.shared.adapter import Adapter
from sfmprep.types import Features, ImageBatch
from sfmprep.weights import resolve_weights
from tests.support.batches import batch_of

ORIENTATION_TAG = 0x0112


@dataclass(frozen=True, kw_only=True)
class Dots:
    """Equal round dots, and where a model finds them relative to their centres.

    SIFT finds the centre. A trained network may have a habit of its own: XFeat puts
    its keypoint one pixel above a dark one. `offset` is that habit, measured once on
    these very dots. A half-pixel error of the adapter adds to it and shows.
    """

    sigma: float  # pixels; 0 is a single pixel
    dark: bool  # the networks hardly see bright dots
    offset: tuple[float, float] = (0.0, 0.0)
    tolerance: float  # of the mean over all dots, pixels
    settings: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Case:
    config: ModelConfig
    weights: str | None = None  # name of the file of trained weights
    dots: Dots | None = None  # None: it localises no dots, such as random weights
    size: tuple[int, int] = (320, 256)  # (W, H) of most pictures


CASES = {
    "sift": Case(
        config=SiftConfig(),
        dots=Dots(sigma=2, dark=False, tolerance=0.02),
        size=(200, 160),
    ),
    "xfeat": Case(
        config=XFeatConfig(),
        weights="xfeat",
        dots=Dots(sigma=0, dark=True, offset=(0.0, -1.0), tolerance=0.1),
    ),
    "aliked-n16rot": Case(
        config=AlikedConfig(model="aliked-n16rot"),
        weights="aliked-n16rot",
        # A single pixel scores low, but larger dots pull the keypoint to one side.
        dots=Dots(sigma=0, dark=True, tolerance=0.1, settings={"min_score": 0.02}),
    ),
    # It fires beside dots, not on them; test_compact.py has what it localises.
    "compact": Case(config=CompactConfig()),
    "disk-random": Case(config=DiskConfig(), size=(160, 128)),  # it is slow
    "d2net-random": Case(config=D2NetConfig(), size=(160, 128)),
    "superpoint-random": Case(config=SuperPointConfig(), size=(160, 128)),
    "r2d2-random": Case(
        config=R2d2Config(min_repeatability=0.1, min_reliability=0.1, min_size=130),
        size=(160, 128),
    ),
}


def _params(*, localising: bool = False) -> list[object]:
    return [
        pytest.param(name, id=name, marks=[pytest.mark.shared] if case.weights else [])
        for name, case in CASES.items()
        if case.dots is not None or not localising
    ]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An extractor under test."""

    case: Case
    config: ModelConfig
    weights: Path | None
    extractor: Extractor

    @property
    def size(self) -> tuple[int, int]:
        return self.case.size

    def changed(self, *, batch_size: int | None = None, **settings: float) -> Extractor:
        extractor = build_extractor(self.config.model_copy(update=settings))
        if batch_size is not None:  # as on CUDA
            extractor.batch_size = batch_size
            if hasattr(extractor, "_adapter"):
                extractor._adapter = replace(extractor._adapter, is_side_by_side=False)
        return extractor


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of untrained weights, by the type of the model."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    networks = {
        "disk": DISK(),
        "superpoint": SuperPointNetwork(has_norms=True),
        "r2d2": R2d2Network(32),
        "d2net": D2NetNetwork(),
    }
    for name, network in networks.items():
        save_file(network.state_dict(), folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in networks}


@pytest.fixture
def subject(
    request: pytest.FixtureRequest, random_weights: dict[str, Path]
) -> Iterator[Subject]:
    case = CASES[request.param]
    config, weights = case.config, None
    if case.weights is not None:
        folder = request.getfixturevalue("real_weights")
        weights = folder / f"{case.weights}.safetensors"
    elif isinstance(config, CompactConfig):
        weights = resolve_weights("compact").path  # in the package
    elif config.type in random_weights:
        weights = random_weights[config.type]
        config = config.model_copy(update={"weights": weights})
    yield Subject(
        case=case,
        config=config,
        weights=weights,
        extractor=build_extractor(config),
    )


every = pytest.mark.parametrize("subject", _params(), indirect=True)
every_localising = pytest.mark.parametrize(
    "subject", _params(localising=True), indirect=True
)


# ------------------------------------------------------------------------- pictures
def make_texture(seed: int, size: tuple[int, int]) -> np.ndarray:
    """Smooth coloured noise [H, W, 3] uint8, rich in keypoints of every kind."""
    noise = np.random.default_rng(seed).normal(size=(size[1], size[0], 3))
    fine, coarse = (cv2.GaussianBlur(noise, None, sigma) for sigma in (1.5, 5))
    mixed = fine / fine.std() + coarse / coarse.std()
    return np.rint(np.clip(128 + 35 * mixed, 0, 255)).astype(np.uint8)


def make_dots(dots: Dots, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A picture [H, W, 3] uint8, and the dots' centres [N, 2] in COLMAP pixels.

    The dots take every place on the grids of 2 to 8 pixels that networks pool on.
    """
    width, height = size
    column, row = np.meshgrid(
        np.arange(20, width - 20, 27), np.arange(20, height - 20, 27)
    )
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    height_of_dot = np.zeros((height, width))
    for c, r in zip(column.flat, row.flat, strict=True):
        squared = (x - c) ** 2 + (y - r) ** 2
        height_of_dot += (
            np.exp(-squared / (2 * dots.sigma**2)) if dots.sigma else squared == 0
        )
    grey = 0.5 - 0.5 * height_of_dot if dots.dark else 0.2 + 0.6 * height_of_dot
    pixels = np.repeat(np.rint(grey * 255).astype(np.uint8)[..., None], 3, axis=2)
    return pixels, np.column_stack([column.flat, row.flat]) + 0.5


def assert_same(first: Features, second: Features) -> None:
    np.testing.assert_allclose(first.xy, second.xy, atol=1e-3)
    np.testing.assert_allclose(first.scores, second.scores, atol=1e-5)
    np.testing.assert_allclose(
        first.descriptors.astype(float), second.descriptors.astype(float), atol=1e-4
    )


# -------------------------------------------------------------------------- contract
@every_localising
def test_dot_is_found_at_its_pixel_centre(subject: Subject) -> None:
    dots = subject.case.dots
    assert dots is not None
    pixels, centres = make_dots(dots, subject.size)
    xy = subject.changed(**dots.settings).extract(batch_of(pixels))[0].xy
    away = xy[None] - centres[:, None] - np.array(dots.offset)
    distance = np.linalg.norm(away, axis=2)
    nearest = away[np.arange(len(centres)), distance.argmin(1)][distance.min(1) < 1.5]
    assert len(nearest) > 0.7 * len(centres)
    np.testing.assert_allclose(nearest.mean(0), 0, atol=dots.tolerance)


@every
def test_features_of_reduced_pixels_are_in_pixels_of_the_file(subject: Subject) -> None:
    reduced = make_texture(1, subject.size)
    file = reduced.repeat(2, axis=0).repeat(2, axis=1)
    seen = cv2.resize(file, subject.size, interpolation=cv2.INTER_AREA)
    file_size = (2 * subject.size[0], 2 * subject.size[1])
    expected = subject.extractor.extract(batch_of(reduced))[0]
    features = subject.extractor.extract(batch_of(seen, size=file_size))[0]
    assert features.image_size == file_size
    assert len(features) > 50
    np.testing.assert_allclose(features.xy, 2 * expected.xy, atol=1e-3)


@every
def test_features_of_turned_pixels_are_in_pixels_of_the_file(subject: Subject) -> None:
    upright = make_texture(2, subject.size)
    expected_xy = subject.extractor.extract(batch_of(upright))[0].xy
    assert len(expected_xy) > 50
    for orientation in range(1, 9):
        size = subject.size if orientation < 5 else subject.size[::-1]
        features = subject.extractor.extract(
            batch_of(upright, size=size, orientation=orientation)
        )[0]
        # Pictures of the stored coordinates, turned by Pillow, say where a point came
        # from.
        x, y = np.meshgrid(*(np.arange(side) + 0.5 for side in size))
        came_from = [
            _read_linear(_shown(axis.astype(np.float32), orientation), expected_xy)
            for axis in (x, y)
        ]
        assert features.image_size == size
        assert features.orientation == orientation
        np.testing.assert_allclose(features.xy, np.stack(came_from, 1), atol=1e-3)


@every
def test_blank_image_is_no_error(subject: Subject) -> None:
    texture = make_texture(3, subject.size)
    some = subject.extractor.extract(batch_of(texture))[0]
    blanks = [np.full_like(texture, level) for level in (0, 127, 255)]
    for none in subject.extractor.extract(batch_of(*blanks)):
        assert none.descriptors.shape[1:] == some.descriptors.shape[1:]
        assert none.descriptors.dtype == some.descriptors.dtype
        assert np.isfinite(none.xy).all()
        assert np.isfinite(none.scores).all()
        if subject.case.dots is not None:
            assert len(none) == 0


@every
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (16, 16), (500, 1), (1, 500)])
def test_tiny_pictures_are_no_error(subject: Subject, size: tuple[int, int]) -> None:
    noise = make_texture(9, (512, 512))[: size[1], : size[0]]
    found = subject.extractor.extract(batch_of(noise, np.full_like(noise, 127)))
    assert len(found) == 2
    for features in found:
        assert features.image_size == size
        assert ((features.xy > 0) & (features.xy < size)).all()
        assert np.isfinite(features.scores).all()
        assert np.isfinite(features.descriptors.astype(float)).all()


@every
def test_batch_equals_its_items_one_by_one(subject: Subject) -> None:
    images = [make_texture(4, subject.size), make_texture(5, subject.size)]
    images.insert(1, np.full_like(images[0], 127))  # most find nothing in it
    together = subject.changed(batch_size=3).extract(batch_of(*images))
    assert len(together) == len(images)
    for image, features in zip(images, together, strict=True):
        alone = subject.extractor.extract(batch_of(image))[0]
        assert len(features) == len(alone)
        assert_same(_in_raster_order(features), _in_raster_order(alone))


@every
def test_half_precision_is_refused_on_a_cpu(subject: Subject) -> None:
    with pytest.raises(ConfigError, match="half"):
        build_extractor(subject.config, precision="half")


@every
def test_batch_that_exceeds_the_memory_is_halved(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hasattr(subject.extractor, "_adapter"):
        pytest.skip("COLMAP's SIFT runs on the CPU")
    extractor = subject.changed(batch_size=4)
    run, sizes = Adapter.pixels, []

    def short_of_memory(adapter: Adapter, batch: ImageBatch) -> torch.Tensor:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(adapter, batch)

    monkeypatch.setattr(Adapter, "pixels", short_of_memory)
    images = [make_texture(seed, (96, 64)) for seed in range(3)]
    found = extractor.extract(batch_of(*images))
    assert sizes == [3, 2, 1]
    assert [features.image_size for features in found] == [(96, 64)] * 3


@every
def test_rows_fall_in_score_inside_the_image(subject: Subject) -> None:
    features = subject.extractor.extract(batch_of(make_texture(6, subject.size)))[0]
    assert len(features) > 50
    assert features.xy.dtype == np.float32
    assert (features.xy > 0).all()
    assert (features.xy < np.array(subject.size)).all()
    assert (np.diff(features.scores) <= 0).all()


@every
def test_descriptors_have_unit_length(subject: Subject) -> None:
    features = subject.extractor.extract(batch_of(make_texture(7, subject.size)))[0]
    length = np.linalg.norm(features.descriptors.astype(float), axis=1)
    if features.descriptors.dtype == np.uint8:
        np.testing.assert_allclose(length, 512, rtol=0.02)
    else:
        np.testing.assert_allclose(length, 1, rtol=1e-4)


@every
def test_limit_keeps_the_best(subject: Subject) -> None:
    batch = batch_of(make_texture(8, subject.size))
    every_one = subject.extractor.extract(batch)[0]
    best = subject.changed(max_keypoints=40).extract(batch)[0]
    assert len(best) == 40
    np.testing.assert_allclose(best.scores, every_one.scores[:40], atol=1e-6)


@every
def test_identity_is_known_without_the_model(subject: Subject) -> None:
    assert subject.extractor.identity == identity(subject.config)


@every
def test_checksum_is_that_of_the_weights_in_use(subject: Subject) -> None:
    expected = (
        hashlib.sha256(subject.weights.read_bytes()).hexdigest()
        if subject.weights is not None
        else None
    )
    assert subject.extractor.identity["weights_sha256"] == expected


def _in_raster_order(features: Features) -> Features:
    """A batch rounds otherwise than its items, so rows of equal scores may swap."""
    order = np.lexsort(features.xy.round(2).T)
    return replace(
        features,
        xy=features.xy[order],
        scores=features.scores[order],
        descriptors=features.descriptors[order],
    )


def _shown(stored: np.ndarray, orientation: int) -> np.ndarray:
    """What Pillow makes of stored pixels with this EXIF orientation."""
    image = Image.fromarray(stored)
    image.getexif()[ORIENTATION_TAG] = orientation
    return np.array(ImageOps.exif_transpose(image))


def _read_linear(plane: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Reads a picture of a linear function at COLMAP pixels."""
    height, width = plane.shape
    x, y = xy[:, 0].astype(float) - 0.5, xy[:, 1].astype(float) - 0.5
    c = np.clip(x.astype(int), 0, width - 2)
    r = np.clip(y.astype(int), 0, height - 2)
    origin = plane[r, c].astype(float)
    slope_x, slope_y = plane[r, c + 1] - origin, plane[r + 1, c] - origin
    return origin + (x - c) * slope_x + (y - r) * slope_y
