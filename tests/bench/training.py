"""Heads of the matcher and losses of the features, compared at equal cost.

    python -m tests.bench.training                   (or: make bench-training)
    python -m tests.bench.training --parts losses --minutes 40

Every trial goes on from the packaged weights, or from none, with the same seed, data
and number of steps, in one thread; then it is measured on what no training saw. What is
done is kept in a folder and not done again; a part whose trials are all there is
written into the model card. The two parts may run side by side. Needs `../shared`
(SFMPREP_SHARED), its photographs, scenes and the weights of the teacher.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import shutil
import statistics
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfmprep.capture.batches import load_batches
from sfmprep.config import CompactConfig, Frontend, LightGlueConfig, NearestConfig
from sfmprep.evaluation.poses import pose_auc
from sfmprep.models.build import build_extractor, build_matcher
from sfmprep.models.extractors.compact import Compact
from sfmprep.models.protocols import Extractor, Matcher
from sfmprep.train.compare.columns import Column
from sfmprep.train.compare.homographies import SETS, measure_homographies
from sfmprep.train.compare.pairs import axis_angle_deg, pose_error_deg
from sfmprep.train.compare.scenes import Scene, read_scene
from sfmprep.train.extractor.train import export_extractor, train_extractor
from sfmprep.train.matcher.train import export_weights, train_matcher
from sfmprep.train.pairs.photographs import Photographs, is_held_out
from sfmprep.types import Features
from sfmprep.weights import resolve_weights
from tests.bench.shared import SHARED, scene_folder, use_shared_weights
from tests.support.run_logs import read_log

ROOT = Path(__file__).resolve().parents[2]
CARD = ROOT / "sfmprep" / "weights" / "MODEL_CARD.md"
SCENES = ("fountain-P11", "Herz-Jesus-P8", "fox")  # which nothing was trained with
LIMITS_DEG = (5, 10, 20)
MAX_SIZE, MAX_KEYPOINTS = 640, 1024
_WIDE_DEG = (15, 60)
_PAIRS = 40  # of a scene, at random
_SEEDS = range(4)  # of RANSAC
_EVERY = 5  # of the photographs is trained with
_SIZE, _MATCHER_BATCH, _EXTRACTOR_PAIRS = 256, 4, 4
_RATIO = 0.9


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training."""

    part: str  # heads or losses
    name: str
    title: str
    choice: tuple[str, ...]  # the head, or the losses that are added
    start: str  # compact, or nothing


HEADS = tuple(
    Trial(
        part="heads",
        name=f"{head}-from-{start}",
        title=f"{head}, from {'the packaged weights' if start == 'compact' else start}",
        choice=(head,),
        start=start,
    )
    for start in ("compact", "nothing")
    for head in ("lightglue", "sinkhorn")
)
LOSSES = tuple(
    Trial(
        part="losses",
        name="-".join(("base", *added)),
        title=" + ".join(("its losses", *added)),
        choice=added,
        start="compact",
    )
    for added in (
        (),
        ("reliability",),
        ("repeatability",),
        ("reliability", "repeatability"),
    )
)
PARTS = {"heads": HEADS, "losses": LOSSES}


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--heads-steps", type=int, default=200)
    parser.add_argument("--losses-steps", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=1e6, help="the most it takes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="trials, by name; else all")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "training")
    parser.add_argument("--card", type=Path, default=CARD)
    options = parser.parse_args()
    torch.set_num_threads(1)
    use_shared_weights()
    end = time.monotonic() + 60 * options.minutes
    for part in options.parts:
        steps = options.heads_steps if part == "heads" else options.losses_steps
        folder = options.out / f"{part}-{steps}-seed{options.seed}"
        for trial in PARTS[part]:
            if options.only and trial.name not in options.only:
                continue
            place = folder / trial.name
            minutes = (end - time.monotonic()) / 60
            if not run(trial, place, steps, options.seed, minutes, options.out):
                print(f"{trial.name}: not finished; call again to go on", flush=True)
                return
            print(_line(trial.title, read(place)), flush=True)
        if not options.only:
            packaged = folder / "packaged"
            measure_once(part, None, packaged)
            write_card(options.card, part, folder, steps)


# ------------------------------------------------------------------------ the training
def run(
    trial: Trial, place: Path, steps: int, seed: int, minutes: float, out: Path
) -> bool:
    """Trains and measures one trial; returns whether it is done."""
    if (place / "measured.json").is_file():
        return True
    place.mkdir(parents=True, exist_ok=True)
    weights = place / "weights.safetensors"
    if not weights.is_file():
        if minutes <= 0:
            return False
        start = time.process_time()
        train = _train_matcher if trial.part == "heads" else _train_extractor
        taken = train(trial, place, steps, seed, minutes, _photographs(out))
        _add_seconds(place, time.process_time() - start)
        if taken < steps:
            return False
        export = export_weights if trial.part == "heads" else export_extractor
        export(place / _checkpoint(trial), weights)
    more: dict[str, Any] = {
        "training_s": json.loads((place / "seconds.json").read_text())
    }
    if trial.part == "heads":
        more["log"] = {
            key: value
            for row in read_log(place / "matcher.jsonl")
            for key, value in row.items()
        }
    measure_once(trial.part, weights, place, **more)
    return True


def _checkpoint(trial: Trial) -> str:
    return "matcher.pt" if trial.part == "heads" else "extractor.pt"


def _add_seconds(place: Path, seconds: float) -> None:
    path = place / "seconds.json"
    before = json.loads(path.read_text()) if path.is_file() else 0.0
    path.write_text(json.dumps(round(before + seconds, 1)))


def _photographs(out: Path) -> Path:
    """A folder of links to some of the photographs, and to all that are kept aside."""
    folder = out / "photographs"
    folder.mkdir(parents=True, exist_ok=True)
    source = SHARED / "data" / "train" / "images"
    paths = sorted(path for path in source.iterdir() if path.suffix == ".jpg")
    aside = [path for path in paths if is_held_out(path.name)]
    others = [path for path in paths if not is_held_out(path.name)]
    for path in (*aside, *others[::_EVERY]):
        with suppress(FileExistsError):  # the other part may make them too
            (folder / path.name).symlink_to(path)
    return folder


def _train_matcher(
    trial: Trial, place: Path, steps: int, seed: int, minutes: float, data: Path
) -> int:
    train_matcher(
        data=data,
        out=place,
        minutes=minutes,
        extractor=Compact(CompactConfig(max_keypoints=MAX_KEYPOINTS)),
        init=(
            resolve_weights("compact-lightglue").path
            if trial.start == "compact"
            else None
        ),
        seed=seed,
        size=_SIZE,
        batch=_MATCHER_BATCH,
        head=trial.choice[0],  # type: ignore[arg-type]
        steps=steps,
    )
    rows = [row for row in read_log(place / "matcher.jsonl") if "pairs_per_s" in row]
    return int(rows[-1]["step"])


def _train_extractor(
    trial: Trial, place: Path, steps: int, seed: int, minutes: float, data: Path
) -> int:
    adapted = data.parent / "adapted.h5"  # the same for all trials
    if adapted.is_file() and not (place / adapted.name).is_file():
        shutil.copy(adapted, place)
    taken = train_extractor(
        data=data,
        out=place,
        minutes=minutes,
        init=resolve_weights("compact").path,
        also=trial.choice,  # type: ignore[arg-type]
        seed=seed,
        num_pairs=_EXTRACTOR_PAIRS,
        size=_SIZE,
        max_steps=steps,
    )
    if taken and not adapted.is_file():
        shutil.copy(place / adapted.name, adapted)
    return taken


# ------------------------------------------------------------------------ the measures
def measure_once(part: str, weights: Path | None, place: Path, **more: object) -> None:
    """Writes `measured.json` unless it is there; None for the packaged weights."""
    path = place / "measured.json"
    if not path.is_file():
        place.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(measure(part, weights) | more, indent=1))


def read(place: Path) -> dict[str, Any]:
    """What was measured there."""
    found: dict[str, Any] = json.loads((place / "measured.json").read_text())
    return found


def measure(part: str, weights: Path | None) -> dict[str, Any]:
    """Wide pairs of posed scenes, and warped photographs, that no training saw."""
    extractor = build_extractor(
        CompactConfig(
            max_keypoints=MAX_KEYPOINTS,
            max_size=MAX_SIZE,
            weights=weights if part == "losses" else None,
        )
    )
    matcher: Matcher
    if part == "losses":
        matcher = build_matcher(NearestConfig(ratio=_RATIO))
        warped = build_matcher(NearestConfig(ratio=None))
    else:
        matcher = warped = build_matcher(
            LightGlueConfig(
                model="compact-lightglue",
                weights=weights,
                depth_confidence=None,
                width_confidence=None,
            )
        )
    aside = Photographs(SHARED / "data" / "train" / "images", held_out=True)
    column = Column(
        name="trial",
        frontend=Frontend(features=CompactConfig(), matcher=NearestConfig()),
        extractor=extractor,
        matcher=warped,
    )
    return {
        "wide": _wide(extractor, matcher),
        "homographies": measure_homographies(aside.names, aside, column),
    }


def _wide(extractor: Extractor, matcher: Matcher) -> dict[str, Any]:
    errors: list[list[float]] = []
    counts: list[int] = []
    seconds: list[float] = []
    for name in SCENES:
        scene, pairs = _scene(name)
        features: dict[str, Features] = {}
        names = sorted({name for pair in pairs for name in pair})
        for of, batch in load_batches(scene.images, names, max_size=MAX_SIZE):
            features |= zip(of, extractor.extract(batch), strict=True)
        for pair in pairs:
            start = time.process_time()
            [found] = matcher.match([(features[pair[0]], features[pair[1]])])
            seconds.append(time.process_time() - start)
            counts.append(len(found))
            errors.append(
                [
                    pose_error_deg(scene, pair, features, found.index, seed=seed)
                    for seed in _SEEDS
                ]
            )
    return {
        "pairs": len(errors),
        "errors_deg": errors,
        "matches": sum(counts) / len(counts),
        "pair_s": statistics.median(seconds),
    }


@cache
def _scene(name: str) -> tuple[Scene, list[tuple[str, str]]]:
    """A scene and some of its wide pairs."""
    scene = read_scene(scene_folder(name))
    low, high = _WIDE_DEG
    wide = [
        pair
        for pair in itertools.combinations(scene.images.names, 2)
        if low <= axis_angle_deg(scene, pair) < high
    ]
    chosen = np.random.default_rng(0).permutation(len(wide))[:_PAIRS]
    return scene, [wide[k] for k in sorted(chosen)]


# --------------------------------------------------------------------------- the table
_HEAD = (
    "| {} | CPU-s of training | wide pairs: AUC@5 / 10 / 20 | against {}"
    " | matches a pair | CPU-s a pair | warped, {}: share within 1 / 3 / 5 px | matches"
    " | parallax: precision, recall |"
)
_TITLES = {
    "heads": ("head", "LightGlue's from there"),
    "losses": ("losses", "its losses"),
}
_SET = "b"  # of the warps
_LOGGED = ("parallax_precision", "parallax_recall")


def write_card(card: Path, part: str, folder: Path, steps: int) -> None:
    """Writes the table of a part between its marks in the model card.

    Raises:
        SystemExit: the marks are not there.
    """
    begin, end = (f"<!-- {part}: {word} -->\n" for word in ("begin", "end"))
    text = card.read_text("utf-8")
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{card} lacks the lines {begin.strip()} and {end.strip()}")
    warps = SETS[_SET]
    label = f"rotation ≤ {warps.rotation_deg:g}°, scale ≤ {warps.scale:g}"
    head = _HEAD.format(*_TITLES[part], label)
    lines = [
        f"{steps} steps each, one seed, one thread of {platform.machine()}, torch"
        f" {torch.__version__}.",
        "",
        head,
        "|" + "---|" * (head.count("|") - 1),
        _line("packaged, not trained further", read(folder / "packaged")),
        *(_trial_line(trial, folder) for trial in PARTS[part]),
    ]
    card.write_text(before + begin + "\n".join(lines) + "\n" + end + after, "utf-8")


def _trial_line(trial: Trial, folder: Path) -> str:
    """With the first trial of the part that starts alike to compare it with."""
    first = next(each for each in PARTS[trial.part] if each.start == trial.start)
    found = read(folder / trial.name)
    return _line(
        trial.title, found, None if trial == first else read(folder / first.name)
    )


def _gain(found: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """How much more of AUC@10 there is, with its standard error over the pairs."""
    values = [
        100 * np.clip(1 - np.array(each["wide"]["errors_deg"]) / 10, 0, 1).mean(1)
        for each in (found, other)
    ]
    gain = values[0] - values[1]
    return f"{gain.mean():+.1f} ± {gain.std(ddof=1) / len(gain) ** 0.5:.1f}"


def _line(
    title: str, found: Mapping[str, Any], other: Mapping[str, Any] | None = None
) -> str:
    wide, warped, log = found["wide"], found["homographies"][_SET], found.get("log", {})
    errors = [error for of_pair in wide["errors_deg"] for error in of_pair]
    auc = pose_auc(np.array(errors), LIMITS_DEG).values()
    seconds = found.get("training_s")
    cells = [
        title,
        "–" if seconds is None else f"{seconds:.0f}",
        " / ".join(f"{value:.1f}" for value in auc),
        "–" if other is None else _gain(found, other),
        f"{wide['matches']:.0f}",
        f"{wide['pair_s']:.3f}",
        " / ".join(f"{share:.1f}" for share in warped["within"].values()),
        f"{warped['matches'] / warped['photographs']:.0f}",
        ", ".join(f"{100 * log[key]:.1f}" for key in _LOGGED) if log else "–",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
