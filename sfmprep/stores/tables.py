"""What stages leave for each other: features and matches, append-only.

A store is one HDF5 file (format: `ragged.py`), a folder of such files, of which readers
see the union, or, without a path, a file in memory. It records how it was made: the
configuration of the model and the checksum of its weights; it refuses to be continued
with others.

    features   columns xy float32 [N, 2], scores float32 [N],
               descriptors float16 or uint8 [N, D]; scale, angle float32 [N] or none;
               extras W, H of the file on disk, its EXIF orientation; key: image name
    matches    columns index int32 [M, 2], scores float16 [M];
               key: name0, a NUL, name1, where name0 < name1
    dense      columns xy0, xy1 float32 [M, 2], scores float16 [M];
               key: name0, a NUL, name1: measured from the first to the second, so both
               orders are there
    rows       column row float16 [D], one row of a whole image; key: image name
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sfmprep.errors import StoreError
from sfmprep.stores.ragged import Item, RaggedTable, differences
from sfmprep.types import DenseMatches, Features, Float32, Int32, Matches, Pair


class Store:
    """The files of a store and which of them holds which key."""

    _kind: str
    _num_extras: int

    def __init__(
        self,
        path: str | Path | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        """Opens a store; one with a path and no `provenance` for reading only.

        Args:
            path: A file; a folder of files, to read; None for a new store in memory.
            provenance: How the content is made, JSON-ready. A file that is not there is
                made, one that was made in another way is refused.

        Raises:
            StoreError: see `RaggedTable`; or the files of a folder are none, were made
                in different ways, or share a key.
        """
        self.path = None if path is None else Path(path)
        files = [self.path]
        if self.path is not None and self.path.is_dir():
            files = [*sorted(self.path.glob("*.h5"))]
            if not files or provenance is not None:
                raise StoreError(
                    f"{path}: expected one store file to write, or a folder of .h5"
                    " stores to read"
                )
        self._tables: list[RaggedTable] = []
        try:
            for file in files:
                self._tables.append(
                    RaggedTable(file, self._kind, provenance, self._num_extras)
                )
            self._check_shards()
        except BaseException:
            self.close()
            raise

    @property
    def provenance(self) -> dict[str, Any]:
        """How the content was made."""
        return self._tables[0].provenance

    def expect(self, provenance: Mapping[str, Any]) -> None:
        """Makes sure that the content was made in this way.

        Raises:
            StoreError: it was made in another one.
        """
        self._tables[0].expect(provenance)

    @property
    def place(self) -> str:
        """What messages call it: its path, where it has one."""
        return self._tables[0].place if self.path is None else str(self.path)

    def __len__(self) -> int:
        return sum(len(table.keys) for table in self._tables)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files; a second call does nothing."""
        for table in self._tables:
            table.close()

    def merge(self, path: Path) -> None:
        """Adds the items of another store file that are not here.

        Raises:
            DamagedError: that file is; what can be read of it was added.
            StoreError: it was made in another way, or is in use; see also `append`.
        """
        with closing(
            RaggedTable(path, self._kind, num_extras=self._num_extras)
        ) as other:
            self._tables[0].append_missing(other)

    @classmethod
    def forget(cls, path: Path, names: Collection[str]) -> None:
        """Rewrites a store file without the items of some images.

        A store that holds nothing of them is left as it is.

        Raises:
            StoreError: see `RaggedTable`.
        """
        gone = set(names)
        part = path.with_name(f".{path.name}.forget")
        with closing(RaggedTable(path, cls._kind, num_extras=cls._num_extras)) as old:
            keys = {key for key in old.keys if not gone.isdisjoint(key.split("\0"))}
            if not keys:
                return
            part.unlink(missing_ok=True)
            try:
                with closing(
                    RaggedTable(part, cls._kind, old.provenance, cls._num_extras)
                ) as new:
                    new.append_missing(old, without=keys)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)

    def _keys(self) -> Iterator[str]:
        return itertools.chain.from_iterable(table.keys for table in self._tables)

    def _where(self, key: str) -> tuple[RaggedTable, int] | None:
        """The file that holds an item, and its row there."""
        for table in self._tables:
            if key in table.keys:
                return table, table.keys[key]
        return None

    def _check_shards(self) -> None:
        first, *others = self._tables
        for table in others:
            if lines := differences(first.provenance, table.provenance):
                raise StoreError(
                    f"{table.place} was made with other settings than {first.place}:"
                    f" {'; '.join(lines)}. Keep only stores of one kind in the folder."
                )
        if others and len(set(self._keys())) < len(self):
            (key, _), *_ = Counter(self._keys()).most_common(1)
            raise StoreError(
                f"{self.place}: more than one file holds {key!r}. Remove one of them."
            )


class FeatureStore(Store):
    """Features by image name."""

    _kind = "features"
    _num_extras = 3

    def __contains__(self, name: str) -> bool:
        return self._where(name) is not None

    def names(self) -> list[str]:
        """The images that have features here, in the order of writing."""
        return list(self._keys())

    def append(self, items: Sequence[tuple[str, Features]]) -> None:
        """Adds the features of images; on disk when this returns.

        Raises:
            StoreError: see `RaggedTable.append`.
        """
        self._tables[0].append(
            [_feature_item(name, features) for name, features in items]
        )

    def num_keypoints(self, name: str) -> int:
        """How many features an image has."""
        table, row = self._find(name)
        return table.count(row)

    def get(self, name: str) -> Features:
        """The features of one image.

        Raises:
            StoreError: it has none here.
        """
        table, row = self._find(name)
        return _features(table.read(row), table.extras(row))

    def items(self) -> Iterator[tuple[str, Features]]:
        """Yields all features in the order of writing, read in large blocks."""
        return self._items(None)

    def keypoints(self) -> Iterator[tuple[str, Features]]:
        """As `items`, but the descriptors are left on disk ([N, 0] instead)."""
        return self._items(("xy", "scores", "scale", "angle"))

    def _items(self, wanted: Sequence[str] | None) -> Iterator[tuple[str, Features]]:
        for table in self._tables:
            rows = zip(table.keys.items(), table.read_all(wanted), strict=True)
            for (name, row), columns in rows:
                nothing = {"descriptors": np.empty((table.count(row), 0), np.float16)}
                yield name, _features({**nothing, **columns}, table.extras(row))

    def _find(self, name: str) -> tuple[RaggedTable, int]:
        found = self._where(name)
        if found is None:
            raise StoreError(
                f"{self.place} has no features of {name!r}. Run `sfmprep extract`."
            )
        return found


class MatchStore(Store):
    """Matches by pair of image names; the reverse of a stored pair is found too."""

    _kind = "matches"
    _num_extras = 0

    def __contains__(self, pair: Pair) -> bool:
        return self._where(_pair_key(*sorted(pair))) is not None

    def pairs(self) -> list[Pair]:
        """The pairs that are here, in the order of writing."""
        return [_names_of(key) for key in self._keys()]

    def num_matches(self) -> dict[Pair, int]:
        """How many matches each pair has."""
        return {
            _names_of(key): table.count(row)
            for table in self._tables
            for key, row in table.keys.items()
        }

    def append(self, items: Sequence[tuple[Pair, Matches]]) -> None:
        """Adds the matches of pairs, also empty ones; on disk when this returns.

        Raises:
            StoreError: name0 < name1 does not hold; see also `RaggedTable.append`.
        """
        self._tables[0].append([_match_item(pair, matches) for pair, matches in items])

    def get(self, name0: str, name1: str) -> Matches:
        """The matches of a pair, columns in the order of the arguments.

        Raises:
            StoreError: the pair is not here.
        """
        found = self._where(_pair_key(*sorted((name0, name1))))
        if found is None:
            raise StoreError(
                f"{self.place} has no matches of {name0!r} and {name1!r}. Run"
                " `sfmprep match`."
            )
        table, row = found
        matches = _matches(table.read(row))
        return matches if name0 < name1 else matches.reversed()

    def items(self) -> Iterator[tuple[Pair, Matches]]:
        """Yields all matches in the order of writing, read in large blocks."""
        for table in self._tables:
            for key, columns in zip(table.keys, table.read_all(), strict=True):
                yield _names_of(key), _matches(columns)

    def indices(self) -> Iterator[tuple[Pair, Int32]]:
        """As `items`, but the scores are left on disk; rows are those of `Matches`."""
        for table in self._tables:
            rows = zip(table.keys, table.read_all(("index",)), strict=True)
            for key, columns in rows:
                yield _names_of(key), columns["index"]


class DenseStore(Store):
    """Semi-dense matches by ordered pair of image names."""

    _kind = "dense"
    _num_extras = 0

    def __contains__(self, pair: Pair) -> bool:
        return self._where(_pair_key(*pair)) is not None

    def pairs(self) -> list[Pair]:
        """The ordered pairs that are here, in the order of writing."""
        return [_names_of(key) for key in self._keys()]

    def append(self, items: Sequence[tuple[Pair, DenseMatches]]) -> None:
        """Adds the matches of ordered pairs, also empty ones; then they are on disk.

        Raises:
            StoreError: see `RaggedTable.append`.
        """
        self._tables[0].append([_dense_item(pair, matches) for pair, matches in items])

    def get(self, name0: str, name1: str) -> DenseMatches:
        """What was found in the second image for points of the first.

        Raises:
            StoreError: the pair is not here in this order.
        """
        found = self._where(_pair_key(name0, name1))
        if found is None:
            raise StoreError(
                f"{self.place} has no semi-dense matches from {name0!r} to {name1!r}."
                " Run `sfmprep match`."
            )
        table, row = found
        return _dense_matches(table.read(row))

    def items(self) -> Iterator[tuple[Pair, DenseMatches]]:
        """Yields all matches in the order of writing, read in large blocks."""
        for table in self._tables:
            for key, columns in zip(table.keys, table.read_all(), strict=True):
                yield _names_of(key), _dense_matches(columns)


class RowStore(Store):
    """What a network says of whole images: one row each, by image name."""

    _kind = "rows"
    _num_extras = 0

    def __contains__(self, name: str) -> bool:
        return self._where(name) is not None

    def append(self, items: Sequence[tuple[str, Float32]]) -> None:
        """Adds the rows [D] of images; on disk when this returns.

        Raises:
            StoreError: see `RaggedTable.append`.
        """
        self._tables[0].append(
            [Item(key=n, columns={"row": row.astype(np.float16)}) for n, row in items]
        )

    def get(self, name: str) -> NDArray[np.float16]:
        """The row [D] of one image.

        Raises:
            StoreError: it has none here.
        """
        if (found := self._where(name)) is None:
            raise StoreError(
                f"{self.place} has no row of {name!r}. Run `sfmprep pairs`."
            )
        table, row = found
        described: NDArray[np.float16] = table.read(row)["row"]
        return described


def _feature_item(image: str, features: Features) -> Item:
    descriptors = features.descriptors
    if descriptors.dtype != np.uint8:
        descriptors = descriptors.astype(np.float16, copy=False)
    columns: dict[str, NDArray[Any]] = {
        "xy": features.xy,
        "scores": features.scores.astype(np.float32, copy=False),
        "descriptors": descriptors,
    }
    for name, column in (("scale", features.scale), ("angle", features.angle)):
        if column is not None:
            columns[name] = column.astype(np.float32, copy=False)
    extras = (*features.image_size, features.orientation)
    return Item(key=image, columns=columns, extras=extras)


def _features(columns: Mapping[str, Any], extras: tuple[int, ...]) -> Features:
    width, height, orientation = extras
    return Features(
        xy=columns["xy"],
        scores=columns["scores"],
        descriptors=columns["descriptors"],
        image_size=(width, height),
        orientation=orientation,
        scale=columns.get("scale"),
        angle=columns.get("angle"),
    )


def _match_item(pair: Pair, matches: Matches) -> Item:
    name0, name1 = pair
    if not name0 < name1:
        raise StoreError(f"pair {pair} but expected name0 < name1")
    columns: dict[str, NDArray[Any]] = {
        "index": matches.index.astype(np.int32, copy=False),
        "scores": matches.scores.astype(np.float16),
    }
    return Item(key=_pair_key(name0, name1), columns=columns)


def _matches(columns: Mapping[str, Any]) -> Matches:
    return Matches(index=columns["index"], scores=columns["scores"].astype(np.float32))


def _dense_item(pair: Pair, matches: DenseMatches) -> Item:
    columns: dict[str, NDArray[Any]] = {
        "xy0": matches.xy0,
        "xy1": matches.xy1,
        "scores": matches.scores.astype(np.float16),
    }
    return Item(key=_pair_key(*pair), columns=columns)


def _dense_matches(columns: Mapping[str, Any]) -> DenseMatches:
    return DenseMatches(
        xy0=columns["xy0"],
        xy1=columns["xy1"],
        scores=columns["scores"].astype(np.float32),
    )


def _pair_key(name0: str, name1: str) -> str:
    return f"{name0}\0{name1}"


def _names_of(key: str) -> Pair:
    name0, _, name1 = key.partition("\0")
    return name0, name1
