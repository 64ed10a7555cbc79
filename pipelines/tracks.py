"""Points followed by optical flow, behind the keypoints of all other rungs."""

from __future__ import annotations

import logging
from pathlib import PurePosixPath

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import TracksConfig
from sfmprep.frontend.flow_tracks import write_tracks
from sfmprep.models.build import build_flow_estimator
from sfmprep.pairing.pairs import Pairs, natural_order
from sfmprep.pipelines.artefacts import join_tracks
from sfmprep.pipelines.run import Run
from sfmprep.progress import Progress, silent
from sfmprep.stores.beside import join_keypoints
from sfmprep.stores.layers import MatchReader
from sfmprep.stores.tables import FeatureStore, MatchStore

logger = logging.getLogger(__name__)


def films_of(images: ImageSet, *, others: bool) -> list[list[str]]:
    """Names of frames in the order of time, each list without a cut that is known.

    Args:
        images: The capture.
        others: Whether the photographs that are of no film count too: in each folder
            as the frames of one, in the natural order of their names.
    """
    shots = [shot for film in images.films for shot in film.shots()]
    if others:
        known = {name for shot in shots for name in shot}
        folders: dict[PurePosixPath, list[str]] = {}
        for name in natural_order([n for n in images.names if n not in known]):
            folders.setdefault(PurePosixPath(name).parent, []).append(name)
        shots += folders.values()
    return shots


def track_points(
    run: Run,
    config: TracksConfig,
    features: FeatureStore,
    pairs: Pairs,
    matches: MatchReader,
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> tuple[FeatureStore, MatchReader]:
    """Follows points through all films, and puts them behind what was found without.

    Several devices are not used at once: it is the first that follows.

    Returns:
        Keypoints and matches of both, open for reading. The keypoints of `features`
        have the same rows as before.

    Raises:
        SfmprepError: see `build_flow_estimator`.
    """
    place = run.workspace
    if not (run.ledger.is_done("track") and place.tracks.is_file()):
        run.begin("track")
        for path in (place.tracks, place.track_matches):
            path.unlink(missing_ok=True)
        made = {"key": run.ledger.keys.key("track")}
        estimator = build_flow_estimator(config.flow, device=device.split(",")[0])
        films = [
            [name for name in film if name in features]
            for film in films_of(run.images, others=True)
        ]
        with (
            FeatureStore(place.tracks, made) as tracks,
            MatchStore(place.track_matches, made) as followed,
        ):
            write_tracks(
                *(run.images, films, pairs, estimator, config, tracks, followed),
                progress=progress,
            )
        run.finish("track")
    if not run.ledger.is_done("join tracks"):
        run.begin("join tracks")
        place.keypoints_tracked.unlink(missing_ok=True)
        made = {"key": run.ledger.keys.key("join tracks")}
        with (
            FeatureStore(place.tracks) as tracks,
            FeatureStore(place.keypoints_tracked, made) as joined,
        ):
            join_keypoints(features, tracks, joined, images=tracks.names())
        run.finish("join tracks")
    return join_tracks(run, features, matches)
