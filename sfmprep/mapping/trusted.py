"""Mapping again without the pairs that a model shows to be wrong.

A low reprojection error proves nothing where a scene repeats itself: look-alikes laid
on each other fit. So every model is asked what is absent in it; pairs that explain the
overlay are left out, and the rest is mapped again, until nothing more is found.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pycolmap

from sfmprep.errors import ReconstructionError
from sfmprep.geometry.views import Views
from sfmprep.mapping.loops import find_in_loops
from sfmprep.mapping.trust import Trust, explained, judge, leave_out, trust_of
from sfmprep.mapping.unheld import Unheld, find_unheld, part
from sfmprep.mapping.wrong_pairs import Asked, WrongPair
from sfmprep.types import Pair

logger = logging.getLogger(__name__)

_MAX_ROUNDS = 7
_MIN_IMAGES = 3  # of a group that becomes a model
_KEPT = 0.9  # of the images, at least, that a model in the right order must hold

Mapper = Callable[[Path, Path], list[pycolmap.Reconstruction]]


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

    Views that a model holds against most of their own pairs are mapped once more
    without what contradicts these, and where that does not mend it, they are taken out
    of the model: they are one of their own.

    Args:
        database: Its pairs are verified; it is not changed.
        folder: A new one, for what is in between; the caller removes it.
        mapper: Makes models, largest first, of a database, in a folder that is not
            there yet.

    Returns:
        The models, and what the largest is worth.

    Raises:
        ReconstructionError: see `mapper`; of a later mapping, no error: the models
            before it stay, or are parted, and their overlaid pairs are told.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = _held(
        database, folder, mapper, _without_look_alikes(database, folder, mapper)
    )
    trust = trust_of(found.judged[:1], found.left_out.values(), found.cleared)
    return found.models, trust


def _without_look_alikes(database: Path, folder: Path, mapper: Mapper) -> _Mapped:
    """Maps until no pair is found that lays one place on another."""
    models = mapper(database, folder / "0")
    judged = judge(database, models)
    left_out: dict[Pair, WrongPair] = {}
    cleared: set[Pair] = set()
    before = None  # what there was when the order of photographs began to count
    counts = True
    reduced = folder / "reduced.db"
    for number in range(1, _MAX_ROUNDS):
        # all pairs are asked, so that what was left out still speaks
        in_loops = _in_loops(database, models, judged) if counts else ()
        new = _new({*left_out, *cleared}, in_loops)
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
        leave_out(database, reduced, (*left_out.values(), *new))
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
        judged_again = judge(database, again)
        tried = left_out | {(pair.name0, pair.name1): pair for pair in new}
        if before is None:
            right = _cleared(tried, judged_again)
            cleared |= right
            if right:
                logger.info("%d pairs do show the same place", len(right))
            tried = {names: pair for names, pair in tried.items() if names not in right}
            if right.issuperset((pair.name0, pair.name1) for pair in new):
                left_out = tried  # of those before, some may be right as well
                continue
        models, judged, left_out = again, judged_again, tried
    if before is not None and not _is_mended(*before[:2], models, judged):
        models, judged, left_out = before
    return _Mapped(models, judged, left_out, frozenset(cleared))


def _held(database: Path, folder: Path, mapper: Mapper, found: _Mapped) -> _Mapped:
    """Models in which no group of views hangs against its own pairs.

    What contradicts most pairs of such groups is left out, and it is mapped again; if
    that brings no better model, each such group is a model of its own.
    """
    unheld = found.unheld(database)
    if not any(unheld):
        return found
    new = [pair for groups in unheld for group in groups for pair in group.wrong]
    names = sorted(name for groups in unheld for g in groups for name in g.names)
    logger.info(
        "%d images, such as %s, hang against most of their own pairs: they are mapped"
        " again without what contradicts these, or become models of their own",
        *(len(names), names[0]),
    )
    new = _new({*found.left_out, *found.cleared}, new)
    if new:
        reduced = folder / "reduced.db"
        left_out = found.left_out | {(pair.name0, pair.name1): pair for pair in new}
        leave_out(database, reduced, left_out.values())
        try:
            models = mapper(reduced, folder / "held")
        except ReconstructionError as error:
            logger.warning("without %d of these there is no model: %s", len(new), error)
            models = []
        again = _Mapped(models, judge(database, models), left_out, found.cleared)
        hanging = again.unheld(database)
        if _is_held_better(again, found, hanging, len(names)):
            found, unheld = again, hanging
    if not any(unheld):
        return found
    models = part(found.models, unheld, _MIN_IMAGES)
    return replace(found, models=models, judged=judge(database, models))


def part_unheld(
    database: Path, models: list[pycolmap.Reconstruction], trust: Trust
) -> list[pycolmap.Reconstruction]:
    """Models without views that hang against most of their own pairs; see `part`.

    Args:
        database: With all pairs, also those left out.
        models: Largest first; they stay as they are.
        trust: Tells which pairs were left out.
    """
    left_out = {(pair.name0, pair.name1): pair for pair in trust.left_out}
    found = _Mapped(models, judge(database, models), left_out, frozenset())
    unheld = found.unheld(database)
    return part(models, unheld, _MIN_IMAGES) if any(unheld) else models


def _is_held_better(
    again: _Mapped,
    than: _Mapped,
    hanging: Iterable[Iterable[Unheld]],
    num_unheld: int,
) -> bool:
    """Whether fewer images hang against their pairs, and most others are there."""
    if not again.models:
        return False
    kept = again.models[0].num_reg_images()
    if kept < _KEPT * than.models[0].num_reg_images():
        return False
    if sum(len(w) for _, w in again.judged) > sum(len(w) for _, w in than.judged):
        return False
    groups = itertools.chain.from_iterable(hanging)
    return sum(len(group.names) for group in groups) < num_unheld


@dataclass(frozen=True)
class _Mapped:
    """Models, what is said of them, and what they were mapped without."""

    models: list[pycolmap.Reconstruction]
    judged: list[tuple[Asked, list[WrongPair]]]
    left_out: dict[Pair, WrongPair]
    cleared: frozenset[Pair]

    def unheld(self, database: Path) -> list[list[Unheld]]:
        """By model, the groups that are not held."""
        return [
            find_unheld(
                *(database, Views.of(model), asked),
                explained(asked, self.left_out),
            )
            for model, (asked, _) in zip(self.models, self.judged, strict=True)
        ]


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
