"""The report of a run, also of one that failed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pycolmap

from sfmprep.dataset.world_frame import apply_world
from sfmprep.export.install import WORLD
from sfmprep.export.listing import LISTING
from sfmprep.export.next_steps import making_command, next_steps
from sfmprep.files import as_written, read_table, write_text
from sfmprep.mapping.from_poses import PoseChanges
from sfmprep.mapping.trust import Trust, consistency_of
from sfmprep.mapping.verify import count_inliers
from sfmprep.pairing.pairs import pairs_from_file
from sfmprep.pipelines.artefacts import (
    Poses,
    below_closer,
    in_world,
    looked_closer,
    mapped_last,
    read_poses,
    result_database,
)
from sfmprep.pipelines.bounded import num_left_out
from sfmprep.pipelines.datasets import datasets_below
from sfmprep.pipelines.run import Run
from sfmprep.report.collect import collect_report
from sfmprep.report.page import write_page
from sfmprep.report.reasons import UNREADABLE
from sfmprep.report.schema import Added, PairWay, Report, Rung
from sfmprep.stores.tables import FeatureStore
from sfmprep.types import Pair

# What the steps that are timed are made of, where they are no stage themselves.
_STAGES = {
    "match beside": (
        *("verify", "pairs beside", "extract beside"),
        *("match beside", "join beside"),
    ),
    "match weak pairs": ("verify", "verify beside", "weak pairs", "match weak pairs"),
    "semi-dense": ("verify again", "pairs left", "match semi-densely", "join"),
    "second round": (
        *("second pairs", "pairs to foresee", "foresee", "match foreseen"),
        "map on",
    ),
    "closer look": (
        *("closer pairs", "extract closer", "match closer"),
        *("join closer", "map closer"),
    ),
    "refine": ("refine", "outliers"),
}


@contextmanager
def timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    """Notes the wall-clock time of a block."""
    start = time.monotonic()
    yield
    seconds[step] = round(time.monotonic() - start, 2)


def write_report(
    run: Run,
    models: Sequence[pycolmap.Reconstruction],
    features: FeatureStore | None,
    *,
    unreadable: Mapping[str, str],
    seconds: Mapping[str, float],
    failure: str | None = None,
    added: Added | None = None,
) -> Report:
    """Writes report.json and report.html, also of a run that found no model.

    Lengths are those of the dataset, where there is one. Of a step in which there was
    nothing to do it says what it took when there was.

    Args:
        run: What was run.
        models: Its models, largest first; may be empty.
        features: Its keypoints, or None.
        unreadable: Images that could not be decoded, and why.
        seconds: Wall-clock time of each step of this run.
        failure: Why there is no model or no dataset, where that is known.
        added: What joined a finished result; None where nothing did.
    """
    images, recipe, workspace = run.images, run.recipe, run.workspace
    seconds = _seconds(run, seconds)
    poses = read_poses(run) if models else Poses()
    path = result_database(run)
    database = path if path.is_file() else None
    world = num_dataset_points = None
    shown = next(iter(models), None)
    if models and run.ledger.is_done("export"):
        world = read_table(workspace.out / WORLD)
        world_from_sfm = pycolmap.Sim3d(np.array(world["world_from_sfm"])[:3])
        shown = apply_world(models[0], world_from_sfm)
        num_dataset_points = read_table(workspace.out / LISTING)["num_points"]
    report = collect_report(
        images,
        recipe=recipe,
        frontend=recipe.frontends[0].ladder_label(),
        database=database,
        features=features,
        models=models,
        pair_ways=_pair_ways(run),
        rungs=list(_rungs(run, seconds)),
        seconds=seconds,
        unreadable=unreadable,
        outliers=poses.outliers,
        sharpness=poses.sharpness,
        uncertainties=in_world(
            poses.uncertainties, world["scale_factor"] if world else 1.0
        ),
        world=world,
        command=making_command(images.source, workspace.out),
        next_steps=next_steps(images.root, workspace.out, recipe),
        trust=Trust.read(consistency_of(mapped_last(run))) if models else None,
        # missing after `add --adjust`: else `damaged` has told of it
        pose_changes=PoseChanges.read(workspace.pose_changes)
        if models and recipe.known_poses is not None and workspace.pose_changes.exists()
        else None,
        added=added,
        num_dataset_points=num_dataset_points,
        folders=datasets_below(workspace.out) if world else {},
        failure=failure,
    )
    write_text(workspace.report, report.to_json())
    write_page(
        workspace.report_page,
        report,
        images,
        model=shown,
        features=features,
        database=database,
    )
    return report


def write_report_again(
    run: Run,
    models: Sequence[pycolmap.Reconstruction],
    features: FeatureStore | None,
    *,
    missing: str = "",
) -> Report:
    """Writes the report anew, with what only the run itself could know from the old.

    Args:
        run: What was run.
        models: Its models, largest first; may be empty.
        features: Its keypoints, or None.
        missing: Why there are no models.
    """
    old = read_table(run.workspace.report)  # also one of an earlier version
    with as_written(run.workspace.report):
        added = Added(**old["added"]) if old.get("added") else None
        unreadable = {
            image["name"]: image["reason"].removeprefix(UNREADABLE)
            for image in old.get("images", ())
            if image["status"] == "unreadable"
        }
    return write_report(
        *(run, models, features),
        unreadable=unreadable,
        seconds=old.get("seconds", {}),
        failure=_failure_again(run, old, has_models=bool(models), missing=missing),
        added=added if models and _is_same(run, old) else None,
    )


def _seconds(run: Run, seconds: Mapping[str, float]) -> dict[str, float]:
    """Of each step what it took when there last was something to do."""
    found = dict(seconds)
    for step in seconds:
        earlier = run.ledger.earlier_seconds(_STAGES.get(step, (step,)))
        if earlier is not None and step != "develop":  # which has a ledger of its own
            found[step] = round(earlier, 2)
    return found


def _pair_ways(run: Run) -> list[PairWay]:
    """How many pairs each way proposed, where that is what was matched."""
    path = run.workspace.pair_ways
    if not (run.ledger.is_done("pairs") and path.is_file()):
        return []
    with as_written(path):
        return [PairWay(**way) for way in json.loads(path.read_text("utf-8"))]


def _rungs(run: Run, seconds: Mapping[str, float]) -> Iterator[Rung]:
    """What each matcher that was used tried and gained."""
    recipe, ledger = run.recipe, run.ledger
    stages = ("verify", "verify beside", "verify again", "database")
    databases = [ledger.file(stage) for stage in stages if ledger.is_done(stage)]
    tried = [(recipe.matcher.name, "pairs", "match")]
    if recipe.beside is not None:
        tried.append((recipe.beside.features.name, "pairs beside", "match beside"))
    if recipe.stronger is not None:
        name = recipe.stronger.matcher.name
        tried.append((name, "weak pairs", "match weak pairs"))
    if recipe.dense is not None:
        tried.append((recipe.dense.matcher.type, "pairs left", "semi-dense"))
        if recipe.dense.pairs == "all":  # nothing was verified in between
            databases = databases[:-1] + databases[-1:] * 2
    has_second = below_closer(run) == run.workspace.second_database
    if has_second or num_left_out(run, "second pairs"):
        tried.append(("second round", "second pairs", "second round"))
        databases.append(below_closer(run))
    if looked_closer(run) or num_left_out(run, "closer pairs"):
        tried.append(("closer look", "closer pairs", "closer look"))
        databases.append(result_database(run))
    before: Mapping[Pair, int] = {}
    for (name, stage, step), database in zip(tried, databases, strict=False):
        pairs = pairs_from_file(ledger.file(stage), run.images.names)
        after = count_inliers(database)
        yield Rung(
            name=name,
            num_pairs=len(pairs),
            num_verified_before=sum(pair in before for pair in pairs),
            num_verified=sum(pair in after for pair in pairs),
            num_left_out=num_left_out(run, stage),
            seconds=seconds.get(step),
        )
        before = after


def _is_same(run: Run, old: Mapping[str, Any]) -> bool:
    """Whether an earlier report is of the recipe of this run."""
    return bool(old.get("settings") == run.recipe.model_dump(mode="json"))


def _failure_again(
    run: Run, old: Mapping[str, Any], *, has_models: bool, missing: str
) -> str | None:
    """Why there is no dataset: what the run said that failed, if it was this one."""
    if not run.ledger.keys.applies("export") or run.ledger.is_done("export"):
        return None
    if _is_same(run, old) and old["failure"] and bool(old["result"]) == has_models:
        return str(old["failure"])
    if has_models:
        return "There is no dataset yet. Run `sfmprep export`."
    return f"There are no poses yet: {missing}"
