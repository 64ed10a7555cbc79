"""What the engine gains, measured beside the plain way in the same run.

    make bench      or      python -m tests.bench.engine [--only NAME ...] [--out FILE]

Writes JSON: `ratios` is flat, plain seconds over ours (more is better); `cases` holds
the seconds, the rates and the distance to the bound, `machine` what it ran on. Needs
the photographs and weights of `../shared` (SFMPREP_SHARED names another place). Nothing
is asserted on time; that both ways find the same is.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from sfmprep.capture.batches import load_batches
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import (
    AlikedConfig,
    DatabaseConfig,
    LightGlueConfig,
    NearestConfig,
    XFeatConfig,
)
from sfmprep.config.load import load_recipe
from sfmprep.coords import centre_from_colmap
from sfmprep.evaluation.poses import evaluate_model
from sfmprep.evaluation.reference import read_reference
from sfmprep.mapping.database import update_database
from sfmprep.mapping.verify import verify_matches
from sfmprep.models.build import build_extractor, build_matcher
from sfmprep.models.matchers.lightglue_network import LightGlueShape
from sfmprep.models.protocols import Extractor
from sfmprep.pairing.pairs import Pairs, exhaustive_pairs
from sfmprep.pipelines import stages
from sfmprep.pipelines.choose_pairs import make_pairs
from sfmprep.pipelines.poses import find_poses
from sfmprep.pipelines.reconstruct import reconstruct
from sfmprep.pipelines.run import open_run
from sfmprep.stores.tables import FeatureStore, MatchStore
from sfmprep.types import Features, ImageBatch, Matches
from tests.bench import plain
from tests.bench.measure import (
    compare,
    copy_bandwidth,
    matmul_flops,
    metadata,
    timed,
)
from tests.bench.shared import SHARED
from tests.support.flops import flops as flops_of_pair

WEIGHTS = SHARED / "weights"
SCENE = SHARED / "data" / "scenes" / "fountain-P11"
SIZE = 1600
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SUFFIX = "cpu" if DEVICE == "cpu" else "gpu"

Case = dict[str, Any]


# -------------------------------------------------------------------------- extraction
def extract(name: str) -> Case:
    """Decoded photographs of fountain-P11, 1600 pixels, to features as numpy."""
    photographs = ImageSet.scan(SCENE / "images")
    names = photographs.names[: 3 if DEVICE == "cpu" else 11]
    if name == "aliked":
        model = "aliked-n16rot"
        config: AlikedConfig | XFeatConfig = AlikedConfig(model=model, max_size=SIZE)
        network: Any = plain.aliked(WEIGHTS, model, config.max_keypoints, DEVICE)
        detect = network
    else:
        config = XFeatConfig(max_size=SIZE)
        network = plain.xfeat(WEIGHTS, config.max_keypoints, DEVICE)
        detect = network.detectAndCompute
    extractor: Extractor = build_extractor(config, device=DEVICE)
    batches = [
        batch
        for _, batch in load_batches(
            photographs, names, max_size=SIZE, batch_size=extractor.batch_size
        )
    ]
    tensors = [
        torch.from_numpy(batch.pixels[k : k + 1])
        for batch in batches
        for k in range(len(batch))
    ]

    @torch.inference_mode()
    def plainly() -> list[Any]:
        return [detect(pixels.to(DEVICE))[0] for pixels in tensors]

    def ours() -> list[Features]:
        return [found for batch in batches for found in extractor.extract(batch)]

    counts = [_num_keypoints(found) for found in plainly()], [len(f) for f in ours()]
    _expect_same(*map(sum, counts), tolerance=0.01)
    compared = compare(plainly, ours)
    flops = _flops(lambda: extractor.extract(_first(batches[0])))
    return {
        **compared.to_json(),
        "images": len(names),
        "size": list(batches[0].network_size),
        "keypoints": sum(counts[1]) / len(names),
        "images_per_s": len(names) / compared.ours_s,
        "flops_per_image": flops,
        "share_of_matmul_rate": flops
        * len(names)
        / compared.ours_s
        / matmul_flops(DEVICE, torch.float32),
    }


def _num_keypoints(found: Any) -> int:
    return len(found["keypoints"] if isinstance(found, dict) else found.keypoints)


def _first(batch: ImageBatch) -> ImageBatch:
    return ImageBatch(
        pixels=batch.pixels[:1],
        sizes=batch.sizes[:1],
        orientations=batch.orientations[:1],
    )


# ---------------------------------------------------------------------------- matching
def _features(config: AlikedConfig | XFeatConfig, num_images: int) -> list[Features]:
    extractor = build_extractor(config, device=DEVICE)
    photographs = ImageSet.scan(SCENE / "images")
    batches = load_batches(photographs, photographs.names[:num_images], max_size=SIZE)
    return [found for _, batch in batches for found in extractor.extract(batch)]


def _kornia_side(features: Features) -> dict[str, torch.Tensor]:
    return {
        "keypoints": torch.from_numpy(centre_from_colmap(features.xy))[None].to(DEVICE),
        "descriptors": torch.from_numpy(features.descriptors.astype(np.float32))[
            None
        ].to(DEVICE),
        "image_size": torch.tensor([features.image_size], device=DEVICE),
    }


_EASY_LAYERS = 3
_LIGHTGLUE: Mapping[str, Mapping[str, int]] = {
    "aliked-lightglue": {
        "input_dim": 128,
        "descriptor_dim": 256,
        "num_heads": 4,
        "n_layers": 9,
    },
    "lighterglue": {
        "input_dim": 64,
        "descriptor_dim": 96,
        "num_heads": 1,
        "n_layers": 6,
    },
}


def match(
    model: str,
    *,
    keypoints: int = 2048,
    batch_size: int | None = None,
    precision: str = "float32" if DEVICE == "cpu" else "half",
    adaptive: bool = False,
    repeats: int = 3,
) -> Case:
    """LightGlue over real keypoints of fountain-P11, one by one against batches.

    The 256-d network has random weights (its checkpoint is not in `../shared`), which
    costs the same; all mutually best pairs are its matches. `adaptive` there has
    confidence heads that let every pair stop after its third layer, an easy pair.
    """
    batch_size = batch_size or (4 if DEVICE == "cpu" else 64)
    adaptivity = {
        "depth_confidence": 0.95 if adaptive else -1,
        "width_confidence": -1,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.safetensors"
        if model == "lighterglue":
            features: AlikedConfig | XFeatConfig = XFeatConfig(max_keypoints=keypoints)
            path = WEIGHTS / "lighterglue.safetensors"
            tensors = load_file(path)
        else:
            features = AlikedConfig(max_keypoints=keypoints, min_score=0.0)
            random = plain.lightglue(None, "cpu", **_LIGHTGLUE[model])
            for head in random.token_confidence:  # undecided twice, then decided
                head.token[0].weight.data.zero_()
                head.token[0].bias.data.fill_(9.0)
            for head in list(random.token_confidence)[: _EASY_LAYERS - 1]:
                head.token[0].bias.data.fill_(-9.0)
            tensors = {k: v.contiguous() for k, v in random.state_dict().items()}
            save_file(tensors, path)
        min_score = 0.1 if model == "lighterglue" else 0.0
        network = plain.lightglue(
            tensors,
            DEVICE,
            filter_threshold=min_score,
            **adaptivity,
            **_LIGHTGLUE[model],
        )
        matcher = build_matcher(
            LightGlueConfig(
                model=model,  # type: ignore[arg-type]
                min_score=min_score,
                depth_confidence=0.95 if adaptive else None,
                width_confidence=None,
                weights=path,
            ),
            device=DEVICE,
            precision=precision,  # type: ignore[arg-type]
        )
    images = _features(features, 4 if DEVICE == "cpu" else 11)
    different = list(combinations(range(len(images)), 2))
    pairs = (different * (batch_size // len(different) + 1))[:batch_size]
    sides = [_kornia_side(image) for image in images]
    prepared = [matcher.prepare(image) for image in images]

    def plainly() -> list[torch.Tensor]:
        return plain.match_lightglue(network, [(sides[a], sides[b]) for a, b in pairs])

    def ours() -> list[Matches]:
        return matcher.match([(prepared[a], prepared[b]) for a, b in pairs])

    found = [sum(map(len, way())) for way in (plainly, ours)]
    _expect_same(*found, tolerance=0.01 if precision == "float32" else 0.05)
    compared = compare(plainly, ours, repeats=repeats, warm_up=False)
    shape = LightGlueShape(
        input_dim=_LIGHTGLUE[model]["input_dim"],
        dim=_LIGHTGLUE[model]["descriptor_dim"],
        num_heads=_LIGHTGLUE[model]["num_heads"],
        num_layers=_EASY_LAYERS if adaptive else _LIGHTGLUE[model]["n_layers"],
    )
    flops = float(flops_of_pair(shape, len(images[0]), len(images[1])))
    half = precision == "half"
    rate = matmul_flops(DEVICE, torch.float16 if half else torch.float32)
    return {
        **compared.to_json(),
        "pairs": len(pairs),
        "keypoints": sum(map(len, images)) / len(images),
        "precision": precision,
        "adaptive": adaptive,
        "matches_plain_ours": found,
        "pairs_per_s": len(pairs) / compared.ours_s,
        "flops_per_pair": flops,
        "share_of_matmul_rate": flops * len(pairs) / compared.ours_s / rate,
    }


def nearest() -> Case:
    """ALIKED descriptors of fountain-P11, mutual nearest with ratio 0.9."""
    images = _features(AlikedConfig(), 4)
    pairs = list(combinations(range(len(images)), 2))
    matcher = build_matcher(NearestConfig(ratio=0.9), device=DEVICE)
    tensors = [
        torch.from_numpy(image.descriptors.astype(np.float32)).to(DEVICE)
        for image in images
    ]
    prepared = [matcher.prepare(image) for image in images]

    def plainly() -> list[Any]:
        return plain.match_nearest([(tensors[a], tensors[b]) for a, b in pairs], 0.9)

    def ours() -> list[Matches]:
        return matcher.match([(prepared[a], prepared[b]) for a, b in pairs])

    found = [sum(map(len, way())) for way in (plainly, ours)]
    _expect_same(*found, tolerance=0.01)
    compared = compare(plainly, ours, repeats=5)
    flops = 2.0 * sum(len(images[a]) * len(images[b]) for a, b in pairs) * 128
    return {
        **compared.to_json(),
        "pairs": len(pairs),
        "keypoints": sum(map(len, images)) / len(images),
        "pairs_per_s": len(pairs) / compared.ours_s,
        "share_of_matmul_rate": flops
        / compared.ours_s
        / matmul_flops(DEVICE, torch.float32),
    }


# ----------------------------------------------------------------- stores and database
def _synthetic_matches(num_pairs: int) -> list[tuple[plain.Pair, Matches]]:
    rng = np.random.default_rng(0)
    names = [f"frame_{k:05d}.jpg" for k in range(num_pairs // 10 + 11)]
    items = []
    for k in range(num_pairs):
        first = k // 10
        index = np.sort(rng.permutation(2048)[:400]).astype(np.int32)
        matches = Matches(
            index=np.stack([index, rng.permutation(2048)[:400].astype(np.int32)], 1),
            scores=np.ones(400, np.float32),
        )
        items.append(((names[first], names[first + 1 + k % 10]), matches))
    return items


def store(*, reopened: bool, num_pairs: int = 2000) -> Case:
    """Writes and reads the matches of pairs, 400 each, every batch safe on disk.

    Both read as their import into a database does: pair by pair, or all in order.
    """
    items = _synthetic_matches(num_pairs)
    raw = [(pair, matches.index) for pair, matches in items]
    pairs = [pair for pair, _ in items]
    with tempfile.TemporaryDirectory() as folder:
        count = iter(range(1000))

        def plainly() -> None:
            path = Path(folder) / f"plain{next(count)}.h5"
            (plain.write_reopened if reopened else plain.write_open)(path, raw)
            read = plain.read_reopened if reopened else plain.read_open
            total = sum(len(index) for index in read(path, pairs))
            _expect_same(total, 400 * num_pairs, tolerance=0)

        def ours() -> None:
            path = Path(folder) / f"ours{next(count)}.h5"
            with MatchStore(path, {}) as written:
                for k in range(0, num_pairs, _PAIRS_AN_APPEND):
                    written.append(items[k : k + _PAIRS_AN_APPEND])
            with MatchStore(path) as matches:
                total = sum(len(found) for _, found in matches.items())
            _expect_same(total, 400 * num_pairs, tolerance=0)

        compared = compare(plainly, ours)
    return {
        **compared.to_json(),
        "pairs": num_pairs,
        "plain_ms_a_pair": 1e3 * compared.plain_s / num_pairs,
        "ours_ms_a_pair": 1e3 * compared.ours_s / num_pairs,
    }


_PAIRS_AN_APPEND = 64


def import_pairs(num_pairs: int = 10_000) -> Case:
    """Fills a database with the keypoints and matches of pairs, 400 each."""
    items = _synthetic_matches(num_pairs)
    pairs = Pairs.of(pair for pair, _ in items)
    names = sorted({name for pair in pairs for name in pair})
    rng = np.random.default_rng(0)
    xy = {name: rng.uniform(0, 600, (2048, 2)).astype(np.float32) for name in names}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        photographs = _blank_images(folder / "images", names)
        groups, plain_features = folder / "groups.h5", folder / "plain_features.h5"
        for name in names:
            plain.write_keypoints(plain_features, name, xy[name])
        plain.write_open(groups, ((pair, matches.index) for pair, matches in items))
        with (
            FeatureStore(folder / "features.h5", {}) as features,
            MatchStore(folder / "matches.h5", {}) as matches,
        ):
            for name in names:
                empty = np.zeros((2048, 1), np.float16)
                features.append([(name, _keypoints(xy[name], empty))])
            matches.append(items)
        count = iter(range(1000))

        def plainly() -> None:
            plain.import_matches(
                folder / f"plain{next(count)}.db",
                {name: (640, 480) for name in names},
                plain_features,
                groups,
                list(pairs),
            )

        def ours() -> None:
            with (
                FeatureStore(folder / "features.h5") as features,
                MatchStore(folder / "matches.h5") as matches,
            ):
                update_database(
                    folder / f"ours{next(count)}.db",
                    photographs,
                    features,
                    matches,
                    pairs,
                    DatabaseConfig(),
                )

        compared = compare(plainly, ours)
    return {**compared.to_json(), "pairs": num_pairs}


def _keypoints(xy: np.ndarray, descriptors: np.ndarray) -> Features:
    return Features(
        xy=xy,
        scores=np.ones(len(xy), np.float32),
        descriptors=descriptors,
        image_size=(640, 480),
    )


def _blank_images(folder: Path, names: list[str]) -> ImageSet:
    from PIL import Image

    folder.mkdir()
    for name in names:
        Image.new("RGB", (640, 480)).save(folder / name)
    return ImageSet.scan(folder)


# ---------------------------------------------------------------------------- the lot
def whole_job() -> Case:
    """fountain-P11 from photographs to poses, ALIKED-n16 and nearest neighbours."""
    photographs = ImageSet.scan(SCENE / "images")
    names = list(photographs.names)
    reference = read_reference(SCENE)
    recipe = load_recipe(
        "splat",
        ["features.type=aliked", "matcher.type=nearest", "matcher.ratio=0.9"],
    )
    accuracy: dict[str, Any] = {}

    def plainly() -> None:
        with tempfile.TemporaryDirectory() as folder:
            accuracy["plain"] = evaluate_model(
                _plain_job(Path(folder), names), reference
            ).auc

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            accuracy["ours"] = evaluate_model(
                _our_job(photographs, Path(folder) / "out", recipe), reference
            ).auc

    # once each: the plain way takes minutes, and both have warmed up above
    compared = compare(plainly, ours, repeats=1, warm_up=False)
    return {**compared.to_json(), "auc": accuracy}


def _our_job(photographs: ImageSet, out: Path, recipe: Any) -> pycolmap.Reconstruction:
    with open_run(photographs, out, recipe) as run:
        features, _ = stages.extract(run, device=DEVICE)
        with features:
            pairs = make_pairs(run, features)
            with stages.match(run, pairs, features, device=DEVICE) as matches:
                verified = stages.fill_database(run, features, pairs, matches)
        return find_poses(run, verified, {})[0]


def _plain_job(folder: Path, names: list[str]) -> pycolmap.Reconstruction:
    network = plain.aliked(WEIGHTS, "aliked-n16", 4096, DEVICE)
    descriptors, sizes = {}, {}
    for name in names:
        path = SCENE / "images" / name
        pixels = plain.read_image(path, SIZE)
        with torch.inference_mode():
            found = network(pixels.to(DEVICE))[0]
        width, height = pycolmap.Bitmap.read(path, True).to_array().shape[1::-1]
        scale = torch.tensor([width / pixels.shape[3], height / pixels.shape[2]])
        xy = ((found.keypoints.cpu() + 0.5) * scale).float().numpy()
        plain.write_keypoints(folder / "features.h5", name, xy)
        descriptors[name], sizes[name] = found.descriptors, (width, height)
    pairs = list(exhaustive_pairs(names))
    for pair in pairs:
        (index,) = plain.match_nearest([tuple(descriptors[k] for k in pair)], 0.9)
        plain.write_reopened(folder / "matches.h5", [(pair, index.astype(np.int32))])
    database = folder / "database.db"
    plain.import_matches(
        database, sizes, folder / "features.h5", folder / "matches.h5", pairs
    )
    (folder / "pairs.txt").write_text("".join(f"{a} {b}\n" for a, b in pairs))
    pycolmap.verify_matches(database, folder / "pairs.txt")
    models = pycolmap.incremental_mapping(database, SCENE / "images", folder)
    return max(models.values(), key=lambda model: model.num_reg_images())


def capture(num_images: int = 1000, num_neighbours: int = 20) -> Case:
    """1000 photographs and 20,000 pairs to a verified database, XFeat + LighterGlue.

    The frames are links to those of the scenes, over and over, paired with the twenty
    that follow; only the seconds matter.
    """
    recipe = load_recipe(
        "fast",
        [
            "pairs.type=sequential",
            f"pairs.window={num_neighbours}",
            "pairs.quadratic=false",
            "mapping.type=none",
        ],
    )
    found = sorted((SHARED / "data" / "scenes").glob("*/images/*.jpg"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "images"
        folder.mkdir()
        for k in range(num_images):
            (folder / f"{k:05d}.jpg").symlink_to(found[k % len(found)])
        seconds = timed(
            lambda: reconstruct(folder, Path(temporary) / "out", recipe, device=DEVICE)
        )
    return {"ours_s": seconds, "images": num_images}


def verify() -> Case:
    """Two-view geometries of fountain-P11: COLMAP's own command against ours."""
    photographs = ImageSet.scan(SCENE / "images")
    pairs = exhaustive_pairs(list(photographs.names))
    recipe = load_recipe("splat", ["features.type=aliked", "matcher.type=nearest"])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _our_job(photographs, folder / "out", recipe)
        work = folder / "out" / "work"
        (folder / "pairs.txt").write_text("".join(f"{a} {b}\n" for a, b in pairs))
        count = iter(range(1000))

        def imported() -> Path:
            path = folder / f"{next(count)}.db"
            with (
                FeatureStore(work / "features.h5") as features,
                MatchStore(work / "matches.h5") as matches,
            ):
                update_database(
                    path, photographs, features, matches, pairs, DatabaseConfig()
                )
            return path

        databases = iter([imported() for _ in range(12)])
        compared = compare(
            lambda: pycolmap.verify_matches(next(databases), folder / "pairs.txt"),
            lambda: verify_matches(next(databases), pairs, DatabaseConfig()),
        )
    return {**compared.to_json(), "pairs": len(pairs)}


# ----------------------------------------------------------------------------- running
def _flops(run: Callable[[], object]) -> float:
    """Multiplications and additions of one run, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def _expect_same(plain_way: float, ours: float, *, tolerance: float) -> None:
    """Stops a benchmark that compares different things."""
    if abs(plain_way - ours) > tolerance * max(plain_way, ours, 1):
        raise SystemExit(f"the plain way found {plain_way}, ours {ours}: not the same")


def cases() -> dict[str, Callable[[], Case]]:
    """Every case by its name in the JSON, in the order of running."""
    found: dict[str, Callable[[], Case]] = {
        "store_write_read": partial(store, reopened=False),
        "store_write_read_reopened": partial(store, reopened=True),
        "import": import_pairs,
        f"extract_aliked_{SUFFIX}": partial(extract, "aliked"),
        f"extract_xfeat_{SUFFIX}": partial(extract, "xfeat"),
        f"match_nearest_{SUFFIX}": nearest,
    }
    for name, model in (
        ("lightglue", "aliked-lightglue"),
        ("lighterglue", "lighterglue"),
    ):
        found[f"match_{name}_{SUFFIX}"] = partial(match, model)
        for keypoints in (512, 1024, 4096):
            found[f"match_{name}_{SUFFIX}_{keypoints}"] = partial(
                match, model, keypoints=keypoints, repeats=1
            )
        found[f"match_{name}_{SUFFIX}_single"] = partial(match, model, batch_size=1)
    found[f"match_lightglue_{SUFFIX}_adaptive"] = partial(
        match, "aliked-lightglue", adaptive=True
    )
    if DEVICE != "cpu":
        for name, model in (
            ("lightglue", "aliked-lightglue"),
            ("lighterglue", "lighterglue"),
        ):
            for batch_size in (16, 256):
                found[f"match_{name}_gpu_batch_{batch_size}"] = partial(
                    match, model, batch_size=batch_size
                )
            found[f"match_{name}_gpu_float32"] = partial(
                match, model, precision="float32"
            )
        found["capture_1000_gpu"] = capture
    return {
        **found,
        "verify": verify,
        f"whole_job_aliked_nn_{SUFFIX}": whole_job,
    }


def main(arguments: list[str]) -> None:
    """Runs the cases and writes the JSON after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(cases()), metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    options = parser.parse_args(arguments)
    if not WEIGHTS.is_dir():
        parser.error(f"{WEIGHTS} is not there; name its parent in SFMPREP_SHARED")
    os.environ["SFMPREP_WEIGHTS"] = str(WEIGHTS)
    os.environ["SFMPREP_OFFLINE"] = "1"
    pycolmap.logging.minloglevel = int(pycolmap.logging.FATAL)
    result: dict[str, Any] = {
        "machine": metadata(DEVICE)
        | {
            "matmul_flops_float32": matmul_flops(DEVICE, torch.float32),
            "copy_bytes_per_s": copy_bandwidth(DEVICE),
        },
        "ratios": {},
        "cases": {},
    }
    for name, run in cases().items():
        if options.only and name not in options.only:
            continue
        case = result["cases"][name] = run()
        line = f"{name:32} {case['ours_s']:8.3f} s ours"
        if "ratio" in case:
            result["ratios"][name] = round(case["ratio"], 3)
            line += f"  {case['plain_s']:8.3f} s plain  {case['ratio']:6.2f} x"
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
