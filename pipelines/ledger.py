"""What is done in an output folder, and why a stage would run again.

`work/stages.json` holds, of every stage, its settings, checksums of what it read, its
key, the seconds that it took, and its state: null while it is being written. Of files
that hold no sums themselves, as stores do, it holds theirs, and those of the files that
they were made of: so it is seen where a disk gives back something else, and what was
made of a file that is another one now is made again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sfmprep.config import Recipe
from sfmprep.errors import StoreError
from sfmprep.files import as_written, not_read, read_table, write_text
from sfmprep.mapping.database import remove_database
from sfmprep.pipelines.stage import IMAGES
from sfmprep.pipelines.stage_keys import SHORT_OF, Keys, checksum, file_of
from sfmprep.pipelines.stage_table import STAGES

_FIELDS = {"version", "settings", "reads", "over", "key", "state"}


class Ledger:
    """The stages of one output folder against the keys that they should have.

    Args:
        out: The output folder.
        recipe: That of this run, with one choice of features and matcher.
        images: Checksum of the content of each photograph and its mask, by name.
        films: Checksum of the content of each film, RAW file and panorama, by name.
        rigs: Those of the capture, see `rigs.py`.

    Raises:
        StoreError: `stages.json` is damaged.
    """

    def __init__(
        self,
        out: Path,
        recipe: Recipe,
        images: Mapping[str, str],
        films: Mapping[str, str] = MappingProxyType({}),
        rigs: Sequence[object] = (),
    ) -> None:
        self._out = out
        self._path = out / "work" / "stages.json"
        recorded = {k: v["settings"] for k, v in self._table().items()}
        self.keys = Keys(recipe, images, recorded, films, rigs)
        self._began: dict[str, float] = {}  # of stages that something was added to

    def file(self, name: str) -> Path:
        """Where the artefact of a stage lies."""
        return file_of(name, self._out, self.keys.recipe)

    def is_done(self, name: str) -> bool:
        """Whether the artefact is there, complete and up to date."""
        record = self._record(name)
        is_of_now = record.get("state") == self.keys.state(name)
        is_of_now = is_of_now and not any(self._made_anew(record))
        return is_of_now and self.file(name).exists() and not self.is_edited(name)

    def was_done(self, name: str) -> bool:
        """Whether the artefact is there and complete, for whatever settings."""
        record = self._record(name)
        return self.file(name).exists() and record.get("state") is not None

    def can_grow(self, name: str) -> bool:
        """Whether the artefact is there and what it holds may stay."""
        record = self._record(name)
        is_of_now = record.get("key") == self.keys.key(name)
        is_of_now = is_of_now and not any(self._made_anew(record))
        return is_of_now and self.file(name).exists() and not self.is_edited(name)

    def is_edited(self, name: str) -> bool:
        """Whether a text file is no longer what the stage wrote."""
        file = self.file(name)
        written = self._sums_of(self._record(name)).get(self._below(file))
        is_known = STAGES[name].is_text and written is not None
        return is_known and _sha256(file) not in (None, written)

    def damaged(self, name: str) -> list[Path]:
        """Files that are not what the stage wrote when it ended, or are gone.

        Nothing where its own file is gone, which everybody sees; and of a text file,
        see `is_edited`. All of them are read.
        """
        main = self.file(name)
        if not main.exists():
            return []
        skipped = {main} if STAGES[name].is_text else set()
        return [
            file
            for below, written in self._sums_of(self._record(name)).items()
            if (file := self._out / below) not in skipped and _sha256(file) != written
        ]

    def forget(self, name: str) -> None:
        """Deletes the files of a stage, so that it is done again."""
        for file in (self.file(name), *self._beside(name)):
            if file.is_dir():
                shutil.rmtree(file)
            elif file.suffix == ".db":
                remove_database(file)
            else:
                file.unlink(missing_ok=True)

    def first_undone(self, name: str) -> str | None:
        """Of a stage and those that it depends on, the first that is not done."""
        needed = {name}
        for other in reversed(STAGES):  # a stage reads such as are above it
            if other in needed:
                needed |= {*STAGES[other].reads, *STAGES[other].over}
        asked = (n for n in STAGES if n in needed and self.keys.applies(n))
        return next((n for n in asked if not self.is_done(n)), None)

    def begin(self, name: str) -> None:
        """Notes that an artefact is being written."""
        self._began[name] = time.monotonic()
        self._write(name, state=None)

    def note_budget(self, name: str, *, was_short: bool) -> None:
        """Notes, before a stage is finished, whether the budget left something out."""
        self.keys.note_budget(name, was_short=was_short)

    def finish(self, name: str) -> None:
        """Notes that an artefact is complete, if what it was made of was.

        Such as pairs of the first photographs, while others have no features yet.
        """
        keys = self.keys
        read = (*STAGES[name].reads, *STAGES[name].over)
        stages = (keys.nearest(other) for other in read if other in STAGES)
        is_whole = all(map(self.is_done, stages))
        took = self._record(name).get("seconds")
        if name in self._began:
            took = round(time.monotonic() - self._began[name], 2)
        self._write(
            name,
            state=keys.state(name) if is_whole else None,
            sums=self._sums(name),
            seconds=took,
        )

    def earlier_seconds(self, names: Iterable[str]) -> float | None:
        """What stages took when they were done; None where some began in this run."""
        if self._began.keys() & set(names):
            return None
        told = [self._record(name).get("seconds") for name in names]
        with as_written(self._path):
            return sum(filter(None, told)) if any(told) else None

    def why(self, name: str) -> list[str]:
        """Why a stage would run again, in words; nothing for one that is done.

        Of what it reads only that which changed itself is named, not the stages in
        between.
        """
        if self.is_done(name):
            return []
        record = self._record(name)
        if not self.file(name).exists():
            lost = f"{self.file(name).relative_to(self._out).as_posix()} is missing"
            return [lost if record.get("state") else "not done yet"]
        if not record:
            return ["nothing is known of its file"]
        if self.is_edited(name):
            return ["it was edited by hand"]
        stopped = record["state"] is None
        return list(dict.fromkeys(self._changes(name, record))) or [
            "it was stopped" if stopped else "there is more to add"
        ]

    # ------------------------------------------------------------------- internals
    def _changes(self, name: str, record: Mapping[str, Any]) -> Iterator[str]:
        stage, keys = STAGES[name], self.keys
        if record["version"] != stage.version:
            yield (
                f"this sfmprep does it otherwise (version {record['version']} then,"
                f" {stage.version} now)"
            )
        was, now = record["settings"], keys.settings(name)
        if stage.is_bounded and (short_of := was.get(SHORT_OF)) is not None:
            was = {key: was[key] for key in was if key != SHORT_OF}
            if SHORT_OF in now:
                now = {key: now[key] for key in now if key != SHORT_OF}
            else:
                yield f"a budget of {short_of:g} min had no time for all of it"
        yield from changed_settings(was, now)
        for other, of_now in keys.reads(name).items():
            if record["reads"].get(other) != of_now:
                changed = keys.nearest(other) if other in STAGES else other
                yield f"{_name(changed)} changed"
        yield from (f"{_name(other)} changed" for other in self._made_anew(record))
        for other in stage.over:
            if record["over"].get(other) != keys.state(other):
                yield f"{_name(other)} changed"

    def _record(self, name: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._table().get(name, {})
        return found

    def _table(self) -> dict[str, Any]:
        table = read_table(self._path)
        with as_written(self._path):
            for record in table.values():
                if lacking := _FIELDS - record.keys():
                    raise ValueError(f"a stage has no {min(lacking)}")
                if not isinstance(record["reads"], dict) or not isinstance(
                    record["over"], dict
                ):
                    raise TypeError("what a stage read is no table")
        return table

    def _write(
        self,
        name: str,
        *,
        state: str | None,
        sums: Mapping[str, str] | None = None,
        seconds: float | None = None,
    ) -> None:
        stage, keys = STAGES[name], self.keys
        record = {
            "version": stage.version,
            "settings": keys.settings(name),
            "reads": keys.reads(name),
            "over": {other: keys.state(other) for other in stage.over},
            "key": keys.key(name),
            "state": state,
            "made_of": self._made_of(name),
        }
        if sums is not None:
            record["sums"] = sums
        if seconds is not None:
            record["seconds"] = seconds
        table = self._table()
        if table.get(name) != record:
            table[name] = record
            write_text(self._path, json.dumps(table, indent=1, ensure_ascii=False))

    def _files(self, name: str) -> list[Path]:
        """Those of a stage that hold no sums themselves, and are not for users."""
        main = self.file(name)
        if STAGES[name].is_open or main.parent == self._out:
            return []
        own = () if main.suffix == ".h5" else (main,)
        files = [*own, *self._beside(name)]
        inside = (sorted(f.rglob("*")) if f.is_dir() else (f,) for f in files)
        return [file for some in inside for file in some if file.is_file()]

    def _beside(self, name: str) -> list[Path]:
        return [self._out / below for below in STAGES[name].beside]

    def _below(self, file: Path) -> str:
        return file.relative_to(self._out).as_posix()

    def _sums(self, name: str) -> dict[str, str]:
        """Checksums of the files of a stage, by their names below the output folder."""
        found = ((self._below(file), _sha256(file)) for file in self._files(name))
        return {below: sha256 for below, sha256 in found if sha256 is not None}

    def _sums_of(self, record: Mapping[str, Any]) -> dict[str, str]:
        with as_written(self._path):
            return dict(record.get("sums") or {})

    def _made_of(self, name: str) -> dict[str, str]:
        """What tells the files apart that a stage reads, by stage.

        Of those alone that are made anew as a whole, if they are made again.
        """
        stage = STAGES[name]
        read = {self.keys.nearest(r) for r in stage.reads if r in STAGES}
        sums = {other: self._sums_of(self._record(other)) for other in sorted(read)}
        return {} if stage.grows else {o: checksum(s) for o, s in sums.items() if s}

    def _made_anew(self, record: Mapping[str, Any]) -> Iterator[str]:
        """The stages whose files are not those any more that this one was made of."""
        with as_written(self._path):
            made_of = dict(record.get("made_of") or {})
        for other, then in made_of.items():
            now = self._sums_of(self._record(other))
            if now and checksum(now) != then:
                yield other


def expect_as_written(folder: Path, out: Path) -> None:
    """Makes sure that files are those that stages wrote, for who only reads them.

    Args:
        folder: Where they lie. Files that no stage has noted there are left.
        out: The output folder that it lies in. Nothing is asked of one without notes,
            such as a model that is not of sfmprep.

    Raises:
        StoreError: one is another, or gone; or the notes are damaged.
    """
    notes = out / "work" / "stages.json"
    with as_written(notes):
        written = {
            out / below: sha256
            for record in read_table(notes).values()
            for below, sha256 in (record.get("sums") or {}).items()
        }
    for file, sha256 in sorted(written.items()):
        if not file.is_relative_to(folder) or (now := _sha256(file)) == sha256:
            continue
        if now is None:
            raise StoreError(
                f"{file} is gone. Run the same `sfmprep reconstruct` again, which makes"
                " it anew."
            )
        raise StoreError(
            f"{file} is not what was written there: it was changed, or its disk loses"
            " what it holds. Run the same `sfmprep reconstruct` again, which makes it"
            " anew; have the disk looked at if nobody changed it."
        )


def _name(read: str) -> str:
    """What a stage reads, in words."""
    return "photographs or masks" if read == IMAGES else read


def _sha256(file: Path) -> str | None:
    """The checksum of what a file holds; None where there is none."""
    if not file.is_file():
        return None
    try:
        with file.open("rb") as opened:
            # SQLite counts openings there, and those for reading too: sqlite.org,
            # "Database File Format", 1.3
            head = bytearray(opened.read(100) if file.suffix == ".db" else b"")
            for start, stop in ((24, 28), (92, 100)):
                head[start:stop] = bytes(len(head[start:stop]))
            of_all = hashlib.sha256(head)
            return hashlib.file_digest(opened, lambda: of_all).hexdigest()
    except OSError as error:  # of a disk that fails, which names no file
        raise not_read(file, error) from error


def changed_settings(was: Any, now: Any, prefix: str = "") -> Iterator[str]:
    """What differs between two nested settings, in words.

    Of a part whose `type` was switched only that is named, not what comes with it.
    """
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        if was.get("type") != now.get("type"):
            yield f"{prefix}type was {was.get('type')} and is {now.get('type')}"
            return
        for key in sorted({*was, *now}):
            yield from changed_settings(was.get(key), now.get(key), f"{prefix}{key}.")
    elif was != now:
        yield f"{prefix.removesuffix('.')} was {_shown(was)} and is {_shown(now)}"


def _shown(value: object) -> str:
    """A value in a message; of checksums the beginning is enough to tell them apart."""
    text = json.dumps(value, ensure_ascii=False)
    is_checksum = isinstance(value, str) and len(value) == 64
    return text[1:9] if is_checksum else text
