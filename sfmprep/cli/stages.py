"""Commands that do one stage of a run, or tell how far it is."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from sfmprep.cli.options import (
    AsJson,
    Common,
    Device,
    Flag,
    Images,
    MaskOptions,
    Options,
    Out,
    Shard,
    TargetOptions,
    Thresholds,
    WithMasks,
    WithTargets,
)
from sfmprep.cli.start import open_folder, parsed, recipe_of, scan_for_share
from sfmprep.errors import ConfigError, ReconstructionError, StoreError
from sfmprep.terminal import say, show, show_progress


def extract(
    images: Images,
    out: Out,
    options: WithMasks = MaskOptions(),  # noqa: B008
    *,
    device: Device = "auto",
    shard: Shard = None,
) -> None:
    """Extract features into OUT/work/features.h5."""
    from sfmprep.pipelines import shares, stages

    if shard is not None:
        share = shares.Share.parse(shard)
        scanned, loaded = scan_for_share(images, out, options, device)
        file, count = shares.extract_share(
            *(scanned, out, loaded, share),
            device=options.devices(device),
            progress=show_progress,
        )
        print(f"{count} images have features in {file}")
        return
    with open_folder(images, out, options, device=device) as run:
        store, _ = stages.extract(
            run, device=options.devices(device), progress=show_progress
        )
        with store:
            show(f"{len(store)} images have features in {run.workspace.features}")


def pairs(
    images: Images,
    out: Out,
    options: Common = Options(),  # noqa: B008
    *,
    device: Device = "auto",
) -> None:
    """Choose the pairs of images to match, into OUT/work/pairs.txt."""
    from sfmprep.pipelines import artefacts
    from sfmprep.pipelines.choose_pairs import make_pairs

    with (
        open_folder(images, out, options, goes_on=True, device=device) as run,
        artefacts.open_features(run) as features,
    ):
        found = make_pairs(
            run, features, device=options.devices(device), progress=show_progress
        )
        show(f"{len(found)} pairs in {run.workspace.pairs}")


def match(
    images: Images,
    out: Out,
    options: Common = Options(),  # noqa: B008
    *,
    device: Device = "auto",
    shard: Shard = None,
) -> None:
    """Match the pairs of OUT/work/pairs.txt into OUT/work/matches.h5."""
    from sfmprep.pipelines import artefacts, shares
    from sfmprep.pipelines.matching import match_pairs

    if shard is not None:
        share = shares.Share.parse(shard)
        scanned, loaded = scan_for_share(images, out, options, device)
        file, count = shares.match_share(
            *(scanned, out, loaded, share),
            device=options.devices(device),
            progress=show_progress,
        )
        print(f"{count} pairs are matched in {file}")
        return
    with (
        open_folder(images, out, options, goes_on=True, device=device) as run,
        artefacts.open_features(run) as features,
        match_pairs(
            *(run, features, artefacts.read_pairs(run), {}),
            device=options.devices(device),
            progress=show_progress,
        ) as (_, matches),
    ):
        show(f"{len(matches)} pairs are matched in {matches.place}")


def database(
    images: Images,
    out: Annotated[
        Positional[Path | None],
        arg(metavar="[OUT]", help="Folder of the results; PROJECT.sfmprep by default."),
    ] = None,
    options: WithMasks = MaskOptions(),  # noqa: B008
    *,
    database: Annotated[
        Path | None,
        arg(
            metavar="PROJECT.db",
            help="A COLMAP database to fill in place; extracts and matches as needed.",
        ),
    ] = None,
    create: Annotated[Flag, arg(help="PROJECT.db may be new.")] = False,
    device: Device = "auto",
) -> None:
    """Import features and matches into a COLMAP database and verify them."""
    from sfmprep.mapping.project import check_path
    from sfmprep.pipelines import stages
    from sfmprep.pipelines.fill_database import fill_existing_database

    if database is not None:
        check_path(database, create=create)
        out = out or database.with_suffix(".sfmprep")
        with open_folder(images, out, options, default="colmap", device=device) as run:
            path = database
            filled, verified = fill_existing_database(
                run, database, device=options.devices(device), progress=show_progress
            )
        for line in filled.lines():
            show(line)
    elif out is not None:
        with open_folder(images, out, options, goes_on=True, device=device) as run:
            path = run.ledger.file("database")
            verified = stages.fill_from_stores(run, progress=show_progress)
    else:
        raise ConfigError("`sfmprep database` needs OUT, or --database PROJECT.db.")
    show(
        f"{verified.num_verified} of {verified.num_pairs} pairs verified,"
        f" {verified.num_inliers} inliers, in {path}"
    )
    if database is not None:
        found, model, photographs = (
            shlex.quote(str(p)) for p in (path, path.parent / "sparse", images)
        )
        print(
            f"next:     mkdir -p {model} && colmap mapper --database_path {found}"
            f" --image_path {photographs} --output_path {model}"
        )


def map_(
    images: Images,
    out: Out,
    options: Common = Options(),  # noqa: B008
    *,
    device: Device = "auto",
) -> None:
    """Find poses and points from the database, into OUT/work/models."""
    from sfmprep.pipelines import artefacts
    from sfmprep.pipelines.poses import find_poses

    with open_folder(images, out, options, goes_on=True, device=device) as run:
        verified = artefacts.read_database(run)
        models = find_poses(
            *(run, verified, {}), device=options.devices(device), progress=show_progress
        )
        for number, model in enumerate(models):
            show(
                f"{run.workspace.models / str(number)}: {model.num_reg_images()}"
                f" images, {model.num_points3D()} points"
            )


def export(
    images: Images,
    out: Out,
    options: WithTargets = TargetOptions(),  # noqa: B008
    *,
    device: Device = "auto",
) -> int:
    """Write the dataset that trainers open into OUT, and further models below it."""
    from sfmprep.pipelines import artefacts, datasets, reporting
    from sfmprep.report.verdict import exit_code

    with open_folder(images, out, options, goes_on=True) as run:
        models = artefacts.read_models(run)
        where = "cpu"  # torch loads slowly
        if run.recipe.export.seed.pointmaps is not None:
            where = options.devices(device)
        datasets.export_models(run, models, device=where, progress=show_progress)
        with artefacts.open_keypoints(run) as features:
            found = reporting.write_report_again(run, models, features)
    show(f"dataset: {out}")
    for other in found.other_models:
        if other.folder:
            show(f"another dataset: {out / other.folder}, {other.num_images} images")
    if code := exit_code(found):
        say(f"warning: {found.verdict}")
    return code


def report(
    images: Images,
    out: Out,
    options: Common = Options(),  # noqa: B008
    *,
    fail_below: Thresholds = (),
    as_json: AsJson = False,
) -> int:
    """Write OUT/report.html and OUT/report.json anew, and check the result."""
    wanted = parsed(fail_below)
    from sfmprep.cli.summary import finish
    from sfmprep.pipelines import artefacts, reporting

    with open_folder(images, out, options, goes_on=True) as run:
        models, missing = [], ""
        try:
            models = artefacts.read_models(run)
        except (ReconstructionError, StoreError) as error:
            missing = str(error)
        with artefacts.open_keypoints(run) as features:
            found = reporting.write_report_again(run, models, features, missing=missing)
    return finish(found, out, thresholds=wanted, as_json=as_json)


def status(
    images: Images,
    out: Out,
    options: WithMasks = MaskOptions(),  # noqa: B008
) -> None:
    """Say of each stage whether it is done, and why it would run again."""
    loaded = options.load(recipe_of(out))
    options.start_logging()
    from sfmprep.pipelines.develop import find_capture
    from sfmprep.pipelines.status import stages_of

    scanned = find_capture(images, out, loaded, develops=False)
    for stage in stages_of(scanned, out, loaded, progress=show_progress):
        show(f"{stage.name:18} {'done' if stage.is_done else '-':5} {stage.file}")
        for reason in stage.why:
            show(f"{'':18} {'':5} would run: {reason}")
