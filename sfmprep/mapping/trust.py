"""Mapping again without the pairs that a model shows to be wrong, and what it is worth.

A low reprojection error proves nothing where a scene repeats itself: look-alikes laid
on each other fit. So every model is asked what is absent in it; pairs that explain the
overlay are left out, and the rest is mapped again, until nothing more is found.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pycolmap
from scipy.sparse import csr_matrix

from sfmprep.errors import ReconstructionError, StoreError
from sfmprep.files import write_text
from sfmprep.geometry.views import ModelArrays, Views
from sfmprep.mapping.contradictions import Contradiction
from sfmprep.mapping.database import copy_database
from sfmprep.mapping.loops import find_in_loops
from sfmprep.mapping.wrong_pairs import Asked, WrongPair, judge_pairs
from sfmprep.types import Mask, Pair

logger = logging.getLogger(__name__)

_CONSISTENCY = "_consistency.json"  # after the name of an archive of models
_MAX_ROUNDS = 7
_CONTRADICTED = 0.3  # fewer of its matches fit the poses
_MIN_INLIERS = 30
_KEPT = 0.9  # of the images, at least, that a model in the right order must hold

Mapper = Callable[[Path, Path], list[pycolmap.Reconstruction]]


def consistency_of(archive: Path) -> Path:
    """The file beside an archive of models that says what its largest is worth."""
    return archive.with_name(f"{archive.stem}{_CONSISTENCY}")


@dataclass(frozen=True, kw_only=True)
class Trust:
    """How far the verified pairs and the largest model agree."""

    num_asked: int  # verified pairs between its images, without those left out
    num_contradicted: int  # of these, pairs that the poses contradict
    left_out: tuple[WrongPair, ...]  # pairs that were not mapped with
    overlaid: tuple[WrongPair, ...]  # wrong pairs that the model agrees with
    broken: tuple[Contradiction, ...] = ()  # neighbours in time that it contradicts
    cleared: tuple[Pair, ...] = ()  # looked wrong, but models made without them agree

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
                broken=tuple(Contradiction(**pair) for pair in found["broken"]),
                cleared=tuple((name0, name1) for name0, name1 in found["cleared"]),
            )
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise StoreError(
                f"{path} is missing or damaged ({error}). Delete"
                f" {path.name.removesuffix(_CONSISTENCY)}.zip beside it; the next run"
                " makes both again."
            ) from error


def map_trusted(
    database: Path, folder: Path, mapper: Mapper
) -> tuple[list[pycolmap.Reconstruction], Trust]:
    """Maps, leaves out pairs that lay look-alikes on each other, and maps again.

    Where neighbours in time contradict the poses, what joins the stretches of the row
    in another way is left out first, if that brings them in order (`find_in_loops`).

    At most six times again. Where nothing is wrong, there is one mapping and the
    models are the mapper's. A pair that does not show the same place contradicts a
    model made without it: those that agree with it nevertheless, and in which nothing
    is absent there, were right, and are never left out again. If all were, so were the
    models before.

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
    judged = _judged(database, models)
    left_out: dict[Pair, WrongPair] = {}
    cleared: set[Pair] = set()
    before = None  # what there was when the order of photographs began to count
    counts = True
    reduced = folder / "reduced.db"
    for number in range(1, _MAX_ROUNDS):
        # all pairs are asked, so that what was left out still speaks
        new = _new(left_out, _in_loops(database, models, judged) if counts else ())
        if new:
            before = before or (models, judged, dict(left_out))
        else:
            if before is not None and not _is_mended(*before[:2], models, judged):
                logger.info("no model keeps the order of the photographs")
                models, judged, left_out = before
                counts = False
            before = None
            new = _new(
                {*left_out, *cleared}, (pair for _, wrong in judged for pair in wrong)
            )
        if not new:
            break
        logger.info(
            "%d pairs of images look alike but do not show the same place, such as %s"
            " and %s; mapping again without them",
            *(len(new), new[0].name0, new[0].name1),
        )
        copy_database(database, reduced)
        leave_out(reduced, (*left_out.values(), *new))
        try:
            again = mapper(reduced, folder / str(number))
        except ReconstructionError as error:
            logger.warning("without them there is no model: %s", error)
            again = []
        if not again:
            if before is None:
                break
            models, judged, left_out = before  # what is absent is still to be tried
            before, counts = None, False
            continue
        judged_again = _judged(database, again)
        tried = left_out | {(pair.name0, pair.name1): pair for pair in new}
        if before is None:
            right = _cleared(tried, judged_again)
            cleared |= right
            if right:
                logger.info("%d pairs do show the same place", len(right))
            if right.issuperset((pair.name0, pair.name1) for pair in new):
                continue
            tried = {names: pair for names, pair in tried.items() if names not in right}
        models, judged, left_out = again, judged_again, tried
    if before is not None and not _is_mended(*before[:2], models, judged):
        models, judged, left_out = before
    return models, _trust(judged[:1], left_out.values(), cleared)


def _new(known: Container[Pair], pairs: Iterable[WrongPair]) -> list[WrongPair]:
    found = {(pair.name0, pair.name1): pair for pair in pairs}
    return [pair for names, pair in found.items() if names not in known]


def _cleared(
    left_out: Iterable[Pair], judged: Sequence[tuple[Asked, list[WrongPair]]]
) -> set[Pair]:
    """Pairs that models made without them agree with, and do not call wrong."""
    agreed: set[Pair] = set()
    wrong: set[Pair] = set()
    for asked, found in judged:
        agreed.update(itertools.compress(asked.pairs, asked.agrees.tolist()))
        wrong.update((pair.name0, pair.name1) for pair in found)
    return agreed.difference(wrong).intersection(left_out)


def _in_loops(
    database: Path,
    models: Sequence[pycolmap.Reconstruction],
    judged: Sequence[tuple[Asked, list[WrongPair]]],
) -> list[WrongPair]:
    """Pairs that lay a stretch of a row where it cannot be."""
    if not judged:
        return []
    return find_in_loops(database, Views.of(models[0]), judged[0][0])


def _is_mended(
    models: Sequence[pycolmap.Reconstruction],
    judged: Sequence[tuple[Asked, list[WrongPair]]],
    again: Sequence[pycolmap.Reconstruction],
    judged_again: Sequence[tuple[Asked, list[WrongPair]]],
) -> bool:
    """Whether models made without some pairs keep the order better, and most images."""
    kept = again[0].num_reg_images() >= _KEPT * models[0].num_reg_images()
    asked, now = judged[0][0], judged_again[0][0]
    there = set(now.names)
    # a break of which an end is gone is not mended
    cut = sum(
        not there.issuperset(asked.names[view] for view in pair)
        for pair in asked.index[asked.broken].tolist()
    )
    return bool(kept and now.broken.sum() + cut < asked.broken.sum())


def measure_trust(
    database: Path,
    models: Sequence[pycolmap.Reconstruction],
    left_out: Iterable[WrongPair] = (),
    cleared: Iterable[Pair] = (),
) -> Trust:
    """Measures how far verified pairs and the largest model agree.

    Args:
        database: With all pairs, also those left out.
        models: Largest first; may be empty.
        left_out: Pairs that were not mapped with.
        cleared: Pairs that are known to be right.
    """
    return _trust(_judged(database, models[:1]), left_out, cleared)


def _judged(
    database: Path, models: Sequence[pycolmap.Reconstruction]
) -> list[tuple[Asked, list[WrongPair]]]:
    return [judge_pairs(database, ModelArrays.of(model)) for model in models]


def _trust(
    judged: Sequence[tuple[Asked, list[WrongPair]]],
    left_out: Iterable[WrongPair],
    cleared: Iterable[Pair],
) -> Trust:
    """What the first of the models, if there is one, is worth."""
    left_out, right = tuple(left_out), set(cleared)
    cleared = tuple(sorted(right))
    if not judged:
        return Trust(
            num_asked=0,
            num_contradicted=0,
            left_out=left_out,
            overlaid=(),
            cleared=cleared,
        )
    asked, overlaid = judged[0]
    is_explained = explained(asked, {(pair.name0, pair.name1) for pair in left_out})
    contradicted = (asked.fitting < _CONTRADICTED) & (asked.num_inliers >= _MIN_INLIERS)
    # a pair that was left out and is contradicted now is what was to be expected
    counted = ~is_explained | asked.agrees
    return Trust(
        num_asked=int(counted.sum()),
        num_contradicted=int((contradicted & ~is_explained).sum()),
        left_out=left_out,
        overlaid=tuple(
            pair for pair in overlaid if (pair.name0, pair.name1) not in right
        ),
        broken=tuple(
            Contradiction(
                name0=asked.pairs[row][0],
                name1=asked.pairs[row][1],
                num_inliers=int(asked.num_inliers[row]),
                share_fitting=round(float(asked.fitting[row]), 3),
            )
            for row in np.flatnonzero(asked.broken).tolist()
        ),
        cleared=cleared,
    )


def explained(asked: Asked, left_out: Container[Pair]) -> Mask:
    """Which pairs [P] look-alikes explain: those left out, and what follows of them.

    Where `a` and `b` look alike, `a` matches what `b` does, which is another place.

    Args:
        asked: All verified pairs.
        left_out: Names of pairs, each in their order.
    """
    known = np.array([pair in left_out for pair in asked.pairs], bool)
    alike = _adjacency(asked, known)
    agrees = _adjacency(asked, asked.agrees & ~known)
    reached = (alike @ agrees + agrees @ alike).tocsr()
    one, two = asked.index.T
    follows: Mask = np.asarray(reached[one, two]).reshape(-1) > 0
    return known | (follows & ~asked.broken)


def _adjacency(asked: Asked, chosen: Mask) -> csr_matrix:
    one, two = asked.index[chosen].T
    shape = (len(asked.names),) * 2
    half = csr_matrix((np.ones(len(one)), (one, two)), shape)
    return half + half.T


def leave_out(database: Path, pairs: Iterable[WrongPair]) -> None:
    """Takes the verified geometry of pairs out of a database."""
    with pycolmap.Database.open(database) as opened:
        id_of = {image.name: image.image_id for image in opened.read_all_images()}
        for pair in pairs:
            ids = id_of[pair.name0], id_of[pair.name1]
            if opened.exists_two_view_geometry(*ids):
                opened.delete_two_view_geometry(*ids)
