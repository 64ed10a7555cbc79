"""The command line: what can be called, and exit codes; `terminal.py` is what shows.

Exit codes: 0; 1 for a failed run; 2 for a wrong call; 3 for a result below what
`--fail-below` asks; 130 when interrupted.
"""

from __future__ import annotations

import difflib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro
from tyro.conf import Positional, UseAppendAction, arg

from sfmprep import __version__
from sfmprep.config import Recipe, Target
from sfmprep.config.load import load_recipe, recipe_names
from sfmprep.devices import pick_device
from sfmprep.errors import (
    ConfigError,
    ReconstructionError,
    SfmprepError,
    WeightsError,
)
from sfmprep.interrupts import EXIT_CODE, STOPPED, watch_signals
from sfmprep.terminal import print_report, say, show_progress, start_logging

if TYPE_CHECKING:
    from sfmprep.pipelines.run import Run

_BELOW = 3

T = TypeVar("T")

Images = Annotated[Positional[Path], arg(metavar="IMAGES", help="Folder of images.")]
Out = Annotated[Positional[Path], arg(metavar="OUT", help="Folder of the results.")]
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
Device = Annotated[
    str, arg(help="Where networks run: auto, cpu, cuda, or several: cuda:0,cuda:1.")
]
Thresholds = Annotated[
    tuple[tuple[str, ...], ...],
    UseAppendAction,
    arg(
        metavar="NAME=VALUE",
        help="Exit with 3 if the result is less, such as registered=0.9 of the images;"
        " also points, track_length, angle_deg, image_points, image_coverage.",
    ),
]


Settings = Annotated[
    tuple[tuple[str, ...], ...],
    UseAppendAction,
    arg(
        name="set",
        metavar="KEY=VALUE",
        help="Settings such as features.max_keypoints=2048.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every stage can be told."""

    recipe: Annotated[
        str | None,
        arg(
            metavar="NAME|FILE",
            help="A recipe (see `sfmprep recipes`) or a YAML file; without it that of"
            " the run in OUT, else splat.",
        ),
    ] = None
    settings: Settings = ()
    verbose: Annotated[Flag, arg(help="Show the log of COLMAP as well.")] = False

    def load(self, default: str) -> Recipe:
        """The recipe with all settings."""
        overrides = [*self.overrides(), *_flat(self.settings)]
        return load_recipe(self.recipe or default, overrides)

    def overrides(self) -> list[str]:
        """What the other options are in the recipe."""
        return []


@dataclass(frozen=True, kw_only=True)
class MaskOptions(Options):
    """Of stages that read masks."""

    masks: Annotated[
        Path | None,
        arg(
            metavar="DIR",
            help="Folder of masks, a.jpg.png or a.png for a.jpg; black is ignored.",
        ),
    ] = None

    def overrides(self) -> list[str]:
        """What these options are in the recipe."""
        masks = [] if self.masks is None else [_setting("masks", self.masks.resolve())]
        return [*super().overrides(), *masks]


@dataclass(frozen=True, kw_only=True)
class TargetOptions(Options):
    """Of the dataset that is written."""

    target: Annotated[
        tuple[tuple[Target, ...], ...],
        UseAppendAction,
        arg(help="What will read the dataset, one or more."),
    ] = ()
    georeference: Annotated[
        Flag, arg(help="Metres and east, north, up from the photographs' GPS.")
    ] = False

    def overrides(self) -> list[str]:
        """What these options are in the recipe."""
        found = super().overrides()
        if self.target:
            found.append(_setting("export.targets", _flat(self.target)))
        if self.georeference:
            found.append("export.world.georeference=true")
        return found


@dataclass(frozen=True, kw_only=True)
class DatasetOptions(TargetOptions, MaskOptions):
    """Of the whole run."""


def _flat(groups: Sequence[Sequence[T]]) -> list[T]:
    return [item for group in groups for item in group]


def _setting(key: str, value: object) -> str:
    return f"{key}={json.dumps(value, default=str, ensure_ascii=False)}"


Common = Annotated[Options, arg(name="")]
WithMasks = Annotated[MaskOptions, arg(name="")]
WithTargets = Annotated[TargetOptions, arg(name="")]
OfRun = Annotated[DatasetOptions, arg(name="")]


def main() -> None:
    """Runs the command line and ends the process with its exit code."""
    # OpenMP threads that spin while they wait made ALIKED 3 to 5 times slower on a
    # machine with other work; it must be set before torch is imported
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    watch_signals()
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # such as of `| head`; Python would flush once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def run(args: list[str]) -> int:
    """Runs the command line and returns its exit code, see above."""
    commands: dict[str, Callable[..., Any]] = {
        "reconstruct": reconstruct,
        "extract": extract,
        "pairs": pairs,
        "match": match,
        "database": database,
        "map": map_,
        "export": export,
        "report": report,
        "status": status,
        "view": view,
        "evaluate": evaluate,
        "recipes": recipes,
        "weights": weights,
        "doctor": doctor,
        "demo": demo,
        "train": train,
    }
    if args == ["--version"]:
        print(f"sfmprep {__version__}")
        return 0
    try:
        if args and not args[0].startswith("-") and args[0] not in commands:
            near = difflib.get_close_matches(args[0], commands, 1)
            hint = f" Did you mean `sfmprep {near[0]}`?" if near else ""
            raise ConfigError(
                f"no command is called {args[0]!r}.{hint} See `sfmprep --help`."
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
        return exit_.code if isinstance(exit_.code, int) else 1
    return code or 0


# --------------------------------------------------------------------- the main job
def reconstruct(
    images: Images,
    out: Out,
    options: OfRun = DatasetOptions(),  # noqa: B008
    *,
    device: Device = "auto",
    fail_below: Thresholds = (),
) -> int:
    """Turn a folder of photographs into a dataset for splat training."""
    loaded = options.load(_recipe_of(out))
    start_logging(options.verbose)
    from sfmprep.pipelines.reconstruct import reconstruct
    from sfmprep.report.thresholds import check_thresholds, parse_threshold

    wanted = _flat(fail_below)
    for threshold in wanted:
        parse_threshold(threshold)  # a mistake is told before the work
    found = reconstruct(
        images, out, loaded, device=pick_device(device), progress=show_progress
    )
    print_report(found, out, loaded)
    return _say_below(check_thresholds(found, wanted))


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
) -> None:
    """Choose the pairs of images to match, into OUT/work/pairs.txt."""
    from sfmprep.pipelines import artefacts, stages

    with (
        _open(images, out, options, goes_on=True) as run,
        artefacts.open_features(run) as features,
    ):
        found = stages.make_pairs(run, features, progress=show_progress)
        print(f"{len(found)} pairs in {run.workspace.pairs}")


def match(
    images: Images,
    out: Out,
    options: Common = Options(),  # noqa: B008
    *,
    device: Device = "auto",
) -> None:
    """Match the pairs of OUT/work/pairs.txt into OUT/work/matches.h5."""
    from sfmprep.pipelines import artefacts, stages
    from sfmprep.pipelines.semidense import join_semi_dense

    run_on: dict[str, Any] = {
        "device": pick_device(device),
        "progress": show_progress,
    }
    with (
        _open(images, out, options, goes_on=True) as run,
        artefacts.open_features(run) as features,
        stages.match(
            run, found := artefacts.read_pairs(run), features, **run_on
        ) as store,
    ):
        print(f"{len(store)} pairs are matched in {run.workspace.matches}")
        if run.recipe.dense is not None:
            joined = join_semi_dense(
                *(run, run.recipe.dense, features, found, store), **run_on
            )
            with joined[0], joined[1]:
                print(
                    f"{len(joined[1])} pairs with semi-dense matches in"
                    f" {run.workspace.joined_matches}"
                )


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
) -> None:
    """Find poses and points from the database, into OUT/work/models."""
    from sfmprep.pipelines import artefacts, stages

    with _open(images, out, options, goes_on=True) as run:
        verified = artefacts.read_database(run)
        models = stages.find_poses(run, verified, progress=show_progress)
        for number, model in enumerate(models):
            print(
                f"{run.workspace.models / str(number)}: {model.num_reg_images()}"
                f" images, {model.num_points3D()} points"
            )


def export(
    images: Images,
    out: Out,
    options: WithTargets = TargetOptions(),  # noqa: B008
) -> None:
    """Write the dataset that trainers open into OUT, from its largest model."""
    from sfmprep.pipelines import artefacts, reporting, stages

    with _open(images, out, options, goes_on=True) as run:
        models = artefacts.read_models(run)
        features, matches = artefacts.open_joined(run)
        with features, matches:
            stages.export(run, models[0], features, matches, progress=show_progress)
            reporting.write_report_again(run, models, features)
    print(f"dataset: {out}")


def report(
    images: Images,
    out: Out,
    options: Common = Options(),  # noqa: B008
    *,
    fail_below: Thresholds = (),
) -> int:
    """Write OUT/report.html and OUT/report.json anew, and check the result."""
    from sfmprep.pipelines import artefacts, reporting
    from sfmprep.report.thresholds import check_thresholds, parse_threshold

    wanted = _flat(fail_below)
    for threshold in wanted:
        parse_threshold(threshold)  # a mistake is told before the work
    with _open(images, out, options, goes_on=True) as run:
        try:
            models = artefacts.read_models(run)
        except ReconstructionError as error:
            say(f"warning: {error}")
            models = []
        with artefacts.open_keypoints(run) as features:
            found = reporting.write_report_again(run, models, features)
    print(f"report: {out / 'report.html'}")
    return _say_below(check_thresholds(found, wanted))


def status(
    images: Images,
    out: Out,
    options: WithMasks = MaskOptions(),  # noqa: B008
) -> None:
    """Say of each stage whether it is done, and why it would run again."""
    loaded = options.load(_recipe_of(out))
    start_logging(options.verbose)
    from sfmprep.capture.image_set import ImageSet
    from sfmprep.pipelines.status import stages_of

    scanned = ImageSet.scan(images, mask_root=loaded.masks)
    for stage in stages_of(scanned, out, loaded, progress=show_progress):
        print(f"{stage.name:18} {'done' if stage.is_done else '-':5} {stage.file}")
        for reason in stage.why:
            print(f"{'':18} {'':5} would run: {reason}")


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
    """Show cameras and points in the browser; needs sfmprep[view]."""
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
    from sfmprep.evaluation.poses import evaluate_model, read_reference
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
    from sfmprep.models.build import dense_weights_of, weights_of

    if name is None:
        for each in recipe_names():
            print(f"{each:10} {load_recipe(each).description}")
        return
    recipe = load_recipe(name, _flat(settings))
    print(recipe.to_yaml())
    for number, frontend in enumerate(recipe.frontends, 1):
        print(f"# choice {number}: {frontend.label()}")
        for weight, path in weights_of(frontend):
            print(_described(weight, path))
    if recipe.dense is not None:
        print(f"# semi-dense: {recipe.dense.matcher.type}")
        for weight, path in dense_weights_of(recipe.dense.matcher):
            print(_described(weight, path))


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
) -> None:
    """List, fetch or verify the weights of networks."""
    from sfmprep.weights import WEIGHTS, resolve_weights, weights_here

    if unknown := [name for name in names if name not in WEIGHTS]:
        raise ConfigError(
            f"no weights are called {unknown[0]!r}. There are: {', '.join(WEIGHTS)}."
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
        if every and entry.url is None:
            continue  # nobody may hand it on, or it is here already
        try:
            if action == "fetch":
                found = resolve_weights(name, progress=show_progress)
            elif (found := weights_here(name)) is None and action == "verify" and names:
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


def demo(
    out: Annotated[
        Positional[Path], arg(metavar="[OUT]", help="Where it goes.")
    ] = Path("demo"),
    options: Common = Options(),  # noqa: B008
    *,
    device: Device = "auto",
) -> None:
    """Render a small scene, reconstruct it and compare the poses with the truth."""
    loaded = options.load(_recipe_of(out / "dataset"))
    start_logging(options.verbose)
    from sfmprep.pipelines.demo import reconstruct_demo

    found, evaluation = reconstruct_demo(
        out, loaded, device=pick_device(device), progress=show_progress
    )
    print_report(found, out / "dataset", loaded)
    auc = ", ".join(f"{value:.1f} at {key}°" for key, value in evaluation.auc.items())
    print(f"pose AUC against the truth (per cent): {auc}")


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
    loaded = options.load(_recipe_of(out, default))
    start_logging(options.verbose)
    from sfmprep.capture.image_set import ImageSet
    from sfmprep.pipelines.run import open_run

    scanned = ImageSet.scan(images, mask_root=loaded.masks)
    with open_run(scanned, out, loaded, goes_on=goes_on, progress=show_progress) as run:
        yield run


def _say_below(lacking: list[str]) -> int:
    """Prints what is below a threshold and returns the exit code."""
    for sentence in lacking:
        say(f"sfmprep: below the threshold: {sentence}")
    return _BELOW if lacking else 0
