"""Estimators of two-view geometry on the same matches: COLMAP's and PoseLib's.

    python -m tests.bench.two_view [--scenes fox ...] [--features aliked] [--pairs 60]

Needs the scenes and weights of `../shared` (SFMPREP_SHARED names another place) and the
package `poselib`. Pairs are the wide ones, whose cameras look 15 degrees or more apart;
those in which fewer than 15 matches are near the true epipolar line stand apart. A pair
that is not found counts as an error of 180 degrees; so does one that COLMAP takes for a
plane where it does not know focal lengths: it then gives no fundamental matrix, which
the true ones turn into a pose here. Milliseconds are of one thread; since the machine
may be busy, their ratio to the first row is what counts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import poselib  # type: ignore[import-untyped]
import pycolmap
from numpy.typing import NDArray

import sfmprep as sp
from sfmprep.evaluation.poses import pose_auc, relative_pose_errors
from sfmprep.evaluation.reference import CameraPose, read_reference
from sfmprep.types import Float64, Mask
from tests.bench.shared import scene_folder, use_shared_weights

SCENES = ("fountain-P11", "Herz-Jesus-P8", "fox", "buddha67", "tum-fr2-desk20")
FEATURES = {"compact": sp.Compact, "aliked": sp.Aliked, "sift": sp.Sift}
LIMITS_DEG = (5, 10, 20)
_WIDE_DEG = 15
ROOT = Path(__file__).resolve().parents[2]
MIN_INLIERS = 15


@dataclass(frozen=True, eq=False)
class TwoViews:
    """The matches of a pair and what is known of its cameras."""

    xy: tuple[Float64, Float64]  # [M, 2] each, pixels of the files
    cameras: tuple[pycolmap.Camera, pycolmap.Camera]  # the true ones
    scale: float  # pixels of the file for one of the features
    truth: tuple[Float64, Float64]  # R [3, 3] and t [3], camera 1 from camera 0
    num_true: int  # matches within 0.5 % of the longer side of their epipolar line


Found = tuple[Float64, Float64, int] | None  # R, t, inliers
Estimator = Callable[[TwoViews, int], Found]  # of a pair and a seed


# ------------------------------------------------------------------------- estimators
def colmap(
    views: TwoViews,
    seed: int,
    *,
    px: float,
    known: bool,
    ransac: Mapping[str, float] | None = None,
) -> Found:
    """COLMAP's choice of E, F and H where focal lengths are known, else of F and H."""
    options = pycolmap.TwoViewGeometryOptions()
    options.ransac.max_error = px * views.scale
    options.ransac.random_seed = seed
    options.ransac.mergedict(dict(ransac or {}))
    count = len(views.xy[0])
    rows = np.repeat(np.arange(count, dtype=np.uint32)[:, None], 2, axis=1)
    cameras = [pycolmap.Camera(camera.todict()) for camera in views.cameras]
    for camera in cameras:
        camera.has_prior_focal_length = known
    found = pycolmap.estimate_two_view_geometry(
        *(cameras[0], views.xy[0], cameras[1], views.xy[1], rows, options)
    )
    kept = np.zeros(count, bool)
    kept[np.asarray(found.inlier_matches)[:, 0]] = True
    matrix = found.E if known else found.F
    if matrix is None or kept.sum() < MIN_INLIERS:
        return None
    return _pose(views, matrix, kept, essential=known)


def poselib_known(views: TwoViews, seed: int, *, px: float) -> Found:
    """PoseLib's relative pose of calibrated cameras."""
    cameras = [
        {
            "model": camera.model.name,
            "width": camera.width,
            "height": camera.height,
            "params": list(camera.params),
        }
        for camera in views.cameras
    ]
    options = {**POSELIB, "max_epipolar_error": px * views.scale, "seed": seed}
    pose, about = poselib.estimate_relative_pose(*views.xy, *cameras, options, {})
    kept = int(np.sum(about["inliers"]))
    if kept < MIN_INLIERS:
        return None
    return np.asarray(pose.R, float), np.asarray(pose.t, float), kept


def poselib_unknown(
    views: TwoViews, seed: int, *, px: float, homography: bool
) -> Found:
    """PoseLib's fundamental matrix, and beside it a homography, as COLMAP looks for."""
    options = {**POSELIB, "max_epipolar_error": px * views.scale, "seed": seed}
    matrix, about = poselib.estimate_fundamental(*views.xy, options, {})
    if homography:
        options = {**POSELIB, "max_reproj_error": px * views.scale, "seed": seed}
        poselib.estimate_homography(*views.xy, options, {})
    kept = np.asarray(about["inliers"], bool)
    if kept.sum() < MIN_INLIERS:
        return None
    return _pose(views, matrix, kept, essential=False)


def _pose(views: TwoViews, matrix: Float64, kept: Mask, *, essential: bool) -> Found:
    """The pose of an essential or fundamental matrix that most inliers lie in front of.

    The true focal lengths make one of the other.
    """
    if not essential:
        first, second = (camera.calibration_matrix() for camera in views.cameras)
        matrix = second.T @ matrix @ first
    rays = [
        np.asarray(camera.cam_from_img(xy[kept]))
        for camera, xy in zip(views.cameras, views.xy, strict=True)
    ]
    _, turn, shift, _ = cv2.recoverPose(matrix, rays[0], rays[1], np.eye(3))
    return np.asarray(turn, float), np.asarray(shift, float)[:, 0], int(kept.sum())


POSELIB = {"max_iterations": 10_000}  # as of COLMAP; else its defaults
_OURS = {"max_num_trials": 1000}
ESTIMATORS: dict[str, Estimator] = {
    "COLMAP, f unknown, 4 px, 1000 trials": partial(
        colmap, px=4.0, known=False, ransac=_OURS
    ),
    **{
        f"COLMAP, {words}, {px:g} px": partial(colmap, px=px, known=known)
        for words, known in (("f unknown", False), ("f known", True))
        for px in (4.0, 2.0, 1.0)
    },
    **{
        f"PoseLib F{' + H' if both else ''}, f unknown, {px:g} px": partial(
            poselib_unknown, px=px, homography=both
        )
        for both, px in ((False, 4.0), (True, 4.0), (True, 2.0), (True, 1.0))
    },
    **{
        f"PoseLib E, f known, {px:g} px": partial(poselib_known, px=px)
        for px in (4.0, 2.0, 1.0)
    },
}


# ------------------------------------------------------------------------------ pairs
def wide_pairs(
    name: str, features: str, ratio: float, max_size: int, most: int
) -> list[TwoViews]:
    """The matched wide pairs of a scene."""
    images = sp.scan(scene_folder(name) / "images")
    poses = read_reference(scene_folder(name))
    content = json.loads((scene_folder(name) / "reference.json").read_text("utf-8"))
    pairs = [
        (a, b)
        for a, b in itertools.combinations(images.names, 2)
        if a in poses and b in poses and turn_deg(poses[a], poses[b]) >= _WIDE_DEG
    ]
    chosen = np.random.default_rng(0).permutation(len(pairs))[:most]
    pairs = [pairs[k] for k in sorted(chosen)]
    config = FEATURES[features](max_keypoints=2048, max_size=max_size)
    found = []
    stored = sp.extract(images, config)
    matches = sp.match(stored, pairs, sp.Nearest(ratio=ratio))
    for pair in pairs:
        entries = [content["images"][name] for name in pair]
        views = two_views(
            [stored.get(name).xy for name in pair],
            matches.get(*pair).index,
            entries,
            [poses[name] for name in pair],
            max_size,
        )
        if len(views.xy[0]) >= MIN_INLIERS:
            found.append(views)
    return found


def turn_deg(first: CameraPose, second: CameraPose) -> float:
    """How far apart two cameras look."""
    cosine = float(first.rotation[2] @ second.rotation[2])
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def two_views(
    xy: list[NDArray[np.float32]],
    index: NDArray[np.int32],
    entries: list[dict[str, Any]],
    poses: list[CameraPose],
    max_size: int,
) -> TwoViews:
    """The matches of a pair, free of the lens' distortion."""
    flat, rays, cameras = [], [], []
    for points, column, entry in zip(xy, index.T, entries, strict=True):
        lens, camera = _cameras(entry)
        seen = lens.cam_from_img(points[column].astype(np.float64))
        cameras.append(camera)
        flat.append(camera.img_from_cam(np.column_stack([seen, np.ones(len(seen))])))
        rays.append(np.column_stack([seen, np.ones(len(seen))]))
    turn = poses[1].rotation @ poses[0].rotation.T
    shift = poses[1].rotation @ (poses[0].centre - poses[1].centre)
    normals = np.cross(shift, rays[0] @ turn.T)
    distance = np.abs((normals * rays[1]).sum(axis=1))
    distance *= cameras[1].mean_focal_length() / np.linalg.norm(normals[:, :2], axis=1)
    longer = max(max(camera.width, camera.height) for camera in cameras)
    return TwoViews(
        xy=(flat[0], flat[1]),
        cameras=(cameras[0], cameras[1]),
        scale=max(1.0, longer / max_size),
        truth=(turn, shift),
        num_true=int((distance < 0.005 * longer).sum()),
    )


def _cameras(entry: dict[str, Any]) -> tuple[pycolmap.Camera, pycolmap.Camera]:
    """A camera as it is, and without its distortion."""
    matrix = np.asarray(entry["K"], np.float64)
    focal = [matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]]
    lens = np.zeros(8)
    lens[: len(entry["dist"])] = entry["dist"]
    size = {"width": entry["width"], "height": entry["height"]}
    return (
        pycolmap.Camera(model="FULL_OPENCV", params=[*focal, *lens], **size),
        pycolmap.Camera(model="PINHOLE", params=focal, **size),
    )


# ---------------------------------------------------------------------------- figures
def main() -> None:
    """Measures, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scenes", nargs="*", choices=SCENES, default=SCENES)
    parser.add_argument("--features", choices=sorted(FEATURES), default="compact")
    parser.add_argument("--ratio", type=float, default=0.9)
    parser.add_argument("--max-size", type=int, default=1024)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=150, help="of a scene, at random")
    parser.add_argument("--out", type=Path, default=ROOT / "examples" / "two_view.md")
    options = parser.parse_args()
    use_shared_weights()
    pycolmap.logging.minloglevel = 2
    figures: dict[str, list[Figures]] = {}
    told = []
    for name in options.scenes:
        pairs = wide_pairs(
            *(name, options.features, options.ratio, options.max_size, options.pairs)
        )
        true = [views for views in pairs if views.num_true >= MIN_INLIERS]
        junk = [views for views in pairs if views.num_true < MIN_INLIERS]
        shares = [views.num_true / len(views.xy[0]) for views in true]
        told.append(
            f"{name}: {len(true)} pairs with {100 * np.median(shares):.0f} % true"
            f" matches in the median, {len(junk)} others"
        )
        for words, estimate in ESTIMATORS.items():
            figures.setdefault(words, []).append(
                _measure(true, junk, estimate, options.seeds)
            )
    options.out.write_text(page(figures, told, options), "utf-8")


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one estimator makes of the pairs of one scene."""

    auc: dict[float, float]  # of pairs with true matches, by degrees, per cent
    found: float  # of these, per seed
    inliers: float  # of a pair that was found
    ms: float  # of a pair
    found_of_junk: float  # pairs, per seed
    ms_of_junk: float


def page(
    figures: Mapping[str, Sequence[Figures]],
    told: Sequence[str],
    options: argparse.Namespace,
) -> str:
    """The page of examples/."""
    first = next(iter(figures.values()))
    lines = [
        "# Two views: COLMAP's estimators and PoseLib's",
        "",
        f"Made by `make bench-two-view`, {date.today()}; no number is by hand."
        f" pycolmap {pycolmap.__version__}, poselib {version('poselib')}.",
        "",
        f"Features: {options.features}, 2048 keypoints of images of at most"
        f" {options.max_size} px, nearest neighbours at a ratio of {options.ratio};"
        f" {options.seeds} seeds. Pairs are those whose cameras look {_WIDE_DEG}"
        f" degrees or more apart, at most {options.pairs} of a scene:",
        "",
        *(f"- {line}" for line in told),
        "",
        "AUC at 5, 10 and 20 degrees is that of the larger of rotation and direction"
        " error, the mean of the scenes, in per cent; a pair that is not found counts"
        " as 180 degrees, and so does one that COLMAP takes for a plane where it does"
        " not know focal lengths, as it gives no fundamental matrix then. The others"
        " are pairs in which fewer than"
        f" {MIN_INLIERS} matches are near the true epipolar line: to find"
        " something there is an error that mapping has to pay for. CPU is that of one"
        " thread, as a ratio to the first row, which is what sfmprep verifies with.",
        "",
        "| estimator | AUC@5 / 10 / 20 | found | inliers | CPU | found of the others"
        " | CPU |",
        "|---|---|---|---|---|---|---|",
    ]
    base, base_junk = (
        max(sum(getattr(f, part) for f in first), 1e-9) for part in ("ms", "ms_of_junk")
    )
    for words, found in figures.items():
        auc = [np.mean([f.auc[limit] for f in found]) for limit in LIMITS_DEG]
        cells = (
            words,
            " / ".join(f"{value:.1f}" for value in auc),
            f"{sum(f.found for f in found):.0f}",
            f"{np.mean([f.inliers for f in found]):.0f}",
            f"{sum(f.ms for f in found) / base:.2f}",
            f"{sum(f.found_of_junk for f in found):.0f}",
            f"{sum(f.ms_of_junk for f in found) / base_junk:.2f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", _verdict(figures), "", "AUC@10 by scene:", ""]
    lines.append("| estimator | " + " | ".join(options.scenes) + " |")
    lines.append("|---" * (1 + len(options.scenes)) + "|")
    for words, found in figures.items():
        cells = (words, *(f"{f.auc[10]:.1f}" for f in found))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _verdict(figures: Mapping[str, Sequence[Figures]]) -> str:
    """Which estimators sfmprep uses, and what the others would change."""

    def gains(other: str, than: str) -> tuple[float, float, float]:
        """Points of AUC@10 more, and inliers and CPU as ratios."""
        one, two = figures[other], figures[than]
        points = np.mean([f.auc[10] for f in one]) - np.mean([f.auc[10] for f in two])
        inliers, ms = (
            sum(getattr(f, part) for f in one) / sum(getattr(f, part) for f in two)
            for part in ("inliers", "ms")
        )
        return float(points), inliers, ms

    unknown = gains("PoseLib F + H, f unknown, 4 px", next(iter(figures)))
    known = gains("PoseLib E, f known, 2 px", "COLMAP, f known, 2 px")
    return (
        "Verification keeps the inliers of a pair; its pose is forgotten, and that of"
        " the model is the mapper's. Without focal lengths PoseLib has"
        f" {unknown[1]:.2f} times the inliers, {unknown[0]:+.1f} points of AUC@10 and"
        f" {unknown[2]:.2f} times the CPU; with them, at 2 px, {known[1]:.2f},"
        f" {known[0]:+.1f} and {known[2]:.2f}. Poses of calibrated pairs are only asked"
        " for the angle of a first pair, and by the global mapper, which averages them."
        " sfmprep estimates with COLMAP."
    )


def _measure(
    true: Sequence[TwoViews], junk: Sequence[TwoViews], estimate: Estimator, seeds: int
) -> Figures:
    errors, inliers, ms = _estimate(true, estimate, seeds)
    _, of_junk, ms_of_junk = _estimate(junk, estimate, seeds)
    return Figures(
        auc=pose_auc(errors, LIMITS_DEG),
        found=len(inliers) / seeds,
        inliers=float(np.mean(inliers)) if inliers else 0.0,
        ms=ms,
        found_of_junk=len(of_junk) / seeds,
        ms_of_junk=ms_of_junk,
    )


def _estimate(
    pairs: Sequence[TwoViews], estimate: Estimator, num_seeds: int
) -> tuple[Float64, list[int], float]:
    """Pose errors in degrees of all pairs and seeds, inliers, and CPU ms a pair."""
    errors, inliers, spent = [], [], 0.0
    for views, seed in itertools.product(pairs, range(num_seeds)):
        start = time.thread_time()
        found = estimate(views, seed)
        spent += time.thread_time() - start
        if found is None:
            errors.append(180.0)
            continue
        turn, shift, count = found
        both = relative_pose_errors(
            (turn[None], shift[None]),
            (views.truth[0][None], views.truth[1][None]),
            np.zeros(3),
        )
        errors.append(float(both.max()))
        inliers.append(count)
    return np.array(errors), inliers, 1e3 * spent / max(1, len(errors))


if __name__ == "__main__":
    main()
