"""The command line: what can be called, and exit codes; `terminal.py` is what shows."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional, UseAppendAction, arg

from sfmprep.config import Recipe
from sfmprep.errors import ConfigError, SfmprepError
from sfmprep.recipe_file import load_recipe, recipe_names
from sfmprep.terminal import print_summary, say, show_progress, start_logging

if TYPE_CHECKING:
    from sfmprep.images import ImageSet
    from sfmprep.workspace import Workspace

Images = Annotated[Positional[Path], arg(metavar="IMAGES", help="Folder of images.")]
Out = Annotated[Positional[Path], arg(metavar="OUT", help="Folder of the results.")]
RecipeName = Annotated[
    str,
    arg(
        metavar="NAME|FILE",
        help="A recipe's name (see `sfmprep recipes`) or a YAML file.",
    ),
]
RecipeOfRun = Annotated[
    str | None,
    arg(
        metavar="NAME|FILE",
        help="A recipe; without it that of the run in OUT, else splat.",
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
Device = Annotated[str, arg(help="Where networks run: auto, cpu, cuda, cuda:1, ...")]
Verbose = Annotated[
    bool, tyro.conf.FlagCreatePairsOff, arg(help="Show the log of COLMAP as well.")
]


def main() -> None:
    """Runs the command line and ends the process with its exit code."""
    # OpenMP threads that spin while they wait made ALIKED 3 to 5 times slower on a
    # machine with other work; it must be set before torch is imported
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # such as of `| head`; Python would flush once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def run(args: list[str]) -> int:
    """Runs the command line.

    Returns:
        0; 1 for a failed run; 2 for a wrong call; 130 when interrupted.
    """
    try:
        tyro.extras.subcommand_cli_from_dict(
            {
                "reconstruct": reconstruct,
                "extract": extract,
                "pairs": pairs,
                "match": match,
                "database": database,
                "map": map_,
                "export": export,
                "evaluate": evaluate,
                "recipes": recipes,
                "weights": weights,
                "doctor": doctor,
                "demo": demo,
            },
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
        say("sfmprep: stopped. The same command goes on where this run was.")
        return 130
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else 1
    return 0


# --------------------------------------------------------------------- the main job
def reconstruct(
    images: Images,
    out: Out,
    *,
    recipe: RecipeName = "splat",
    settings: Settings = (),
    device: Device = "auto",
    verbose: Verbose = False,
) -> None:
    """Turn a folder of photographs into a dataset for splat training."""
    loaded = load_recipe(recipe, _flat(settings))
    start_logging(verbose)
    from sfmprep.pipelines.reconstruct import reconstruct

    summary = reconstruct(
        images, out, loaded, device=_pick_device(device), progress=show_progress
    )
    print_summary(summary, out, loaded)


# --------------------------------------------------------------- the stages, one by one
def extract(
    images: Images,
    out: Out,
    *,
    recipe: RecipeOfRun = None,
    settings: Settings = (),
    device: Device = "auto",
    verbose: Verbose = False,
) -> None:
    """Extract features into OUT/work/features.h5."""
    from sfmprep.pipelines import stages

    scanned, workspace, chosen = _open(images, out, recipe, settings, verbose)
    store, _ = stages.extract(
        scanned, workspace, chosen, device=_pick_device(device), progress=show_progress
    )
    with store:
        print(f"{len(store)} images have features in {workspace.features}")


def pairs(
    images: Images,
    out: Out,
    *,
    recipe: RecipeOfRun = None,
    settings: Settings = (),
    verbose: Verbose = False,
) -> None:
    """Choose the pairs of images to match, into OUT/work/pairs.txt."""
    from sfmprep.pipelines import stages

    scanned, workspace, chosen = _open(images, out, recipe, settings, verbose)
    with stages.open_features(scanned, workspace) as features:
        found = stages.make_pairs(
            scanned, workspace, chosen, features, progress=show_progress
        )
    print(f"{len(found)} pairs in {workspace.pairs}")


def match(
    images: Images,
    out: Out,
    *,
    recipe: RecipeOfRun = None,
    settings: Settings = (),
    device: Device = "auto",
    verbose: Verbose = False,
) -> None:
    """Match the pairs of OUT/work/pairs.txt into OUT/work/matches.h5."""
    from sfmprep.pipelines import stages

    scanned, workspace, chosen = _open(images, out, recipe, settings, verbose)
    with (
        stages.open_features(scanned, workspace) as features,
        stages.match(
            stages.read_pairs(scanned, workspace),
            workspace,
            chosen,
            features,
            device=_pick_device(device),
            progress=show_progress,
        ) as store,
    ):
        print(f"{len(store)} pairs are matched in {workspace.matches}")


def database(
    images: Images,
    out: Annotated[
        Positional[Path | None],
        arg(metavar="[OUT]", help="Folder of the results; PROJECT.sfmprep by default."),
    ] = None,
    *,
    database: Annotated[
        Path | None,
        arg(
            metavar="PROJECT.db",
            help="A COLMAP database to fill in place; extracts and matches as needed.",
        ),
    ] = None,
    recipe: RecipeOfRun = None,
    settings: Settings = (),
    device: Device = "auto",
    verbose: Verbose = False,
) -> None:
    """Import features and matches into a COLMAP database and verify them."""
    from sfmprep.pipelines import stages
    from sfmprep.pipelines.fill import fill_existing_database

    if database is not None:
        out = out or database.with_suffix(".sfmprep")
        scanned, workspace, chosen = _open(
            images, out, recipe, settings, verbose, default="colmap"
        )
        path = database
        verified = fill_existing_database(
            scanned,
            workspace,
            chosen,
            database,
            device=_pick_device(device),
            progress=show_progress,
        )
    elif out is not None:
        scanned, workspace, chosen = _open(images, out, recipe, settings, verbose)
        path = workspace.database(chosen)
        verified = stages.fill_from_stores(
            scanned, workspace, chosen, progress=show_progress
        )
    else:
        raise ConfigError("`sfmprep database` needs OUT, or --database PROJECT.db.")
    print(
        f"{verified.num_verified} of {verified.num_pairs} pairs verified,"
        f" {verified.num_inliers} inliers, in {path}"
    )


def map_(
    images: Images,
    out: Out,
    *,
    recipe: RecipeOfRun = None,
    settings: Settings = (),
    verbose: Verbose = False,
) -> None:
    """Find poses and points from the database, into OUT/work/models."""
    from sfmprep.pipelines import stages

    scanned, workspace, chosen = _open(images, out, recipe, settings, verbose)
    verified = stages.read_database(workspace, chosen)
    models = stages.map_and_refine(
        scanned, workspace, chosen, verified, progress=show_progress
    )
    for number, model in enumerate(models):
        print(
            f"{workspace.models / str(number)}: {model.num_reg_images()} images,"
            f" {model.num_points3D()} points"
        )


def export(
    images: Images,
    out: Out,
    *,
    recipe: RecipeOfRun = None,
    settings: Settings = (),
    verbose: Verbose = False,
) -> None:
    """Write the dataset that trainers open into OUT, from its largest model."""
    from sfmprep.pipelines import stages

    scanned, workspace, chosen = _open(images, out, recipe, settings, verbose)
    stages.export(
        scanned,
        workspace,
        chosen,
        stages.read_models(workspace)[0],
        progress=show_progress,
    )
    print(f"dataset: {out}")


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
    from sfmprep.evaluate import evaluate_model, read_reference
    from sfmprep.pipelines.stages import read_result

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
    from sfmprep.models import weights_of
    from sfmprep.weights import WEIGHTS, weights_here

    if name is None:
        for each in recipe_names():
            print(f"{each:10} {load_recipe(each).description}")
        return
    recipe = load_recipe(name, _flat(settings))
    print(recipe.to_yaml())
    for number, frontend in enumerate(recipe.frontends, 1):
        print(f"# choice {number}: {frontend.label()}")
        for weight, path in weights_of(frontend):
            entry = WEIGHTS[weight]
            here = weights_here(weight, path)
            where = str(here.path) if here else f"not here; {entry.url}"
            print(f"#   {weight}: {entry.licence}, by {entry.origin}, {where}")


def weights(
    action: Annotated[
        Positional[Literal["list", "fetch", "verify"]],
        arg(metavar="[list|fetch|verify]", help="What to do."),
    ] = "list",
    names: Annotated[
        Positional[tuple[str, ...]],
        arg(metavar="[NAME ...]", help="Which; all where none is named."),
    ] = (),
) -> None:
    """List, fetch or verify the weights of networks."""
    from sfmprep.weights import WEIGHTS, resolve_weights, weights_here

    if unknown := [name for name in names if name not in WEIGHTS]:
        raise ConfigError(
            f"no weights are called {unknown[0]!r}. There are: {', '.join(WEIGHTS)}."
        )
    failed: list[SfmprepError] = []
    for name in names or WEIGHTS:
        entry = WEIGHTS[name]
        try:
            found = resolve_weights(name) if action == "fetch" else weights_here(name)
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
    *,
    recipe: RecipeName = "splat",
    settings: Settings = (),
    device: Device = "auto",
    verbose: Verbose = False,
) -> None:
    """Render a small scene, reconstruct it and compare the poses with the truth."""
    loaded = load_recipe(recipe, _flat(settings))
    start_logging(verbose)
    from sfmprep.pipelines.demo import reconstruct_demo

    summary, evaluation = reconstruct_demo(
        out, loaded, device=_pick_device(device), progress=show_progress
    )
    print_summary(summary, out / "dataset", loaded)
    auc = ", ".join(f"{value:.1f} at {key}°" for key, value in evaluation.auc.items())
    print(f"pose AUC against the truth (per cent): {auc}")


# ----------------------------------------------------------------------- shared parts
def _open(
    images: Path,
    out: Path,
    recipe: str | None,
    settings: tuple[tuple[str, ...], ...],
    verbose: bool,
    default: str = "splat",
) -> tuple[ImageSet, Workspace, Recipe]:
    """Scans the images and opens the output folder for one stage."""
    of_run = out / "recipe.yaml"
    name = recipe or (str(of_run) if of_run.is_file() else default)
    loaded = load_recipe(name, _flat(settings))
    start_logging(verbose)
    from sfmprep.images import ImageSet
    from sfmprep.pipelines.reconstruct import open_workspace

    scanned = ImageSet.scan(images)
    return scanned, *open_workspace(scanned, out, loaded)


def _flat(settings: tuple[tuple[str, ...], ...]) -> list[str]:
    return [setting for group in settings for setting in group]


def _pick_device(device: str) -> str:
    """The device to use.

    Raises:
        ConfigError: torch does not have it.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"--device {device}: torch cannot use it ({reason}). See `sfmprep doctor`."
        ) from error
    return device
