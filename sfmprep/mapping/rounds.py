"""What follows a first run of a mapper, where something is missing.

The cheap comes first: images by thresholds of the capture, models that join. Only what
is still missing then is worth another start.
"""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pycolmap

from sfmprep.geometry.parallax import only_turns
from sfmprep.mapping.agreement import (
    VerifiedMatches,
    count_fitting,
    hold_together,
)
from sfmprep.mapping.calibrate import calibrate_pairs
from sfmprep.mapping.carry_over import carry_over, open_cache
from sfmprep.mapping.initial_pairs import initial_pairs
from sfmprep.mapping.merge import adjust_tracks, describe, merge_models
from sfmprep.mapping.outliers import without_images
from sfmprep.mapping.register import register_more
from sfmprep.mapping.runs import (
    Run,
    map_globally,
    map_incrementally,
    sorted_models,
)
from sfmprep.types import Index

logger = logging.getLogger(__name__)

_MAX_STARTS = 3  # beside the first: the other mapper, and two other pairs
_MAX_IMAGES_FOR_RESTART = 300
_MAX_SHARE_MISSING = 0.1  # of the images that verified pairs reach, for a restart
_MAX_MODELS = 12  # largest ones that images are added to
_MAX_CONTRADICTED = 0.05  # of the pairs, more than the best so far contradicts

Models = list[pycolmap.Reconstruction]


def complete(run: Run, models: Models, seconds: float) -> Models:
    """Adds to the models of a first run what they miss of the capture.

    Nothing is done where one model holds all images that verified pairs join to it. Of
    several starts the best is that with most images in one model, and of equals the one
    that verified pairs agree with best. Of another start only those images count, and
    stay, that are held (see `_held`); and it is dropped where it contradicts verified
    pairs that the best so far does not. The error of reprojection says nothing of all
    that: a wrong model may have a small one. Where all images that verified pairs reach
    are in models whose cameras only turned, no start can find a depth: none is made.

    Args:
        run: Database and thresholds.
        models: Of the first run, largest first.
        seconds: What the first run took; another start is expected to take as long.

    Returns:
        Models, largest first.
    """
    with pycolmap.Database.open(run.database) as opened:
        cache = open_cache(opened, run.config.min_num_matches)
    matches = VerifiedMatches(cache)
    if not models and run.config.type == "incremental" and matches.partners:
        logger.info("no pair is strong enough to begin with: weaker ones are tried")
        models = sorted_models(map_incrementally(run, weakest=True))
    if not _missing(models, matches):
        return models
    tried = [_first_images(model) for model in models]
    best = _grown(run, models, cache)
    reached_names = {cache.images[key].name for key in _reached(best, matches)}
    if only_turns(best, reached_names):
        logger.info("the camera only turned: no other start can find a depth")
        return best
    for name, start in _starts(run, best, matches, tried):
        missing, reached = _missing(best, matches), _reached(best, matches)
        if len(missing) <= _MAX_SHARE_MISSING * len(reached):
            break
        if run.budget.left < seconds:
            run.budget.was_short = True
            logger.info(
                "no other start: it takes some %.0f s, and %.0f s are left",
                *(seconds, run.budget.left),
            )
            break
        logger.info(
            "%d of %d images are missing: %s, some %.0f s",
            *(len(missing), len(reached), name, seconds),
        )
        with run.budget.spending():
            found = start()
        found = _expect_held(run, found, matches)
        other = _grown(run, sorted_models([*found, *best]), cache) if found else []
        better = _is_better(run, other, best, matches)
        logger.info(
            "%s: %s images for %s, %s",
            *(name, describe(other), describe(best), "kept" if better else "dropped"),
        )
        best = other if better else best
    return best


def go_on(run: Run, models: Models) -> Models:
    """Adds to models what pairs that were verified since then make possible.

    Args:
        run: The database that grew, and thresholds.
        models: Of an earlier state of it, largest first.

    Returns:
        Models, largest first; no image that had a pose loses it but by the mapper's
        own filters.
    """
    with pycolmap.Database.open(run.database) as opened:
        cache = open_cache(opened, run.config.min_num_matches)
    models = [carry_over(model, cache) for model in models]
    for model in models:
        adjust_tracks(run, model, cache)
    models = _onwards(run, sorted_models(models))
    models = _grown(run, models, cache)
    posed = {key for model in models for key in model.reg_image_ids()}
    rest = [image.name for key, image in cache.images.items() if key not in posed]
    if len(rest) >= max(run.config.min_model_size, 2):
        others = map_incrementally(run, names=sorted(rest))
        models = _grown(run, sorted_models([*models, *others]), cache)
    return models


def _onwards(run: Run, models: Models) -> Models:
    """Lets the mapper register next images: any in the largest, then those in none."""
    done: Models = []
    posed: set[str] = set()
    for model in models:
        own = {model.images[key].name for key in model.reg_image_ids()}
        names = {image.name for image in model.images.values()} - posed | own
        if names > own:
            (model,) = map_incrementally(run, onwards=model, names=sorted(names))
        posed |= {model.images[key].name for key in model.reg_image_ids()}
        done.append(model)
    return sorted_models(done)


def _grown(run: Run, models: Models, cache: pycolmap.DatabaseCache) -> Models:
    """Models with images by thresholds of the capture, joined where they agree."""
    grown = [register_more(run, model, cache)[0] for model in models[:_MAX_MODELS]]
    grown = sorted_models([*grown, *models[_MAX_MODELS:]])
    merged, _ = merge_models(run, grown, cache)
    if len(merged) < len(grown):
        largest, _ = register_more(run, merged[0], cache)
        merged = sorted_models([largest, *merged[1:]])
    if describe(merged) != describe(models):
        logger.info("%s images grew to %s", describe(models), describe(merged))
    return merged


def _starts(
    run: Run,
    models: Models,
    matches: VerifiedMatches,
    tried: list[tuple[int, ...]],
) -> Iterator[tuple[str, Callable[[], Models]]]:
    """Other ways to begin, each with its name."""
    if len(run.images) > _MAX_IMAGES_FOR_RESTART:
        return
    if run.config.type == "global":
        yield "the incremental mapper", lambda: sorted_models(map_incrementally(run))
    else:
        yield "the global mapper", lambda: _globally(run)
    pairs = initial_pairs(
        run.database,
        tried,
        max_error_px=run.cameras.max_error_px * run.scale,
        limit=_MAX_STARTS - 1,
        seed=run.seed,
    )
    for pair in pairs:

        def again(pair: tuple[int, int] = pair) -> Models:
            return sorted_models(map_incrementally(run, start=pair))

        yield f"another start, from images {pair[0]} and {pair[1]}", again


def _globally(run: Run) -> Models:
    """The global mapper on a copy whose pairs have the poses that it asks for."""
    database = run.folder / "global.db"
    shutil.copyfile(run.database, database)
    calibrate_pairs(
        database,
        max_error_px=run.cameras.max_error_px,
        scales=run.scales,
        seed=run.seed,
        progress=run.progress,
    )
    return map_globally(replace(run, database=database))


def _first_images(model: pycolmap.Reconstruction) -> tuple[int, ...]:
    """Ids of the two images that a model started from.

    COLMAP appends frames as they are registered; that order does not survive a file.
    """
    frames = [model.frames[key] for key in model.reg_frame_ids()[:2]]
    return tuple(data.id for frame in frames for data in frame.image_ids)


def _reached(models: Models, matches: VerifiedMatches) -> set[int]:
    """Images that verified pairs join to the largest model, its own among them."""
    reached = set(models[0].reg_image_ids()) if models else set()
    waiting = list(reached)
    while waiting:
        for other, _ in matches.partners.get(waiting.pop(), ()):
            if other not in reached:
                reached.add(other)
                waiting.append(other)
    return reached if models else set(matches.partners)


def _missing(models: Models, matches: VerifiedMatches) -> set[int]:
    own = set(models[0].reg_image_ids()) if models else set()
    return _reached(models, matches) - own


@dataclass(frozen=True)
class _Quality:
    """What the verified pairs say of a model."""

    num_images: int
    contradicted: float  # share of its pairs of which most inliers do not fit
    fitting: float  # share of the inliers


def _quality(run: Run, models: Models, matches: VerifiedMatches) -> _Quality:
    if not models:
        return _Quality(0, 0.0, 0.0)
    counts = np.array([count for *_, count in _fitting(run, models[0], matches)])
    fitting, total = counts.reshape(-1, 2).sum(axis=0).tolist()
    wrong = 2 * counts.reshape(-1, 2)[:, 0] <= counts.reshape(-1, 2)[:, 1]
    return _Quality(
        num_images=models[0].num_reg_images(),
        contradicted=float(wrong.sum() / max(len(counts), 1)),
        fitting=fitting / max(total, 1),
    )


def _is_better(
    run: Run, models: Models, than: Models, matches: VerifiedMatches
) -> bool:
    new, old = (_quality(run, found, matches) for found in (models, than))
    if new.contradicted > old.contradicted + _MAX_CONTRADICTED:
        return False
    return (new.num_images, new.fitting) > (old.num_images, old.fitting)


def _fitting(
    run: Run, model: pycolmap.Reconstruction, matches: VerifiedMatches
) -> list[tuple[int, int, Index]]:
    """The verified pairs of a model, and how many inliers fit of how many."""
    own = set(model.reg_image_ids())
    pairs = [pair for pair in matches.pairs() if own.issuperset(pair)]
    counts = count_fitting(
        *(model, matches, pairs), max_error_px=run.cameras.max_error_px * run.scale
    )
    return [(*pair, count) for pair, count in zip(pairs, counts, strict=True)]


def _held(
    run: Run, model: pycolmap.Reconstruction, matches: VerifiedMatches
) -> set[int]:
    """The largest set of images of a model that more than single weak pairs hold.

    Two sets hold together by a pair of which 30 inliers fit; or by two of which most
    fit and that share no image, other than the only one of a set. What hangs on less
    may as well hang on the other side of a thing that looks the same from there.
    """
    links = [
        (id0, id1, int(fitting))
        for id0, id1, (fitting, total) in _fitting(run, model, matches)
        if 2 * fitting > total
    ]
    owner = {key: key for key in sorted(model.reg_image_ids())}
    while True:
        sizes = Counter(owner.values())
        between: dict[tuple[int, ...], list[tuple[int, int, int]]] = {}
        for link in links:
            ends = tuple(sorted(owner[key] for key in link[:2]))
            if ends[0] != ends[1]:
                between.setdefault(ends, []).append(link)
        joined = next(
            (
                ends
                for ends, found in sorted(between.items())
                if hold_together(found, single=min(sizes[key] for key in ends) == 1)
            ),
            None,
        )
        if joined is None:
            break
        owner = {k: joined[0] if o == joined[1] else o for k, o in owner.items()}
    if not owner:
        return set()
    largest = max(sizes, key=lambda key: (sizes[key], -key))
    return {key for key, other in owner.items() if other == largest}


def _expect_held(run: Run, models: Models, matches: VerifiedMatches) -> Models:
    """Models without the images that only one weak pair holds."""
    kept = []
    for model in models:
        left = set(model.reg_image_ids()) - _held(run, model, matches)
        if left:
            names = [model.images[key].name for key in left]
            logger.debug("held by one weak pair: %s", sorted(names))
            model = without_images(model, names)
        if model.num_reg_images() >= 2:
            kept.append(model)
    return sorted_models(kept)
