"""Large captures mapped in overlapping parts, each in a process, and joined.

Incremental mapping takes the more for an image the more images there are: all are
adjusted again and again. Parts of one size take the same each, on as many cores as
there are. What is left is done once: models are
brought into one frame, tracks that parts have in common become one, and everything is
adjusted together.
"""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import TypeVar

import numpy as np
import pycolmap

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DatabaseConfig, MappingConfig
from sfmprep.devices import num_cores
from sfmprep.executors.isolated import run_isolated
from sfmprep.geometry.partition import cut, widened
from sfmprep.mapping.agreement import VerifiedMatches
from sfmprep.mapping.carry_over import add_model, carry_over, open_cache
from sfmprep.mapping.database import remove_database
from sfmprep.mapping.excerpt import write_excerpt
from sfmprep.mapping.merge import (
    ERRORS,
    adjust_tracks,
    contradicts,
    describe,
    find_joint,
)
from sfmprep.mapping.models import read_model
from sfmprep.mapping.placement import Joint, place_all
from sfmprep.mapping.runs import Run, map_incrementally, sorted_models
from sfmprep.mapping.view_reader import Scales
from sfmprep.progress import Progress, silent
from sfmprep.threads import thread_pool
from sfmprep.types import Index

logger = logging.getLogger(__name__)

T = TypeVar("T")

_OVERLAP = 0.1  # of the size of a part: images of each neighbour that are in it too
_MIN_OVERLAP = 5


def is_cut(config: MappingConfig, num_images: int) -> bool:
    """Whether a capture is so large that it is mapped in parts."""
    large = config.part_size is not None and num_images > 2 * config.part_size
    return config.type == "incremental" and large


def how_mapped(config: MappingConfig, num_images: int) -> str:
    """What maps a capture of so many images, in words."""
    if is_cut(config, num_images):
        return f"incremental, in overlapping parts of about {config.part_size} images"
    return config.type


def map_in_parts(run: Run) -> list[pycolmap.Reconstruction]:
    """Maps the parts of a capture, each in a process of its own, and joins the models.

    Parts are cut where fewest matches go across, and share a tenth of their images with
    each neighbour. Models are joined by the tracks that they share; where ways around
    a cycle of parts contradict each other, what most disagree with is not joined by.

    Args:
        run: Thresholds of the mapper; `config.part_size` is given.

    Returns:
        Largest first; more than one where parts cannot be joined, none where no pair is
        verified.

    Raises:
        DiedError: a process was ended.
    """
    with pycolmap.Database.open(run.database) as opened:
        cache = open_cache(opened, run.config.min_num_matches)
    matches = VerifiedMatches(cache)
    if not matches.partners:
        return []
    parts = _parts(run, cache, matches)
    logger.info("the capture is mapped in %d parts of %s images", len(parts),
                ", ".join(str(len(part)) for part in parts))  # fmt: skip
    models = sorted_models(_mapped(run, parts))
    logger.info("the parts became models of %s images", describe(models))
    return _joined(run, models, cache, matches)


def _parts(
    run: Run, cache: pycolmap.DatabaseCache, matches: VerifiedMatches
) -> list[list[str]]:
    """Names of the images of each part."""
    size = run.config.part_size
    assert size is not None
    ids = np.array(sorted(cache.images), np.int64)
    pairs = np.array(matches.pairs(), np.int64).reshape(-1, 2)
    counts = {
        (id0, id1): count
        for id0, found in matches.partners.items()
        for id1, count in found
        if id0 < id1
    }
    weights: Index = np.array([counts[id0, id1] for id0, id1 in pairs.tolist()])
    index = np.searchsorted(ids, pairs)
    parts = cut(len(ids), index, weights, size=size)
    overlap = max(round(_OVERLAP * size), _MIN_OVERLAP)
    packed: list[dict[str, None]] = []
    for rows in widened(parts, len(ids), index, weights, overlap=overlap):
        names = dict.fromkeys(cache.image(key).name for key in ids[rows].tolist())
        # of what hangs together with nothing, many are one part
        if packed and len(packed[-1]) + len(names) <= size:
            packed[-1] |= names
        else:
            packed.append(names)
    return [list(names) for names in packed]


# --------------------------------------------------------------------------- the parts
def map_part(
    folder: Path,
    database: Path,
    images: ImageSet,
    config: MappingConfig,
    cameras: DatabaseConfig,
    scales: Scales | None,
    seed: int,
    names: Sequence[str],
    num_threads: int,
    *,
    progress: Progress = silent,
) -> int:
    """Maps some images of a database; writes folders 0, 1, ... into a new folder.

    It works on a database of their own, so that it takes no more memory the larger the
    whole is.

    Returns:
        How many models there are.
    """
    folder.mkdir()
    excerpt = folder / "database.db"
    write_excerpt(database, excerpt, names)
    run = Run(
        database=excerpt,
        images=images,
        folder=folder,
        config=config,
        cameras=cameras,
        scales=scales,
        seed=seed,
        progress=progress,
    )
    models = map_incrementally(run, names=names, num_threads=num_threads)
    remove_database(excerpt)
    for number, model in enumerate(models):
        place = folder / f"model-{number}"
        place.mkdir()
        model.write(place)
    return len(models)


def _mapped(run: Run, parts: list[list[str]]) -> list[pycolmap.Reconstruction]:
    """The models of all parts, each mapped in a process of its own."""
    num_workers = min(len(parts), num_cores())
    folders = [run.folder / f"part-{number}" for number in range(len(parts))]
    steps: SimpleQueue[int] = SimpleQueue()
    stopped = Event()

    def progress(
        items: Iterable[T], *, desc: str = "", total: int | None = None
    ) -> Iterator[T]:
        for item in items:
            if stopped.is_set():
                raise KeyboardInterrupt  # ends the process of the part
            yield item
            steps.put(1)

    def one(number: int) -> int:
        try:
            return run_isolated(
                *(map_part, folders[number], run.database, run.images, run.config),
                *(run.cameras, run.scales, run.seed, parts[number]),
                max(num_cores() // num_workers, 1),
                progress=progress,
            )
        finally:
            steps.put(0)

    def registered() -> Iterator[None]:
        left = len(parts)
        while left:
            step = steps.get()
            left -= not step
            yield from [None] * step

    with thread_pool(num_workers) as pool:
        jobs = [pool.submit(one, number) for number in range(len(parts))]
        try:
            total = sum(map(len, parts))
            for _ in run.progress(registered(), desc="map parts", total=total):
                _expect_none_failed(jobs)
            counts = [job.result() for job in jobs]
        finally:
            stopped.set()
    models = []
    for folder, count in zip(folders, counts, strict=True):
        models += [read_model(folder / f"model-{k}") for k in range(count)]
        shutil.rmtree(folder)
    return models


def _expect_none_failed(jobs: Sequence[Future[int]]) -> None:
    for job in jobs:
        if job.done():
            job.result()


# ------------------------------------------------------------------------- the joining
def _joined(
    run: Run,
    models: list[pycolmap.Reconstruction],
    cache: pycolmap.DatabaseCache,
    matches: VerifiedMatches,
) -> list[pycolmap.Reconstruction]:
    """Models in as few as can be, adjusted together, largest first."""
    if len(models) < 2:
        return models
    joints = []
    for k, j in _touching(models, matches):
        found = find_joint(run, k, models[k], j, models[j], matches)
        if isinstance(found, Joint):
            joints.append(found)
        elif found:
            logger.info("models %d and %d are not joined: %s", k, j, found)
    while True:
        placed = place_all(len(models), joints)
        for joint in placed.contradicted:
            _warn(models, joint, "other ways around contradict it")
        joints = [joint for joint in joints if joint not in placed.contradicted]
        made = []
        for group in range(int(placed.label.max(initial=-1)) + 1):
            members = np.flatnonzero(placed.label == group).tolist()
            made.append(_in_one(run, models, members, placed.world_from_model, cache))
        wrong = [
            joint
            for joint in joints
            if contradicts(
                *(run, made[placed.label[joint.first]], models[joint.first]),
                *(models[joint.second], matches),
            )
        ]
        if not wrong:
            return sorted_models(made)
        for joint in wrong:
            _warn(models, joint, "the matches between them contradict it")
        joints = [joint for joint in joints if joint not in wrong]


def _touching(
    models: Sequence[pycolmap.Reconstruction], matches: VerifiedMatches
) -> list[tuple[int, int]]:
    """Which two models have an image in common, or a verified pair between them.

    Without asking all twos of them: of 200 models next to all share nothing.
    """
    holding: dict[int, list[int]] = {}
    for number, model in enumerate(models):
        for key in model.reg_image_ids():
            holding.setdefault(key, []).append(number)
    found: set[tuple[int, int]] = set()
    for key, numbers in holding.items():
        found.update(itertools.combinations(numbers, 2))
        for other, _ in matches.partners.get(key, ()):
            found.update(itertools.product(numbers, holding.get(other, ())))
    return sorted((first, second) for first, second in found if first < second)


def _warn(models: Sequence[pycolmap.Reconstruction], joint: Joint, why: str) -> None:
    logger.warning(
        "models of %d and %d images are not joined by the %d points that both have: %s",
        *(models[k].num_reg_images() for k in (joint.first, joint.second)),
        *(joint.num_links, why),
    )


def _in_one(
    run: Run,
    models: Sequence[pycolmap.Reconstruction],
    members: Sequence[int],
    frames: Sequence[pycolmap.Sim3d],
    cache: pycolmap.DatabaseCache,
) -> pycolmap.Reconstruction:
    """Some models in the frame of the first of them, adjusted together."""
    first, *others = members
    if not others:
        return models[first]
    whole = carry_over(models[first], cache)
    own_from_world = frames[first].inverse()
    for other in others:
        add_model(whole, models[other], moved=own_from_world * frames[other])
    adjust_tracks(
        run, whole, cache, apart_px=ERRORS * run.cameras.max_error_px * run.scale
    )
    return whole
