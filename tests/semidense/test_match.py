"""The stage that matches semi-densely."""

from __future__ import annotations

import itertools
import logging
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfmprep.capture.image_set import ImageSet
from sfmprep.errors import DeviceError, ImageError, StoreError
from sfmprep.pairing.pairs import exhaustive_pairs
from sfmprep.semidense import visit
from sfmprep.semidense.match import match_dense
from sfmprep.stores.tables import DenseStore
from sfmprep.types import DenseMatches, Float32, ImageBatch

SIDE = 16


# ------------------------------------------------------------------------------ stage
@dataclass(frozen=True, eq=False)
class FakeImage:
    """Knows which image it is by its first pixel."""

    number: int
    num_bytes: int = 1000

    @property
    def keypoints(self) -> Float32:
        """None in particular."""
        return np.empty((0, 2), np.float32)


class FakeMatcher:
    """Writes down what it is asked; a match says which images it is of."""

    batch_size = 4
    identity = {"weights_sha256": None}

    def __init__(self) -> None:
        self.prepared: list[int] = []
        self.matched: list[tuple[int, int]] = []

    def prepare(self, batch: ImageBatch) -> list[FakeImage]:
        """By the brightness."""
        numbers = [round(float(p[0, 0, 0]) * 255) for p in batch.pixels]
        self.prepared += numbers
        return [FakeImage(number) for number in numbers]

    def match(self, pairs: Sequence[tuple[FakeImage, FakeImage]]) -> list[DenseMatches]:
        """One match, at the numbers of the images."""
        numbers = [(a.number, b.number) for a, b in pairs]
        self.matched += numbers
        return [
            DenseMatches(
                xy0=np.full((1, 2), a, np.float32),
                xy1=np.full((1, 2), b, np.float32),
                scores=np.ones(1, np.float32),
            )
            for a, b in numbers
        ]


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    """Eight images, each of one brightness, its number."""
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(8):
        Image.new("RGB", (SIDE, SIDE), (k, k, k)).save(folder / f"{k}.png")
    return ImageSet.scan(folder)


def run(images: ImageSet, store: DenseStore, **options: float) -> FakeMatcher:
    """Matches all pairs."""
    matcher = FakeMatcher()
    match_dense(
        images, exhaustive_pairs(images.names), matcher, store, max_size=64, **options
    )
    return matcher


class SmallDevice(FakeMatcher):
    """Has room for so many images."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.alive: weakref.WeakSet[FakeImage] = weakref.WeakSet()

    def prepare(self, batch: ImageBatch) -> list[FakeImage]:
        """Only where there is room."""
        if len(self.alive) == self.room:
            raise DeviceError("full")
        found = super().prepare(batch)
        self.alive.update(found)
        return found


@pytest.mark.parametrize("room", [2, 3, 5])
def test_what_is_kept_gives_way_before_a_pair_does_not_fit(
    images: ImageSet, room: int, caplog: pytest.LogCaptureFixture
) -> None:
    pairs, matcher = exhaustive_pairs(images.names), SmallDevice(room)
    with DenseStore() as store, caplog.at_level(logging.INFO, "sfmprep"):
        match_dense(images, pairs, matcher, store, max_size=64)
        assert len(store.pairs()) == 2 * len(pairs)
    assert len(matcher.matched) == 2 * len(pairs)
    assert caplog.messages == ["the device is full: 2 images are kept on it now"]


def test_a_pair_that_does_not_fit_alone_is_an_error(images: ImageSet) -> None:
    pairs = exhaustive_pairs(images.names)
    with DenseStore() as store, pytest.raises(DeviceError, match="^full$"):
        match_dense(images, pairs, SmallDevice(1), store, max_size=64)


def test_both_directions_of_each_pair_are_stored(
    images: ImageSet, tmp_path: Path
) -> None:
    with DenseStore(tmp_path / "dense.h5", {}) as store:
        run(images, store)
        assert len(store) == 8 * 7
        for name0, name1 in itertools.permutations(images.names, 2):
            found = store.get(name0, name1)
            assert found.xy0[0, 0] == int(name0[0])
            assert found.xy1[0, 0] == int(name1[0])


def test_each_image_is_prepared_once_where_all_fit(
    images: ImageSet, tmp_path: Path
) -> None:
    with DenseStore(tmp_path / "dense.h5", {}) as store:
        matcher = run(images, store)
    # the largest is prepared once more, to see how many fit
    assert len(matcher.prepared) == 8 + 1


def test_small_cache_gives_the_same_matches(images: ImageSet, tmp_path: Path) -> None:
    with DenseStore(tmp_path / "dense.h5", {}) as store:
        matcher = run(images, store, cache_gb=3e-6)  # three images
        assert sorted(matcher.matched) == sorted(itertools.permutations(range(8), 2))
        assert len(matcher.prepared) > 9
        assert len(store) == 8 * 7


def test_continued_run_matches_only_what_is_missing(
    images: ImageSet, tmp_path: Path
) -> None:
    with DenseStore(tmp_path / "dense.h5", {}) as store:
        run(images, store)
        half = [((a, b), store.get(a, b)) for a, b in store.pairs()[:31]]
    with DenseStore(tmp_path / "half.h5", {}) as store:
        store.append(half)
        matcher = run(images, store)
        assert len(matcher.matched) == 8 * 7 - 31
        assert len(store) == 8 * 7
        assert not run(images, store).prepared


@pytest.mark.parametrize("cache_gb", [1.0, 3e-6])
def test_unreadable_images_are_returned_and_left_out(
    images: ImageSet, tmp_path: Path, cache_gb: float
) -> None:
    for name in ("0.png", "5.png", "7.png"):
        images.path(name).write_bytes(b"no image")
    matcher = FakeMatcher()
    with DenseStore(tmp_path / "dense.h5", {}) as store:
        unreadable = match_dense(
            images,
            exhaustive_pairs(images.names),
            matcher,
            store,
            max_size=64,
            cache_gb=cache_gb,
        )
        assert unreadable.keys() == {"0.png", "5.png", "7.png"}
        assert len(store) == 5 * 4
    assert sorted(matcher.matched) == sorted(itertools.permutations((1, 2, 3, 4, 6), 2))


def test_image_that_does_not_come_ends_the_run_instead_of_waiting(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = visit.load_batches

    def lossy(*args, **options):
        for names, batch in load(*args, **options):
            if names != ("7.png",):
                yield names, batch

    monkeypatch.setattr(visit, "load_batches", lossy)
    message = (
        "^7.png was neither decoded nor found to be unreadable. Run again; what is"
        " matched is kept.$"
    )
    with DenseStore(tmp_path / "dense.h5", {}) as store:
        with pytest.raises(ImageError, match=message):
            run(images, store)
        assert len(store) > 0


# ------------------------------------------------------------------------------ store
def test_dense_store_keeps_both_orders_apart(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    found = DenseMatches(
        xy0=random.uniform(0, 4000, (5, 2)).astype(np.float32),
        xy1=random.uniform(0, 4000, (5, 2)).astype(np.float32),
        scores=np.linspace(1, 0, 5, dtype=np.float32),
    )
    with DenseStore(tmp_path / "dense.h5", {"model": "a"}) as store:
        store.append([(("b", "a"), found)])
        assert ("a", "b") not in store
    with DenseStore(tmp_path / "dense.h5") as store:
        again = store.get("b", "a")
        np.testing.assert_array_equal(again.xy0, found.xy0)  # float32, not float16
        np.testing.assert_array_equal(again.xy1, found.xy1)
        np.testing.assert_allclose(again.scores, found.scores, atol=1e-3)
        assert [pair for pair, _ in store.items()] == [("b", "a")] == store.pairs()
        with pytest.raises(StoreError, match="from 'a' to 'b'"):
            store.get("a", "b")
    with pytest.raises(StoreError, match="model"):
        DenseStore(tmp_path / "dense.h5", {"model": "b"})
