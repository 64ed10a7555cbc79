"""The stage from photographs to features, with an extractor that is no network."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from sfmprep.capture.image_set import ImageSet
from sfmprep.errors import StoreError
from sfmprep.frontend.extract import extract_features
from sfmprep.stores.tables import FeatureStore
from sfmprep.types import Features, ImageBatch

SIZE = (40, 20)


class Grid:
    """Finds a keypoint at every fourth pixel; its descriptor is the picture's mean."""

    identity = {"weights_sha256": None}

    def __init__(self, batch_size: int = 2) -> None:
        self.batch_size = batch_size
        self.batches: list[int] = []
        self.on_extract: Callable[[], object] = lambda: None

    def extract(self, batch: ImageBatch) -> list[Features]:
        self.batches.append(len(batch))
        self.on_extract()
        return [self._features(batch, item) for item in range(len(batch))]

    def _features(self, batch: ImageBatch, item: int) -> Features:
        width, height = batch.sizes[item].tolist()
        x, y = np.meshgrid(np.arange(0, width, 4), np.arange(0, height, 4))
        xy = np.column_stack([x.flat, y.flat]).astype(np.float32) + 0.5
        mean = batch.pixels[item].mean()
        return Features(
            xy=xy,
            scores=np.ones(len(xy), np.float32),
            descriptors=np.full((len(xy), 2), mean, np.float32),
            image_size=(width, height),
        )


def write(folder: Path, name: str, level: int, size: tuple[int, int] = SIZE) -> None:
    folder.mkdir(exist_ok=True)
    pixels = np.full((size[1], size[0], 3), level, np.uint8)
    cv2.imwrite(str(folder / name), pixels)


def capture(folder: Path, count: int) -> Path:
    """Pictures that differ in brightness; every third stands upright."""
    for k in range(count):
        write(folder, f"{k:02}.png", 8 * k, SIZE[::-1] if k % 3 == 2 else SIZE)
    return folder


def test_every_image_has_its_own_features(tmp_path: Path) -> None:
    images = ImageSet.scan(capture(tmp_path / "images", 9))
    extractor = Grid(batch_size=3)
    with FeatureStore() as store:
        unreadable = extract_features(images, extractor, store, max_size=1000)
        assert unreadable == {}
        for k, name in enumerate(images.names):
            features = store.get(name)
            assert features.image_size == images.infos[name].size
            np.testing.assert_allclose(features.descriptors, 8 * k / 255, atol=1e-3)
    assert extractor.batches == [3, 3, 3]


def test_order_of_the_store_does_not_depend_on_the_threads(tmp_path: Path) -> None:
    images = ImageSet.scan(capture(tmp_path / "images", 12))
    orders = []
    for num_workers in (1, 4, None):
        with FeatureStore() as store:
            extract_features(
                images, Grid(), store, max_size=1000, num_workers=num_workers
            )
            orders.append(store.names())
    assert orders[0] == orders[1] == orders[2]
    assert sorted(orders[0]) == list(images.names)


def test_only_missing_images_are_extracted(tmp_path: Path) -> None:
    folder = capture(tmp_path / "images", 4)
    with FeatureStore() as store:
        extract_features(ImageSet.scan(folder), Grid(), store, max_size=1000)
        write(folder, "new.png", 99)
        again = Grid()
        extract_features(ImageSet.scan(folder), again, store, max_size=1000)
        assert again.batches == [1]
        extract_features(ImageSet.scan(folder), again, store, max_size=1000)
        assert again.batches == [1]


def test_undecodable_image_is_returned_with_the_reason(tmp_path: Path) -> None:
    folder = capture(tmp_path / "images", 3)
    images = ImageSet.scan(folder)
    (folder / "01.png").write_bytes(b"")
    with FeatureStore() as store:
        unreadable = extract_features(images, Grid(), store, max_size=1000)
        assert sorted(store.names()) == ["00.png", "02.png"]
    assert unreadable == {"01.png": "the file is empty; copy it again"}


def test_keypoints_on_masked_pixels_are_dropped(tmp_path: Path) -> None:
    folder, masks = tmp_path / "images", tmp_path / "masks"
    for name in ("a.png", "b.png"):
        write(folder, name, 100)
    masks.mkdir()
    mask = np.full((SIZE[1], SIZE[0]), 255, np.uint8)
    mask[:, :20] = 0
    cv2.imwrite(str(masks / "a.png.png"), mask)
    images = ImageSet.scan(folder, mask_root=masks)
    with FeatureStore() as store:
        extract_features(images, Grid(), store, max_size=1000)
        assert len(store.get("a.png")) == len(store.get("b.png")) // 2 > 0
        assert store.get("a.png").xy[:, 0].min() > 20


def test_image_with_an_unusable_mask_is_returned_with_the_reason(
    tmp_path: Path,
) -> None:
    folder, masks = tmp_path / "images", tmp_path / "masks"
    for name in ("a.png", "b.png"):
        write(folder, name, 100)
    write(masks, "a.png.png", 255, (40, 40))
    images = ImageSet.scan(folder, mask_root=masks)
    with FeatureStore() as store:
        unreadable = extract_features(images, Grid(), store, max_size=1000)
        assert store.names() == ["b.png"]
    assert list(unreadable) == ["a.png"]
    assert "aspect" in unreadable["a.png"]


@pytest.mark.timeout(300)
def test_features_are_written_while_the_next_batch_is_extracted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ImageSet.scan(capture(tmp_path / "images", 6))
    written, extractor = threading.Event(), Grid()

    def wait_for_the_first_batch() -> None:
        if len(extractor.batches) == 2:
            assert written.wait(200)

    extractor.on_extract = wait_for_the_first_batch
    with FeatureStore() as store:
        append = store.append

        def note(items: Sequence[tuple[str, Features]]) -> None:
            append(items)
            written.set()

        monkeypatch.setattr(store, "append", note)
        extract_features(images, extractor, store, max_size=1000)
        assert sorted(store.names()) == list(images.names)


@pytest.mark.timeout(300)
def test_failed_write_ends_the_stage_and_its_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ImageSet.scan(capture(tmp_path / "images", 30))
    before = threading.active_count()

    def fail(items: object) -> None:
        raise StoreError("the disk is full")

    with FeatureStore() as store:
        monkeypatch.setattr(store, "append", fail)
        with pytest.raises(StoreError, match="the disk is full"):
            extract_features(images, Grid(), store, max_size=1000)
    assert threading.active_count() == before


def test_failed_batch_loses_none_that_were_finished(tmp_path: Path) -> None:
    images = ImageSet.scan(capture(tmp_path / "images", 9))
    extractor = Grid(batch_size=3)

    def fail() -> None:
        if len(extractor.batches) == 3:
            raise MemoryError

    extractor.on_extract = fail
    with FeatureStore() as store:
        with pytest.raises(MemoryError):
            extract_features(images, extractor, store, max_size=1000)
        assert len(store) == 6
