"""Which way up an image is, told by views that it should show the same as.

Most features match between images that are turned against each other by less than 45
degrees; EXIF does not always tell how the camera was held. An image that is looked at
in another orientation is one whose EXIF says so: all that follows heeds it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pycolmap

from sfmprep import coords
from sfmprep.capture.batches import reduction_scales
from sfmprep.frontend.extract import extract_features
from sfmprep.frontend.match import match_features
from sfmprep.models.build import build_extractor, build_matcher
from sfmprep.models.protocols import Extractor, Matcher
from sfmprep.models.shared.precision import Where
from sfmprep.pairing.pairs import Pairs
from sfmprep.pipelines import artefacts
from sfmprep.pipelines.run import Run
from sfmprep.progress import Progress, silent
from sfmprep.stores.tables import FeatureStore, MatchStore

logger = logging.getLogger(__name__)

_MIN_INLIERS = 20  # of the best pair
_MIN_GAIN = 1.5  # times the inliers of the image as it is
_MAX_TRIALS = 1000


def find_orientations(
    run: Run,
    partners: Mapping[str, Sequence[str]],
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[str, int]:
    """The EXIF orientations in which images match their partners better.

    The first features and the first matcher try each image in three more orientations,
    a quarter turn apart. Nothing is kept of it but the result.

    Args:
        run: Its features and those of the partners are there.
        partners: Of each image, views that it may show the same as.
        device: Where networks run.
        progress: Wraps the loop over images.

    Returns:
        Only images that are better turned, with the orientation to read them in.

    Raises:
        SfmprepError: see `extract_features` and `match_features`.
    """
    if not partners:
        return {}
    recipe, found = run.recipe, dict[str, int]()
    where = device.split(",")[0]
    how = Where(device=where, precision=recipe.engine.precision)
    extractor = build_extractor(recipe.features, **how)
    matcher = build_matcher(recipe.matcher, **how)
    with artefacts.open_features(run) as features:
        shown = progress(partners.items(), desc="turn", total=len(partners))
        for name, others in shown:
            there = [other for other in others if other in features]
            counts = [
                _most_inliers(run, name, there, features, extractor, matcher, turns)
                for turns in range(4)
            ]
            best = int(np.argmax(counts))
            if counts[best] >= max(_MIN_INLIERS, _MIN_GAIN * counts[0]) and best:
                as_told = run.images.infos[name].orientation
                found[name] = coords.turned(as_told, best)
    for name in found:
        logger.info("%s lies on its side or its head: it is turned", name)
    return found


def _most_inliers(
    run: Run,
    name: str,
    others: Sequence[str],
    features: FeatureStore,
    extractor: Extractor,
    matcher: Matcher,
    turns: int,
) -> int:
    """Of the pairs of an image after some quarter turns: the most that fit epipolar."""
    info = run.images.infos[name]
    info = replace(info, orientation=coords.turned(info.orientation, turns))
    images = replace(run.images, names=(name,), infos={name: info})
    max_size = run.recipe.features.max_size
    options = pycolmap.RANSACOptions()
    options.max_error = run.recipe.database.max_error_px
    options.max_error *= max(reduction_scales(images, max_size).values())
    options.max_num_trials = _MAX_TRIALS
    options.random_seed = run.recipe.seed
    with FeatureStore() as store, MatchStore() as matches:
        store.append([(other, features.get(other)) for other in others])
        if turns == 0:
            store.append([(name, features.get(name))])
        else:
            extract_features(images, extractor, store, max_size=max_size)
        pairs = Pairs.of((name, other) for other in others)
        match_features(pairs, store, matcher, matches)
        most = 0
        for (name0, name1), index in matches.indices():
            if len(index) < _MIN_INLIERS:
                continue
            xy0, xy1 = (
                store.get(each).xy[column].astype(np.float64)
                for each, column in ((name0, index[:, 0]), (name1, index[:, 1]))
            )
            geometry = pycolmap.estimate_fundamental_matrix(xy0, xy1, options)
            most = max(most, geometry["num_inliers"] if geometry else 0)
    return most
