"""Matching without a detector, beside the features or where they find too little."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sfmprep.api.given import (
    identity_of,
    model_of,
    opened,
    pairs_of,
    size_of,
    warn_left_out,
)
from sfmprep.api.poses import Database, path_of
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DenseConfig, DenseMatcherConfig
from sfmprep.devices import pick_device
from sfmprep.mapping.verify import count_inliers
from sfmprep.models.build import build_dense_matcher
from sfmprep.models.protocols import DenseMatcher
from sfmprep.models.shared.precision import Precision
from sfmprep.pairing.pairs import Pairs
from sfmprep.pairing.weak_pairs import weak_pairs as choose_weak_pairs
from sfmprep.progress import Progress, silent
from sfmprep.semidense import match as semidense
from sfmprep.semidense.join import aggregate
from sfmprep.stores.layers import MatchReader
from sfmprep.stores.tables import DenseStore, FeatureStore, MatchStore
from sfmprep.types import Pair


def match_dense(
    images: ImageSet,
    pairs: Iterable[Pair],
    matcher: DenseMatcherConfig | DenseMatcher,
    store: DenseStore | str | Path | None = None,
    *,
    max_size: int | None = None,
    device: str = "cpu",
    precision: Precision = "auto",
    cache_gb: float = 2.0,
    num_workers: int | None = None,
    progress: Progress = silent,
) -> DenseStore:
    """Matches without a detector: both directions of all pairs not in the store yet.

    An image that cannot be decoded is a warning in the log; its pairs are left out.

    Args:
        images: The capture.
        pairs: What to match, such as `weak_pairs`.
        matcher: A configuration, or an object with an `identity`.
        store: A file that is made or added to, or a store; None for a new one in
            memory.
        max_size: As in `extract`.
        device: Where the network of a configuration runs; one device.
        precision: As in `extract`.
        cache_gb: Prepared images that stay on the device, 1e9 bytes; at least two do.
        num_workers: Threads that decode; None: one a core, at most 8.
        progress: Wraps the loop over pairs; tqdm fits.

    Returns:
        The store, open; two entries a pair. `with` closes it.

    Raises:
        ConfigError: as `extract`; or a pair names an image that is not in the capture.
        ValueError: an image is paired with itself.
        WeightsError, DeviceError, StoreError: as `extract`.
    """
    device, size = pick_device(device), size_of(matcher, max_size)
    made = identity_of(matcher, device, precision, max_size=size)
    pairs = pairs_of(pairs)
    with opened(DenseStore, store, made) as target:
        if any(pair not in target or pair[::-1] not in target for pair in pairs):
            model = model_of(matcher, build_dense_matcher, device, precision)
            unreadable = semidense.match_dense(
                *(images, pairs, model, target),
                max_size=size,
                cache_gb=cache_gb,
                num_workers=num_workers,
                progress=progress,
            )
            warn_left_out(images, unreadable)
    return target


def weak_pairs(
    database: Database | str | Path,
    pairs: Iterable[Pair],
    *,
    min_num_inliers: int = 60,
    per_image: int = 10,
    matches: MatchReader | None = None,
) -> Pairs:
    """The pairs that stayed weak and matter, for a dearer matcher to try.

    A pair matters to an image that few or no strong pairs hold, if it joins two pieces
    of the capture, or if it closes a loop. With what a matcher of the same features
    finds, `MatchLayers` goes into `verify` in place of the first matches.

    Args:
        database: Verified, see `verify`.
        pairs: What the features were matched on.
        min_num_inliers: A pair with fewer verified matches is weak.
        per_image: The most that an image, or two pieces, ask for, likeliest first.
        matches: Of the pairs: of those that nothing else tells apart the ones with more
            matches are likelier. None for not known.

    Returns:
        None of the strong pairs; none for no pairs.

    Raises:
        StoreError: `database` is not one of COLMAP, or is locked.
    """
    return Pairs.of(
        choose_weak_pairs(
            pairs_of(pairs),
            count_inliers(path_of(database)),
            min_num_inliers=min_num_inliers,
            num_matches=matches.num_matches() if matches is not None else None,
            per_image=per_image,
        )
    )


def join_dense(
    images: ImageSet,
    features: FeatureStore,
    matches: MatchReader,
    dense: DenseStore,
    config: DenseConfig,
    *,
    pairs: Pairs | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> tuple[FeatureStore, MatchStore]:
    """Joins features, their matches and matches without a detector, for `verify`.

    Args:
        images: The capture.
        features: The detector's keypoints; they keep their rows.
        matches: Of `features`.
        dense: What `match_dense` found; may be empty.
        config: Radius and number of the keypoints that are added; its `matcher` is the
            one that `dense` was made with.
        pairs: Those of `matches` that count; None for all.
        seed: Of RANSAC.
        progress: Wraps the loops over images and over pairs; tqdm fits.

    Returns:
        New stores in memory; their features have no descriptors.

    Raises:
        ImageError: a mask cannot be used.
    """
    made = {
        "dense": config.model_dump(mode="json"),
        "dense_matches": dense.provenance,
        "features": features.provenance,
        "matches": matches.provenance,
    }
    joined = FeatureStore(None, made), MatchStore(None, made)
    aggregate(
        *(images, features, matches, dense, config),
        new_features=joined[0],
        new_matches=joined[1],
        pairs=pairs,
        seed=seed,
        progress=progress,
    )
    return joined
