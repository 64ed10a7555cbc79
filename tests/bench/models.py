"""Every network: licence, size, speed on this CPU, poses of wide pairs.

    python -m tests.bench.models [--pairs 8]        (or: make bench-models)

Writes examples/models.md. Rows are added to a file first, and what is in it is not run
again: remove it to measure anew. What is measured is what has genuine weights here;
needs the scenes of `../shared` (SFMPREP_SHARED), its weights (SFMPREP_WEIGHTS) or those
that `sfmprep weights fetch` got. Seconds are of one thread of this process, so that
other work on the machine hardly changes them; before each network the smallest of the
package is run on the same photograph, and the ratio to it is what counts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycolmap
import torch

from sfmprep.capture.batches import load_batches
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import (
    AlikedConfig,
    CompactConfig,
    DiskConfig,
    NearestConfig,
    SiftConfig,
    SuperPointConfig,
    XFeatConfig,
)
from sfmprep.config.base import ModelConfig, configs_in
from sfmprep.evaluation.poses import pose_auc, relative_pose_errors
from sfmprep.evaluation.reference import read_reference
from sfmprep.models.build import (
    build_dense_matcher,
    build_extractor,
    build_flow_estimator,
    build_matcher,
)
from sfmprep.types import Features, Float32, ImageBatch
from sfmprep.weights import WEIGHTS, load_tensors, weights_here
from tests.bench.shared import SHARED, scene_folder, use_shared_weights
from tests.bench.two_view import LIMITS_DEG, colmap, turn_deg, two_views
from tests.support.models import UNIONS, every_checkpoint

ROOT = Path(__file__).resolve().parents[2]
SCENES = ("fountain-P11", "Herz-Jesus-P8")
MAX_SIZE, MAX_KEYPOINTS = 640, 1024
_RATIO = 0.9  # of nearest neighbours
_WIDE_DEG = 15
_MAX_ERROR_PX = 2.0
_FAILED_DEG = 180.0
_SHIFT_PX = (6.4, -3.7)
_BORDER_PX = 16  # of the flow that is not looked at

# Whose features a matcher goes with.
_FEATURES: dict[str, ModelConfig] = {
    "aliked-lightglue": AlikedConfig(),
    "disk-lightglue": DiskConfig(),
    "sift-lightglue": SiftConfig(),
    "superpoint-lightglue": SuperPointConfig(model="superpoint-v1"),
    "lighterglue": XFeatConfig(),
    "lighterglue-l3": XFeatConfig(),
    "compact-lightglue": CompactConfig(),
}
# Where the shapes are of networks whose weights nobody may hand on.
_SHAPES = {
    "superpoint-open": "superpoint_open/state_dict_keys.json",
    "superpoint-v1": "superpoint/state_dict_keys.json",
    "superglue-outdoor": "superglue/state_dict_keys.json",
    "superglue-indoor": "superglue/state_dict_keys.json",
    "r2d2-wasf-n16": "r2d2/state_dict_keys.json:r2d2",
    "r2d2-waf-n16": "r2d2/state_dict_keys.json:r2d2",
    "d2net": "d2net/state_dict_keys.json",
    "s2ld": "s2ld/state_dict_keys.json",
    "dust3r-linear": "pointmaps/dust3r_linear_official_keys.json",
    "dust3r-dpt": "pointmaps/dust3r_dpt_official_keys.json",
    "mast3r": "pointmaps/mast3r_official_keys.json",
    "eigenplaces-r50-2048": "eigenplaces/state_dict_keys.json:ResNet50_2048",
    "eigenplaces-r18-256": "eigenplaces/state_dict_keys.json:ResNet18_256",
    "megaloc": "megaloc/state_dict_keys.json:full",
    "netvlad": "netvlad/state_dict_keys.json:full",
    "raft-basic": "raft/raft_basic_keys.json",
    "raft-small": "raft/raft_small_keys.json",
    "droid": "droid/droid_keys.json",
}
_ALIASES = (".layer_rn.", "num_batches_tracked")  # no parameters of their own


@dataclass(frozen=True, eq=False)
class WidePair:
    """Two photographs whose cameras look 15 degrees or more apart."""

    scene: str
    names: tuple[str, str]


@dataclass
class Measured:
    """What one network did on the wide pairs."""

    seconds: list[float] = field(default_factory=list)  # a photograph, or a pair
    found: list[int] = field(default_factory=list)  # keypoints, or matches
    errors_deg: list[float] = field(default_factory=list)
    errors_px: list[float] = field(default_factory=list)  # of flow, a photograph
    reference_s: float = math.nan


class Bench:
    """The photographs and pairs, and what is known of their cameras."""

    def __init__(self, num_pairs: int) -> None:
        self.images, self.poses, self.entries = {}, {}, {}
        self.pairs: list[WidePair] = []
        for scene in SCENES:
            folder = scene_folder(scene)
            self.images[scene] = ImageSet.scan(folder / "images")
            poses = self.poses[scene] = read_reference(folder)
            text = (folder / "reference.json").read_text("utf-8")
            self.entries[scene] = json.loads(text)["images"]
            wide = [
                WidePair(scene, (a, b))
                for a, b in itertools.combinations(self.images[scene].names, 2)
                if turn_deg(poses[a], poses[b]) >= _WIDE_DEG
            ]
            chosen = np.random.default_rng(0).permutation(len(wide))[:num_pairs]
            self.pairs += [wide[k] for k in sorted(chosen)]
        self._reference = build_extractor(CompactConfig(max_size=MAX_SIZE))
        self.features: dict[str, dict[tuple[str, str], Features]] = {}

    def batches(self) -> Iterator[tuple[tuple[str, str], ImageBatch]]:
        """The photographs of the pairs, by scene and name."""
        for scene, images in self.images.items():
            of_scene = [pair.names for pair in self.pairs if pair.scene == scene]
            names = sorted({name for pair in of_scene for name in pair})
            for (name,), batch in load_batches(images, names, max_size=MAX_SIZE):
                yield (scene, name), batch

    def reference_s(self) -> float:
        """Seconds of the smallest network on the first photograph, of three."""
        _, batch = next(iter(self.batches()))
        return statistics.median(
            timed(lambda: self._reference.extract(batch))[1] for _ in range(3)
        )

    def error_deg(
        self, pair: WidePair, xy0: Float32, xy1: Float32, *, seed: int = 0
    ) -> float:
        """The larger error of rotation and direction; 180 for none found."""
        rows = np.repeat(np.arange(len(xy0), dtype=np.int32)[:, None], 2, axis=1)
        views = two_views(
            [xy0, xy1],
            rows,
            [self.entries[pair.scene][name] for name in pair.names],
            [self.poses[pair.scene][name] for name in pair.names],
            MAX_SIZE,
        )
        pose = None
        if len(xy0):
            pose = colmap(views, seed, px=_MAX_ERROR_PX, known=True)
        if pose is None:
            return _FAILED_DEG
        turn, shift, _ = pose
        truth = views.truth[0][None], views.truth[1][None]
        both = relative_pose_errors((turn[None], shift[None]), truth, np.zeros(3))
        return float(both.max())


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and the seconds of this process's threads."""
    start = time.process_time()
    result = run()
    return result, time.process_time() - start


# --------------------------------------------------------------------------- measuring
def measure(bench: Bench, config: ModelConfig) -> Measured | None:
    """What a network does; None where something that it needs is not here."""
    kind = kind_of(config)
    beside = _FEATURES.get(config.name)
    needed = [*config.needed_weights(), *(beside.needed_weights() if beside else ())]
    is_alone = kind == "matcher" and beside is None
    if is_alone or any(weights_here(*each) is None for each in needed):
        return None
    told = Measured(reference_s=bench.reference_s())
    match kind:
        case "features":
            features = _extracted(bench, config, told)
            nearest = build_matcher(NearestConfig(ratio=_RATIO))
            _match(bench, nearest, features, told, is_timed=False)
        case "matcher":
            features = _extracted(bench, beside, Measured())
            _match(bench, build_matcher(config), features, told, is_timed=True)
        case "without a detector":
            _match_dense(bench, config, told)
        case "flow":
            _flow(bench, config, told)
        case _:
            return None
    return told


def _extracted(
    bench: Bench, config: ModelConfig, told: Measured
) -> dict[tuple[str, str], Features]:
    if known := bench.features.get(config.name):
        return known
    settings = {"max_keypoints": MAX_KEYPOINTS, "max_size": MAX_SIZE}
    extractor = build_extractor(config.model_copy(update=settings))
    found: dict[tuple[str, str], Features] = {}
    for key, batch in bench.batches():
        if not found:
            extractor.extract(batch)  # the first one is slower
        [features], seconds = timed(lambda batch=batch: extractor.extract(batch))
        found[key] = features
        told.seconds.append(seconds)
        told.found.append(len(features))
    bench.features[config.name] = found
    return found


def _match(
    bench: Bench, matcher: Any, features: Any, told: Measured, *, is_timed: bool
) -> None:
    for pair in bench.pairs:
        both = tuple(features[pair.scene, name] for name in pair.names)
        [matches], seconds = timed(lambda both=both: matcher.match([both]))
        xy = [f.xy[rows] for f, rows in zip(both, matches.index.T, strict=True)]
        told.errors_deg.append(bench.error_deg(pair, *xy))
        if is_timed:
            told.seconds.append(seconds)
            told.found.append(len(matches))


def _match_dense(bench: Bench, config: ModelConfig, told: Measured) -> None:
    size = min(MAX_SIZE, config.max_size)
    matcher = build_dense_matcher(config.model_copy(update={"max_size": size}))
    batches = dict(bench.batches())
    for pair in bench.pairs:

        def run(pair: WidePair = pair) -> Any:
            sides = [matcher.prepare(batches[pair.scene, n])[0] for n in pair.names]
            return matcher.match([(sides[0], sides[1])])

        [matches], seconds = timed(run)
        told.seconds.append(seconds)
        told.found.append(len(matches))
        told.errors_deg.append(bench.error_deg(pair, matches.xy0, matches.xy1))


def _flow(bench: Bench, config: ModelConfig, told: Measured) -> None:
    estimator = build_flow_estimator(config)
    for _, batch in bench.batches():
        pixels = batch.pixels[0].transpose(1, 2, 0)
        height, width = pixels.shape[:2]
        move = np.float64([[1, 0, _SHIFT_PX[0]], [0, 1, _SHIFT_PX[1]]])
        moved = cv2.warpAffine(
            *(pixels, move, (width, height)),
            flags=cv2.INTER_CUBIC,
            borderMode=cv2.BORDER_REFLECT,
        )
        other = replace(batch, pixels=moved.clip(0, 1).transpose(2, 0, 1)[None])

        def run(sides: tuple[ImageBatch, ImageBatch] = (batch, other)) -> Any:
            first, second = (estimator.prepare(side)[0] for side in sides)
            return estimator.flow([(first, second)])

        [flow], seconds = timed(run)
        inner = flow[_BORDER_PX:-_BORDER_PX, _BORDER_PX:-_BORDER_PX]
        off = np.linalg.norm(inner - np.float32(_SHIFT_PX), axis=2)
        told.seconds.append(seconds)
        told.errors_px.append(float(np.median(off)))


# ------------------------------------------------------------------------------- table
def kind_of(config: ModelConfig) -> str:
    """Under which key of a recipe it goes."""
    return next(kind for kind, u in UNIONS.items() if type(config) in configs_in(u))


def num_parameters(config: ModelConfig) -> int | None:
    """Numbers in its weights; None where neither they nor their shapes are here."""
    name = config.weights_name
    if name is None:
        return 0
    if here := weights_here(name):
        return sum(
            t.numel()
            for key, t in load_tensors(here).items()
            if not any(alias in key for alias in _ALIASES)
        )
    if name not in _SHAPES:
        return None
    file, _, part = _SHAPES[name].partition(":")
    shapes = json.loads((SHARED / "fixtures" / file).read_text())
    shapes = shapes[part] if part else shapes
    return sum(
        math.prod(shape[0] if shape and isinstance(shape[-1], str) else shape)
        for key, shape in shapes.items()
        if not any(alias in key for alias in _ALIASES)
    )


def row_of(config: ModelConfig, told: Measured | None) -> list[str]:
    """The cells of one network."""
    name = config.weights_name
    entry = WEIGHTS[name] if name else None
    count = num_parameters(config)
    cells = [
        config.name,
        entry.licence if entry else "–",
        "–" if count is None else f"{count / 1e6:.2f}",
        "–" if name is None else ("yes" if weights_here(name) else "no"),
    ]
    if told is None:
        return [*cells, "–", "–", "–", "–"]  # as many as any kind has
    seconds = statistics.median(told.seconds)
    if told.errors_px:
        error = f"{statistics.median(told.errors_px):.3f}"
        return [*cells, f"{seconds:.2f}", f"{seconds / told.reference_s:.1f}", error]
    auc = pose_auc(np.array(told.errors_deg), LIMITS_DEG).values()
    return [
        *cells,
        f"{seconds:.2f}",
        f"{seconds / told.reference_s:.1f}",
        f"{sum(told.found) / sum(told.seconds):.0f}",
        " / ".join(f"{value:.1f}" for value in auc),
    ]


def page(bench: Bench, rows: dict[str, list[list[str]]]) -> str:
    """The whole of examples/models.md."""
    text = f"""# Networks

Made by `make bench-models`; no number is by hand. {platform.machine()}, one thread,
torch {torch.__version__}, photographs of {MAX_SIZE} pixels, up to {MAX_KEYPOINTS}
keypoints, {len(bench.pairs)} pairs of {" and ".join(f"`{s}`" for s in SCENES)} whose
cameras look {_WIDE_DEG} degrees or more apart, chosen at random.

AUC is that of the larger of rotation and translation-direction error at
{", ".join(map(str, LIMITS_DEG))} degrees, in per cent, by COLMAP's two-view geometry
with known focal lengths. So few pairs order networks only where they differ much.
Features are matched by mutual nearest neighbours at a ratio of {_RATIO}, matchers with
the features of their name. Seconds are CPU seconds of one photograph, or of one pair,
without a detector with both photographs; `times` is over the seconds of `compact` on
one photograph, run before each row. Flow is that of a photograph moved by {_SHIFT_PX}
pixels, both prepared, and its error the median over the pixels. A dash: there are no
genuine weights here (`here`), or it is not measured so. What has no weights here was
compared, on weights made by a formula or at random, with the outputs of its original or
of a public re-implementation
(`tests/models`); that says nothing of how well it matches. LIFT (ECCV 2016) is not
here: it may be used for academic work alone, and its files are partly lost.
"""
    units = {
        "features": "keypoints a second",
        "matcher": "matches a second",
        "without a detector": "matches a second",
    }
    for kind, lines in rows.items():
        head = ["network", "licence", "million parameters", "here", "seconds", "times"]
        if kind in units:
            head += [units[kind], f"AUC@{'/'.join(map(str, LIMITS_DEG))}"]
        elif kind == "flow":
            head += ["median error, pixels"]
        else:
            head = head[:4]
        lines = [line[: len(head)] for line in lines]
        text += f"\n## {kind[0].upper()}{kind[1:]}\n\n"
        for line in (head, ["---"] * len(head), *lines):
            text += f"| {' | '.join(line)} |\n"
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=20, help="the most of a scene")
    default = ROOT / "examples" / "models.md"
    parser.add_argument("--out", type=Path, default=default)
    results = ROOT / "build" / "models.jsonl"
    parser.add_argument("--results", type=Path, default=results)
    options = parser.parse_args(arguments)
    use_shared_weights()
    torch.set_num_threads(1)
    pycolmap.logging.minloglevel = 2
    bench = Bench(options.pairs)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.touch()
    lines = options.results.read_text("utf-8").splitlines()
    done: dict[str, list[str]] = dict(json.loads(line) for line in lines)
    rows: dict[str, list[list[str]]] = {}
    for kind, union in UNIONS.items():
        for model in configs_in(union):
            for config in every_checkpoint(model):
                key = f"{config.name}, {options.pairs} pairs"
                if key not in done:
                    done[key] = row_of(config, measure(bench, config))
                    with options.results.open("a", encoding="utf-8") as file:
                        file.write(json.dumps([key, done[key]]) + "\n")
                    print(" | ".join(done[key]), flush=True)
                rows.setdefault(kind, []).append(done[key])
    options.out.write_text(page(bench, rows), "utf-8")


if __name__ == "__main__":
    main()
