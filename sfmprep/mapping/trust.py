"""Mapping again without the pairs that a model shows to be wrong, and what it is worth.

A low reprojection error proves nothing where a scene repeats itself: look-alikes laid
on each other fit. So every model is asked what is absent in it; pairs that explain the
overlay are left out, and the rest is mapped again, until nothing more is found.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pycolmap

from sfmprep.errors import ReconstructionError, StoreError
from sfmprep.files import write_text
from sfmprep.geometry.views import ModelArrays
from sfmprep.mapping.database import copy_database
from sfmprep.mapping.wrong_pairs import WrongPair, ask_pairs, wrong_pairs_in

logger = logging.getLogger(__name__)

_MAX_ROUNDS = 7
_CONTRADICTED = 0.3  # fewer of its matches fit the poses
_MIN_INLIERS = 30

Mapper = Callable[[Path, Path], list[pycolmap.Reconstruction]]


@dataclass(frozen=True, kw_only=True)
class Trust:
    """How far the verified pairs and the largest model agree."""

    num_asked: int  # verified pairs between its images, without those left out
    num_contradicted: int  # of these, pairs that the poses contradict
    left_out: tuple[WrongPair, ...]  # pairs that were not mapped with
    overlaid: tuple[WrongPair, ...]  # wrong pairs that the model agrees with

    @property
    def consistency(self) -> float:
        """Share, 0..1, of the pairs that agree and are not overlaid; 1 for no pairs."""
        if not self.num_asked:
            return 1.0
        bad = self.num_contradicted + len(self.overlaid)
        return max(1 - bad / self.num_asked, 0.0)

    def write(self, path: Path) -> None:
        """Writes it as JSON, whole or not at all.

        Raises:
            StoreError: see `write_text`.
        """
        write_text(path, json.dumps(asdict(self), ensure_ascii=False, indent=1))

    @staticmethod
    def read(path: Path) -> Trust:
        """Reads what `write` wrote.

        Raises:
            StoreError: the file is damaged, or there is none.
        """
        try:
            found = json.loads(path.read_text("utf-8"))
            return Trust(
                num_asked=found["num_asked"],
                num_contradicted=found["num_contradicted"],
                left_out=tuple(WrongPair(**pair) for pair in found["left_out"]),
                overlaid=tuple(WrongPair(**pair) for pair in found["overlaid"]),
            )
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise StoreError(
                f"{path} is missing or damaged ({error}). Delete mapped.zip beside it;"
                " the next run makes both again."
            ) from error


def map_trusted(
    database: Path, folder: Path, mapper: Mapper
) -> tuple[list[pycolmap.Reconstruction], Trust]:
    """Maps, leaves out pairs that lay look-alikes on each other, and maps again.

    At most six times again. Where nothing is wrong, there is one mapping and the
    models are the mapper's.

    Args:
        database: Its pairs are verified; it is not changed.
        folder: A new one, for what is in between; the caller removes it.
        mapper: Makes models, largest first, of a database, in a folder that is not
            there yet.

    Returns:
        The models, and what the largest is worth.

    Raises:
        ReconstructionError: see `mapper`; of a later mapping, no error: the models
            before it stay, and their overlaid pairs are told.
    """
    folder.mkdir(parents=True, exist_ok=True)
    models = mapper(database, folder / "0")
    left_out: dict[tuple[str, str], WrongPair] = {}
    reduced = folder / "reduced.db"
    for number in range(1, _MAX_ROUNDS):
        asked_in = reduced if left_out else database
        found = [pair for model in models for pair in _wrong_in(asked_in, model)]
        if not found:
            break
        logger.info(
            "%d pairs of images look alike but do not show the same place, such as %s"
            " and %s; mapping again without them",
            *(len(found), found[0].name0, found[0].name1),
        )
        if not left_out:
            copy_database(database, reduced)
        leave_out(reduced, found)
        try:
            again = mapper(reduced, folder / str(number))
        except ReconstructionError as error:
            logger.warning("without them there is no model: %s", error)
            break
        if not again:
            break
        models = again
        left_out |= {(pair.name0, pair.name1): pair for pair in found}
    return models, measure_trust(database, models, tuple(left_out.values()))


def measure_trust(
    database: Path,
    models: Sequence[pycolmap.Reconstruction],
    left_out: Iterable[WrongPair] = (),
) -> Trust:
    """Measures how far verified pairs and the largest model agree.

    Args:
        database: With all pairs, also those left out.
        models: Largest first; may be empty.
        left_out: Pairs that were not mapped with.
    """
    left_out = tuple(left_out)
    if not models:
        return Trust(num_asked=0, num_contradicted=0, left_out=left_out, overlaid=())
    arrays = ModelArrays.of(models[0])
    asked, overlaid = ask_pairs(database, arrays), wrong_pairs_in(database, arrays)
    known = {(pair.name0, pair.name1) for pair in left_out}
    own = [asked.names[row] for row in asked.index.reshape(-1)]
    explained = np.array(
        [
            tuple(sorted(pair)) in known
            for pair in zip(own[::2], own[1::2], strict=True)
        ],
        bool,
    ).reshape(-1)
    contradicted = (asked.fitting < _CONTRADICTED) & (asked.num_inliers >= _MIN_INLIERS)
    # a pair that was left out and is contradicted now is what was to be expected
    counted = ~explained | asked.agrees
    return Trust(
        num_asked=int(counted.sum()),
        num_contradicted=int((contradicted & ~explained).sum()),
        left_out=left_out,
        overlaid=tuple(overlaid),
    )


def _wrong_in(database: Path, model: pycolmap.Reconstruction) -> list[WrongPair]:
    return wrong_pairs_in(database, ModelArrays.of(model))


def leave_out(database: Path, pairs: Iterable[WrongPair]) -> None:
    """Takes the verified geometry of pairs out of a database."""
    with pycolmap.Database.open(database) as opened:
        id_of = {image.name: image.image_id for image in opened.read_all_images()}
        for pair in pairs:
            ids = id_of[pair.name0], id_of[pair.name1]
            if opened.exists_two_view_geometry(*ids):
                opened.delete_two_view_geometry(*ids)
