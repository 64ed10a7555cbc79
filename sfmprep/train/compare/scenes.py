"""Row 1 of the table: whole reconstructions of posed scenes; and what rows 1, 2 share.

Features and matches of a scene are made once a column and kept in stores, with the
seconds that each took, from which those of a reconstruction are put together.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pycolmap

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DatabaseConfig, MappingConfig
from sfmprep.errors import ConfigError, ReconstructionError
from sfmprep.evaluation.poses import evaluate_model
from sfmprep.evaluation.reference import CameraPose, read_reference
from sfmprep.files import write_text
from sfmprep.frontend.extract import extract_features
from sfmprep.frontend.match import match_features, missing_pairs, pairs_per_batch
from sfmprep.mapping.database import update_database
from sfmprep.mapping.mapper import map_images
from sfmprep.mapping.verify import verify_matches
from sfmprep.pairing.pairs import (
    Pairs,
    exhaustive_pairs,
    natural_order,
    sequential_pairs,
)
from sfmprep.progress import Progress, silent
from sfmprep.stores.tables import FeatureStore, MatchStore
from sfmprep.train.compare.columns import MAX_SIZE, Column

logger = logging.getLogger(__name__)

AUC_DEG = (1, 3, 5)
THINNED_STEP = 3  # every third image

_EXHAUSTIVE_UP_TO = 30  # images
_WINDOW = 10
_DATABASE = DatabaseConfig()
_MAPPING = MappingConfig()
_SEED = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """Photographs with known poses and intrinsics."""

    name: str
    images: ImageSet  # those that the reference knows
    reference: Mapping[str, CameraPose]
    cameras: Mapping[str, pycolmap.Camera]  # the reference's, by image name
    sha256: str  # of the reference and of the images' names and sizes in bytes


def read_scene(folder: Path) -> Scene:
    """Reads a folder that holds `images` and `reference.json`.

    Raises:
        ConfigError: the reference is missing or damaged, has no intrinsics `K`, `dist`
            (k1 k2 p1 p2), `width` and `height`, or knows fewer than two of the images.
        ImageError: there is no image.
    """
    path = folder / "reference.json"
    reference = read_reference(path)
    found = ImageSet.scan(folder / "images")
    images = _subset(found, [name for name in found.names if name in reference])
    if len(images) < 2:
        raise ConfigError(
            f"{path} knows {len(images)} of the {len(found)} images in {found.root};"
            " expected at least two. Name them there by their path in that folder."
        )
    text = path.read_text("utf-8")
    sizes = [(name, images.infos[name].num_bytes) for name in images.names]
    return Scene(
        name=folder.name,
        images=images,
        reference={name: reference[name] for name in images.names},
        cameras=_read_cameras(json.loads(text)["images"], images, path),
        sha256=hashlib.sha256((text + json.dumps(sizes)).encode()).hexdigest(),
    )


def _subset(images: ImageSet, names: list[str]) -> ImageSet:
    infos = {name: images.infos[name] for name in sorted(names)}
    return ImageSet(images.root, tuple(infos), infos, {})


def _read_cameras(
    entries: Mapping[str, Any], images: ImageSet, path: Path
) -> dict[str, pycolmap.Camera]:
    cameras = {}
    for name in images.names:
        try:
            entry = entries[name]
            (fx, _, cx), (_, fy, cy), _ = entry["K"]
            k1, k2, p1, p2 = entry["dist"]
            size = int(entry["width"]), int(entry["height"])
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{path}, image {name}: the intrinsics cannot be read ({error!r})."
                " Expected K (3x3), dist (k1 k2 p1 p2), width and height."
            ) from error
        if size != images.infos[name].size:
            raise ConfigError(
                f"{path}, image {name}: it has {size} pixels there but"
                f" {images.infos[name].size} on disk. Scale the intrinsics."
            )
        cameras[name] = pycolmap.Camera(
            model="OPENCV",
            width=size[0],
            height=size[1],
            params=[fx, fy, cx, cy, k1, k2, p1, p2],
        )
    return cameras


# ---------------------------------------------------------------- features and matches
@dataclass(frozen=True, kw_only=True, eq=False)
class MatchedScene:
    """The stores of a scene and a column, open, and how fast they were filled."""

    features: FeatureStore
    matches: MatchStore
    seconds_per_image: float | None  # None where only stopped runs made them
    seconds_per_pair: float | None


@contextmanager
def matched_scene(
    scene: Scene,
    column: Column,
    pairs: Pairs,
    folder: Path,
    *,
    progress: Progress = silent,
) -> Iterator[MatchedScene]:
    """Opens the features of a scene and the matches of pairs, doing what is missing.

    Columns with the same features share them. Stores of other settings or other weights
    lie beside them.

    Raises:
        StoreError: another process evaluates into the same folder.
    """
    place = folder / scene.name
    place.mkdir(parents=True, exist_ok=True)
    kind, matcher = column.frontend.features.type, column.frontend.matcher.type
    provenance = {**column.features_provenance, "scene_sha256": scene.sha256}
    features_path = place / f"{kind}-{_key(provenance)}.h5"
    match_provenance = {**column.provenance, "features": provenance}
    match_path = place / f"{kind}-{matcher}-{_key(match_provenance)}.h5"
    with (
        FeatureStore(features_path, provenance) as features,
        MatchStore(match_path, match_provenance) as matches,
    ):
        with _noted(features_path, len(scene.images) - len(features)):
            extract_features(
                scene.images,
                column.extractor,
                features,
                max_size=MAX_SIZE,
                progress=progress,
            )
        with _noted(match_path, len(missing_pairs(pairs, features, matches))):
            match_features(
                pairs,
                features,
                column.matcher,
                matches,
                batch_size=pairs_per_batch("cpu"),
                progress=progress,
            )
        yield MatchedScene(
            features=features,
            matches=matches,
            seconds_per_image=_seconds_per_item(features_path),
            seconds_per_pair=_seconds_per_item(match_path),
        )


def _key(provenance: Mapping[str, Any]) -> str:
    text = json.dumps(provenance, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@contextmanager
def _noted(store: Path, num_items: int) -> Iterator[None]:
    """Adds the seconds of what was done to those of earlier runs, beside the store.

    A run that was stopped notes neither its seconds nor its items.
    """
    start = time.monotonic()
    yield
    if num_items:
        path = store.with_suffix(".seconds.json")
        seconds, items = json.loads(path.read_text()) if path.is_file() else (0.0, 0)
        done = [seconds + time.monotonic() - start, items + num_items]
        write_text(path, json.dumps(done))


def _seconds_per_item(store: Path) -> float | None:
    path = store.with_suffix(".seconds.json")
    if not path.is_file():
        return None
    seconds, items = json.loads(path.read_text())
    return float(seconds / items)


# ---------------------------------------------------------------------- reconstruction
def scene_settings(scene: Scene) -> dict[str, Any]:
    """What a reconstruction depends on beside the column."""
    return {
        "scene_sha256": scene.sha256,
        "exhaustive_up_to": _EXHAUSTIVE_UP_TO,
        "window": _WINDOW,
        "database": _DATABASE.model_dump(mode="json"),
        "mapping": _MAPPING.model_dump(mode="json"),
        "seed": _SEED,
    }


def scene_pairs(names: list[str]) -> Pairs:
    """All pairs of up to 30 images, else those of `sequential_pairs` with window 10."""
    if len(names) <= _EXHAUSTIVE_UP_TO:
        return exhaustive_pairs(names)
    return sequential_pairs(names, window=_WINDOW, quadratic=True)


def reconstruct_scene(
    scene: Scene,
    column: Column,
    folder: Path,
    *,
    step: int = 1,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Reconstructs every `step`-th image of a scene and compares the poses.

    Args:
        scene: The photographs and their poses.
        column: Features and matcher.
        folder: Where stores are kept.
        step: 1 for all images, in the order of their names.
        progress: Wraps the loops of the stages.

    Returns:
        `images`; of the model with most of them `registered`, `auc` in per cent by
        threshold in degrees, `points`, `track_length` (null without points); `pairs`;
        `seconds` of extraction, matching, verification and mapping (null where only
        runs that were stopped extracted or matched).
    """
    names = natural_order(scene.images.names)[::step]
    images, pairs = _subset(scene.images, names), scene_pairs(names)
    reference = {name: scene.reference[name] for name in names}
    with (
        matched_scene(scene, column, pairs, folder, progress=progress) as matched,
        tempfile.TemporaryDirectory(prefix=".run-", dir=folder) as work,
    ):
        database = Path(work) / "database.db"
        start = time.monotonic()
        update_database(
            database, images, matched.features, matched.matches, pairs, _DATABASE
        )
        verify_matches(database, pairs, _DATABASE, seed=_SEED, progress=progress)
        models: list[pycolmap.Reconstruction] = []
        with suppress(ReconstructionError):  # too few images in one model: none counts
            models = map_images(
                database,
                images,
                Path(work) / "models",
                _MAPPING,
                seed=_SEED,
                progress=progress,
            )
        seconds = _total_seconds(
            time.monotonic() - start,
            (matched.seconds_per_image, len(names)),
            (matched.seconds_per_pair, len(pairs)),
        )
    figures: dict[str, Any] = {
        "images": len(names),
        "pairs": len(pairs),
        "seconds": seconds,
    }
    if not models:
        nothing = {str(t): 0.0 for t in AUC_DEG}
        return figures | {
            "registered": 0,
            "auc": nothing,
            "points": 0,
            "track_length": None,
        }
    found = evaluate_model(models[0], reference)
    return figures | {
        "registered": found.registered,
        "auc": {str(t): round(found.auc[t], 2) for t in AUC_DEG},
        "points": found.num_points,
        "track_length": found.mean_track_length,
    }


def _total_seconds(own: float, *shares: tuple[float | None, int]) -> float | None:
    """Adds shares, (seconds an item, items), to a time; None where one is unknown."""
    total = own
    for seconds_per_item, num_items in shares:
        if seconds_per_item is None:
            return None
        total += seconds_per_item * num_items
    return round(total, 1)
