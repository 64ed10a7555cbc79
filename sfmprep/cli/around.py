"""Commands around a run: view and judge it, list recipes, settings and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from sfmprep.cli.options import Out, Settings, flat
from sfmprep.config.base import ModelConfig
from sfmprep.config.load import load_recipe, recipe_names
from sfmprep.errors import ConfigError, SfmprepError, WeightsError, did_you_mean
from sfmprep.terminal import say, show, show_progress, start_logging


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
            show(f"{each:11} {load_recipe(each).description}")
        return
    recipe = load_recipe(name, flat(settings))
    print(recipe.to_yaml())
    for number, frontend in enumerate(recipe.frontends, 1):
        show(f"# choice {number}: {frontend.ladder_label()}")
        for weight, path in frontend.all_weights():
            show(_described(weight, path))
    dense = recipe.dense.matcher if recipe.dense else None
    flows = {
        "frames of films": recipe.film.flow,
        "motion masks": recipe.motion_masks.flow if recipe.motion_masks else None,
        "tracks": recipe.tracks.flow if recipe.tracks else None,
    }
    others: dict[str, ModelConfig | None] = {
        "retrieval": recipe.retriever,
        "semi-dense": dense,
        "poses foreseen": recipe.foresee.network if recipe.foresee else None,
        "initial points": recipe.export.seed.pointmaps,
    }
    others |= {k: flow for k, flow in flows.items() if flow and flow.needed_weights()}
    for label, model in others.items():
        if model is not None:
            show(f"# {label}: {model.type}")
            for weight, path in model.needed_weights():
                show(_described(weight, path))


def _described(name: str, path: Path | None) -> str:
    """Licence and place of weights that a recipe needs."""
    from sfmprep.weights import WEIGHTS, weights_here

    entry = WEIGHTS[name]
    here = weights_here(name, path)
    where = str(here.path) if here else f"not here; {entry.url or 'bring the file'}"
    return f"#   {name}: {entry.licence}, by {entry.origin}, {where}"


def settings(
    key: Annotated[
        Positional[str | None],
        arg(metavar="[KEY]", help="One setting or section; all, a line each, without."),
    ] = None,
) -> None:
    """Say what settings a recipe and `--set` take, with values and defaults."""
    from sfmprep.config.describe import describe

    show(describe(key))


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
            show(f"{name:22} {entry.licence:12} FAILED  {error}")
            continue
        show(f"{name:22} {entry.licence:12} {found.path if found else 'not here'}")
        if found and action == "verify":
            show(f"{'':22} sha256 {found.sha256}")
    if failed:
        raise failed[0]


def doctor() -> None:
    """Show versions, GPU, weights and trainers that are here."""
    from sfmprep.pipelines.doctor import report

    for what, found in report():
        show(f"{what:14} {found}")
