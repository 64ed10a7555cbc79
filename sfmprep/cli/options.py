"""What commands can be told, and what that is in the recipe."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import tyro
from pydantic import BaseModel
from tyro.conf import Positional, UseAppendAction, arg
from tyro.constructors import PrimitiveConstructorSpec

from sfmprep.config import (
    DatabaseConfig,
    MappingConfig,
    PairsConfig,
    Recipe,
    Target,
)
from sfmprep.config.load import load_recipe
from sfmprep.devices import num_cores, pick_device
from sfmprep.errors import ConfigError, did_you_mean
from sfmprep.executors.protocol import Executor
from sfmprep.progress import Progress
from sfmprep.terminal import StageProgress, start_logging

T = TypeVar("T")

Images = Annotated[
    Positional[Path], arg(metavar="IMAGES", help="Folder of images, or a film.")
]
Out = Annotated[Positional[Path], arg(metavar="OUT", help="Folder of the results.")]
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
Device = Annotated[
    str, arg(help="Where networks run: auto, cpu, cuda, or several: cuda:0,cuda:1.")
]
Shard = Annotated[
    str | None,
    arg(
        metavar="I/N",
        help="Do the I-th of N shares alone, as a task of an array job does; the"
        " command without it joins them.",
    ),
]
Thresholds = Annotated[
    tuple[tuple[str, ...], ...],
    UseAppendAction,
    arg(
        metavar="NAME=VALUE",
        help="Exit with 3 if the result is less, such as registered=0.9 of the images;"
        " also points, track_length, angle_deg, image_points, image_coverage,"
        " consistency.",
    ),
]
AsJson = Annotated[
    bool,
    tyro.conf.FlagCreatePairsOff,
    arg(name="json", help="Print the report as JSON, and nothing else, on stdout."),
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


# tyro by itself would tell of each member of a union what a wrong value is not
def _number(
    kind: type[int] | type[float], metavar: str, what: str
) -> PrimitiveConstructorSpec[Any]:
    def read(words: list[str]) -> float:
        try:
            return kind(words[0])
        except ValueError:
            raise ValueError(f"{words[0]} is no {what}") from None

    return PrimitiveConstructorSpec[Any](
        nargs=1,
        metavar=metavar,
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, kind),
        str_from_instance=lambda value: [str(value)],
    )


_WHOLE_NUMBER = _number(int, "N", "whole number")
_MINUTES = _number(float, "MINUTES", "number of minutes")


def _one_of(config: type[BaseModel], field: str) -> PrimitiveConstructorSpec[Any]:
    """The values that a setting may have, for messages and for completion."""
    return PrimitiveConstructorSpec[Any](
        nargs=1,
        metavar="",
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [str(value)],
        choices=get_args(config.model_fields[field].annotation),
    )


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
    pairs: Annotated[
        str | None,
        arg(
            metavar="HOW|FILE",
            help="Which pairs are matched: auto, exhaustive, sequential (a film),"
            " retrieval, spatial (by GPS), temporal (by EXIF times), or a text file.",
        ),
    ] = None
    camera_model: Annotated[
        str | None,
        _one_of(DatabaseConfig, "camera_model"),
        arg(metavar="MODEL", help="COLMAP's model of new cameras, such as OPENCV."),
    ] = None
    camera_params: Annotated[
        str | None,
        arg(
            metavar="NUMBERS",
            help="Its numbers where they are known, in pixels, such as 1520,960,540,0.",
        ),
    ] = None
    single_camera: Annotated[
        Flag, arg(help="One camera with one zoom took everything.")
    ] = False
    rigs: Annotated[
        Path | None,
        arg(
            metavar="FILE",
            help="COLMAP's rig_config.json: cameras that were fixed to each other.",
        ),
    ] = None
    mapper: Annotated[
        str | None,
        _one_of(MappingConfig, "type"),
        arg(metavar="HOW", help="incremental, global, or none."),
    ] = None
    max_size: Annotated[
        int | None,
        _WHOLE_NUMBER,
        arg(metavar="PIXELS", help="Longer side at which features are looked for."),
    ] = None
    budget_minutes: Annotated[
        float | None,
        _MINUTES,
        arg(
            metavar="MINUTES",
            help="The most that all beyond the first rung of matching may take; 0 for"
            " that rung alone.",
        ),
    ] = None
    num_threads: Annotated[
        int | None,
        _WHOLE_NUMBER,
        arg(
            metavar="N",
            help="The most cores that are used. With 1 the incremental mapper gives the"
            " same bits each time; with more, poses differ by hundredths of a degree.",
        ),
    ] = None
    executor: Annotated[
        Literal["local", "ray"],
        arg(help="Who does the large stages: this machine, or a Ray cluster."),
    ] = "local"
    address: Annotated[
        str | None,
        arg(
            metavar="HOST:PORT",
            help="Of the head of the Ray cluster; auto finds that of this machine.",
        ),
    ] = None
    verbose: Annotated[Flag, arg(help="Show the log of COLMAP as well.")] = False
    quiet: Annotated[
        Flag, arg(help="Show warnings and the result only, no progress.")
    ] = False
    log: Annotated[
        Path | None, arg(metavar="FILE", help="Add all messages, with times, to FILE.")
    ] = None

    def start_logging(self) -> None:
        """Begins to show what the library says, as these options ask."""
        if self.num_threads is not None:
            limit_threads(self.num_threads)
        else:
            heed_quota()
        start_logging(verbose=self.verbose, quiet=self.quiet, file=self.log)

    def progress(self, recipe: Recipe) -> Progress:
        """Shows the loops of a whole run with the number of their stage."""
        stronger = ["match weak pairs"] if recipe.stronger else []
        dense = ["match semi-dense", "keypoints", "join"] if recipe.dense else []
        beside = (
            ["extract beside", "match beside", "import beside", "verify beside"]
            if recipe.beside
            else []
        )
        tracks = ["follow"] if recipe.tracks else []
        has_rungs = beside or stronger or dense
        first = ["import, first", "verify, first"] if has_rungs else []
        second = [f"{each} again" for each in ("match", "import", "verify", "map")]
        closer = [f"{each} closer" for each in ("turn", "extract", "match")]
        closer += [f"{each} closer" for each in ("import", "verify", "map")]
        after = ("refine", "rigs", "sharpness")
        return StageProgress(
            [
                *(("identify", "extract"), ("describe", "retrieve"), ("match",)),
                *(
                    rung
                    for rung in ([*first, *beside, *stronger], dense, tracks)
                    if rung
                ),
                *(
                    ("import", "verify"),
                    ("calibrate", "map", *second, *closer, *after),
                    ("colours", "export"),
                ),
            ]
        )

    def devices(self, device: str) -> str:
        """What runs networks in this process: those that the user names, or any.

        Raises:
            ConfigError: see `pick_device`.
        """
        return pick_device(device if self.executor == "local" else "auto")

    def cluster(self, device: str) -> Executor | None:
        """What has the large stages done; None for this machine.

        Raises:
            ConfigError: Ray is not installed, or devices are named one by one for it.
        """
        if self.executor == "local":
            if self.address is not None:
                raise ConfigError(
                    f"--address {self.address} is that of a Ray cluster. Give"
                    " --executor ray as well."
                )
            return None
        if device not in ("auto", "cpu", "cuda"):
            raise ConfigError(
                f"--device {device}: with --executor ray, expected auto, cpu or cuda;"
                " Ray itself gives each shard a GPU."
            )
        from sfmprep.executors.ray import RayCluster

        return RayCluster(address=self.address or "auto", device=device)

    def load(self, default: str, first: Sequence[str] = ()) -> Recipe:
        """The recipe with all settings; those that a command itself makes first."""
        overrides = [*first, *self.overrides(), *flat(self.settings)]
        return load_recipe(self.recipe or default, overrides)

    def overrides(self) -> list[str]:
        """What the other options are in the recipe."""
        found = [] if self.pairs is None else [_pairs_setting(self.pairs)]
        if self.camera_model is not None:
            found.append(setting("database.camera_model", self.camera_model))
        if self.camera_params is not None:
            found.append(_camera_setting(self.camera_params))
        if self.single_camera:
            found.append("database.cameras=single")
        if self.rigs is not None:
            found.append(setting("rigs", self.rigs.resolve()))
        if self.mapper is not None:
            found.append(setting("mapping.type", self.mapper))
        if self.max_size is not None:
            found.append(f"features.max_size={self.max_size}")
        if self.budget_minutes is not None:
            found.append(f"budget_minutes={self.budget_minutes}")
        return found


@dataclass(frozen=True, kw_only=True)
class MaskOptions(Options):
    """Of stages that read masks."""

    masks: Annotated[
        Path | None,
        arg(
            metavar="DIR|motion",
            help="Folder of masks, a.jpg.png or a.png for a.jpg, or one file for all"
            " photographs; black is ignored. Or motion: what moves is found and"
            " ignored.",
        ),
    ] = None

    def overrides(self) -> list[str]:
        """What these options are in the recipe."""
        if self.masks is None:
            return super().overrides()
        if self.masks == Path("motion") and not self.masks.is_dir():
            return [*super().overrides(), "motion_masks={}"]
        return [*super().overrides(), setting("masks", self.masks.resolve())]


@dataclass(frozen=True, kw_only=True)
class TargetOptions(Options):
    """Of the dataset that is written."""

    target: Annotated[
        tuple[tuple[Target, ...], ...],
        UseAppendAction,
        arg(help="What will read the dataset, one or more."),
    ] = ()
    model: Annotated[
        tuple[tuple[int, ...], ...],
        UseAppendAction,
        arg(
            metavar="N",
            help="Models that become a dataset beside the largest (in OUT/submodels),"
            " where the capture fell apart: 1 2, or 0 for none; without it, all that"
            " are worth training on.",
        ),
    ] = ()
    georeference: Annotated[
        Flag,
        arg(
            help="Insist on metres and east, north, up from the photographs' GPS:"
            " without it, only where that tells the scale well."
        ),
    ] = False

    def overrides(self) -> list[str]:
        """What these options are in the recipe."""
        found = super().overrides()
        if self.target:
            found.append(setting("export.targets", flat(self.target)))
        if self.model:
            found.append(setting("export.models", flat(self.model)))
        if self.georeference:
            found.append("export.world.georeference=true")
        return found


@dataclass(frozen=True, kw_only=True)
class DatasetOptions(TargetOptions, MaskOptions):
    """Of the whole run."""


def flat(groups: Sequence[Sequence[T]]) -> list[T]:
    """The items of an option that may be given several times, in order."""
    return [item for group in groups for item in group]


def setting(key: str, value: object) -> str:
    """A setting as `--set` takes it."""
    return f"{key}={json.dumps(value, default=str, ensure_ascii=False)}"


def _pairs_setting(how: str) -> str:
    """The setting that `--pairs` stands for."""
    kinds = [c.model_fields["type"].default for c in get_args(get_args(PairsConfig)[0])]
    kinds.remove("file")
    if how in kinds:
        return f"pairs={{type: {how}}}"
    if Path(how).is_file():
        return f"pairs={{type: file, path: {json.dumps(str(Path(how).resolve()))}}}"
    raise ConfigError(
        f"--pairs {how}: it is none of {', '.join(kinds)}, and no such file is there."
        f"{did_you_mean(how, kinds)}"
    )


def _camera_setting(numbers: str) -> str:
    """The setting that `--camera-params` stands for."""
    try:
        return setting("database.camera_params", [float(n) for n in numbers.split(",")])
    except ValueError as error:
        raise ConfigError(
            f"--camera-params {numbers}: expected numbers with commas between them, in"
            " COLMAP's order for the camera model, such as 1520,960,540,0."
        ) from error


def limit_threads(number: int) -> None:
    """Lets this process use so many cores, before libraries count them.

    Raises:
        ConfigError: `number` is below 1.
    """
    if number < 1:
        raise ConfigError(f"--num-threads {number}: give 1 or more.")
    os.environ["OMP_NUM_THREADS"] = str(number)
    if hasattr(os, "sched_setaffinity"):  # Linux; COLMAP counts what is left
        cores = sorted(os.sched_getaffinity(0))
        # not the first ones: two runs beside each other would share them
        chosen = random.sample(cores, min(number, len(cores)))
        os.sched_setaffinity(0, chosen)


def heed_quota() -> None:
    """Lets this process use no more cores than its container leaves to it.

    COLMAP and OpenMP count those of its affinity, and would share a few among many
    threads.
    """
    if hasattr(os, "sched_getaffinity"):
        number = num_cores()
        if number < len(os.sched_getaffinity(0)):
            limit_threads(number)


def pose_settings(
    poses: Path, axes: str, direction: str, time_offset: float | None
) -> list[str]:
    """The settings of a run that starts from given poses and keeps their world."""
    config = {
        "path": str(poses.resolve()),
        "axes": axes,
        "direction": direction,
        "time_offset": time_offset,
    }
    return [
        setting("known_poses", config),
        "second_round=null",
        "export.world.up=keep",
        "export.world.centre=false",
    ]


Common = Annotated[Options, arg(name="")]
WithMasks = Annotated[MaskOptions, arg(name="")]
WithTargets = Annotated[TargetOptions, arg(name="")]
OfRun = Annotated[DatasetOptions, arg(name="")]
