"""Models of one scene that COLMAP left apart, joined where what both see agrees."""

from __future__ import annotations

import itertools
import logging
import math
from dataclasses import dataclass

import numpy as np
import pycolmap

from sfmprep.mapping.agreement import VerifiedMatches, count_fitting, hold_together
from sfmprep.mapping.carry_over import add_model, carry_over
from sfmprep.mapping.placement import Joint
from sfmprep.mapping.runs import Run, incremental_options, refine_globally
from sfmprep.mapping.similarity import MIN_LINKS, find_links, place

logger = logging.getLogger(__name__)

_MAX_MODELS = 12  # largest ones that are compared with each other
ERRORS = 2.0  # an inlier of a placement may be so many times that of a pair off
_MIN_SHARE_AGREEING = 0.5  # of the inliers of the pairs between two models
_MIN_SHARE_KEPT = 0.9  # of the observations of both, after adjusting


@dataclass(frozen=True, kw_only=True)
class Apart:
    """Two models that stay apart, by their places in the list, and why."""

    first: int
    second: int
    reason: str


def merge_models(
    run: Run, models: list[pycolmap.Reconstruction], cache: pycolmap.DatabaseCache
) -> tuple[list[pycolmap.Reconstruction], list[Apart]]:
    """Joins models that share images or points, largest first.

    Two are joined where one similarity fits tracks that both have, tracks held out of
    its estimation agree with it, and so do the verified pairs between both; and where
    both together can be adjusted without losing images or a tenth of what they see.

    Args:
        run: Thresholds of the mapper.
        models: Largest first, of the database; they stay as they are.
        cache: Of that database; see `open_cache`.

    Returns:
        The models that are left, largest first, and of the twelve largest which stay
        apart and why; those that share nothing, no verified pair and no image, are not
        named.
    """
    if len(models) < 2:
        return models, []
    matches = VerifiedMatches(cache)
    models = list(models)
    refused: dict[tuple[int, int], str] = {}  # by identity of the models
    while True:
        order = itertools.combinations(models[:_MAX_MODELS], 2)
        for first, second in order:
            key = id(first), id(second)
            if key in refused:
                continue
            merged = _merged(run, first, second, cache, matches)
            if isinstance(merged, str):
                refused[key] = merged
                continue
            logger.info(
                "models of %d and %d images are joined: %d images, %d points",
                *(first.num_reg_images(), second.num_reg_images()),
                *(merged.num_reg_images(), merged.num_points3D()),
            )
            rest = [m for m in models if m is not first and m is not second]
            models = sorted([merged, *rest], key=_size, reverse=True)
            break
        else:
            break
    apart = []
    for (k, first), (j, second) in itertools.combinations(enumerate(models), 2):
        if reason := refused.get((id(first), id(second))):
            apart.append(Apart(first=k, second=j, reason=reason))
            logger.info("models %d and %d stay apart: %s", k, j, reason)
    return models, apart


def _size(model: pycolmap.Reconstruction) -> tuple[int, int]:
    return model.num_reg_images(), model.num_points3D()


def _merged(
    run: Run,
    first: pycolmap.Reconstruction,
    second: pycolmap.Reconstruction,
    cache: pycolmap.DatabaseCache,
    matches: VerifiedMatches,
) -> pycolmap.Reconstruction | str:
    """Both models in one, or why not; "" where they share nothing."""
    found = find_joint(run, 0, first, 1, second, matches)
    if isinstance(found, str):
        return found
    limit_px = run.cameras.max_error_px * run.scale
    merged = carry_over(first, cache)
    add_model(merged, second, moved=found.first_from_second)
    pairs = _pairs_between(first, second, matches)
    counts = count_fitting(merged, matches, pairs, max_error_px=ERRORS * limit_px)
    links = [
        (*pair, int(count[0]))
        for pair, count in zip(pairs, counts, strict=True)
        if 2 * count[0] > count[1]
    ]
    common = {*first.reg_image_ids()}.intersection(second.reg_image_ids())
    if not common and not hold_together(links, single=False):
        return "no more than one weak pair, or one image, ties them together"
    before = counts.sum(axis=0)
    if before[0] < _MIN_SHARE_AGREEING * before[1]:
        return _contradicted(len(pairs), *before.tolist())
    expected = merged.num_reg_images(), merged.compute_num_observations()
    adjust_tracks(run, merged, cache, apart_px=ERRORS * limit_px)
    if merged.num_reg_images() < expected[0]:
        lost = expected[0] - merged.num_reg_images()
        return f"{lost} of {expected[0]} images lose their pose when both are adjusted"
    kept = merged.compute_num_observations() / expected[1]
    if kept < _MIN_SHARE_KEPT:
        return f"only {kept:.0%} of the keypoints fit when both are adjusted together"
    after = count_fitting(merged, matches, pairs, max_error_px=limit_px).sum(axis=0)
    if after[0] < _MIN_SHARE_AGREEING * after[1]:
        return _contradicted(len(pairs), *after.tolist())
    return merged


def find_joint(
    run: Run,
    number0: int,
    first: pycolmap.Reconstruction,
    number1: int,
    second: pycolmap.Reconstruction,
    matches: VerifiedMatches,
) -> Joint | str:
    """How a second model lies in the frame of a first, or why that cannot be told.

    Args:
        run: Thresholds of the mapper.
        number0: What the first is called in the joint.
        first: Ids of images are those of the database.
        number1: What the second is called.
        second: Likewise.
        matches: Of that database.

    Returns:
        The reason is "" where they share nothing, no verified pair and no image.
    """
    common = {*first.reg_image_ids()}.intersection(second.reg_image_ids())
    if not common and not _pairs_between(first, second, matches):
        return ""
    sides = find_links(first, second, matches)
    if len(sides[0]) < MIN_LINKS:
        return f"they share {len(sides[0])} points, {MIN_LINKS} are needed"
    cameras = {
        key: model.cameras[model.images[key].camera_id]
        for model in (first, second)
        for key in model.reg_image_ids()
    }
    limit_px = run.cameras.max_error_px * run.scale
    camera = next(iter(cameras.values()))
    placed = place(
        *sides,
        cameras,
        max_error_px=ERRORS * limit_px,
        chance=2 * ERRORS * limit_px / math.hypot(camera.width, camera.height),
        seed=run.seed,
    )
    if placed.first_from_second is None:
        return (
            f"of {placed.num_links} points that both have,"
            f" {placed.num_inliers} of those asked and {placed.num_agreeing} of"
            f" {placed.num_held_out} held out agree on how one lies in the other"
        )
    centre = np.median(sides[1].xyz, axis=0)
    away = np.linalg.norm(sides[1].xyz - centre, axis=1)
    return Joint(
        first=number0,
        second=number1,
        first_from_second=placed.first_from_second,
        num_links=placed.num_inliers + placed.num_agreeing,
        centre=centre,
        extent=float(np.median(away)),
    )


def contradicts(
    run: Run,
    whole: pycolmap.Reconstruction,
    first: pycolmap.Reconstruction,
    second: pycolmap.Reconstruction,
    matches: VerifiedMatches,
) -> bool:
    """Whether most matches between two models do not fit the model of both.

    Args:
        run: Thresholds of the mapper.
        whole: In which both are, adjusted.
        first: Ids of images are those of the database.
        second: Likewise.
        matches: Of that database.

    Returns:
        No matches contradict nothing.
    """
    fitting, total = count_fitting(
        *(whole, matches, _pairs_between(first, second, matches)),
        max_error_px=run.cameras.max_error_px * run.scale,
    ).sum(axis=0)
    return bool(fitting < _MIN_SHARE_AGREEING * total)


def _contradicted(num_pairs: int, fitting: int, total: int) -> str:
    return (
        f"only {fitting} of {total} matches of the {num_pairs} pairs between them fit"
        " how one lies in the other"
    )


def _pairs_between(
    first: pycolmap.Reconstruction,
    second: pycolmap.Reconstruction,
    matches: VerifiedMatches,
) -> list[tuple[int, int]]:
    """Verified pairs of an image of each that is not in both."""
    own, others = (set(model.reg_image_ids()) for model in (first, second))
    return sorted(
        (id0, id1)
        for id0 in own - others
        for id1, _ in matches.partners.get(id0, ())
        if id1 in others - own
    )


def adjust_tracks(
    run: Run,
    model: pycolmap.Reconstruction,
    cache: pycolmap.DatabaseCache,
    *,
    apart_px: float = 0.0,
) -> None:
    """Makes the points that a database allows between registered images, and adjusts.

    Args:
        run: Thresholds of the mapper.
        model: All images of the cache are in it; it is changed.
        cache: See `open_cache`.
        apart_px: How far from its keypoint a point may lie to be joined with its other
            half before the first adjustment, where that is more than usual.
    """
    pipeline = incremental_options(run)
    options, triangulation = pipeline.get_mapper(), pipeline.get_triangulation()
    loose = pipeline.get_triangulation()
    loose.merge_max_reproj_error = max(loose.merge_max_reproj_error, 2 * apart_px)
    loose.complete_max_reproj_error = max(loose.complete_max_reproj_error, 2 * apart_px)
    mapper = pycolmap.IncrementalMapper(cache)
    mapper.begin_reconstruction(model)
    for image_id in sorted(model.reg_image_ids()):
        mapper.triangulate_image(triangulation, image_id)
    mapper.complete_and_merge_tracks(loose)
    mapper.retriangulate(triangulation)
    refine_globally(mapper, pipeline, options, triangulation)
    mapper.end_reconstruction(False)


def describe(models: list[pycolmap.Reconstruction]) -> str:
    """How many images each model holds, in words."""
    return " + ".join(str(model.num_reg_images()) for model in models) or "no"
