"""Commands that go from photographs to a dataset, or put more into one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional, arg

from sfmprep.cli.options import (
    AsJson,
    Common,
    DatasetOptions,
    Device,
    Images,
    MaskOptions,
    OfRun,
    Options,
    Out,
    Thresholds,
    WithMasks,
    pose_settings,
)
from sfmprep.cli.start import (
    MAPPER,
    begin,
    expect_no_cluster,
    mapper_ahead,
    parsed,
    recipe_of,
)
from sfmprep.devices import pick_device
from sfmprep.executors.isolated import begun_ahead
from sfmprep.terminal import show, show_progress, start_logging


def reconstruct(
    images: Images,
    out: Out,
    options: OfRun = DatasetOptions(),  # noqa: B008
    *,
    device: Device = "auto",
    fail_below: Thresholds = (),
    as_json: AsJson = False,
) -> int:
    """Turn a folder of photographs into a dataset for splat training."""
    loaded = begin(images, out, options)
    wanted, cluster = parsed(fail_below), options.cluster(device)
    with mapper_ahead(out, loaded):
        from sfmprep.cli.summary import finish
        from sfmprep.pipelines.reconstruct import reconstruct

        found = reconstruct(
            *(images, out, loaded),
            device=options.devices(device),
            cluster=cluster,
            progress=options.progress(loaded),
        )
    return finish(found, out, thresholds=wanted, as_json=as_json)


def refine(
    images: Images,
    poses: Annotated[
        Positional[Path],
        arg(
            metavar="POSES",
            help="A COLMAP model, transforms.json, table name,x,y,z,qw,qx,qy,qz (.csv),"
            " trajectory of TUM, or an export of Polycam, 3D Scanner App or Stray"
            " Scanner (folder), Record3D (.json), Metashape (.xml) or RealityCapture"
            " (.csv).",
        ),
    ],
    out: Out,
    options: OfRun = DatasetOptions(),  # noqa: B008
    *,
    axes: Annotated[
        Literal["auto", "opencv", "opengl"],
        arg(help="Of the cameras: y down and z forward, or y up and z back."),
    ] = "auto",
    direction: Annotated[
        Literal["auto", "cam_from_world", "world_from_cam"],
        arg(help="What a rotation and a vector of a table or trajectory do."),
    ] = "auto",
    time_offset: Annotated[
        float | None,
        arg(metavar="SECONDS", help="Added to the times of images; else it is found."),
    ] = None,
    device: Device = "auto",
    fail_below: Thresholds = (),
    as_json: AsJson = False,
) -> int:
    """Make a dataset from photographs whose poses are known roughly, and refine these.

    World and scale of the poses are kept.
    """
    settings = pose_settings(poses, axes, direction, time_offset)
    loaded = begin(images, out, options, first=settings)
    wanted, cluster = parsed(fail_below), options.cluster(device)
    with mapper_ahead(out, loaded):
        from sfmprep.cli.summary import finish
        from sfmprep.pipelines.reconstruct import reconstruct

        found = reconstruct(
            *(images, out, loaded),
            device=options.devices(device),
            cluster=cluster,
            progress=options.progress(loaded),
        )
    return finish(found, out, thresholds=wanted, as_json=as_json)


def add(
    images: Images,
    out: Out,
    options: WithMasks = MaskOptions(),  # noqa: B008
    *,
    adjust: Annotated[
        bool,
        tyro.conf.FlagCreatePairsOff,
        arg(
            help="Adjust earlier poses and cameras too, to what all photographs tell."
            " What was trained with them has to be trained again.",
        ),
    ] = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> int:
    """Add photographs, put into IMAGES since, to the finished dataset in OUT.

    Poses, cameras and world of what is there stay as they are; with --adjust the world.
    """
    expect_no_cluster(options, "`sfmprep add`")
    loaded = begin(images, out, options)
    with begun_ahead(MAPPER):
        from sfmprep.cli.summary import finish
        from sfmprep.pipelines.add import add_photographs

        found = add_photographs(
            *(images, out, loaded),
            adjust=adjust,
            device=pick_device(device),
            progress=options.progress(loaded),
        )
    return finish(found, out, as_json=as_json)


def localise(
    out: Out,
    photographs: Annotated[
        Positional[tuple[Path, ...]],
        arg(metavar="PHOTOGRAPH ...", help="Files, or one folder of them."),
    ],
    *,
    save: Annotated[
        Path | None,
        arg(
            metavar="FILE",
            help="Write poses to a .json, a .csv that `refine` reads, or a trajectory"
            " of TUM (.txt).",
        ),
    ] = None,
    device: Device = "auto",
    as_json: Annotated[
        bool,
        tyro.conf.FlagCreatePairsOff,
        arg(name="json", help="Print all of it as JSON, and nothing else, on stdout."),
    ] = False,
) -> int:
    """Find where photographs were taken, in the world of a finished dataset.

    Exit code 3: one of them is unknown.
    """
    start_logging(verbose=False)
    from sfmprep.pipelines.localise import localise, to_json, write_located
    from sfmprep.report.verdict import EXIT_BELOW

    found = localise(
        out, photographs, device=pick_device(device), progress=show_progress
    )
    if save is not None:
        write_located(found, save)
    if as_json:
        print(to_json(found))
    for each in found if not as_json else ():
        if each.centre is None:
            show(f"{each.name}: unknown: {each.reason}")
            continue
        where = ", ".join(f"{value:.4g}" for value in each.centre.tolist())
        doubt = f" ({each.reason})" if each.reason else ""
        show(
            f"{each.name}: {each.verdict}{doubt} at ({where}) ±"
            f" {each.position_stddev:.2g}, ± {each.rotation_stddev_deg:.2g}°;"
            f" {each.num_inliers} of {each.num_matches} keypoints agree"
        )
    return EXIT_BELOW if any(each.centre is None for each in found) else 0


def demo(
    out: Annotated[
        Positional[Path], arg(metavar="[OUT]", help="Where it goes.")
    ] = Path("demo"),
    options: Common = Options(),  # noqa: B008
    *,
    device: Device = "auto",
) -> int:
    """Render a small scene, reconstruct it and compare the poses with the truth."""
    expect_no_cluster(options, "`sfmprep demo`")
    loaded = options.load(recipe_of(out / "dataset"))
    options.start_logging()
    from sfmprep.cli.summary import finish
    from sfmprep.pipelines.demo import reconstruct_demo

    found, evaluation = reconstruct_demo(
        out,
        loaded,
        device=pick_device(device),
        progress=options.progress(loaded),
    )
    code = finish(found, out / "dataset")
    auc = ", ".join(f"{value:.1f} at {key}°" for key, value in evaluation.auc.items())
    show(f"pose AUC against the truth (per cent): {auc}")
    return code
