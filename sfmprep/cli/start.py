"""How a command starts: its recipe, its log, its folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from sfmprep.capture.folder import expect_folder
from sfmprep.cli.options import Options, flat
from sfmprep.config import Recipe
from sfmprep.errors import ConfigError
from sfmprep.executors.isolated import begun_ahead
from sfmprep.terminal import show_progress

if TYPE_CHECKING:
    from sfmprep.capture.image_set import ImageSet
    from sfmprep.pipelines.run import Run

logger = logging.getLogger(__name__)

MAPPER = "sfmprep.pipelines.apart"  # as `apart.process_ahead`, without importing it


def recipe_of(out: Path, default: str = "splat") -> str:
    """The recipe of the run in `out`, if there was one."""
    of_run = out / "recipe.yaml"
    return str(of_run) if of_run.is_file() else default


def mapper_ahead(out: Path, recipe: Recipe) -> AbstractContextManager[None]:
    """Begins the process of the mapper for a first run, to import beside this one."""
    if recipe.mapping.type == "none" or (out / "recipe.yaml").is_file():
        return nullcontext()
    return begun_ahead(MAPPER)


@contextmanager
def open_folder(
    images: Path,
    out: Path,
    options: Options,
    *,
    default: str = "splat",
    goes_on: bool = False,
    device: str = "auto",
) -> Iterator[Run]:
    """Scans the images and opens the output folder for one stage."""
    loaded = begin(images, out, options, default)
    cluster = options.cluster(device)
    from sfmprep.pipelines.develop import find_capture
    from sfmprep.pipelines.motion_masks import with_motion_masks
    from sfmprep.pipelines.run import open_run

    has_masks = loaded.motion_masks is not None
    has_network = has_masks or loaded.film.flow.needed_weights()
    where = options.devices(device) if has_network else "cpu"  # torch loads slowly
    scanned = find_capture(images, out, loaded, device=where, progress=show_progress)
    if has_masks:
        scanned = with_motion_masks(
            scanned, out, loaded, device=where, progress=show_progress
        )
    with open_run(
        *(scanned, out, loaded),
        goes_on=goes_on,
        cluster=cluster,
        progress=show_progress,
    ) as run:
        yield run


def expect_no_cluster(options: Options, what: str) -> None:
    """Raises ConfigError where a cluster is given to what does not use one."""
    if options.executor != "local":
        raise ConfigError(f"{what} runs without a cluster; leave --executor out.")


def scan_for_share(
    images: Path, out: Path, options: Options, device: str
) -> tuple[ImageSet, Recipe]:
    """Scans the images for one task of many; nothing is written, and nothing locked."""
    expect_no_cluster(options, "--shard")
    if "," in device:
        raise ConfigError(
            f"--device {device}: a share is done on one device. Give one, and have as"
            " many shares more."
        )
    loaded = begin(images, out, options)
    from sfmprep.pipelines.develop import find_capture
    from sfmprep.pipelines.motion_masks import STAGE, ledger_of_given, masked
    from sfmprep.pipelines.workspace import Workspace

    scanned = find_capture(images, out, loaded, develops=False, progress=show_progress)
    if loaded.motion_masks is not None:
        given = ledger_of_given(scanned, out, loaded, progress=show_progress)
        if not given.is_done(STAGE):
            raise ConfigError(
                f"--shard: what moves is not masked in {out} yet, so a share would be"
                " extracted without masks. Run the command once without --shard, or"
                " leave motion masks out."
            )
        scanned = masked(scanned, Workspace(out))
    return scanned, loaded


def begin(
    images: Path,
    out: Path,
    options: Options,
    default: str = "splat",
    first: Sequence[str] = (),
) -> Recipe:
    """Loads the recipe, and says what is done before imports that take seconds."""
    loaded = options.load(recipe_of(out, default), first)
    options.start_logging()
    if not images.exists():
        expect_folder(images, "image")  # at once
    logger.info("reading the photographs of %s", images)
    return loaded


def parsed(fail_below: tuple[tuple[str, ...], ...]) -> list[str]:
    """The thresholds; a mistake is told before the work."""
    from sfmprep.report.thresholds import parse_threshold

    wanted = flat(fail_below)
    for threshold in wanted:
        parse_threshold(threshold)
    return wanted
