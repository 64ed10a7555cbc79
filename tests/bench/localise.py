"""Single photographs against a model of the others: `localise` beside COLMAP's way.

    python -m tests.bench.localise                       (or: make bench-localise)
    python -m tests.bench.localise --scenes Herz-Jesus-P8 --recipe compact

Needs the scenes of `../shared`. Each photograph that is left out is placed in a model
of all others: by `sfmprep localise`, and as COLMAP's `image_registrator` does, after
SIFT features of it and matches with all others. Results are added to a file, line by
line, and what is in it is not run again; delete it to begin anew. The page
`examples/localise.md` is written from it.
"""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from sfmprep.evaluation.reference import CameraPose, read_reference, registered_poses
from sfmprep.export.install import WORLD
from sfmprep.mapping.alignment import align
from sfmprep.pipelines.localise import _ALL_UP_TO, _NUM_ASKED, localise
from tests.bench.measure import metadata
from tests.bench.scoreboard.play import Row, read_rows
from tests.bench.scoreboard.scenes import Prepared, prepare, shared
from tests.bench.shared import radius, run_sfmprep, scene_options, use_shared_weights

SCENES = ("Herz-Jesus-P8", "fountain-P11", "tum-fr2-desk20", "fox")
COLMAP = "COLMAP"
_EACH_UP_TO = 12  # photographs of a scene, above which not each is left out
_EVERY = 5
_ASIDES = {  # what else errors of a scene hold
    "fountain-P11": """
Nobody tells the true principal point, which on fountain-P11 is 0.48° from the middle:
that alone can turn all rotations by so much.""",
    "tum-fr2-desk20": "\nThe reference of tum-fr2-desk20 is off in time.",
    "fox": "\nThe reference of fox is an estimate by COLMAP.",
}
_KEY = ("scene", "tool", "name", "max_size")  # a line is done if these agree


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A photograph against a model that does not hold it."""

    verdict: str  # found, doubtful or unknown
    pose: CameraPose | None  # in the world of the model; None where it is unknown
    others: Mapping[str, CameraPose]  # those of the model, by image name
    wall: float  # seconds, from the photograph and the model to the pose
    cpu: float


def main() -> None:
    """Reads the command line."""
    parser = scene_options(__doc__, SCENES, max_size=720, page="localise")
    parser.add_argument("--recipe", default="splat")
    options = parser.parse_args()
    use_shared_weights()
    pycolmap.logging.minloglevel = 2
    results, runs = options.scratch / "results.jsonl", options.scratch / "runs"
    tools: dict[str, Callable[[Prepared, Sequence[str]], Iterator[Placed]]] = {
        options.recipe: lambda scene, names: _by_sfmprep(
            scene, names, runs, options.recipe
        ),
        COLMAP: lambda scene, names: _by_colmap(scene, names, runs),
    }
    for scene in SCENES:
        if scene not in options.scenes:
            continue
        prepared = prepare(shared(scene), options.scratch / "scenes", options.max_size)
        for tool, place in tools.items():
            about = {"scene": scene, "tool": tool, "max_size": options.max_size}
            done = {tuple(row[word] for word in _KEY) for row in read_rows(results)}
            names = [
                name
                for name in left_out(prepared.names)
                if (scene, tool, name, options.max_size) not in done
            ]
            shutil.rmtree(runs, ignore_errors=True)
            runs.mkdir(parents=True)
            for name, placed in zip(
                names, place(prepared, names) if names else (), strict=True
            ):
                row = about | _measured(prepared, name, placed)
                with results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print(row, flush=True)
            shutil.rmtree(runs)
    rows = [row for row in read_rows(results) if row["max_size"] == options.max_size]
    options.page.write_text(page(rows, options.max_size), "utf-8")


def left_out(names: Sequence[str]) -> Sequence[str]:
    """The photographs that are left out one after the other: each, or every fifth."""
    return names if len(names) <= _EACH_UP_TO else names[::_EVERY]


# ------------------------------------------------------------------------------- tools
def _by_sfmprep(
    scene: Prepared, names: Sequence[str], runs: Path, recipe: str
) -> Iterator[Placed]:
    """Features and matches are those of one run; poses are made anew without it.

    The model is bit by bit that of a run from nothing without the photograph.
    """
    images, away, whole, out = (runs / f for f in ("images", "away", "all", "out"))
    shutil.copytree(scene.images, images)
    away.mkdir()
    run_sfmprep("reconstruct", images, whole, "--recipe", recipe)
    for name in names:
        shutil.copytree(whole, out)
        (images / name).rename(away / name)
        run_sfmprep("reconstruct", images, out, "--recipe", recipe)
        start = time.monotonic(), time.process_time()
        (found,) = localise(out, [away / name])
        wall, cpu = _since(start)
        pose = None
        if found.rotation is not None and found.centre is not None:
            pose = CameraPose(rotation=found.rotation, centre=found.centre)
        model = pycolmap.Reconstruction(out / "work" / "models" / "0")
        world = json.loads((out / WORLD).read_text("utf-8"))["world_from_sfm"]
        model.transform(pycolmap.Sim3d(np.array(world)[:3]))
        others = registered_poses(model)
        (away / name).rename(images / name)
        shutil.rmtree(out)
        yield Placed(
            verdict=found.verdict, pose=pose, others=others, wall=wall, cpu=cpu
        )


def _by_colmap(scene: Prepared, names: Sequence[str], runs: Path) -> Iterator[Placed]:
    """Features and matches are made once; those of the photograph are made anew."""
    whole, database, models = (runs / f for f in ("all.db", "rest.db", "models"))
    one = pycolmap.CameraMode.SINGLE
    pycolmap.extract_features(whole, scene.images, camera_mode=one)
    pycolmap.match_exhaustive(whole)
    for name in names:
        shutil.copy(whole, database)
        forget(database, name)
        models.mkdir()
        found = pycolmap.incremental_mapping(database, scene.images, models)
        sizes = {number: model.num_reg_images() for number, model in found.items()}
        largest = models / str(max(sizes, key=sizes.__getitem__))
        others = registered_poses(pycolmap.Reconstruction(largest))
        start = time.monotonic(), time.process_time()
        pycolmap.extract_features(database, scene.images, [name], camera_mode=one)
        pycolmap.match_exhaustive(database)  # the pairs that it lacks
        pose = register(database, pycolmap.Reconstruction(largest), name)
        wall, cpu = _since(start)
        shutil.rmtree(models)
        verdict = "unknown" if pose is None else "found"
        yield Placed(verdict=verdict, pose=pose, others=others, wall=wall, cpu=cpu)


def forget(path: Path, name: str) -> None:
    """Takes features and matches of an image out of a COLMAP database."""
    with pycolmap.Database.open(path) as database:
        ids = {image.name: image.image_id for image in database.read_all_images()}
        own = ids.pop(name)
        for other in ids.values():
            database.delete_matches(own, other)
            database.delete_two_view_geometry(own, other)
    with closing(sqlite3.connect(path)) as tables, tables:
        for table in ("keypoints", "descriptors"):
            tables.execute(f"DELETE FROM {table} WHERE image_id = ?", (own,))


def register(
    path: Path, model: pycolmap.Reconstruction, name: str
) -> CameraPose | None:
    """The pose that COLMAP gives to an image of a database; None if it gives none.

    The steps are those of its command `image_registrator`, of this one image.
    """
    with pycolmap.Database.open(path) as database:
        least = pycolmap.IncrementalPipelineOptions().min_num_matches
        options = pycolmap.DatabaseCacheOptions(min_num_matches=least)
        cache = pycolmap.DatabaseCache.create(database, options)
    mapper = pycolmap.IncrementalMapper(cache)
    mapper.begin_reconstruction(model)
    image = model.find_image_with_name(name)
    if image is not None:
        mapper.register_next_image(pycolmap.IncrementalMapperOptions(), image.image_id)
    mapper.end_reconstruction(False)
    return registered_poses(model).get(name)


def _since(start: tuple[float, float]) -> tuple[float, float]:
    """Seconds by the clock, and of this process's CPU, since both were read."""
    return time.monotonic() - start[0], time.process_time() - start[1]


# -------------------------------------------------------------------------- comparison
def _measured(scene: Prepared, name: str, placed: Placed) -> Row:
    """What a line holds of one photograph."""
    truth = read_reference(scene.images.parent)
    found = errors(placed.others, {}, truth)
    row: Row = {
        "name": name,
        "verdict": placed.verdict,
        "registered": len(placed.others),
        "others": [
            statistics.median(each) for each in zip(*found.values(), strict=True)
        ],
        "off": None,
        "seconds": round(placed.wall, 2),
        "cpu_seconds": round(placed.cpu, 2),
    }
    if placed.pose is not None:
        row["off"] = errors(placed.others, {name: placed.pose}, truth)[name]
    about = metadata("cpu")
    return row | {
        key: about[key]
        for key in ("commit", "date", "versions", "device", "cores", "load_average")
    }


def errors(
    others: Mapping[str, CameraPose],
    placed: Mapping[str, CameraPose],
    truth: Mapping[str, CameraPose],
) -> dict[str, tuple[float, float]]:
    """How far poses are off after the similarity that fits the others best.

    Args:
        others: The poses of the model; only they tell the similarity.
        placed: Poses in its world of images that it does not hold; may be empty.
        truth: The poses of the reference.

    Returns:
        Of all with a true pose the error of the centre, in per cent of the radius of
        the true ones, and of the rotation in degrees.

    Raises:
        ValueError: an image that was placed is in the model, or fewer than two of the
            model have a true pose.
    """
    if held := placed.keys() & others.keys():
        raise ValueError(f"{min(held)} is in the model that it was to be placed in")
    known = sorted(others.keys() & truth.keys())
    if len(known) < 2:
        raise ValueError(
            f"{len(known)} image of the model has a true pose, 2 are needed"
        )
    own, given = (
        (
            np.array([poses[name].rotation for name in known]),
            np.array([poses[name].centre for name in known]),
        )
        for poses in (others, truth)
    )
    world = align(own, given).given_from_own
    turn, length = np.asarray(world.rotation.matrix()), radius(truth.values())
    found = {}
    for name, pose in sorted({**others, **placed}.items()):
        if name in truth:
            centre = world.scale * turn @ pose.centre + world.translation
            off = float(np.linalg.norm(centre - truth[name].centre))
            between = pose.rotation @ turn.T @ truth[name].rotation.T
            cosine = np.clip((np.trace(between) - 1) / 2, -1, 1)
            found[name] = 100 * off / length, math.degrees(math.acos(cosine))
    return found


# -------------------------------------------------------------------------------- page
def page(rows: Sequence[Row], max_size: int) -> str:
    """`examples/localise.md`."""
    tools = [
        *dict.fromkeys(row["tool"] for row in rows if row["tool"] != COLMAP),
        COLMAP,
    ]
    rows = list({tuple(row[word] for word in _KEY): row for row in rows}.values())
    cores = _each(row["cores"] for row in rows)
    loads = [row["load_average"] for row in rows]
    scenes = {row["scene"] for row in rows}
    asides = "".join(_ASIDES[scene] for scene in _ASIDES if scene in scenes)
    lines = [
        _line(scene, tool, chosen)
        for scene in SCENES
        for tool in tools
        if (chosen := [r for r in rows if (r["scene"], r["tool"]) == (scene, tool)])
    ]
    head = f"""# Where one photograph was taken

`make bench-localise`: photographs reduced to {max_size} pixels, and models of all but
one of them; that one is placed in the model by `sfmprep localise`, with the recipe that
the model was made by, and as COLMAP's `image_registrator` does, by SIFT with COLMAP's
defaults, matches with all others and one camera. Of scenes of up to {_EACH_UP_TO}
photographs each is left out in turn, of larger ones every {_EVERY}th. Models are made
anew for each; features and matches of the others are kept from one to the next.

{_made(rows)}

Errors are those after the similarity that fits the poses of the others best to their
reference: of the centre in per cent of the scene's radius, which is the largest
distance of a camera from the middle of all, and of the rotation in degrees; the median,
in which one that is not found counts as infinite, and the largest. "The others" are the
photographs that models were made of: the median over models of their own median errors,
which are part of these. Each tool places in a model of its own, from its own features:
compare a line with its "others" first. Found is what the tool says. Of models of more
than {_ALL_UP_TO} images sfmprep asks the {_NUM_ASKED} most similar.{asides}

Seconds are the median of one photograph, with its features and the reading of the
model, without the start of Python, on {cores} cores at a load average of
{min(loads):.0f} to {max(loads):.0f}; those of the CPU tell more where others used them
too.

| Scene | Tool | Found | Centre, % | Rotation, ° | The others | s | CPU s |
|---|---|---|---|---|---|---|---|
"""
    return head + "\n".join(lines) + "\n"


def _made(rows: Collection[Row]) -> str:
    """By which code, when and on what the last row of each was made."""
    commits = _each((row["commit"] or "unknown")[:10] for row in rows)
    days = [row["date"][:10] for row in rows]
    devices = _each(row["device"] for row in rows)
    versions = _each(row["versions"]["pycolmap"] for row in rows)
    return (
        f"Commits {commits}, {min(days)} to {max(days)},\n{devices}, pycolmap"
        f" {versions}; each once."
    )


def _each(values: Iterable[Any]) -> str:
    return " and ".join(map(str, sorted(set(values))))


def _line(scene: str, tool: str, rows: Sequence[Row]) -> str:
    doubtful = sum(row["verdict"] == "doubtful" for row in rows)
    count = f"{sum(row['verdict'] == 'found' for row in rows)} of {len(rows)}"
    others = [statistics.median(row["others"][k] for row in rows) for k in (0, 1)]
    return " | ".join(
        [
            f"| {scene}",
            tool if tool == COLMAP else f"`{tool}`",
            f"{count}, {doubtful} doubtful" if doubtful else count,
            *(_cell([row["off"] and row["off"][k] for row in rows]) for k in (0, 1)),
            f"{others[0]:.2f} %, {others[1]:.2f}°",
            f"{statistics.median(row['seconds'] for row in rows):.1f}",
            f"{statistics.median(row['cpu_seconds'] for row in rows):.1f} |",
        ]
    )


def _cell(off: Sequence[Any]) -> str:
    """The median, in which None is infinite, and the largest that is known."""
    placed = [each for each in off if each is not None]
    median = statistics.median([*placed, *[math.inf] * (len(off) - len(placed))])
    told = f"{median:.2f}" if math.isfinite(median) else "unknown"
    return f"{told} / {max(placed):.2f}" if placed else told


if __name__ == "__main__":
    main()
