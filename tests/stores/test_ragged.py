"""The ragged table: what it refuses, what it survives, and that columns come back."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfmprep.errors import StoreError
from sfmprep.stores.ragged import DamagedError, Item, RaggedTable

MADE = {"config": {"type": "sift", "max_keypoints": 100}, "weights_sha256": None}


def item(number: int, *, rows: int | None = None) -> Item:
    """An item whose content follows from its number; some have no row."""
    random = np.random.default_rng(number)
    rows = int(random.integers(0, 40)) if rows is None else rows
    return Item(
        key=f"item {number}",
        columns={
            "a": random.integers(1, 255, (rows, 3), np.uint8),
            "b": random.random(rows, np.float32),
        },
        extras=(number,),
    )


def new(path: Path | None, items: list[Item] | None = None) -> RaggedTable:
    table = RaggedTable(path, "things", MADE, 1)
    if items:
        table.append(items)
    return table


def expect_items(table: RaggedTable, numbers: range) -> None:
    """Checks keys, order, extras and columns, read one by one and all at once."""
    assert list(table.keys) == [f"item {k}" for k in numbers]
    for row, (number, all_at_once) in enumerate(
        zip(numbers, table.read_all(), strict=True)
    ):
        wanted = item(number)
        assert table.extras(row) == (number,)
        assert table.count(row) == len(wanted.columns["b"])
        for found in (table.read(row), all_at_once):
            assert found.keys() == wanted.columns.keys()
            for name, column in wanted.columns.items():
                assert found[name].dtype == column.dtype
                np.testing.assert_array_equal(found[name], column)


def refusal(path: Path, made: object = None, kind: str = "things") -> str:
    with pytest.raises(StoreError) as caught:
        RaggedTable(path, kind, made, 1)  # type: ignore[arg-type]
    return str(caught.value)


# --------------------------------------------------------------------------- content
@settings(max_examples=40)
@given(
    batches=st.lists(st.lists(st.integers(0, 7), max_size=4), max_size=5),
    how=st.sampled_from(["kept open", "reopened", "in memory"]),
)
def test_items_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[int]], how: str
) -> None:
    path = tmp_path_factory.mktemp("ragged") / "table.h5"
    table = new(None if how == "in memory" else path)
    numbers = itertools.count()
    for batch in batches:
        table.append([item(next(numbers)) for _ in batch])
        if how == "reopened":
            table.close()
            table = new(path)
    expect_items(table, range(next(numbers)))
    table.close()
    if how == "in memory":
        return
    with_reader = RaggedTable(path, "things", num_extras=1)
    expect_items(with_reader, range(sum(map(len, batches))))
    with_reader.close()


def test_reading_in_small_blocks_gives_the_same_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = new(tmp_path / "t.h5", [item(k) for k in range(50)])
    for num_bytes in (1, 100, 1000):
        monkeypatch.setattr("sfmprep.stores.ragged._BLOCK_BYTES", num_bytes)
        expect_items(table, range(50))


def test_read_all_reads_only_the_named_columns(tmp_path: Path) -> None:
    table = new(tmp_path / "t.h5", [item(1)])
    assert [set(columns) for columns in table.read_all(["b", "c"])] == [{"b"}]


def test_an_empty_provenance_still_opens_for_writing(tmp_path: Path) -> None:
    for number in range(2):
        table = RaggedTable(tmp_path / "t.h5", "things", {}, 1)
        table.append([item(number)])
        table.close()
    expect_items(RaggedTable(tmp_path / "t.h5", "things", num_extras=1), range(2))


def test_provenance_is_recorded(tmp_path: Path) -> None:
    new(tmp_path / "t.h5").close()
    assert RaggedTable(tmp_path / "t.h5", "things").provenance == MADE


# -------------------------------------------------------------------- refused appends
def append_error(table: RaggedTable, *items: Item) -> str:
    with pytest.raises(StoreError) as caught:
        table.append(items)
    return str(caught.value)


@pytest.mark.parametrize("on_disk", [True, False])
def test_refused_appends_say_why_and_change_nothing(
    tmp_path: Path, on_disk: bool
) -> None:
    path = tmp_path / "t.h5" if on_disk else "the store of things in memory"
    table = new(path if isinstance(path, Path) else None, [item(0)])
    unequal = Item(key="x", columns={"a": np.ones(2), "b": np.ones(3)}, extras=(1,))
    no_extras = Item(key="x", columns=item(3).columns)
    wide = Item(
        key="x",
        columns={"a": np.ones((2, 4), np.uint8), "b": np.ones(2, np.float32)},
        extras=(1,),
    )
    typed = Item(
        key="x",
        columns={"a": np.ones((2, 3), np.float16), "b": np.ones(2, np.float32)},
        extras=(1,),
    )
    before = ", as of the items before, a uint8 [N, 3], b float32 [N]"
    assert append_error(table, item(1), item(0)) == f"{path} holds 'item 0' already"
    assert append_error(table, item(1), item(1)) == f"{path} holds 'item 1' already"
    assert append_error(table, item(1), unequal) == (
        f"{path}: 'x' has columns of [2, 3] rows and 1 extras, but expected equal"
        " rows and 1 extras"
    )
    assert append_error(table, no_extras) == (
        f"{path}: 'x' has columns of [{len(item(3).columns['b'])}] rows and 0 extras,"
        " but expected equal rows and 1 extras"
    )
    assert append_error(table, wide) == (
        f"{path}: 'x' has the columns a uint8 [N, 4], b float32 [N] but expected"
        + before
    )
    assert append_error(table, typed) == (
        f"{path}: 'x' has the columns a float16 [N, 3], b float32 [N] but expected"
        + before
    )
    table.append([])
    table.append([item(1)])
    expect_items(table, range(2))


def test_a_store_opened_for_reading_takes_no_item(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    new(path).close()
    table = RaggedTable(path, "things", num_extras=1)
    assert append_error(table, item(0)) == f"{path} was opened for reading only"


# -------------------------------------------------------------------- refused openings
def test_another_provenance_is_refused_naming_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    new(path).close()
    other = {"config": {"type": "sift", "max_keypoints": 200, "x": 1}}
    other |= {"weights_sha256": "ab"}
    assert refusal(path, other) == (
        f"{path} was made with other settings: config.max_keypoints is 100 there and"
        " 200 now; config.x is None there and 1 now; weights_sha256 is None there and"
        " 'ab' now. Choose another output folder, or delete the file."
    )


def test_another_kind_or_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    new(path).close()
    advice = "Delete it, or choose another output folder."
    assert refusal(path, kind="matches") == (
        f"{path} is not a store of matches, version 2 (found sfmprep.things,"
        f" version 2). {advice}"
    )
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = 1
    assert refusal(path) == (
        f"{path} is not a store of things, version 2 (found sfmprep.things,"
        f" version 1). {advice}"
    )
    with h5py.File(path, "w") as file:
        file["keypoints"] = np.ones(3)
    assert refusal(path, MADE) == (
        f"{path} is not a store of things, version 2 (found None, version None)."
        f" {advice}"
    )


def test_a_missing_file_is_refused_for_reading(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    assert refusal(path) == f"{path}: no such store. Run the stage that writes it."
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_refused_for_writing(tmp_path: Path) -> None:
    path = tmp_path / "no" / "t.h5"
    assert refusal(path, MADE).startswith(
        f"{path} cannot be opened or written (No such file or directory)."
    )


@pytest.mark.parametrize("content", [b"not HDF5", bytes(5000)])
@pytest.mark.parametrize("made", [None, MADE])
def test_a_file_that_is_not_hdf5_is_refused(
    tmp_path: Path, content: bytes, made: object
) -> None:
    path = tmp_path / "t.h5"
    path.write_bytes(content)
    assert refusal(path, made) == (
        f"{path} cannot be opened or written (Unable to synchronously open file (file"
        " signature not found)). If it is not a store of sfmprep, move it away; if it"
        " is damaged, delete it and run again."
    )
    assert path.read_bytes() == content


@pytest.mark.parametrize("made", [None, MADE])
def test_an_empty_file_is_refused_and_stays_empty(tmp_path: Path, made: object) -> None:
    path = tmp_path / "t.h5"
    path.touch()
    assert refusal(path, made) == f"{path} is empty, not a store. Delete it."
    assert path.read_bytes() == b""


def test_a_second_writer_is_refused_while_the_first_is_open(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    table = new(path)
    script = f"""
        from pathlib import Path
        from sfmprep.errors import StoreError
        from sfmprep.stores.ragged import RaggedTable
        for made in (None, {MADE!r}):
            try:
                RaggedTable(Path({str(path)!r}), "things", made, 1)
            except StoreError as error:
                print(error)
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=True,
    )
    busy = f"{path} is in use by another sfmprep. Wait for it, or stop it."
    assert found.stdout.splitlines() == [busy, busy]
    table.append([item(0)])
    expect_items(table, range(1))


# ---------------------------------------------------------------------------- damage
def test_every_truncation_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.h5", tmp_path / "t.h5"
    new(whole, [item(k) for k in range(20)]).close()
    new(whole).close()  # gives back the space that was reserved
    content = whole.read_bytes()
    for share in (0.01, 0.1, 0.5, 0.9, 0.999):
        path.write_bytes(content[: int(len(content) * share)])
        for made in (None, MADE):
            assert str(path) in refusal(path, made)


@settings(max_examples=60)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_other_bit_never_gives_other_items(
    tmp_path_factory: pytest.TempPathFactory, place: float, bit: int
) -> None:
    path = tmp_path_factory.mktemp("ragged") / "t.h5"
    new(path, [item(k, rows=2000) for k in range(8)]).close()
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    try:
        table = RaggedTable(path, "things", num_extras=1)
        found = [table.read(row) for row in range(len(table.keys))]
        again = list(table.read_all())
        table.close()
    except StoreError as error:
        assert str(path) in str(error)
        return
    for columns in (found, again):
        for number, each in enumerate(columns):
            wanted = item(number, rows=2000).columns
            assert all(np.array_equal(each[name], wanted[name]) for name in wanted)


def test_values_that_changed_are_named_and_the_others_can_be_taken_over(
    tmp_path: Path,
) -> None:
    path = tmp_path / "t.h5"
    new(path, [item(k, rows=5) for k in range(4)]).close()
    with h5py.File(path, "r+") as file:
        file["columns/b"][5 * 2 + 1] = 7
    table = RaggedTable(path, "things", num_extras=1)
    assert [table.read(row)["b"][0] for row in (0, 1, 3)]
    damage = (
        f"{path} is damaged: the b of item 2 are not what was written. Delete it; the"
        " next run makes it again."
    )
    for read in (lambda: table.read(2), lambda: list(table.read_all())):
        with pytest.raises(DamagedError) as caught:
            read()
        assert str(caught.value) == damage
    other = new(tmp_path / "other.h5", [item(0, rows=5)])
    with pytest.raises(DamagedError):
        other.append_missing(table)
    assert list(other.keys) == ["item 0", "item 1", "item 3"]


def test_an_index_that_changed_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    for place, value in (
        (("index", (1, 1)), 3),
        (("keys", 2), 65),
        (("sums", (2, 0)), 1),
    ):
        new(path, [item(k, rows=5) for k in range(3)]).close()
        with h5py.File(path, "r+") as file:
            name, where = place
            file[name][where] = value
        assert refusal(path) == (
            f"{path} is damaged: its index is not what was written. Delete it; the next"
            " run makes it again."
        )
        path.unlink()


@pytest.mark.parametrize("name", ["index", "keys", "columns", "sums", "provenance"])
def test_a_missing_part_is_called_damage(tmp_path: Path, name: str) -> None:
    path = tmp_path / "t.h5"
    new(path, [item(0)]).close()
    with h5py.File(path, "r+") as file:
        del (file.attrs if name == "provenance" else file)[name]
    assert str(path) in refusal(path, MADE)


def test_rows_that_the_index_names_but_are_missing_are_damage(tmp_path: Path) -> None:
    for name in ("keys", "columns/a"):
        path = tmp_path / f"{name[0]}.h5"
        new(path, [item(1)]).close()
        with h5py.File(path, "r+") as file:
            file[name].resize(len(file[name]) - 1, axis=0)
        assert refusal(path, MADE) == (
            f"{path} is damaged: rows that its index names are missing. Delete it; the"
            " next run makes it again."
        )


def test_what_lies_behind_the_last_complete_index_row_is_cut_off(
    tmp_path: Path,
) -> None:
    path = tmp_path / "t.h5"
    new(path, [item(k) for k in range(5)]).close()
    with h5py.File(path, "r+") as file:
        for name in ("keys", "columns/a", "columns/b"):
            file[name].resize(len(file[name]) + 7, axis=0)
        file["index"].resize(8, axis=0)
        file["index"][6] = [0, 1, 0, 1, 1, 9]  # complete, but behind one that is not
    reader = RaggedTable(path, "things", num_extras=1)
    expect_items(reader, range(5))
    reader.close()
    table = new(path, [item(5), item(6)])
    expect_items(table, range(7))
    table.close()
    with h5py.File(path) as file:
        rows = sum(len(item(k).columns["b"]) for k in range(7))
        assert len(file["columns/a"]) == len(file["columns/b"]) == rows
        assert len(file["index"]) == 7


def test_columns_without_any_item_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    new(path).close()
    with h5py.File(path, "r+") as file:  # stopped between two columns
        file["columns"].create_dataset("a", (4, 3), "u1", maxshape=(None, 3))
    table = new(path, [item(0)])
    expect_items(table, range(1))


# ------------------------------------------------------------------- kills, full disks
WRITER = """
    import resource, signal, sys
    from pathlib import Path
    from sfmprep.errors import StoreError
    from sfmprep.stores.ragged import RaggedTable
    from tests.stores.test_ragged import MADE, item

    path, limit, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        table = RaggedTable(path, "things", MADE, 1)
        first = len(table.keys)
        print("open", flush=True)
        for k in range(first, last, 2):
            table.append([item(k, **SIZE), item(k + 1, **SIZE)])
            print(k + 2, flush=True)
    except StoreError as error:
        print(error, flush=True)
"""


def start_writer(
    path: Path, *, limit: int = 0, last: int = 10**6, rows: int | None = None
) -> subprocess.Popen[str]:
    script = f"SIZE = dict(rows={rows})\n{textwrap.dedent(WRITER)}"
    return subprocess.Popen(
        [sys.executable, "-c", script, str(path), str(limit), str(last)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )


FORKER = """
import os, sys
from pathlib import Path
from tests.stores.test_ragged import append_for_ever

for _ in sys.stdin:
    if os.fork() == 0:
        append_for_ever(Path(sys.argv[1]))
    print(-os.wait()[1], flush=True)
"""


def append_for_ever(path: Path) -> None:
    """Writes to standard output how many items are committed, beginning at once."""
    table = new(path)
    os.write(1, f"open {os.getpid()}\n".encode())
    for k in itertools.count(len(table.keys), 2):
        table.append([item(k), item(k + 1)])
        os.write(1, b"%d\n" % (k + 2))  # a kill leaves the whole line or none


@pytest.mark.timeout(300)  # a writer that fails is waited for
def test_a_killed_writer_leaves_all_that_it_had_committed(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    random = np.random.default_rng(0)
    committed = 0
    forker = subprocess.Popen(  # imports once, and forks for each kill
        [sys.executable, "-c", FORKER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    with forker:
        assert forker.stdin is not None and forker.stdout is not None
        for _ in range(20):
            forker.stdin.write("\n")
            forker.stdin.flush()
            word, pid = forker.stdout.readline().split()
            assert word == "open"
            for _ in range(random.integers(3, 15)):  # then anywhere in the next append
                committed = int(forker.stdout.readline())
            time.sleep(random.uniform(0, 0.003))
            os.kill(int(pid), signal.SIGKILL)
            while not (line := forker.stdout.readline()).startswith("-"):
                committed = int(line)
            assert line == f"-{signal.SIGKILL:d}\n"
            reader = RaggedTable(path, "things", num_extras=1)
            # the last commit may have been printed no more
            assert len(reader.keys) in (committed, committed + 2)
            committed = len(reader.keys)
            expect_items(reader, range(committed))
            reader.close()
        forker.stdin.close()
    assert committed > 100


@pytest.mark.parametrize("limit", [2000, 300_000, 1_500_000, 3_000_000])
def test_a_full_disk_loses_nothing_that_was_committed(
    tmp_path: Path, limit: int
) -> None:
    path = tmp_path / "t.h5"
    writer = start_writer(path, limit=limit, rows=4000)
    output, errors = writer.communicate()
    *counts, error = output.splitlines()
    assert (writer.returncode, errors) == (0, "")
    assert error == (
        f"{path}: the disk is full (File too large). Free some space and run the same"
        " command again: it goes on from the last complete item."
    )
    committed = int(counts[-1]) if counts[1:] else 0
    assert (committed > 0) == (limit > 1_000_000)
    table = new(path, [item(committed, rows=4000)])
    for row, columns in enumerate(table.read_all()):
        for name, wanted in item(row, rows=4000).columns.items():
            np.testing.assert_array_equal(columns[name], wanted)
    assert len(table.keys) == committed + 1


UNRESERVED = """
import errno, os, resource, signal, sys
from pathlib import Path
from sfmprep.errors import StoreError
from tests.stores.test_ragged import item, new

def refuse(*_):
    raise OSError(errno.EOPNOTSUPP, "this file system reserves nothing")

def lengthen(file, size, truncate=os.ftruncate):
    # the limit is of the file's length, a full disk is not
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    truncate(file, size)

os.posix_fallocate, os.ftruncate = refuse, lengthen
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for limit in range(20_000, 2_000_000, 400_001):
    path = Path(sys.argv[1]) / f"{limit}.h5"
    new(path, [item(0)]).close()  # what HDF5 itself writes is to fail, not the making
    if pid := os.fork():
        code = os.waitstatus_to_exitcode(os.wait()[1])
        print(code, path, flush=True)
        continue
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    table = new(path)
    committed = Path(f"{path}.committed")
    try:
        for k in range(1, 100):
            table.append([item(k, rows=4000)])
            committed.write_text(str(k + 1))
    except StoreError as error:
        if "the disk is full (File too large)" not in str(error):
            sys.exit(3)
        try:
            table.append([item(100, rows=1)])
        except StoreError as error:
            sys.exit(0 if "could not be written before" in str(error) else 5)
    sys.exit(4)
"""


def test_a_write_of_hdf5_that_fails_is_told_and_crashes_nothing(tmp_path: Path) -> None:
    """Where no space can be reserved before, as on some network file systems."""
    done = subprocess.run(
        [sys.executable, "-c", UNRESERVED, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    ended = [line.split() for line in done.stdout.splitlines()]
    assert [code for code, _ in ended] == ["0"] * 5
    for _, path in ended:
        number = Path(f"{path}.committed")
        committed = int(number.read_text()) if number.exists() else 1
        table = new(Path(path))
        assert len(table.keys) in (committed, committed + 1)
        for row, columns in enumerate(table.read_all()):
            for name, wanted in item(row, rows=4000 if row else None).columns.items():
                np.testing.assert_array_equal(columns[name], wanted)
        table.close()


def test_a_full_disk_while_opening_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what was committed would be deleted for want of space."""
    path = tmp_path / "t.h5"
    new(path, [item(0)]).close()

    def flush(_: object) -> None:
        raise RuntimeError("file write failed: errno = 28, error message = ...")

    with monkeypatch.context() as context:
        context.setattr(h5py.File, "flush", flush)
        with pytest.raises(StoreError) as refused:
            new(path)
    assert not isinstance(refused.value, DamagedError)
    assert str(refused.value) == (
        f"{path}: the disk is full (No space left on device). Free some space and run"
        " the same command again: it goes on from the last complete item."
    )
    assert len(new(path).keys) == 1


def test_a_table_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    start_writer(path, limit=2000).communicate()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (
            errno.ENOSPC,
            "the disk is full (No space left on device). Free some space and run the"
            " same command again: it goes on from the last complete item.",
        ),
        (
            errno.EIO,
            "the disk does not take it (Input/output error). See whether it is there"
            " and sound, and run the same command again: it goes on from the last"
            " complete item.",
        ),
    ],
)
def test_what_hdf5_says_of_a_disk_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    table = new(tmp_path / "t.h5", [item(0)])

    def fail(*_: object) -> None:
        raise RuntimeError(f"Can't flush\n, filename = 't', errno = {number}, buf = 0x")

    monkeypatch.setattr("sfmprep.stores.ragged._write_rows", fail)
    with pytest.raises(StoreError) as caught:
        table.append([item(1)])
    assert str(caught.value) == f"{tmp_path / 't.h5'}: {message}"
