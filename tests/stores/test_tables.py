"""Feature and match stores: what comes back, shards, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfmprep.errors import StoreError
from sfmprep.stores.ragged import DamagedError, RaggedTable
from sfmprep.stores.tables import FeatureStore, MatchStore
from sfmprep.types import Features
from tests.support.records import expect_features, expect_matches, features, matches

MADE = {"config": {"type": "sift"}, "weights_sha256": None}
IN_MEMORY = "the store of {} in memory"
S = TypeVar("S", FeatureStore, MatchStore)

# whatever a POSIX path in UTF-8 can be
NAMES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
    min_size=1,
    max_size=30,
)


@pytest.fixture(params=["on disk", "in memory"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    """Where the store of a test lies that holds for both kinds."""
    return tmp_path / "store.h5" if request.param == "on disk" else None


@contextmanager
def written(
    kind: type[S], path: Path | None, *batches: Sequence[tuple[Any, Any]]
) -> Iterator[S]:
    """A store to read these items from; one on disk was closed in between."""
    store = kind(path, MADE)
    for batch in batches:
        store.append(batch)  # type: ignore[arg-type]
    if path is not None:
        store.close()
        store = kind(path)
    with store:
        yield store


def error_of(call: object, *args: object) -> str:
    with pytest.raises(StoreError) as caught:
        call(*args)  # type: ignore[operator]
    return str(caught.value)


# -------------------------------------------------------------------------- features
@settings(max_examples=40)
@given(
    names=st.lists(NAMES, unique=True, max_size=6),
    counts=st.lists(st.integers(0, 20), min_size=6, max_size=6),
    dims=st.integers(0, 40),
    dtype=st.sampled_from([np.float16, np.uint8]),
    scale=st.booleans(),
    angle=st.booleans(),
    on_disk=st.booleans(),
)
def test_features_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory,
    names: list[str],
    counts: list[int],
    dims: int,
    dtype: type,
    scale: bool,
    angle: bool,
    on_disk: bool,
) -> None:
    path = tmp_path_factory.mktemp("stores") / "features.h5" if on_disk else None
    wanted = {
        name: features(k, n, dims=dims, dtype=dtype, scale=scale, angle=angle)
        for k, (name, n) in enumerate(zip(names, counts, strict=False))
    }
    items = list(wanted.items())
    with written(FeatureStore, path, items[:2], items[2:]) as store:
        assert store.names() == names
        assert len(store) == len(names)
        for name, one in wanted.items():
            assert name in store
            assert store.num_keypoints(name) == len(one)
            expect_features(store.get(name), one)
        for (name, found), wanted_name in zip(store.items(), names, strict=True):
            assert name == wanted_name
            expect_features(found, wanted[name])
        for (name, found), wanted_name in zip(store.keypoints(), names, strict=True):
            assert name == wanted_name
            assert found.descriptors.shape == (len(found), 0)
            full = wanted[name]
            expect_features(
                found,
                Features(
                    xy=full.xy,
                    scores=full.scores,
                    descriptors=np.empty((len(full), 0), np.float16),
                    image_size=full.image_size,
                    orientation=full.orientation,
                    scale=full.scale,
                    angle=full.angle,
                ),
            )


def test_float32_descriptors_are_stored_as_float16(path: Path | None) -> None:
    rows = np.random.default_rng(0).standard_normal((9, 64)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    one = Features(
        xy=np.zeros((9, 2), np.float32),
        scores=np.ones(9, np.float16),
        descriptors=rows,
        image_size=(4, 3),
    )
    with written(FeatureStore, path, [("a", one)]) as store:
        found = store.get("a")
    assert found.descriptors.dtype == np.float16
    np.testing.assert_allclose(found.descriptors, rows, atol=5e-4)


def test_descriptors_of_another_kind_are_refused(path: Path | None) -> None:
    with FeatureStore(path, MADE) as store:
        store.append([("a", features(0, dtype=np.uint8))])
        assert error_of(store.append, [("b", features(1))]) == (
            f"{path or IN_MEMORY.format('features')}: 'b' has the columns descriptors"
            " float16 [N, 8], scores float32 [N], xy float32 [N, 2] but expected, as of"
            " the items before, descriptors uint8 [N, 8], scores float32 [N], xy"
            " float32 [N, 2]"
        )
        assert store.names() == ["a"]


def test_an_image_without_features_is_named(path: Path | None) -> None:
    with FeatureStore(path, MADE) as store:
        message = (
            f"{path or IN_MEMORY.format('features')} has no features of 'ä b'. Run"
            " `sfmprep extract`."
        )
        assert error_of(store.get, "ä b") == message
        assert error_of(store.num_keypoints, "ä b") == message


# --------------------------------------------------------------------------- matches
@settings(max_examples=40)
@given(
    pairs=st.sets(
        st.tuples(NAMES, NAMES).filter(lambda p: p[0] < p[1]), max_size=6
    ).map(list),
    counts=st.lists(st.integers(0, 20), min_size=6, max_size=6),
    on_disk=st.booleans(),
)
def test_matches_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory,
    pairs: list[tuple[str, str]],
    counts: list[int],
    on_disk: bool,
) -> None:
    path = tmp_path_factory.mktemp("stores") / "matches.h5" if on_disk else None
    wanted = {
        pair: matches(k, n)
        for k, (pair, n) in enumerate(zip(pairs, counts, strict=False))
    }
    with written(MatchStore, path, list(wanted.items())) as store:
        assert store.pairs() == pairs
        for pair, one in wanted.items():
            assert pair in store
            expect_matches(store.get(*pair), one)
        found = list(store.items())
        for (pair, index), (same, one) in zip(store.indices(), found, strict=True):
            assert pair == same
            np.testing.assert_array_equal(index, one.index)
        assert [pair for pair, _ in found] == pairs
        for pair, one in found:
            expect_matches(one, wanted[pair])


def test_reverse_pair_swaps_columns(path: Path | None) -> None:
    with MatchStore(path, MADE) as store:
        store.append([(("a", "b"), matches(0))])
        assert ("b", "a") in store
        np.testing.assert_array_equal(
            store.get("b", "a").index, matches(0).index[:, ::-1]
        )


def test_a_pair_in_the_wrong_order_is_refused(path: Path | None) -> None:
    with MatchStore(path, MADE) as store:
        for pair in (("b", "a"), ("a", "a")):
            assert error_of(store.append, [(pair, matches(0))]) == (
                f"pair {pair} but expected name0 < name1"
            )
        assert len(store) == 0


def test_a_pair_without_matches_is_named(path: Path | None) -> None:
    with MatchStore(path, MADE) as store:
        assert ("a", "b") not in store
        assert error_of(store.get, "b", "a") == (
            f"{path or IN_MEMORY.format('matches')} has no matches of 'b' and 'a'. Run"
            " `sfmprep match`."
        )


# ----------------------------------------------------------------- memory and handles
def test_stores_in_memory_are_empty_writable_and_apart() -> None:
    with FeatureStore() as first, FeatureStore(None, MADE) as second:
        assert (first.provenance, second.provenance) == ({}, MADE)
        assert (first.path, first.place) == (None, "the store of features in memory")
        first.append([("a", features(0))])
        assert (first.names(), second.names()) == (["a"], [])


def test_a_large_store_in_memory_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with FeatureStore() as store:
        for k in range(4):
            store.append([(str(k), features(k, 20_000, dims=64))])
        for k in range(4):
            expect_features(store.get(str(k)), features(k, 20_000, dims=64))
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_open_for_reading_is_not_added_to(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    write_shard(path, "a")
    with FeatureStore(path):
        assert error_of(FeatureStore, path, MADE) == (
            f"{path} is open for reading, so nothing can be added to it. Close that"
            " store first."
        )
    FeatureStore(path, MADE).close()


def test_a_second_writer_of_one_process_makes_the_first_one_refuse(
    tmp_path: Path,
) -> None:
    path = tmp_path / "f.h5"
    with FeatureStore(path, MADE) as first, FeatureStore(str(path), MADE) as second:
        first.append([("a", features(0))])
        assert error_of(second.append, [("b", features(1))]) == (
            f"{path} was added to since it was opened here. Open it again."
        )
    with FeatureStore(path) as store:
        assert store.names() == ["a"]


# ------------------------------------------------------------------- files and shards
def write_shard(path: Path, names: str, made: dict[str, object] = MADE) -> None:
    with FeatureStore(path, made) as store:
        store.append([(name, features(ord(name))) for name in names])


def test_a_folder_of_shards_reads_as_one_store(tmp_path: Path) -> None:
    write_shard(tmp_path / "1.h5", "ca")
    write_shard(tmp_path / "0.h5", "b")
    (tmp_path / "notes.txt").write_text("not a store")
    with FeatureStore(tmp_path) as store:
        assert len(store) == 3
        assert store.names() == ["b", "c", "a"]
        assert [name for name, _ in store.items()] == ["b", "c", "a"]
        assert [name for name, _ in store.keypoints()] == ["b", "c", "a"]
        assert store.provenance == MADE
        for name in "abc":
            expect_features(store.get(name), features(ord(name)))


def test_shards_made_in_different_ways_are_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.h5", "a")
    write_shard(tmp_path / "1.h5", "b", {**MADE, "weights_sha256": "ab"})
    assert error_of(FeatureStore, tmp_path) == (
        f"{tmp_path / '1.h5'} was made with other settings than {tmp_path / '0.h5'}:"
        " weights_sha256 is None there and 'ab' now. Keep only stores of one kind in"
        " the folder."
    )


def test_shards_that_share_an_image_are_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.h5", "ab")
    write_shard(tmp_path / "1.h5", "cb")
    assert error_of(FeatureStore, tmp_path) == (
        f"{tmp_path}: more than one file holds 'b'. Remove one of them."
    )


def test_a_folder_without_stores_and_one_to_write_are_refused(tmp_path: Path) -> None:
    message = (
        f"{tmp_path}: expected one store file to write, or a folder of .h5 stores to"
        " read"
    )
    assert error_of(FeatureStore, tmp_path) == message
    write_shard(tmp_path / "0.h5", "a")
    assert error_of(FeatureStore, tmp_path, MADE) == message


def test_a_store_of_matches_is_no_store_of_features(tmp_path: Path) -> None:
    MatchStore(tmp_path / "m.h5", MADE).close()
    assert error_of(FeatureStore, tmp_path / "m.h5").startswith(
        f"{tmp_path / 'm.h5'} is not a store of features, version 2 (found"
        " sfmprep.matches, version 2)."
    )


def test_a_refused_store_can_be_opened_right_after(tmp_path: Path) -> None:
    write_shard(tmp_path / "f.h5", "a")
    with pytest.raises(StoreError, match="other settings"):
        FeatureStore(tmp_path / "f.h5", {"config": {"type": "aliked"}})
    with FeatureStore(tmp_path / "f.h5", MADE) as store:
        assert store.names() == ["a"]


# ----------------------------------------------------------------------------- merging
def test_merging_adds_what_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(tmp_path / "0.h5", "ab")
    write_shard(tmp_path / "1.h5", "bcde")
    write_shard(tmp_path / "2.h5", "")
    monkeypatch.setattr("sfmprep.stores.ragged._BLOCK_BYTES", 300)  # two images
    with FeatureStore(tmp_path / "0.h5", MADE) as store:
        for part in ("1.h5", "1.h5", "2.h5"):
            store.merge(tmp_path / part)
        assert store.names() == list("abcde")
        for name, found in store.items():
            expect_features(found, features(ord(name)))
            assert store.get(name).image_size == found.image_size


def test_merging_refuses_other_settings(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.h5", "a")
    write_shard(tmp_path / "1.h5", "b", {**MADE, "weights_sha256": "ab"})
    with FeatureStore(tmp_path / "0.h5", MADE) as store:
        assert error_of(store.merge, tmp_path / "1.h5") == (
            f"{tmp_path / '1.h5'} was made with other settings than"
            f" {tmp_path / '0.h5'}: weights_sha256 is None there and 'ab' now. Delete"
            " it, or choose another output folder."
        )
        assert store.names() == ["a"]


def test_merging_takes_what_comes_before_the_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(tmp_path / "1.h5", "bcde")
    read_rows = RaggedTable._read_rows

    def damaged_at_d(self: RaggedTable, columns: object, start: int, stop: int) -> Any:
        if start >= 10:  # what HDF5 says of a chunk that cannot be read
            raise self._damaged("can't read")
        return read_rows(self, columns, start, stop)  # type: ignore[arg-type]

    monkeypatch.setattr(RaggedTable, "_read_rows", damaged_at_d)
    monkeypatch.setattr("sfmprep.stores.ragged._BLOCK_BYTES", 150)
    with FeatureStore(tmp_path / "0.h5", MADE) as store:
        with pytest.raises(DamagedError, match="can't read"):
            store.merge(tmp_path / "1.h5")
        assert store.names() == ["b", "c"]
