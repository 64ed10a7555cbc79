"""Images without a pose, looked for where their pointmaps say that they look.

pairs to foresee    with which images that have a pose they are looked at
foresee             a pose and a focal length for each pair, good to some degrees
match foreseen      keypoints near to where the points of the model should be
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pycolmap

from sfmprep.capture.batches import reduction_scales
from sfmprep.config import ForeseeConfig
from sfmprep.files import write_text
from sfmprep.geometry.pointmaps import Depths, Foreseen
from sfmprep.geometry.views import ModelArrays
from sfmprep.mapping.cameras import possible_cameras
from sfmprep.mapping.foreseen import foreseen_matches
from sfmprep.mapping.second_round import propose_pairs
from sfmprep.mapping.view_graph import read_pair_table
from sfmprep.models.build import build_pointmaps
from sfmprep.pairing.pairs import Pairs, pairs_from_file
from sfmprep.pipelines import artefacts
from sfmprep.pipelines.bounded import within_budget
from sfmprep.pipelines.run import Run
from sfmprep.progress import Progress, silent
from sfmprep.semidense.foresee import foresee, read_foreseen
from sfmprep.stores.tables import MatchStore
from sfmprep.types import Pair

logger = logging.getLogger(__name__)


def match_foreseen(
    run: Run,
    models: Sequence[pycolmap.Reconstruction],
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> Pairs:
    """Does what is missing, and returns the pairs that have matches by it.

    Args:
        run: Its stores are complete, and nothing has them open.
        models: Of the first round, largest first; at least one.
        device: Where the network runs; of several, the first.
        progress: Wraps the loops.

    Returns:
        No pairs without a network in the recipe, or where all images have a pose.

    Raises:
        SfmprepError: see the functions that it calls.
    """
    config = run.recipe.foresee
    if config is None:
        return Pairs.of(())
    path = run.workspace.foreseen_matches
    if not run.ledger.is_done("match foreseen"):
        arrays = ModelArrays.of(models[0])
        _foresee(run, config, models[0], arrays, device=device, progress=progress)
        run.begin("match foreseen")
        path.unlink(missing_ok=True)
        made = {"key": run.ledger.keys.key("match foreseen")}
        with MatchStore(path, made) as store:
            _match(run, models[0], arrays, store, progress=progress)
        run.finish("match foreseen")
    with MatchStore(path) as store:
        return Pairs.of(store.pairs())


def foresee_nothing(run: Run) -> None:
    """Notes that nobody is foreseen: who has no pose stays without."""
    run.begin("pairs to foresee")
    Pairs.of(()).write(run.ledger.file("pairs to foresee"))
    run.finish("pairs to foresee")
    run.begin("foresee")
    write_text(run.workspace.foreseen, "")
    run.finish("foresee")
    run.begin("match foreseen")
    path = run.workspace.foreseen_matches
    path.unlink(missing_ok=True)
    MatchStore(path, {"key": run.ledger.keys.key("match foreseen")}).close()
    run.finish("match foreseen")


def _foresee(
    run: Run,
    config: ForeseeConfig,
    model: pycolmap.Reconstruction,
    arrays: ModelArrays,
    *,
    device: str,
    progress: Progress,
) -> None:
    """Looks at the pairs that the budget has time for."""
    if run.ledger.is_done("foresee"):
        return
    path, listed = run.workspace.foreseen, run.ledger.file("pairs to foresee")
    if not run.ledger.can_grow("foresee"):
        path.unlink(missing_ok=True)
    run.begin("foresee")
    path.touch()
    engine, network = run.recipe.engine, None

    def attempt(some: Pairs) -> None:
        nonlocal network
        if not len(some):
            return
        where = device.split(",")[0]
        network = network or build_pointmaps(
            config.network, device=where, precision=engine.precision
        )
        unreadable = foresee(
            *(run.images, some.items, network, depths_seen(arrays), path),
            max_size=config.network.max_size,
            cache_gb=engine.cache_gb,
            num_workers=engine.num_workers,
            seed=run.recipe.seed,
            progress=progress,
        )
        for name, reason in unreadable.items():
            logger.warning("%s is foreseen nowhere: %s", run.images.path(name), reason)

    if run.ledger.is_done("pairs to foresee"):
        pairs = pairs_from_file(listed, run.images.names)
    else:
        run.begin("pairs to foresee")
        wanted = _pairs_to_foresee(run, config, model)
        name = f"{config.network.name}, for poses"
        pairs = Pairs.of(within_budget(run, "pairs to foresee", name, wanted, attempt))
        pairs.write(listed)
        run.finish("pairs to foresee")
    with run.budget.spending():
        attempt(pairs)
    run.finish("foresee")


def _pairs_to_foresee(
    run: Run, config: ForeseeConfig, model: pycolmap.Reconstruction
) -> list[Pair]:
    """Images without a pose with those that may see the same, also if they matched."""
    names = run.images.names
    posed = {model.images[key].name for key in model.reg_image_ids()}
    proposed = propose_pairs(
        *([model], read_pair_table(run.ledger.file("database"), names), ()),
        per_image=config.per_image,
    )
    wanted = [pair for pair in proposed if len(posed.intersection(pair)) == 1]
    # those that match nothing have pairs by what the images look like alone
    count = dict.fromkeys(names, 0)
    for pair in wanted:
        for name in pair:
            count[name] += 1
    there = set(wanted)
    for pair in artefacts.read_pairs(run):
        lost = [name for name in pair if name not in posed]
        is_new = len(lost) == 1 and pair not in there
        if is_new and count[lost[0]] < config.per_image:
            count[lost[0]] += 1
            wanted.append(pair)
    return wanted


def depths_seen(arrays: ModelArrays) -> dict[str, Depths]:
    """Which points of a model each of its images sees, and how far away."""
    views, seen = arrays.views, arrays.observations
    found = {}
    for row, rows in enumerate(seen.by_view(len(views))):
        away = arrays.xyz[seen.point[rows]] - views.centres[row]
        depth = away @ views.rotations[row][2]
        ahead = depth > 0
        found[views.names[row]] = Depths(xy=seen.xy[rows][ahead], depth=depth[ahead])
    return found


def _match(
    run: Run,
    model: pycolmap.Reconstruction,
    arrays: ModelArrays,
    store: MatchStore,
    *,
    progress: Progress,
) -> None:
    """Writes the matches of each image that fit one pose."""
    recipe, by_image = run.recipe, dict[str, list[Foreseen]]()
    for each in read_foreseen(run.workspace.foreseen):
        by_image.setdefault(each.second, []).append(each)
    scales = reduction_scales(run.images, recipe.features.max_size)
    placed = 0
    with artefacts.open_features(run) as features:
        for name in progress(sorted(by_image), desc="match foreseen"):
            firsts = (each.first for each in by_image[name])
            wanted = [each for each in (name, *firsts) if each in features]
            if name not in wanted:
                continue
            found = foreseen_matches(
                *(name, arrays, by_image[name]),
                {each: features.get(each) for each in wanted},
                possible_cameras(model, run.images, name, recipe.database),
                max_error_px=recipe.database.max_error_px * scales[name],
                seed=recipe.seed,
            )
            if isinstance(found, str):
                logger.info("%s is not found by its pointmaps: %s", name, found)
            elif found:
                placed += 1
                store.append(list(found.items()))
    if by_image:
        logger.info(
            "pointmaps: %d of %d images without a pose have matches where they say",
            *(placed, len(by_image)),
        )
