"""The command line: what can be called, and exit codes.

Exit codes: 0; 1 for a failed run; 2 for a wrong call; 3 for a result that is not worth
training on, or below what `--fail-below` asks; 130 when interrupted.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional, UseAppendAction, arg

from sfmprep import __version__
from sfmprep.capture.folder import expect_folder
from sfmprep.cli.options import (
    AsJson,
    Common,
    DatasetOptions,
    Device,
    Flag,
    Images,
    MaskOptions,
    OfRun,
    Options,
    Out,
    Settings,
    TargetOptions,
    Thresholds,
    WithMasks,
    WithTargets,
    flat,
    pose_settings,
)
from sfmprep.config import Recipe
from sfmprep.config.load import load_recipe, recipe_names
from sfmprep.devices import pick_device
from sfmprep.errors import (
    ConfigError,
    ReconstructionError,
    SfmprepError,
    StoreError,
    WeightsError,
    did_you_mean,
)
from sfmprep.interrupts import EXIT_CODE, STOPPED, watch_signals
from sfmprep.terminal import say, show, show_progress, start_logging

if TYPE_CHECKING:
    from sfmprep.pipelines.run import Run

logger = logging.getLogger(__name__)


def main() -> None:
    """Runs the command line and ends the process with its exit code."""
    # OpenMP threads that spin while they wait made ALIKED 3 to 5 times slower on a
    # machine with other work; it must be set before torch is imported
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _open_closed_streams()
    watch_signals()
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # such as of `| head`; Python would flush once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def _open_closed_streams() -> None:
    """Gives `>&-` a place to write to, which else the first file that is opened is."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def run(args: list[str]) -> int:
    """Runs the command line and returns its exit code, see above."""
    commands = _commands()
    if args == ["--version"]:
        print(f"sfmprep {__version__}")
        return 0
    try:
        if args and not args[0].startswith("-") and args[0] not in commands:
            raise ConfigError(
                f"no command is called {args[0]!r}.{did_you_mean(args[0], commands)}"
                " See `sfmprep --help`."
            )
        if args[:1] == ["train"]:
            from sfmprep.cli.train import main as train_main

            return train_main(args[1:])
        code = tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="sfmprep",
            description="Photographs in; camera poses and a sparse cloud out.",
            args=args,
        )
    except SfmprepError as error:
        say(f"sfmprep: error: {error}")
        return error.exit_code
    except BrokenPipeError:
        raise
    except OSError as error:  # what no stage has an answer to
        say(f"sfmprep: error: {error}")
        return 1
    except KeyboardInterrupt:
        say(STOPPED)
        return EXIT_CODE
    except SystemExit as exit_:
        if exit_.code == 2:
            _hint_at_settings(args)
        return exit_.code if isinstance(exit_.code, int) else bool(exit_.code)
    return code or 0


def _commands() -> dict[str, Callable[..., Any]]:
    functions = (
        *(reconstruct, refine, extract, pairs, match, database, map_, export, report),
        *(status, add, localise, view, evaluate, recipes, settings, weights),
        *(doctor, completion, demo, train),
    )
    return {function.__name__.rstrip("_"): function for function in functions}


def _hint_at_settings(args: list[str]) -> None:
    """Names the setting that an unknown option such as `--max-keypoints` is."""
    from sfmprep.config.describe import settings as all_settings

    options = {field.name for field in fields(DatasetOptions)}
    for word in args:
        name = word.removeprefix("--").partition("=")[0].replace("-", "_")
        if not word.startswith("--") or name in options:
            continue
        for known in all_settings():
            if known.key.rpartition(".")[2] == name:
                say(
                    f"--{name.replace('_', '-')} is a setting: --set {known.key}=VALUE."
                    f" See `sfmprep settings {known.key}`."
                )
                break


# --------------------------------------------------------------------- the main job
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
    loaded = _begin(images, out, options)
    wanted = _parsed(fail_below)
    from sfmprep.cli.summary import finish
    from sfmprep.pipelines.reconstruct import reconstruct

    found = reconstruct(
        *(images, out, loaded),
        device=pick_device(device),
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
            " or trajectory of TUM.",
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
    loaded = _begin(images, out, options, first=settings)
    wanted = _parsed(fail_below)
    from sfmprep.cli.summary import finish
    from sfmprep.pipelines.reconstruct import reconstruct

    found = reconstruct(
        *(images, out, loaded),
        device=pick_device(device),
        progress=options.progress(loaded),
    )
    return finish(found, out, thresholds=wanted, as_json=as_json)


# --------------------------------------------------------------- the stages, one by one
def extract(
    images: Images,
    out: Out,
    options: WithMasks = MaskOptions(),  # noqa: B008
    *,
    device: Device = "auto",
) -> None:
    """Extract features into OUT/work/features.h5."""
    from sfmprep.pipelines import stages

    with _open(images, out, options) as run:
        store, _ = stages.extract(
            run, device=pick_device(device), progress=show_progress
        )
        with store:
            print(f"{len(store)} images have features in {run.workspace.features}")


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
        _open(images, out, options, goes_on=True) as run,
        artefacts.open_features(run) as features,
    ):
        found = make_pairs(
            run, features, device=pick_device(device), progress=show_progress
        )
        print(f"{len(found)} pairs in {run.workspace.pairs}")


def match(
    images: Images,
    out: Out,
    options: Common = Options(),  # noqa: B008
    *,
    device: Device = "auto",
) -> None:
    """Match the pairs of OUT/work/pairs.txt into OUT/work/matches.h5."""
    from sfmprep.pipelines import artefacts
    from sfmprep.pipelines.matching import match_pairs

    with (
        _open(images, out, options, goes_on=True) as run,
        artefacts.open_features(run) as features,
        match_pairs(
            *(run, features, artefacts.read_pairs(run), {}),
            device=pick_device(device),
            progress=show_progress,
        ) as (_, matches),
    ):
        print(f"{len(matches)} pairs are matched in {matches.place}")


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
        with _open(images, out, options, default="colmap") as run:
            path = database
            filled, verified = fill_existing_database(
                run, database, device=pick_device(device), progress=show_progress
            )
        for line in filled.lines():
            print(line)
    elif out is not None:
        with _open(images, out, options, goes_on=True) as run:
            path = run.ledger.file("database")
            verified = stages.fill_from_stores(run, progress=show_progress)
    else:
        raise ConfigError("`sfmprep database` needs OUT, or --database PROJECT.db.")
    print(
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

    with _open(images, out, options, goes_on=True) as run:
        verified = artefacts.read_database(run)
        models = find_poses(
            *(run, verified, {}), device=pick_device(device), progress=show_progress
        )
        for number, model in enumerate(models):
            print(
                f"{run.workspace.models / str(number)}: {model.num_reg_images()}"
                f" images, {model.num_points3D()} points"
            )


def export(
    images: Images,
    out: Out,
    options: WithTargets = TargetOptions(),  # noqa: B008
) -> int:
    """Write the dataset that trainers open into OUT, and further models below it."""
    from sfmprep.pipelines import artefacts, datasets, reporting
    from sfmprep.report.verdict import exit_code

    with _open(images, out, options, goes_on=True) as run:
        models = artefacts.read_models(run)
        datasets.export_models(run, models, progress=show_progress)
        with artefacts.open_keypoints(run) as features:
            found = reporting.write_report_again(run, models, features)
    print(f"dataset: {out}")
    for other in found.other_models:
        if other.folder:
            print(f"another dataset: {out / other.folder}, {other.num_images} images")
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
    wanted = _parsed(fail_below)
    from sfmprep.cli.summary import finish
    from sfmprep.pipelines import artefacts, reporting

    with _open(images, out, options, goes_on=True) as run:
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
    loaded = options.load(_recipe_of(out))
    options.start_logging()
    from sfmprep.pipelines.develop import find_capture
    from sfmprep.pipelines.motion_masks import with_motion_masks
    from sfmprep.pipelines.status import stages_of

    scanned = find_capture(images, out, loaded, develops=False)
    scanned = with_motion_masks(scanned, out, loaded, makes=False)
    for stage in stages_of(scanned, out, loaded, progress=show_progress):
        print(f"{stage.name:18} {'done' if stage.is_done else '-':5} {stage.file}")
        for reason in stage.why:
            print(f"{'':18} {'':5} would run: {reason}")


def add(
    images: Images,
    out: Out,
    options: WithMasks = MaskOptions(),  # noqa: B008
    *,
    device: Device = "auto",
    as_json: AsJson = False,
) -> int:
    """Add photographs, put into IMAGES since, to the finished dataset in OUT.

    Poses, cameras and world of what is there stay as they are.
    """
    loaded = _begin(images, out, options)
    from sfmprep.cli.summary import finish
    from sfmprep.pipelines.add import add_photographs

    found = add_photographs(
        *(images, out, loaded),
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
            print(f"{each.name}: unknown: {each.reason}")
            continue
        where = ", ".join(f"{value:.4g}" for value in each.centre.tolist())
        doubt = f" ({each.reason})" if each.reason else ""
        print(
            f"{each.name}: {each.verdict}{doubt} at ({where}) ±"
            f" {each.position_stddev:.2g}, ± {each.rotation_stddev_deg:.2g}°;"
            f" {each.num_inliers} of {each.num_matches} keypoints agree"
        )
    return EXIT_BELOW if any(each.centre is None for each in found) else 0


def view(
    out: Out,
    *,
    images: Annotated[
        Path | None,
        arg(metavar="DIR", help="The photographs, if the dataset has none."),
    ] = None,
    host: Annotated[str, arg(help="0.0.0.0 lets other machines look.")] = "127.0.0.1",
    port: Annotated[int, arg(help="Of the address to open.")] = 8080,
) -> None:
    """Show cameras and points in the browser; needs viser (the extra `view`)."""
    start_logging(verbose=False)
    from sfmprep.viewer.view import view_result

    view_result(out, images=images, host=host, port=port)


# ------------------------------------------------------------------------- around it
def evaluate(
    out: Annotated[
        Positional[Path],
        arg(metavar="OUT", help="An output folder, or a COLMAP model."),
    ],
    *,
    reference: Annotated[
        Path,
        arg(help="reference.json, its folder, .camera files, or a COLMAP model."),
    ],
) -> None:
    """Compare the poses of a result with known ones."""
    from sfmprep.evaluation.poses import evaluate_model
    from sfmprep.evaluation.reference import read_reference
    from sfmprep.pipelines.artefacts import read_result

    poses = read_reference(_model_of(reference))
    evaluation = evaluate_model(read_result(out), poses)
    print(evaluation.to_json())
    missing = evaluation.num_reference - evaluation.registered_reference
    if missing:
        say(
            f"{missing} of the reference's {evaluation.num_reference} images are not in"
            f" {out}: every pair with one of them counts as wrong."
        )


def _model_of(reference: Path) -> Path:
    """The model to compare with, where the reference is an output folder itself."""
    model = reference / "work" / "models" / "0"
    return model if model.is_dir() else reference


def recipes(
    name: Annotated[
        Positional[str | None], arg(metavar="[NAME|FILE]", help="Show this one whole.")
    ] = None,
    *,
    settings: Settings = (),
) -> None:
    """List the recipes, or show one with the licence of every weight it needs."""
    if name is None:
        for each in recipe_names():
            print(f"{each:11} {load_recipe(each).description}")
        return
    recipe = load_recipe(name, flat(settings))
    print(recipe.to_yaml())
    for number, frontend in enumerate(recipe.frontends, 1):
        print(f"# choice {number}: {frontend.ladder_label()}")
        for weight, path in frontend.all_weights():
            print(_described(weight, path))
    dense = recipe.dense.matcher if recipe.dense else None
    for label, model in (("retrieval", recipe.retriever), ("semi-dense", dense)):
        if model is not None:
            print(f"# {label}: {model.type}")
            for weight, path in model.needed_weights():
                print(_described(weight, path))


def settings(
    key: Annotated[
        Positional[str | None],
        arg(metavar="[KEY]", help="One setting or section; all, a line each, without."),
    ] = None,
) -> None:
    """Say what settings a recipe and `--set` take, with values and defaults."""
    from sfmprep.config.describe import describe

    show(describe(key))


def _described(name: str, path: Path | None) -> str:
    """Licence and place of weights that a recipe needs."""
    from sfmprep.weights import WEIGHTS, weights_here

    entry = WEIGHTS[name]
    here = weights_here(name, path)
    where = str(here.path) if here else f"not here; {entry.url or 'bring the file'}"
    return f"#   {name}: {entry.licence}, by {entry.origin}, {where}"


def weights(
    action: Annotated[
        Positional[Literal["list", "fetch", "verify"]],
        arg(metavar="[list|fetch|verify]", help="What to do."),
    ] = "list",
    names: Annotated[
        Positional[tuple[str, ...]],
        arg(metavar="[NAME ...]", help="Which; list and verify: all if none."),
    ] = (),
    *,
    every: Annotated[
        bool, arg(name="all", help="Fetch all that may be fetched, some 300 MB.")
    ] = False,
    accept_licence: Annotated[
        tuple[str, ...],
        UseAppendAction,
        arg(metavar="NAME", help="I read and accept the licence of these weights."),
    ] = (),
) -> None:
    """List, fetch or verify the weights of networks."""
    from sfmprep.weights import WEIGHTS, resolve_weights, weights_here

    if unknown := [name for name in names if name not in WEIGHTS]:
        raise ConfigError(
            f"no weights are called {unknown[0]!r}.{did_you_mean(unknown[0], WEIGHTS)}"
            f" There are: {', '.join(WEIGHTS)}."
        )
    if action == "fetch" and bool(names) == every:
        raise ConfigError(
            "weights fetch needs either names or --all. `sfmprep weights` lists them;"
            " `sfmprep recipes NAME` shows which a recipe needs."
        )
    if action == "fetch":
        start_logging(False)
    failed: list[SfmprepError] = []
    for name in names or WEIGHTS:
        entry = WEIGHTS[name]
        may_fetch = entry.url and (not entry.terms or name in accept_licence)
        if every and not may_fetch:
            continue  # nobody may hand it on, or it is here already
        try:
            found = weights_here(name)
            if action == "fetch":
                found = found or resolve_weights(
                    name, accepted=accept_licence, progress=show_progress
                )
            elif found is None and action == "verify" and names:
                raise WeightsError(
                    f"weights of {name} are not here, so there is nothing to verify."
                    f" `sfmprep weights fetch {name}` fetches them."
                )
        except SfmprepError as error:
            failed.append(error)
            print(f"{name:22} {entry.licence:12} FAILED  {error}")
            continue
        print(f"{name:22} {entry.licence:12} {found.path if found else 'not here'}")
        if found and action == "verify":
            print(f"{'':22} sha256 {found.sha256}")
    if failed:
        raise failed[0]


def doctor() -> None:
    """Show versions, GPU, weights and trainers that are here."""
    from sfmprep.pipelines.doctor import report

    for what, found in report():
        print(f"{what:14} {found}")


def completion(
    shell: Annotated[
        Positional[Literal["bash", "zsh"]],
        arg(metavar="[bash|zsh]", help="Which shell it is for."),
    ] = "bash",
) -> None:
    """Print what lets a shell complete commands, options and their values."""
    with contextlib.suppress(SystemExit), redirect_stdout(io.StringIO()) as script:
        tyro.extras.subcommand_cli_from_dict(
            _commands(), prog="sfmprep", args=["--tyro-print-completion", shell]
        )
    # files where tyro knows of nothing: IMAGES and OUT
    told = script.getvalue().replace("complete -F", "complete -o default -F")
    print(told.replace('\n_tyro_sfmprep "$@"\n', '\n_tyro_sfmprep "$@" || _files\n'))


def demo(
    out: Annotated[
        Positional[Path], arg(metavar="[OUT]", help="Where it goes.")
    ] = Path("demo"),
    options: Common = Options(),  # noqa: B008
    *,
    device: Device = "auto",
) -> int:
    """Render a small scene, reconstruct it and compare the poses with the truth."""
    loaded = options.load(_recipe_of(out / "dataset"))
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


def train() -> None:
    """Train the matcher on your own captures; see `sfmprep train --help`."""
    # `run` takes this command before it is called: it has commands of its own


# ----------------------------------------------------------------------- shared parts
def _recipe_of(out: Path, default: str = "splat") -> str:
    """The recipe of the run in `out`, if there was one."""
    of_run = out / "recipe.yaml"
    return str(of_run) if of_run.is_file() else default


@contextmanager
def _open(
    images: Path,
    out: Path,
    options: Options,
    *,
    default: str = "splat",
    goes_on: bool = False,
) -> Iterator[Run]:
    """Scans the images and opens the output folder for one stage."""
    loaded = _begin(images, out, options, default)
    from sfmprep.pipelines.develop import find_capture
    from sfmprep.pipelines.motion_masks import with_motion_masks
    from sfmprep.pipelines.run import open_run

    scanned = find_capture(images, out, loaded, progress=show_progress)
    scanned = with_motion_masks(scanned, out, loaded, progress=show_progress)
    with open_run(scanned, out, loaded, goes_on=goes_on, progress=show_progress) as run:
        yield run


def _begin(
    images: Path,
    out: Path,
    options: Options,
    default: str = "splat",
    first: Sequence[str] = (),
) -> Recipe:
    """Loads the recipe, and says what is done before imports that take seconds."""
    loaded = options.load(_recipe_of(out, default), first)
    options.start_logging()
    if not images.exists():
        expect_folder(images, "image")  # at once
    logger.info("reading the photographs of %s", images)
    return loaded


def _parsed(fail_below: tuple[tuple[str, ...], ...]) -> list[str]:
    """The thresholds; a mistake is told before the work."""
    from sfmprep.report.thresholds import parse_threshold

    wanted = flat(fail_below)
    for threshold in wanted:
        parse_threshold(threshold)
    return wanted
