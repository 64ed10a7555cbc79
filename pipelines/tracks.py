"""Points followed by optical flow, behind the keypoints of all other rungs."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from sfmprep.capture.batches import fit_size, load_batches
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DroidConfig, TracksConfig
from sfmprep.coords import is_mirrored, stored_pose
from sfmprep.files import read_table, write_text
from sfmprep.frontend.flow_tracks import Judge, write_tracks
from sfmprep.mapping.focal_priors import exif_focal_length
from sfmprep.mapping.odometry import FIRST, Odometry
from sfmprep.models.build import build_flow_estimator
from sfmprep.pairing.pairs import Pairs, natural_order
from sfmprep.pipelines.artefacts import join_tracks
from sfmprep.pipelines.run import Run
from sfmprep.progress import Progress, silent
from sfmprep.stores.beside import join_keypoints
from sfmprep.stores.layers import MatchReader
from sfmprep.stores.tables import FeatureStore, MatchStore
from sfmprep.types import Float32, Float64, Index, Mask

logger = logging.getLogger(__name__)

_GUESSED_FOCAL = 1.2  # of the longer side, as COLMAP guesses it
_SURE_FOCAL = 0.002  # deviation as a share, up to which a focal length is taken over


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
        infos = run.images.infos
        films = [
            list(shot)
            for film in films_of(run.images, others=True)
            for _, shot in groupby(
                (name for name in film if name in features),
                key=lambda name: (infos[name].size, infos[name].orientation),
            )
        ]
        ways: list[tuple[Sequence[str], Odometry]] = []

        def new_judge(film: Sequence[str]) -> Judge:
            middle = np.array(infos[film[0]].size) / 2
            ways.append((film, _odometry(run, config, film[0])))

            def judge(
                track: Index, before: Float32, now: Float32, sure: Float32
            ) -> Mask:
                if not len(track):  # a cut: what follows is a world of its own
                    ways.append((film, _odometry(run, config, film[0])))
                    return np.zeros(0, bool)
                return ways[-1][1].push(
                    track, before - middle, now - middle, sure.astype(float)
                )

            return judge

        with (
            FeatureStore(place.tracks, made) as tracks,
            MatchStore(place.track_matches, made) as followed,
        ):
            write_tracks(
                *(run.images, films, pairs, estimator, config),
                *(tracks, followed),
                new_judge=new_judge,
                progress=progress,
            )
        write_text(place.film_focals, json.dumps(_focal_lengths(run.images, ways)))
        poses = _poses(ways)
        if poses and config.start and isinstance(config.flow, DroidConfig):
            poses = _by_droid(run, config, config.flow, poses, device)
        _write_poses(poses, place.film_poses)
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


def film_poses(run: Run) -> Path | None:
    """The poses that mapping begins with; None where it searches for a start."""
    path = run.workspace.film_poses
    wanted = run.recipe.tracks is not None and run.recipe.tracks.start
    return path if wanted and path.is_file() else None


def _odometry(run: Run, config: TracksConfig, name: str) -> Odometry:
    size, known = run.images.infos[name].size, run.recipe.database.focal_length
    guess = _GUESSED_FOCAL * max(size) if known is None else known
    pixel = max(size) / max(fit_size(size, config.max_size))
    return Odometry(guess, is_known=known is not None, pixel=pixel)


def film_focal_lengths(run: Run) -> dict[str, float]:
    """Focal lengths in pixels that films tell, of the cameras of their first frames."""
    if run.recipe.tracks is None:
        return {}
    return {
        name: float(px) for name, px in read_table(run.workspace.film_focals).items()
    }


def _focal_lengths(
    images: ImageSet, ways: Sequence[tuple[Sequence[str], Odometry]]
) -> dict[str, float]:
    """What ways tell surely, the surest first, and EXIF does not, by first frames."""
    found: dict[str, float] = {}
    for names, way in sorted(ways, key=lambda each: each[1].focal_deviation):
        is_told = way.focal_deviation <= _SURE_FOCAL and names[0] not in found
        if is_told and exif_focal_length(images, names[0]).pixels is None:
            found[names[0]] = way.focal
    for name, pixels in found.items():
        logger.info(
            "%s and what follows: the points that were followed tell a focal length of"
            " %.0f px",
            *(name, pixels),
        )
    return found


class _Poses(NamedTuple):
    names: Sequence[str]  # of N frames
    rotations: Float64  # [N, 3, 3] camera from world
    translations: Float64  # [N, 3]
    focal: float  # pixels of the file


def _poses(ways: Sequence[tuple[Sequence[str], Odometry]]) -> _Poses | None:
    """Those of one film; None of several, which have no common world."""
    if len(ways) != 1:
        return None
    [(names, way)] = ways
    rotations, translations = way.cam_from_world
    if not way.is_whole or not FIRST <= len(rotations) == len(names):
        return None
    return _Poses(names, rotations, translations, way.focal)


def _by_droid(
    run: Run, config: TracksConfig, flow: DroidConfig, poses: _Poses, device: str
) -> _Poses:
    """Poses by flow and adjustment in turns, with the focal length that is known."""
    from sfmprep.mapping.dense_odometry import FIRST as FIRST_DENSE
    from sfmprep.mapping.dense_odometry import DenseOdometry
    from sfmprep.models.flow.droid import Droid

    orientation = run.images.infos[poses.names[0]].orientation  # one of all of them
    if len(poses.names) < FIRST_DENSE or is_mirrored(orientation):
        return poses
    droid = Droid(flow, device=device.split(",")[0])
    size = run.images.infos[poses.names[0]].size
    scale = max(fit_size(size, config.max_size)) / max(size)
    way = DenseOdometry(droid, scale * poses.focal)
    for _, batch in load_batches(run.images, poses.names, max_size=config.max_size):
        [image] = droid.prepare(batch)
        way.push(image)
    stored = np.array(
        [
            stored_pose(np.column_stack(pose), orientation)
            for pose in zip(*way.cam_from_world, strict=True)
        ]
    )
    return poses._replace(rotations=stored[..., :3], translations=stored[..., 3])


def _write_poses(poses: _Poses | None, path: Path) -> None:
    """Writes a table of them, or none."""
    path.unlink(missing_ok=True)
    if poses is None:
        return
    rows = ["name,x,y,z,qw,qx,qy,qz"]
    for name, turn, shift in zip(*poses[:3], strict=True):
        x, y, z, w = Rotation.from_matrix(turn.T).as_quat()
        numbers = (*(-turn.T @ shift).tolist(), w, x, y, z)
        quoted = '"' + name.replace('"', '""') + '"'
        rows.append(",".join([quoted, *(f"{number:.9g}" for number in numbers)]))
    write_text(path, "\n".join(rows) + "\n")
