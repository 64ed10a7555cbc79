"""Ragged tables: many arrays of unequal length in one HDF5 file, safe to append to.

A table without a path lies in memory, in the same format, and is gone once closed.

File format, version 2:

    attributes   format, version, provenance (JSON)
    /index       int64 [n, 5 + extras]: offset and count of rows in the columns,
                 offset and count of bytes in /keys, 1, then the extras of the item
    /keys        uint8 [bytes]: the items' keys, UTF-8, one behind the other
    /columns/*   [rows, ...]: the values of all items, one behind the other
    /sums        uint32 [n, 2 + columns]: CRC-32 of the index up to this row, of /keys
                 up to its end, and of the item's values in each column by name

One HDF5 group per item, the usual way, costs 8 times as much to write (pairs of 400
matches, 16 at once, flushed; 22 times for 64 at once), 14 times to read one by one and
40 times in a row: 28 times for a round of 64 at once and in a row. Open tables hold 200
bytes an item, and 40 of its index; reading in a row, two blocks of 16 MiB.

Values are flushed before the index row that names them is written, so the index is the
commit: a file left by a killed process is cut back to its last complete row. Only the
default `libver` survives that, and not always: HDF5 does not order the writes of one
flush, and a kill between those that split a node of its chunk index (2 of 1,100 writes
when each was tried) leaves a file that is refused as damaged. A full disk should be
found before HDF5 writes: so space is reserved first. Where a write fails all the same,
HDF5 keeps what it could not write, and crashes when it fails to write that again, at
closing at the latest: so the file is taken away from it, made as long as HDF5 has noted
in it, without which it is refused, and datasets stay open, for one that is closed is
written in a place where no error is seen. HDF5 itself does not see when bits of values
change on a disk or in a copy: so whatever is read is compared with its sum.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import json
import os
import re
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from sfmprep.errors import StoreError
from sfmprep.types import Index

VERSION = 2
_CHUNK_BYTES = 1 << 18
_BLOCK_BYTES = 16 << 20
_SUMS_BYTES = 1 << 14  # a chunk of /sums
_METADATA_BYTES = 1 << 18  # more than that and what HDF5 adds in one append
_FIXED = 5  # columns of the index before the extras
_CHAINS = 2  # columns of /sums before those of values
_Layout = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]
_IN_MEMORY = itertools.count()
_OF_THE_DISK = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)  # not of the file
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ERRNO = r"errno = (\d+)"  # in HDF5's words, which are many lines
_HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError)


class DamagedError(StoreError):
    """A file that is not whole; what it held is lost, and can be made again."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Item:
    """One entry of a table: every column has the same number of rows."""

    key: str
    columns: Mapping[str, NDArray[Any]]
    extras: tuple[int, ...] = ()


class RaggedTable:
    """One HDF5 file of ragged columns; one writer, any number of readers after it.

    Args:
        path: The file; None for a new table in memory.
        kind: What the file holds, such as `features`; checked on opening.
        provenance: How its content is made, JSON-ready. A file with another one is
            refused. None opens a file for reading only.
        num_extras: Integers that come with each item.

    Raises:
        StoreError: no such file, not a table of this kind, made in another way, in
            use by another process, damaged, or the disk is full.
    """

    def __init__(
        self,
        path: Path | None,
        kind: str,
        provenance: Mapping[str, Any] | None = None,
        num_extras: int = 0,
    ) -> None:
        self.path = path
        self.place = f"the store of {kind} in memory" if path is None else str(path)
        self.writable = path is None or provenance is not None
        self._width = _FIXED + num_extras
        self._blocks: list[Index] = []
        self._sum_blocks: list[NDArray[np.uint32]] = []
        if path is None:
            self._file = _in_memory(kind, provenance or {}, self._width)
        else:
            self._file = _open(path, kind, provenance, self._width)
        self._is_given_up = False
        try:
            self._check(kind, provenance)
            self._load_index()
        except StoreError:
            self.close()
            raise
        except _HDF5_ERRORS as error:
            self.close()
            raise self._not_given(error) from error

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        # What append has returned for is flushed, so a close that fails loses nothing.
        with contextlib.suppress(OSError, RuntimeError):
            self._file.close()

    # --------------------------------------------------------------------- reading
    @property
    def provenance(self) -> dict[str, Any]:
        """How the content was made, as recorded on creation."""
        return dict(json.loads(self._file.attrs["provenance"]))

    def expect(self, provenance: Mapping[str, Any]) -> None:
        """Makes sure that the content was made in this way.

        Raises:
            StoreError: it was made in another one.
        """
        wanted = json.loads(json.dumps(provenance))
        if lines := differences(self.provenance, wanted):
            raise StoreError(
                f"{self.place} was made with other settings: {'; '.join(lines)}."
                " Choose another output folder, or delete the file."
            )

    def extras(self, row: int) -> tuple[int, ...]:
        """The integers that came with item number `row`."""
        return tuple(int(value) for value in self._index[row, _FIXED:])

    def count(self, row: int) -> int:
        """How many rows item number `row` has in every column."""
        return int(self._index[row, 1])

    def read(self, row: int) -> dict[str, NDArray[Any]]:
        """The columns of item number `row`; zero rows where it is empty."""
        start, count = (int(value) for value in self._index[row, :2])
        found = self._read_rows(self._columns, start, start + count)
        self._verify(row, found)
        return found

    def read_all(
        self, names: Sequence[str] | None = None
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """Yields the columns of every item in the order of writing.

        The file is read in large blocks, so this is far faster than `read` one by one.
        The arrays are views of a block: copy what is kept.
        """
        wanted = names or self._columns
        columns = {name: c for name, c in self._columns.items() if name in wanted}
        row_bytes = sum(_row_bytes(column) for column in columns.values())
        block = max(_BLOCK_BYTES // max(row_bytes, 1), 1)
        first = row = 0
        ends = self._index[:, 0] + self._index[:, 1]
        while first < len(self._index):
            start = int(self._index[first, 0])
            last = int(np.searchsorted(ends, start + block, side="right"))
            last = max(last, first + 1)
            stop = int(ends[last - 1])
            values = self._read_rows(columns, start, stop)
            for offset, count in self._index[first:last, :2]:
                low = int(offset) - start
                found = {n: v[low : low + int(count)] for n, v in values.items()}
                self._verify(row, found)
                yield found
                row += 1
            first = last

    # --------------------------------------------------------------------- writing
    def append(self, items: Sequence[Item]) -> None:
        """Adds items; they are on disk, and will survive a kill, when this returns.

        Raises:
            StoreError: a key is there already, columns differ in length or from those
                of earlier items, the store is read-only, or the disk is full.
        """
        if not items:
            return
        if not self.writable:
            raise StoreError(f"{self.place} was opened for reading only")
        self._expect_file()
        if len(self._rows) != len(self.keys):
            raise StoreError(
                f"{self.place} was added to since it was opened here. Open it again."
            )
        keys = [item.key for item in items]
        taken = self.keys.keys() & set(keys)
        if taken or len(set(keys)) < len(keys):
            name = min(taken) if taken else next(k for k in keys if keys.count(k) > 1)
            raise StoreError(f"{self.place} holds {name!r} already")
        layout = self._layout or _layout_of(items[0].columns)
        counts = [self._count_rows(item, layout) for item in items]
        try:
            self._reserve(items)
            with self._given_up():
                self._append(items, counts)
        except _HDF5_ERRORS as error:
            raise _store_error(self.place, error) from error

    def append_missing(
        self, other: RaggedTable, *, without: Collection[str] = ()
    ) -> None:
        """Adds the items of another table whose keys are not here, in large blocks.

        Those `without` are left out.

        Raises:
            DamagedError: the other table is; what can be read of it was added.
            StoreError: it was made in another way; see also `append`.
        """
        if lines := differences(self.provenance, other.provenance):
            raise StoreError(
                f"{other.place} was made with other settings than {self.place}:"
                f" {'; '.join(lines)}. Delete it, or choose another output folder."
            )
        waiting: list[Item] = []
        num_bytes = 0
        try:
            for (key, row), columns in zip(
                other.keys.items(), other.read_all(), strict=True
            ):
                if key in self.keys or key in without:
                    continue
                extras = other.extras(row)
                waiting.append(Item(key=key, columns=columns, extras=extras))
                num_bytes += sum(column.nbytes for column in columns.values())
                if num_bytes >= _BLOCK_BYTES:
                    self.append(waiting)
                    waiting, num_bytes = [], 0
        except DamagedError:
            self.append(waiting)
            for key, row in other.keys.items():
                if key in self.keys or key in without:
                    continue
                with contextlib.suppress(DamagedError):
                    columns, extras = other.read(row), other.extras(row)
                    self.append([Item(key=key, columns=columns, extras=extras)])
            raise
        self.append(waiting)

    # -------------------------------------------------------------------- internals
    @property
    def _index(self) -> Index:
        """The rows of the index, merged where something was appended since."""
        if len(self._blocks) > 1:
            self._blocks = [np.concatenate(self._blocks)]
        return self._blocks[0]

    @property
    def _sums(self) -> NDArray[np.uint32]:
        """The rows of /sums, merged where something was appended since."""
        if len(self._sum_blocks) > 1:
            self._sum_blocks = [np.concatenate(self._sum_blocks)]
        return self._sum_blocks[0]

    def _verify(self, row: int, columns: Mapping[str, NDArray[Any]]) -> None:
        """Raises DamagedError where values are not what was written."""
        expected = self._sums[row]
        for place, name in enumerate(sorted(self._columns), _CHAINS):
            if name in columns and _sum(columns[name]) != expected[place]:
                key = next(itertools.islice(self.keys, row, None))
                shown = key.replace("\0", " and ")
                raise self._damaged(f"the {name} of {shown} are not what was written")

    def _check(self, kind: str, provenance: Mapping[str, Any] | None) -> None:
        found = self._file.attrs.get("format"), self._file.attrs.get("version")
        if found != (f"sfmprep.{kind}", VERSION) or "index" not in self._file:
            raise StoreError(
                f"{self.place} is not a store of {kind}, version {VERSION} (found"
                f" {found[0]}, version {found[1]}). Delete it, or choose another"
                " output folder."
            )
        if provenance is not None:
            self.expect(provenance)

    def _load_index(self) -> None:
        """Reads the index and cuts everything behind its last complete row."""
        self._rows, self._text = self._file["index"], self._file["keys"]
        index = self._rows[:]
        complete = index[:, 4] == 1
        num_items = len(index) if complete.all() else int(np.argmin(complete))
        index = index[:num_items]
        self._blocks = [index]
        self._num_rows = int(index[-1, 0] + index[-1, 1]) if num_items else 0
        key_end = int(index[-1, 2] + index[-1, 3]) if num_items else 0
        self._num_key_bytes = key_end
        text = self._text[:key_end].tobytes()
        # the first append may have been stopped between two columns
        columns = dict(self._file["columns"].items()) if num_items else {}
        self._columns = columns
        width = _CHAINS + len(columns)
        sums = np.empty((0, width), np.uint32)
        self._sums_rows: Any = None
        if num_items:
            self._sums_rows = self._file["sums"]
            sums = self._sums_rows[:num_items]
        self._sum_blocks = [sums]
        self._layout = _layout_of(columns)
        if len(text) < key_end or any(
            len(c) < self._num_rows for c in columns.values()
        ):
            raise self._damaged("rows that its index names are missing")
        if num_items and (
            sums.shape != (num_items, width)
            or sums[-1, :_CHAINS].tolist() != [_sum(index), zlib.crc32(text)]
        ):
            raise self._damaged("its index is not what was written")
        self.keys: dict[str, int] = {
            text[start : start + count].decode(): row
            for row, (start, count) in enumerate(index[:, 2:4].tolist())
        }
        if self.writable:
            with self._given_up():
                self._cut_back(num_items, key_end)

    def _cut_back(self, num_items: int, key_end: int) -> None:
        for name in set(self._file["columns"]) - set(self._columns):
            del self._file["columns"][name]
        if not self._columns and "sums" in self._file:  # it has a place for each
            del self._file["sums"]
        for dataset, rows in (
            (self._rows, num_items),
            (self._text, key_end),
            *((column, self._num_rows) for column in self._columns.values()),
            *([(self._sums_rows, num_items)] if num_items else []),
        ):
            if len(dataset) > rows:
                dataset.resize(rows, axis=0)
        self._file.flush()

    def _damaged(self, how: str) -> DamagedError:
        return DamagedError(
            f"{self.place} is damaged: {how}. Delete it; the next run makes it again."
        )

    def _not_given(self, error: Exception) -> StoreError:
        """Damage, unless it is the disk that gives nothing now: later it may."""
        said = re.search(_ERRNO, str(error))
        if said and int(said[1]) in (*_OF_THE_DISK, *_FULL):
            return _store_error(self.place, RuntimeError(str(error)))
        return self._damaged(str(error))

    def _read_rows(
        self, columns: Mapping[str, Any], start: int, stop: int
    ) -> dict[str, NDArray[Any]]:
        self._expect_file()
        try:
            return {name: column[start:stop] for name, column in columns.items()}
        except (OSError, RuntimeError) as error:
            raise self._not_given(error) from error

    def _count_rows(self, item: Item, layout: _Layout) -> int:
        counts = {len(column) for column in item.columns.values()}
        if len(counts) != 1 or len(item.extras) != self._width - _FIXED:
            raise StoreError(
                f"{self.place}: {item.key!r} has columns of {sorted(counts)} rows and"
                f" {len(item.extras)} extras, but expected equal rows and"
                f" {self._width - _FIXED} extras"
            )
        if (found := _layout_of(item.columns)) != layout:
            raise StoreError(
                f"{self.place}: {item.key!r} has the columns {_in_words(found)} but"
                f" expected, as of the items before, {_in_words(layout)}"
            )
        return counts.pop()

    def _reserve(self, items: Sequence[Item]) -> None:
        """Makes sure that the file can grow by these items.

        What is not used of the space, at most some MB, stays behind the end of the
        data until the file is written to again.
        """
        if self.path is None or not hasattr(os, "posix_fallocate"):  # such as macOS
            return
        num_bytes = sum(c.nbytes for item in items for c in item.columns.values())
        # new chunks are written whole: one for each column, /keys and /index
        num_bytes += (len(items[0].columns) + 2) * _CHUNK_BYTES + _METADATA_BYTES
        file = self._file.id.get_vfd_handle()
        size = os.fstat(file).st_size
        end = self._file.id.get_filesize() + num_bytes
        if end <= size:
            return
        try:
            os.posix_fallocate(file, size, end - size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise

    @contextlib.contextmanager
    def _given_up(self) -> Iterator[None]:
        """Where HDF5 fails to write, it gets another file that takes everything.

        That on disk, and its lock, are let go of: the table can only be closed.
        """
        try:
            yield
        except _HDF5_ERRORS:
            if self.path is not None:
                self._is_given_up = True
                file = self._file.id.get_vfd_handle()
                # It may have noted a longer file, and would refuse this one. A hole
                # takes no space.
                with contextlib.suppress(OSError):
                    end = self._file.id.get_filesize()
                    if os.fstat(file).st_size < end:
                        os.ftruncate(file, end)
                nowhere = os.open(os.devnull, os.O_RDWR)
                os.dup2(nowhere, file, inheritable=False)
                os.close(nowhere)
            raise

    def _expect_file(self) -> None:
        if self._is_given_up:
            raise StoreError(
                f"{self.place} could not be written before. Free some disk space and"
                " run the same command again: it goes on from the last complete item."
            )

    def _append(self, items: Sequence[Item], counts: Sequence[int]) -> None:
        start = self._num_rows
        for name in items[0].columns:
            values = np.concatenate([item.columns[name] for item in items])
            _write_rows(self._column(name, values), start, values)
        encoded = [item.key.encode() for item in items]
        key_bytes = np.frombuffer(b"".join(encoded), np.uint8)
        _write_rows(self._text, self._num_key_bytes, key_bytes)
        rows = np.empty((len(items), self._width), np.int64)
        rows[:, 1] = counts
        rows[:, 0] = start + np.cumsum(counts) - counts
        rows[:, 3] = [len(key) for key in encoded]
        rows[:, 2] = self._num_key_bytes + np.cumsum(rows[:, 3]) - rows[:, 3]
        rows[:, 4] = 1
        rows[:, _FIXED:] = [item.extras for item in items]
        sums = self._new_sums(items, rows, encoded)
        num_items = len(self.keys)
        _write_rows(self._sums_dataset(), num_items, sums)
        self._file.flush()

        _write_rows(self._rows, num_items, rows)
        self._file.flush()
        self.keys.update((item.key, num_items + k) for k, item in enumerate(items))
        self._blocks.append(rows)
        if not num_items:  # the first rows tell how wide they are
            self._sum_blocks.clear()
        self._sum_blocks.append(sums)
        self._num_rows = start + sum(counts)
        self._num_key_bytes += len(key_bytes)

    def _new_sums(
        self, items: Sequence[Item], rows: Index, keys: Sequence[bytes]
    ) -> NDArray[np.uint32]:
        """The rows of /sums that belong to new rows of the index."""
        names = sorted(items[0].columns)
        found = np.empty((len(items), _CHAINS + len(names)), np.uint32)
        index = text = 0
        if self.keys:
            index, text = self._sum_blocks[-1][-1, :_CHAINS].tolist()
        for k, (item, row, key) in enumerate(zip(items, rows, keys, strict=True)):
            index, text = zlib.crc32(row, index), zlib.crc32(key, text)
            found[k] = index, text, *(_sum(item.columns[name]) for name in names)
        return found

    def _sums_dataset(self) -> Any:
        """/sums, whose width is known with the first item."""
        if self._sums_rows is None:
            width = _CHAINS + len(self._columns)
            self._sums_rows = self._file.create_dataset(
                *("sums", (0, width), "u4"),
                maxshape=(None, width),
                chunks=(max(_SUMS_BYTES // (4 * width), 1), width),
            )
        return self._sums_rows

    def _column(self, name: str, values: NDArray[Any]) -> Any:
        if name not in self._columns:
            row_bytes = max(values.dtype.itemsize * int(np.prod(values.shape[1:])), 1)
            self._columns[name] = self._file["columns"].create_dataset(
                name,
                (0, *values.shape[1:]),
                values.dtype,
                # HDF5 has neither a chunk nor a fixed dimension of length 0
                maxshape=(None, *(n or None for n in values.shape[1:])),
                chunks=(
                    max(_CHUNK_BYTES // row_bytes, 1),
                    *(n or 1 for n in values.shape[1:]),
                ),
            )
            self._layout[name] = values.dtype, values.shape[1:]
        return self._columns[name]


def _open(
    path: Path, kind: str, provenance: Mapping[str, Any] | None, width: int
) -> Any:
    """Opens a file, for writing where there is a provenance, and then makes it too."""
    try:
        if provenance is not None and not path.exists():
            _create(path, kind, provenance, width)
        if not path.is_file():
            raise StoreError(f"{path}: no such store. Run the stage that writes it.")
        if path.stat().st_size == 0:  # HDF5 would fill it
            raise DamagedError(f"{path} is empty, not a store. Delete it.")
        return h5py.File(path, "r" if provenance is None else "r+")
    except BlockingIOError as error:
        raise StoreError(
            f"{path} is in use by another sfmprep. Wait for it, or stop it."
        ) from error
    except OSError as error:
        if "already open for read-only" in str(error):  # by this process
            raise StoreError(
                f"{path} is open for reading, so nothing can be added to it. Close"
                " that store first."
            ) from error
        # HDF5 gives no number to what it finds wrong in a file
        has_number = error.errno or re.search(_ERRNO, str(error))
        meaning = StoreError if has_number else DamagedError
        raise meaning(str(_store_error(path, error))) from error


def _in_memory(kind: str, provenance: Mapping[str, Any], width: int) -> Any:
    # HDF5 tells the open files of a process apart by name
    file = h5py.File(
        f"sfmprep {next(_IN_MEMORY)}",
        "w",
        driver="core",
        backing_store=False,
        block_size=_CHUNK_BYTES,
    )
    _write_empty(file, kind, provenance, width)
    return file


def _write_empty(
    file: Any, kind: str, provenance: Mapping[str, Any], width: int
) -> None:
    file.attrs["format"] = f"sfmprep.{kind}"
    file.attrs["version"] = VERSION
    file.attrs["provenance"] = json.dumps(provenance, sort_keys=True)
    file.create_group("columns")
    file.create_dataset("keys", (0,), "u1", maxshape=(None,), chunks=(_CHUNK_BYTES,))
    file.create_dataset("index", (0, width), "i8", maxshape=(None, width), chunks=True)


def _create(path: Path, kind: str, provenance: Mapping[str, Any], width: int) -> None:
    """Makes an empty table, whole or not at all."""
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        _write_empty(file, kind, provenance, width)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(image.getvalue())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write_rows(dataset: Any, start: int, values: NDArray[Any]) -> None:
    """Makes `dataset` end with `values` from row `start` on.

    A slice assignment of h5py does the same in three times the time.
    """
    dataset.id.set_extent((start + len(values), *values.shape[1:]))
    if values.size:
        selected = dataset.id.get_space()
        origin = (start, *(0 for _ in values.shape[1:]))
        selected.select_hyperslab(origin, values.shape)
        memory = h5py.h5s.create_simple(values.shape)
        dataset.id.write(memory, selected, np.ascontiguousarray(values))


def _sum(values: NDArray[Any]) -> int:
    return zlib.crc32(np.ascontiguousarray(values).data)


def _layout_of(columns: Mapping[str, Any]) -> _Layout:
    return {name: (column.dtype, column.shape[1:]) for name, column in columns.items()}


def _in_words(layout: _Layout) -> str:
    return ", ".join(
        f"{name} {dtype} [{', '.join(('N', *map(str, shape)))}]"
        for name, (dtype, shape) in sorted(layout.items())
    )


def _row_bytes(column: Any) -> int:
    return int(column.dtype.itemsize * np.prod(column.shape[1:]))


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> list[str]:
    """What differs between two nested settings, in words."""
    lines = []
    for key in sorted({*old, *new}):
        was, now = old.get(key), new.get(key)
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            lines += differences(was, now, f"{prefix}{key}.")
        elif was != now:
            lines.append(f"{prefix}{key} is {was!r} there and {now!r} now")
    return lines


def _store_error(place: object, error: Exception) -> StoreError:
    number = error.errno if isinstance(error, OSError) else None
    if said := re.search(_ERRNO, str(error)):
        number = int(said[1])
    if number in _FULL:
        return StoreError(
            f"{place}: the disk is full ({os.strerror(number)}). Free some space and"
            " run the same command again: it goes on from the last complete item."
        )
    if number and (said or number in _OF_THE_DISK):
        return StoreError(
            f"{place}: the disk does not take it ({os.strerror(number)}). See whether"
            " it is there and sound, and run the same command again: it goes on from"
            " the last complete item."
        )
    reason = (isinstance(error, OSError) and error.strerror) or str(error)
    return StoreError(
        f"{place} cannot be opened or written ({reason}). If it is not a store of"
        " sfmprep, move it away; if it is damaged, delete it and run again."
    )
