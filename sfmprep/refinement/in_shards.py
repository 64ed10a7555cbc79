"""Refinement in shards, by several machines: what each leaves is a file of shifts."""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, overload

import numpy as np

from sfmprep.capture.elsewhere import files_of, only, placed_below
from sfmprep.executors.protocol import Link, Shards
from sfmprep.geometry.views import ModelArrays
from sfmprep.progress import Progress
from sfmprep.refinement.alignment import Alignment
from sfmprep.refinement.blocks import Aligner, Block
from sfmprep.types import Float64, Index

logger = logging.getLogger(__name__)

ROWS = 1024  # of a block; a shard has 8 blocks or more


class Blocks(Sequence[Block]):
    """Blocks of a model, made when they are asked for.

    Args:
        arrays: The model.
        normals: [N, 3] of its points.
        rows: The observations of each block, rising.
    """

    def __init__(
        self, arrays: ModelArrays, normals: Float64, rows: Sequence[Index]
    ) -> None:
        self.arrays, self._normals, self.rows = arrays, normals, rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, at: int) -> Block: ...
    @overload
    def __getitem__(self, at: slice) -> list[Block]: ...
    def __getitem__(self, at: int | slice) -> Any:
        if isinstance(at, slice):
            return [self._block(rows) for rows in self.rows[at]]
        return self._block(self.rows[at])

    def _block(self, rows: Index) -> Block:
        points = np.unique(self.arrays.observations.point[rows])
        return Block(
            rows=rows,
            observations=self.arrays.observations.select(rows),
            xyz=self.arrays.xyz[points],
            normals=self._normals[points],
        )

    def without(self, done: Index) -> Blocks:
        """Those of which not all observations are among these."""
        is_done = np.zeros(len(self.arrays.observations), bool)
        is_done[done] = True
        left = [rows for rows in self.rows if not is_done[rows].all()]
        return Blocks(self.arrays, self._normals, left)


def align_in_shards(
    aligner: Aligner,
    blocks: Blocks,
    shards: Shards,
    *,
    num_workers: int | None,
    progress: Progress,
) -> Iterator[tuple[Index, Alignment]]:
    """Has blocks aligned that no part in `shards` holds yet.

    Parts stay until the caller deletes them: a run that was stopped goes on with those
    of the same model.

    Yields:
        Rows of the observations, and what was found for them.

    Raises:
        SfmprepError: see `Outcome.expect_whole`.
    """
    shards.parts.mkdir(exist_ok=True)
    key = _key(aligner, blocks.arrays)
    done = [np.empty(0, np.int64)]
    for rows, aligned in _read(shards.parts, key):
        done.append(rows)
        yield rows, aligned
    if not (left := blocks.without(np.concatenate(done))):
        return
    outcome = shards.executor.run(
        *(_Patches(aligner, key, num_workers), lambda _: left, len(left)),
        *(shards.parts,),
        desc="refine",
        progress=progress,
    )
    outcome.expect_whole(shards.parts)
    for rows, aligned in _read(shards.parts, key):
        done.append(rows)
        yield rows, aligned
    for block in left.without(np.concatenate(done)):  # damaged as soon as it was here
        yield block.rows, aligner.align(block, num_workers=num_workers)


@dataclass(frozen=True)
class _Patches:
    chunks_a_device: ClassVar[int] = 4
    suffix: ClassVar[str] = ".npz"
    has_network: ClassVar[bool] = False
    aligner: Aligner
    key: str
    num_workers: int | None

    def run(self, device: str, part: Path, link: Link) -> None:
        rows, found = [np.empty(0, np.int64)], []
        for blocks in link.chunks(0):
            block = Block.joined(blocks)
            aligner = replace(
                self.aligner, images=only(self.aligner.images, self._names(blocks))
            )
            num_workers = self.num_workers or link.num_cores
            found.append(aligner.align(block, num_workers=num_workers))
            rows.append(block.rows)
            for _ in link.progress(blocks):
                pass
        with part.open("wb") as file:
            np.savez(
                file,
                key=np.array(self.key),
                rows=np.concatenate(rows),
                shifts=np.concatenate([np.empty((0, 2)), *(a.shifts for a in found)]),
                before=np.concatenate([np.empty(0), *(a.before for a in found)]),
                after=np.concatenate([np.empty(0), *(a.after for a in found)]),
            )

    def files(self, items: Sequence[Block]) -> list[Path]:
        return list(files_of(self.aligner.images, self._names(items)))

    def below(self, folder: Path) -> _Patches:
        images = placed_below(self.aligner.images, folder)
        return replace(self, aligner=replace(self.aligner, images=images))

    def _names(self, blocks: Sequence[Block]) -> list[str]:
        views = np.unique(np.concatenate([b.observations.view for b in blocks]))
        return [self.aligner.views.names[view] for view in views.tolist()]


def _read(parts: Path, key: str) -> Iterator[tuple[Index, Alignment]]:
    """What parts of this model hold; one that is damaged is deleted, with a warning."""
    for part in sorted(parts.glob(f"*{_Patches.suffix}")):
        try:
            with np.load(part, allow_pickle=False) as arrays:
                if str(arrays["key"]) != key:
                    continue
                aligned = Alignment(
                    shifts=arrays["shifts"],
                    before=arrays["before"],
                    after=arrays["after"],
                )
                rows = arrays["rows"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            logger.warning("%s is damaged (%s); it is made again", part, error)
            part.unlink()
            continue
        yield rows, aligned


def _key(aligner: Aligner, arrays: ModelArrays) -> str:
    """A checksum of the model and of how it is refined."""
    views, seen = arrays.views, arrays.observations
    lenses = [[c.model_name, c.width, c.height, *c.params] for c in views.cameras]
    told = repr((aligner.max_move, aligner.max_size, views.names, lenses))
    digest = hashlib.sha256(told.encode())
    for values in (
        *(views.rotations, views.centres, arrays.xyz),
        *(seen.point, seen.view, seen.keypoint, seen.xy),
    ):
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()
