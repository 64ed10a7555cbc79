"""From photographs to matches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from sfmprep.api.given import (
    SEVERAL_DEVICES,
    decoded,
    identity_of,
    in_folder,
    model_of,
    opened,
    pairs_of,
    size_of,
    warn_left_out,
)
from sfmprep.capture.identity import masks_signature
from sfmprep.capture.image_set import ImageSet
from sfmprep.capture.photographs import find_photographs
from sfmprep.config import (
    CompactConfig,
    EngineConfig,
    FeaturesConfig,
    FilmConfig,
    LightGlueConfig,
    MatcherConfig,
    NearestConfig,
    RetrievalConfig,
)
from sfmprep.config.base import ModelConfig
from sfmprep.config.load import load_recipe
from sfmprep.devices import pick_device
from sfmprep.errors import ConfigError
from sfmprep.executors.local import Processes
from sfmprep.frontend.extract import extract_features
from sfmprep.frontend.in_shards import extract_in_shards, match_in_shards
from sfmprep.frontend.match import match_features, missing_pairs, pairs_per_batch
from sfmprep.models.build import build_extractor, build_matcher
from sfmprep.models.protocols import Extractor, Matcher
from sfmprep.models.shared.precision import Precision
from sfmprep.pairing import retrieval
from sfmprep.pairing.pairs import Pairs
from sfmprep.pipelines.develop import find_capture
from sfmprep.progress import Progress, silent
from sfmprep.stores.tables import FeatureStore, MatchStore
from sfmprep.types import Features, Matches, Pair

_LIGHTGLUE = "aliked", "superpoint", "disk", "sift", "xfeat", "xfeat-l3", "compact"


def LightGlue(
    features: Literal[
        "aliked", "superpoint", "disk", "sift", "xfeat", "xfeat-l3", "compact"
    ],
    *,
    min_score: float = 0.1,
    depth_confidence: float | None = 0.95,
    width_confidence: float | None = 0.99,
    weights: str | Path | None = None,
) -> LightGlueConfig:
    """LightGlue (Lindenberger et al., ICCV 2023) with the weights for these features.

    Args:
        features: What is matched. `xfeat` is LighterGlue; `xfeat-l3` its half.
        min_score: Matches with a lower score are dropped, in 0..1.
        depth_confidence: Share of confident keypoints, in 0..1, at which a pair stops
            early; None for never.
        width_confidence: Confidence in 0..1 at which keypoints that cannot be matched
            are dropped; None for never.
        weights: A file to use in place of the known one.

    Raises:
        ConfigError: there are no weights for these features.
    """
    if features not in _LIGHTGLUE:
        raise ConfigError(
            f"LightGlue has no weights for {features!r}. It has some for"
            f" {', '.join(_LIGHTGLUE)}; `Nearest()` matches features of every kind."
        )
    name = features.replace("xfeat", "lighterglue")
    return LightGlueConfig.model_validate(
        {
            "model": name if name != features else f"{features}-lightglue",
            "min_score": min_score,
            "depth_confidence": depth_confidence,
            "width_confidence": width_confidence,
            "weights": weights,
        }
    )


def scan(
    folder: str | Path,
    *,
    masks: str | Path | None = None,
    keep_damaged: bool = False,
    out: str | Path | None = None,
    film: FilmConfig | None = None,
    progress: Progress = silent,
) -> ImageSet:
    """Finds the photographs below a folder and reads their headers, not their pixels.

    With `out`, films and RAW files become photographs there, as on the command line;
    what is there for the same files and settings is not made again. Without it they are
    in `ImageSet.passed_over`.

    Files that cannot be read are in `ImageSet.unreadable`, with the reason, and those
    with the content of another in `ImageSet.copies`. Of a scene folder only `images` is
    read.

    Args:
        folder: Photographs, also in sub-folders; they are never changed. With `out`
            also films and RAW files, or one film.
        masks: Folder of masks, `a.jpg.png` or `a.png` for `a.jpg`; black is ignored.
        keep_damaged: Use what is left of damaged photographs.
        out: An output folder, or a new one.
        film: Which frames of films are taken; None for the defaults.
        progress: Wraps the loop over files; tqdm fits.

    Raises:
        ImageError: a folder is missing or a file, or no image can be read.
        ConfigError: `film` without `out`, or results may not go to `out`.
        StoreError: another run works in `out`, or it cannot be written.
    """
    mask_root = None if masks is None else Path(masks)
    if out is None:
        if film is not None:
            raise ConfigError("film without out: name the folder that frames go to.")
        return find_photographs(
            Path(folder),
            mask_root=mask_root,
            keep_damaged=keep_damaged,
            progress=progress,
        )
    changes = {"masks": mask_root, "keep_damaged": keep_damaged}
    recipe = load_recipe("sift").model_copy(
        update={**changes, "film": film or FilmConfig()}
    )
    return find_capture(Path(folder), Path(out), recipe, progress=progress)


def extract(
    images: ImageSet,
    extractor: FeaturesConfig | Extractor,
    store: FeatureStore | str | Path | None = None,
    *,
    max_size: int | None = None,
    device: str = "cpu",
    precision: Precision = "auto",
    num_workers: int | None = None,
    progress: Progress = silent,
) -> FeatureStore:
    """Extracts the features of all images that the store does not hold yet.

    An image that cannot be decoded, or whose mask cannot be used, is a warning in the
    log and not in the store. What is there already is not looked at again.

    Args:
        images: The capture.
        extractor: A configuration, or an object with an `identity`.
        store: A file that is made or added to, or a store; None for a new one in
            memory.
        max_size: Longer side in pixels that images are reduced to for an object, 1600
            by default; configurations have their own.
        device: Where the network of a configuration runs, such as `cuda`; with
            `cuda:0,cuda:1` one process runs on each, which needs a path, and
            `if __name__ == "__main__":` in a script.
        precision: `auto` is half precision where the network allows it and the device
            is faster with it.
        num_workers: Threads that decode; None: one a core, at most 8.
        progress: Wraps the loop over images; tqdm fits.

    Returns:
        The store, open; it also holds the images of earlier calls. `with` closes it.

    Raises:
        ConfigError: the device, precision or `max_size` cannot be used, or an object
            has no identity.
        WeightsError: weights are missing, cannot be had, or are damaged.
        DeviceError: an image is too large for the memory of the device.
        StoreError: the store was made in another way, is in use or cannot be written.
    """
    device, size = pick_device(device), size_of(extractor, max_size)
    made = identity_of(extractor, device, precision, max_size=size)
    if images.mask_root is not None:
        made["masks_sha256"] = masks_signature(images)
    if "," in device:
        if not (isinstance(extractor, ModelConfig) and isinstance(store, str | Path)):
            raise ConfigError(SEVERAL_DEVICES)
        path = in_folder(store)
        unreadable = extract_in_shards(
            *(images, extractor, path, made),
            executor=Processes(device.split(",")),
            engine=EngineConfig(precision=precision, num_workers=num_workers),
            progress=progress,
        )
        warn_left_out(images, unreadable)
        return FeatureStore(path)
    with opened(FeatureStore, store, made) as target:
        if any(name not in target for name in images.names):
            model = model_of(extractor, build_extractor, device, precision)
            unreadable = extract_features(
                *(images, model, target),
                max_size=size,
                num_workers=num_workers,
                progress=progress,
            )
            warn_left_out(images, unreadable)
    return target


def retrieval_pairs(
    features: FeatureStore,
    *,
    num_neighbours: int = 20,
    min_similarity: float = -1.0,
    names: Sequence[str] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Pairs:
    """Pairs each image with the most similar ones, by a VLAD of its local descriptors.

    Args:
        features: Of the images.
        num_neighbours: Each image is paired with so many others, 1 or more.
        min_similarity: Pairs with a lower cosine, in -1..1, are left out.
        names: The images; None for all that have features.
        seed: Of the vocabulary, which is learned from the features.
        progress: Wraps the loop over images; tqdm fits.

    Returns:
        Sorted pairs; none for fewer than two images with features.
    """
    return retrieval.retrieval_pairs(
        sorted(features.names()) if names is None else names,
        features,
        RetrievalConfig(num_neighbours=num_neighbours, min_similarity=min_similarity),
        seed=seed,
        progress=progress,
    )


def match(
    features: FeatureStore,
    pairs: Iterable[Pair],
    matcher: MatcherConfig | Matcher,
    store: MatchStore | str | Path | None = None,
    *,
    device: str = "cpu",
    precision: Precision = "auto",
    cache_gb: float = 2.0,
    progress: Progress = silent,
) -> MatchStore:
    """Matches all pairs that the store does not hold yet.

    A pair with an image that has no features is left out.

    Args:
        features: Of the images.
        pairs: What to match, such as `exhaustive_pairs(images.names)`.
        matcher: A configuration, or an object with an `identity`.
        store: A file that is made or added to, or a store; None for a new one in
            memory.
        device: As in `extract`. Several devices read `features` by its path.
        precision: As in `extract`.
        cache_gb: Features that are kept ready on the device, 1e9 bytes.
        progress: Wraps the loop over pairs; tqdm fits.

    Returns:
        The store, open; it also holds the pairs of earlier calls. `with` closes it.

    Raises:
        ConfigError: the device or precision cannot be used, or an object has no
            identity.
        ValueError: an image is paired with itself.
        WeightsError: weights are missing, cannot be had, or are damaged.
        StoreError: the store was made in another way, is in use or cannot be written.
    """
    device = pick_device(device)
    pairs = pairs_of(pairs)
    made = identity_of(matcher, device, precision) | {"features": features.provenance}
    if "," in device:
        if not (isinstance(matcher, ModelConfig) and isinstance(store, str | Path)):
            raise ConfigError(SEVERAL_DEVICES)
        path = in_folder(store)
        if features.path is None:
            raise ConfigError("several devices need features on disk, not in memory")
        match_in_shards(
            *(pairs, features.path, matcher, path, made),
            executor=Processes(device.split(",")),
            engine=EngineConfig(precision=precision, cache_gb=cache_gb),
            progress=progress,
        )
        return MatchStore(path)
    with opened(MatchStore, store, made) as target:
        if missing_pairs(pairs, features, target):
            model = model_of(matcher, build_matcher, device, precision)
            match_features(
                *(pairs, features, model, target),
                batch_size=pairs_per_batch(device),
                cache_bytes=int(cache_gb * 1e9),
                progress=progress,
            )
    return target


def match_images(
    first: str | Path,
    second: str | Path,
    extractor: FeaturesConfig | Extractor | None = None,
    matcher: MatcherConfig | Matcher | None = None,
    *,
    max_size: int | None = None,
    device: str = "cpu",
    precision: Precision = "auto",
) -> tuple[tuple[Features, Features], Matches]:
    """Extracts and matches two photographs, without any store.

    Args:
        first: A photograph.
        second: Another one.
        extractor: A configuration or a model; `CompactConfig()` by default, whose
            weights are in the package.
        matcher: A configuration or a model; the default fits the default extractor
            and, for another one, is nearest neighbours.
        max_size: As in `extract`.
        device: Where the networks of configurations run, such as `cuda`.
        precision: As in `extract`.

    Returns:
        The features of both, `xy` in pixels of the files, and the matches, best first;
        `features[0].xy[matches.index[:, 0]]` lie where
        `features[1].xy[matches.index[:, 1]]` do. Empty where nothing is found.

    Raises:
        ImageError: a photograph is missing or cannot be decoded.
        ConfigError, WeightsError, DeviceError: as `extract`.
    """
    if extractor is None:
        extractor = CompactConfig()
        matcher = matcher or LightGlue("compact")
    device, size = pick_device(device), size_of(extractor, max_size)
    model = model_of(extractor, build_extractor, device, precision)
    pair = (
        model.extract(decoded(Path(first), size))[0],
        model.extract(decoded(Path(second), size))[0],
    )
    matcher = model_of(matcher or NearestConfig(), build_matcher, device, precision)
    return pair, matcher.match([pair])[0]
