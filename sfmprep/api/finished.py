"""With a finished dataset: photographs are added to it, and others located in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sfmprep.config.load import read_resolved
from sfmprep.devices import pick_device
from sfmprep.errors import ConfigError
from sfmprep.mapping.localise import Located
from sfmprep.pipelines import add as pipeline_of_add
from sfmprep.pipelines import localise as pipeline_of_localise
from sfmprep.progress import Progress, silent
from sfmprep.report.schema import Report


def add_photographs(
    folder: str | Path,
    out: str | Path,
    *,
    adjust: bool = False,
    device: str = "cpu",
    progress: Progress = silent,
) -> Report:
    """Registers photographs that were put into a folder since its dataset was made.

    Poses, cameras and world of what is there stay as they are, as `sfmprep add` does;
    with `adjust` the world does.

    Args:
        folder: What the dataset was made from, with the new photographs.
        out: The folder of that dataset, with its `work`.
        adjust: Whether earlier poses and cameras are adjusted too, to what all
            photographs tell; then none needs to be new.
        device: As in `extract`.
        progress: Wraps the loops; tqdm fits.

    Returns:
        What was found; it is also in `out/report.json` and `out/report.html`.

    Raises:
        ConfigError: `out` holds no finished dataset, or nothing is new.
        SfmprepError: as `reconstruct`; what is done until then is kept.
    """
    recipe = Path(out) / "recipe.yaml"
    if not recipe.is_file():
        raise ConfigError(f"{out} is not an output of sfmprep: it has no recipe.yaml.")
    return pipeline_of_add.add_photographs(
        *(Path(folder), Path(out), read_resolved(recipe)),
        adjust=adjust,
        device=pick_device(device),
        progress=progress,
    )


def localise(
    out: str | Path,
    photographs: str | Path | Sequence[str | Path],
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> list[Located]:
    """Finds where photographs were taken, in the world of a finished dataset.

    Args:
        out: Its folder, with its `work`; nothing in it is changed.
        photographs: Files, or one folder; they need not be of the dataset.
        device: As in `extract`.
        progress: Wraps the loop over photographs; tqdm fits.

    Returns:
        One entry a photograph, by name, with its verdict: `found`, `doubtful`, or
        `unknown` with the reason and no pose.

    Raises:
        ConfigError: `out` holds no model.
        ImageError: no photograph can be read.
        StoreError: features or model are damaged, or not of each other.
        WeightsError, DeviceError: as `extract`.
    """
    given = [photographs] if isinstance(photographs, str | Path) else photographs
    return pipeline_of_localise.localise(
        Path(out),
        [Path(each) for each in given],
        device=pick_device(device),
        progress=progress,
    )
