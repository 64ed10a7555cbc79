"""The match stage: what it stores, what it keeps in memory, and how it stops."""

from __future__ import annotations

import logging
import threading
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from sfmprep.config import NearestConfig
from sfmprep.errors import DeviceError, StoreError
from sfmprep.frontend.match import match_features, num_cached
from sfmprep.models.matchers.nearest import Nearest
from sfmprep.pairing.pairs import Pairs, exhaustive_pairs, sequential_pairs
from sfmprep.stores.tables import FeatureStore, MatchStore
from sfmprep.types import Features, Matches
from tests.support.records import expect_matches, features

T = TypeVar("T")

NAMES = [f"{k:02d}.jpg" for k in range(30)]
IMAGE_BYTES = 1000


class FakePrepared:
    """An image that knows when nobody holds it any more."""

    def __init__(self, image: Features) -> None:
        self.number = image.image_size[0]
        self.num_bytes = IMAGE_BYTES

    def __len__(self) -> int:
        return 5


class FakeMatcher:
    """Gives each pair matches that follow from its two images."""

    identity = {"weights_sha256": None}

    def __init__(self) -> None:
        self.alive: weakref.WeakSet[FakePrepared] = weakref.WeakSet()
        self.most_alive = 0
        self.prepared: Counter[int] = Counter()
        self.threads: set[int] = set()
        self.batches: list[int] = []
        self.stop_after: int | None = None

    def prepare(self, image: Features) -> FakePrepared:
        prepared = FakePrepared(image)
        self.threads.add(threading.get_ident())
        self.prepared[prepared.number] += 1
        self.alive.add(prepared)
        self.most_alive = max(self.most_alive, len(self.alive))
        return prepared

    def match(
        self, pairs: Sequence[tuple[FakePrepared, FakePrepared]]
    ) -> list[Matches]:
        if len(self.batches) == self.stop_after:
            raise KeyboardInterrupt
        self.threads.add(threading.get_ident())
        self.batches.append(len(pairs))
        return [matches_of(first.number, second.number) for first, second in pairs]


def matches_of(number0: int, number1: int) -> Matches:
    random = np.random.default_rng([number0, number1])
    count = int(random.integers(0, 9))
    return Matches(
        index=random.integers(0, 100, (count, 2)).astype(np.int32),
        scores=random.random(count).astype(np.float16).astype(np.float32),
    )


@pytest.fixture
def store() -> Iterator[FeatureStore]:
    with FeatureStore() as found:
        found.append([(name, features(k)) for k, name in enumerate(NAMES)])
        yield found


def number_of(store: FeatureStore, name: str) -> int:
    return store.get(name).image_size[0]


def expect_all(found: MatchStore, store: FeatureStore, pairs: Pairs) -> None:
    assert sorted(found.pairs()) == list(pairs)
    for name0, name1 in pairs:
        wanted = matches_of(number_of(store, name0), number_of(store, name1))
        expect_matches(found.get(name0, name1), wanted)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
@pytest.mark.parametrize("num_images", [0, 1, 5, 1000])
def test_content_depends_neither_on_the_cache_nor_on_the_batch(
    store: FeatureStore, num_images: int, batch_size: int
) -> None:
    pairs = exhaustive_pairs(NAMES)
    with MatchStore() as matches:
        match_features(
            *(pairs, store, FakeMatcher(), matches),
            batch_size=batch_size,
            cache_bytes=num_images * IMAGE_BYTES,
        )
        expect_all(matches, store, pairs)


class SmallDevice(FakeMatcher):
    """Has room for so many images."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def prepare(self, image: Features) -> FakePrepared:
        if len(self.alive) == self.room:
            raise DeviceError("full")
        return super().prepare(image)


@pytest.mark.parametrize("room", [2, 3, 10, 20])
def test_what_is_kept_gives_way_before_a_pair_does_not_fit(
    store: FeatureStore, room: int, caplog: pytest.LogCaptureFixture
) -> None:
    pairs, matcher = exhaustive_pairs(NAMES), SmallDevice(room)
    with MatchStore() as matches, caplog.at_level(logging.INFO, "sfmprep"):
        match_features(pairs, store, matcher, matches, batch_size=4)
        expect_all(matches, store, pairs)
    assert matcher.most_alive == room
    assert caplog.messages[0] == (
        "the device is full: half as many images are kept on it from now on"
    )
    if room >= 2 * 8:  # those of a batch beside what is kept
        assert len(caplog.messages) == 1


def test_a_pair_that_does_not_fit_alone_is_an_error(store: FeatureStore) -> None:
    with MatchStore() as matches, pytest.raises(DeviceError, match="^full$"):
        match_features(exhaustive_pairs(NAMES), store, SmallDevice(1), matches)


def test_each_image_is_prepared_once_where_all_fit(store: FeatureStore) -> None:
    matcher = FakeMatcher()
    with MatchStore() as matches:
        match_features(exhaustive_pairs(NAMES), store, matcher, matches)
    once = Counter(number_of(store, name) for name in NAMES)
    largest = Counter([number_of(store, NAMES[0])])  # was measured before
    assert matcher.prepared == once + largest


def test_the_cache_is_bounded_and_serves_most_pairs(store: FeatureStore) -> None:
    matcher = FakeMatcher()
    pairs = exhaustive_pairs(NAMES)
    with MatchStore() as matches:
        match_features(
            *(pairs, store, matcher, matches), batch_size=2, cache_bytes=10_000
        )
    assert matcher.most_alive <= 10 + 4  # and the images of one batch
    # 435 pairs; with 9 of 10 images in a block, 30 * 30 / 2 / 7 pass by
    assert matcher.prepared.total() < 120


def test_the_device_is_used_in_one_thread(store: FeatureStore) -> None:
    matcher = FakeMatcher()
    with MatchStore() as matches:
        match_features(exhaustive_pairs(NAMES), store, matcher, matches)
    assert matcher.threads == {threading.get_ident()}


def test_num_cached_is_the_images_that_fit_less_a_tenth(store: FeatureStore) -> None:
    assert num_cached(store, FakeMatcher(), 100 * IMAGE_BYTES) == 90


def test_only_missing_pairs_with_features_are_matched(store: FeatureStore) -> None:
    before = Matches.none()
    with MatchStore() as matches:
        matches.append([((NAMES[0], NAMES[1]), before)])
        match_features(
            exhaustive_pairs([*NAMES[:3], "no features.jpg"]),
            *(store, FakeMatcher(), matches),
        )
        wanted = exhaustive_pairs(NAMES[:3])
        assert sorted(matches.pairs()) == list(wanted)
        expect_matches(matches.get(NAMES[0], NAMES[1]), before)


def test_nothing_to_match_asks_nothing_of_the_model() -> None:
    with (
        FeatureStore() as none,
        MatchStore() as matches,
    ):
        match_features(exhaustive_pairs(NAMES), none, FakeMatcher(), matches)
        assert len(matches) == 0


def test_progress_counts_pairs_that_are_matched(store: FeatureStore) -> None:
    matcher = FakeMatcher()
    seen = []

    def progress(
        items: Iterable[T], *, desc: str, total: int | None = None
    ) -> Iterator[T]:
        seen.append((desc, total))
        for count, item in enumerate(items, 1):
            assert sum(matcher.batches) >= count
            yield item

    with MatchStore() as matches:
        match_features(
            *(exhaustive_pairs(NAMES), store, matcher, matches), progress=progress
        )
    assert seen == [("match", 435)]


def test_an_interrupt_keeps_what_was_matched_and_the_next_run_does_the_rest(
    store: FeatureStore,
) -> None:
    pairs = sequential_pairs(NAMES)
    matcher = FakeMatcher()
    matcher.stop_after = 5
    threads = threading.active_count()
    with MatchStore() as matches:
        with pytest.raises(KeyboardInterrupt):
            match_features(pairs, store, matcher, matches, batch_size=10)
        assert len(matches) == 50
        assert threading.active_count() == threads
        rest = FakeMatcher()
        match_features(pairs, store, rest, matches)
        assert sum(rest.batches) == len(pairs) - 50
        expect_all(matches, store, pairs)


def test_an_interrupt_of_the_progress_bar_keeps_what_was_matched(
    store: FeatureStore,
) -> None:
    def progress(
        items: Iterable[T], *, desc: str, total: int | None = None
    ) -> Iterator[T]:
        for count, item in enumerate(items):
            if count == 25:
                raise KeyboardInterrupt
            yield item

    with MatchStore() as matches:
        with pytest.raises(KeyboardInterrupt):
            match_features(
                *(exhaustive_pairs(NAMES), store, FakeMatcher(), matches),
                batch_size=10,
                progress=progress,
            )
        assert len(matches) == 30


def test_what_the_store_refuses_is_raised(store: FeatureStore, tmp_path: Path) -> None:
    MatchStore(tmp_path / "m.h5", {}).close()
    with (
        MatchStore(tmp_path / "m.h5") as matches,
        pytest.raises(StoreError, match="was opened for reading only"),
    ):
        match_features(exhaustive_pairs(NAMES), store, FakeMatcher(), matches)


def test_matches_are_those_of_the_model_alone() -> None:
    matcher = Nearest(NearestConfig(ratio=None))
    with (
        FeatureStore() as store,
        MatchStore() as matches,
    ):
        store.append([(name, features(k, 5 + k)) for k, name in enumerate("abcd")])
        match_features(exhaustive_pairs("abcd"), store, matcher, matches, batch_size=4)
        for name0, name1 in exhaustive_pairs("abcd"):
            (wanted,) = matcher.match([(store.get(name0), store.get(name1))])
            found = matches.get(name0, name1)
            np.testing.assert_array_equal(found.index, wanted.index)
            np.testing.assert_allclose(found.scores, wanted.scores, atol=5e-4)
            assert len(found)
