"""What of a rung is tried: as much as the budget has time for, most wanted first.

How long it takes is measured on the first pairs, and said before the rest begins.
"""

from __future__ import annotations

import json
import logging
import time
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence

from sfmprep.files import as_written, read_table, write_text
from sfmprep.pairing.pairs import Pairs
from sfmprep.pipelines.run import Run
from sfmprep.types import Pair

logger = logging.getLogger(__name__)

_FIRST = 4  # pairs by which the speed is measured

Attempt = Callable[[Pairs], None]
Count = Callable[[Sequence[Pair]], int]


def within_budget(
    run: Run,
    stage: str,
    name: str,
    ranked: Sequence[Pair],
    attempt: Attempt,
    *,
    there: Collection[Pair] = (),
    count: Count = len,
) -> list[Pair]:
    """The pairs of a rung that there is time for; all of them without a budget.

    What is left out is said, and noted for the report.

    Args:
        run: Its budget is used up by what is attempted here.
        stage: That whose artefact lists the pairs.
        name: Of the rung, for messages.
        ranked: Most wanted first.
        attempt: Does the rung for some pairs, and keeps what it found.
        there: Pairs that it was done for; they cost nothing.
        count: How much work some pairs are.
    """
    todo = [pair for pair in ranked if pair not in there]
    kept = (
        todo
        if run.budget.seconds is None
        else _affordable(run, name, todo, attempt, count)
    )
    left_out = set(todo[len(kept) :])
    _note(run, stage, len(left_out))
    run.ledger.note_budget(stage, was_short=bool(left_out))
    return [pair for pair in ranked if pair not in left_out]


def _affordable(
    run: Run, name: str, ranked: Sequence[Pair], attempt: Attempt, count: Count
) -> Sequence[Pair]:
    """As many of the first pairs as there is time for; says so."""
    minutes = run.recipe.budget_minutes
    if not ranked:
        return ranked
    if not run.budget.left:
        logger.warning(
            "%s: no time is left in the budget of %g min, so %d pairs are not tried",
            *(name, minutes, len(ranked)),
        )
        return ()
    first = ranked[:_FIRST]
    start = time.monotonic()
    with run.budget.spending():
        attempt(Pairs.of(first))
    each = (time.monotonic() - start) / count(first)
    expected = each * (count(ranked) - count(first))
    logger.info(
        "%s: about %.1f min for %d pairs; %.1f min are left in the budget",
        *(name, expected / 60, len(ranked) - len(first), run.budget.left / 60),
    )
    if expected <= run.budget.left:
        return ranked
    limit = count(first) + run.budget.left / each
    lengths = range(len(first), len(ranked) + 1)
    num_fitting = bisect_right(lengths, limit, key=lambda k: count(ranked[:k]))
    kept = ranked[: len(first) + max(num_fitting - 1, 0)]
    logger.warning(
        "%s: the budget of %g min has time for %d of %d pairs; the same command with"
        " more goes on from there",
        *(name, minutes, len(kept), len(ranked)),
    )
    return kept


def num_left_out(run: Run, stage: str) -> int:
    """How many pairs of a rung the budget had no time for."""
    table = read_table(run.workspace.left_out)
    with as_written(run.workspace.left_out):
        return int(table.get(stage, 0))


def _note(run: Run, stage: str, num_pairs: int) -> None:
    table = read_table(run.workspace.left_out)
    if table.get(stage, 0) != num_pairs:
        write_text(run.workspace.left_out, json.dumps({**table, stage: num_pairs}))
