"""Exported images in shards, by several machines: what each leaves is an archive."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from sfmprep.capture.elsewhere import files_of, only, placed_below
from sfmprep.executors.protocol import Link, Shards
from sfmprep.export.pixels import ImageWriter
from sfmprep.geometry.undistort import Undistortion
from sfmprep.progress import Progress

logger = logging.getLogger(__name__)

_TABLE = "images.json"  # in a part: of each image what it was made from, and its files
_BLOCK_BYTES = 1 << 20
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, EOFError, OSError),
    *(ValueError, TypeError, LookupError, AttributeError),
)
_Item = tuple[str, Undistortion | None]  # of an image that is written


def write_in_shards(
    writer: ImageWriter,
    names: Sequence[str],
    undistortions: Mapping[str, Undistortion],
    shards: Shards,
    *,
    progress: Progress,
) -> None:
    """Has the images written that neither an earlier dataset nor a part holds.

    Parts stay until the caller deletes them: a run that was stopped goes on with those
    of the same photographs, lenses and settings.

    Args:
        writer: With destinations that say what images are made from.
        names: Original names.
        undistortions: As of `ImageWriter.write`.
        shards: Have it done.
        progress: Wraps the loop over images.

    Raises:
        ImageError: as `ImageWriter.write`.
        SfmprepError: see `Outcome.expect_whole`.
        OSError: a file cannot be written.
    """
    writer.make_folders()
    shards.parts.mkdir(exist_ok=True)
    wanted = {name for name in names if writer.not_taken_over(name)}
    keys = {name: _key(writer, name) for name in wanted}
    wanted -= {*_take(writer, keys, shards.parts)}
    # neighbours share a lens, whose maps are made once
    cameras = {name: view.target.camera_id for name, view in undistortions.items()}
    left = [
        (name, undistortions.get(name))
        for name in sorted(wanted, key=lambda name: (cameras.get(name, 0), name))
    ]
    if not left:
        return
    outcome = shards.executor.run(
        *(_Export(writer, keys), lambda _: left, len(left), shards.parts),
        desc="export",
        progress=progress,
    )
    outcome.expect_whole(shards.parts)
    lost = wanted - {*_take(writer, {n: keys[n] for n in wanted}, shards.parts)}
    if lost:  # a part was damaged as soon as it was here
        alone = {name: undistortions[name] for name in lost if name in undistortions}
        for _ in writer.write(sorted(lost), alone):
            pass


@dataclass(frozen=True)
class _Export:
    chunks_a_device: ClassVar[int] = 4
    suffix: ClassVar[str] = ".zip"
    has_network: ClassVar[bool] = False
    writer: ImageWriter
    keys: Mapping[str, str]

    def run(self, device: str, part: Path, link: Link) -> None:
        table: dict[str, Any] = {}
        with zipfile.ZipFile(part, "w") as archive:  # not made smaller: they are images
            for items in link.chunks(0):
                with tempfile.TemporaryDirectory(dir=part.parent) as made:
                    writer = self._writer_into(Path(made), [name for name, _ in items])
                    views = {name: view for name, view in items if view is not None}
                    written = writer.write([name for name, _ in items], views)
                    for name in link.progress(written):
                        files = sorted(
                            file.relative_to(made).as_posix()
                            for file in writer.files(name)
                            if file.is_file()
                        )
                        table[name] = {"key": self.keys[name], "files": files}
                        for file in files:
                            archive.write(Path(made) / file, file)
                            (Path(made) / file).unlink()
            archive.writestr(_TABLE, json.dumps(table))

    def _writer_into(self, folder: Path, names: Sequence[str]) -> ImageWriter:
        return replace(
            self.writer,
            images=only(self.writer.images, names),
            destinations=[
                replace(each, folder=folder / str(number), earlier=None)
                for number, each in enumerate(self.writer.destinations)
            ],
        )

    def files(self, items: Sequence[_Item]) -> list[Path]:
        return list(files_of(self.writer.images, [name for name, _ in items]))

    def below(self, folder: Path) -> _Export:
        images = placed_below(self.writer.images, folder)
        return replace(self, writer=replace(self.writer, images=images))


def _take(writer: ImageWriter, keys: Mapping[str, str], parts: Path) -> Iterator[str]:
    """Puts the images of parts into their places, and yields their names.

    A part that is damaged is deleted, with a warning.
    """
    folders = [destination.folder for destination in writer.destinations]
    for part in sorted(parts.glob(f"*{_Export.suffix}")):
        try:
            with zipfile.ZipFile(part) as archive:
                table = json.loads(archive.read(_TABLE))
                for name, made in table.items():
                    if keys.get(name) != made["key"]:
                        continue
                    for file in made["files"]:
                        number, _, below = file.partition("/")
                        _extract(archive, file, folders[int(number)] / below)
                    yield name
        except _DAMAGED as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the system, not of what the archive says
            logger.warning("%s is damaged (%s); it is made again", part, error)
            part.unlink()


def _extract(archive: zipfile.ZipFile, name: str, target: Path) -> None:
    target.unlink(missing_ok=True)  # which may be a link to an earlier one
    with archive.open(name) as source, target.open("wb") as file:
        shutil.copyfileobj(source, file, _BLOCK_BYTES)


def _key(writer: ImageWriter, name: str) -> str:
    """A checksum of what the files of an image hang on, and of their names."""
    told = [(each.made_from[name], each.names[name]) for each in writer.destinations]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
