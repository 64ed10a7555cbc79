"""The ablation of tracks from semi-dense matches, on a scene whose truth is known.

    python -m tests.bench.tracks [--radii 0.5 1 2] [--noise 0.5] [--ways ...]

Eight cameras on an arc look at a wavy surface. A simulated matcher has one keypoint in
each cell of 8 x 8 pixels, of which a share is the same point of the surface in every
image, as a detector finds it; from each it measures the true place in the other image
with noise, errs at random, and says nothing about the rest. What it is given is made to
keypoints and matches in several ways, verified and mapped by COLMAP as in a real run.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from sfmprep.capture.image_file import ImageInfo
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DatabaseConfig, DenseConfig, MappingConfig, XFeatStarConfig
from sfmprep.geometry.views import ModelArrays
from sfmprep.mapping.adjust import refine_model
from sfmprep.mapping.database import update_database
from sfmprep.mapping.verify import verify_matches
from sfmprep.pairing.pairs import Pairs, sequential_pairs
from sfmprep.semidense import join as dense_tracks
from sfmprep.semidense import keypoints as dense_keypoints
from sfmprep.semidense.join import aggregate, network_scales
from sfmprep.semidense.remeasure import remeasure
from sfmprep.stores.tables import DenseStore, FeatureStore, MatchStore
from sfmprep.types import DenseMatches, Features, Matches

SIZE = (320, 240)
FOCAL = 300.0
CELL = 8
NUM_IMAGES = 8
LANDMARKS = 2140  # of which one cell of 8 x 8 pixels holds one on average
STEP_DEG = 6.0


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What the simulated matcher does wrong."""

    sigma_px: float = 0.5  # of the end
    wrong: float = 0.1  # share of matches that end anywhere
    kept: float = 0.6  # share of keypoints in view that are matched
    repeated: float = 0.3  # share of cells whose keypoint is a point of the surface
    start_sigma_px: float = 0.5  # of such a keypoint


# ------------------------------------------------------------------------- the truth
def height(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The surface z = height(x, y)."""
    return 0.35 * np.sin(1.7 * x) * np.cos(1.3 * y) + 0.15 * np.cos(3.1 * x + y)


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """A camera of the scene."""

    name: str
    rotation: np.ndarray
    centre: np.ndarray

    def project(self, xyz: np.ndarray) -> np.ndarray:
        """COLMAP pixels of points."""
        local = (xyz - self.centre) @ self.rotation.T
        return local[:, :2] / local[:, 2:] * FOCAL + np.array(SIZE) / 2

    def hit(self, xy: np.ndarray) -> np.ndarray:
        """Where the rays of pixels meet the surface, by bisection."""
        local = np.c_[(xy - np.array(SIZE) / 2) / FOCAL, np.ones(len(xy))]
        rays = local @ self.rotation
        low = (0.6 - self.centre[2]) / rays[:, 2]
        high = (-0.6 - self.centre[2]) / rays[:, 2]
        for _ in range(40):
            middle = (low + high) / 2
            x, y, z = (self.centre + middle[:, None] * rays).T
            above = z > height(x, y)
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        return self.centre + low[:, None] * rays


def cameras() -> list[View]:
    """Cameras on an arc above the surface that look at its middle."""
    views = []
    for number in range(NUM_IMAGES):
        angle = np.radians((number - (NUM_IMAGES - 1) / 2) * STEP_DEG)
        centre = np.array([5 * np.sin(angle), 0.3 * (number % 3), 5 * np.cos(angle)])
        forward = -centre / np.linalg.norm(centre)
        right = np.cross([0.0, 1.0, 0.0], forward)
        right /= np.linalg.norm(right)
        rotation = np.stack((right, np.cross(forward, right), forward))
        views.append(View(name=f"{number:02d}.jpg", rotation=rotation, centre=centre))
    return views


def inside(xy: np.ndarray, margin: float = 0.0) -> np.ndarray:
    """Which points lie in the image."""
    return ((xy >= margin) & (xy < np.array(SIZE) - margin)).all(axis=1)


# ------------------------------------------------------------------------ the matcher
def simulate(store: DenseStore, pairs: Pairs, noise: Noise, seed: int = 0) -> None:
    """Writes what the simulated matcher finds in both directions of all pairs."""
    random = np.random.default_rng(seed)
    views = cameras()
    # so many that the share of cells that hold one is as wanted
    count = round(-np.log1p(-noise.repeated) * LANDMARKS)
    landmarks = random.uniform((-4, -3), (4, 3), (count, 2))
    landmarks = np.c_[landmarks, height(*landmarks.T)]
    starts = {view.name: keypoints(view, landmarks, noise, random) for view in views}
    chosen = {frozenset(pair) for pair in pairs}
    for view0, view1 in itertools.permutations(views, 2):
        if frozenset((view0.name, view1.name)) not in chosen:
            continue
        xy0 = starts[view0.name]
        xy1 = view1.project(view0.hit(xy0))
        seen = inside(xy1, 4) & (random.random(len(xy0)) < noise.kept)
        xy0, xy1 = xy0[seen], xy1[seen]
        xy1 = xy1 + random.normal(0, noise.sigma_px, xy1.shape)
        scores = random.uniform(0.5, 1.0, len(xy0))
        wrong = random.random(len(xy0)) < noise.wrong
        xy1[wrong] = random.uniform((0, 0), SIZE, (int(wrong.sum()), 2))
        scores[wrong] *= 0.8
        found = DenseMatches(
            xy0=xy0.astype(np.float32),
            xy1=xy1.astype(np.float32),
            scores=scores.astype(np.float32),
        )
        store.append([((view0.name, view1.name), found)])


def keypoints(
    view: View, landmarks: np.ndarray, noise: Noise, random: np.random.Generator
) -> np.ndarray:
    """One keypoint a cell: a landmark where there is one, else anywhere."""
    grid = np.stack(
        np.meshgrid(
            np.arange(2, SIZE[0] // CELL - 2), np.arange(2, SIZE[1] // CELL - 2)
        ),
        axis=-1,
    ).reshape(-1, 2)
    xy = (grid + random.random(grid.shape)) * CELL
    places = view.project(landmarks)
    places = places + random.normal(0, noise.start_sigma_px, places.shape)
    places = places[inside(places, 2 * CELL)]
    cell = (places // CELL).astype(int) - 2
    row = cell[:, 1] * (SIZE[0] // CELL - 4) + cell[:, 0]
    xy[row] = places
    return np.float32(xy).astype(np.float64)


def image_set() -> ImageSet:
    """The capture, without files."""
    names = tuple(view.name for view in cameras())
    info = ImageInfo(size=SIZE, orientation=1, num_bytes=0)
    return ImageSet(Path("none"), names, dict.fromkeys(names, info), {})


# --------------------------------------------------------------------------- the ways
def one_each(
    images: ImageSet, pairs: Pairs, dense: DenseStore, out: Path, *, stars: bool
) -> None:
    """Every endpoint is a keypoint; with `stars`, equal starts are one."""
    rows: dict[str, list[np.ndarray]] = {name: [] for name in images.names}
    ids: dict[str, dict[bytes, int]] = {name: {} for name in images.names}

    def add(name: str, xy: np.ndarray, start: bool) -> np.ndarray:
        index = np.empty(len(xy), np.int32)
        for k, place in enumerate(xy):
            key = place.tobytes()
            if start and stars and key in ids[name]:
                index[k] = ids[name][key]
                continue
            index[k] = ids[name][key] = len(rows[name])
            rows[name].append(place)
        return index

    with MatchStore(out / "matches.h5", {}) as matches:
        for name0, name1 in pairs:
            forth, back = dense.get(name0, name1), dense.get(name1, name0)
            index = np.concatenate(
                (
                    np.c_[add(name0, forth.xy0, True), add(name1, forth.xy1, False)],
                    np.c_[add(name0, back.xy1, False), add(name1, back.xy0, True)],
                )
            )
            scores = np.concatenate((forth.scores, back.scores))
            matches.append([((name0, name1), Matches(index=index, scores=scores))])
    with FeatureStore(out / "features.h5", {}) as features:
        for name, xy in rows.items():
            features.append(
                [
                    (
                        name,
                        Features(
                            xy=np.array(xy, np.float32).reshape(-1, 2),
                            scores=np.ones(len(xy), np.float32),
                            descriptors=np.empty((len(xy), 0), np.float16),
                            image_size=SIZE,
                        ),
                    )
                ]
            )


def ours(
    images: ImageSet, dense: DenseStore, out: Path, config: DenseConfig, way: str
) -> None:
    """`aggregate`, of which a way may leave out a part."""
    saved = dense_keypoints.quantise, dense_tracks.cut_contradictions
    saved_add = dense_tracks.add_keypoints

    def quantised(detected, found, *, radius, max_added):  # no start is fixed
        points = np.concatenate((found.starts, found.ends))
        scores = np.concatenate((found.start_scores, found.end_scores))
        xy = saved[0](points, scores, radius=radius)
        return xy[:max_added], np.ones(len(xy[:max_added]), np.float32)

    if way == "snap only":
        dense_keypoints.quantise = lambda xy, scores, radius: xy[:0]
    if way == "quantise only":
        dense_tracks.add_keypoints = quantised
    if "cut" not in way:
        dense_tracks.cut_contradictions = lambda joined, tables, radii: [
            np.ones(len(k.index), bool) for k in joined.values()
        ]
    try:
        with (
            FeatureStore(out / "features.h5", {}) as features,
            MatchStore(out / "matches.h5", {}) as matches,
        ):
            aggregate(
                images,
                None,
                None,
                dense,
                config,
                new_features=features,
                new_matches=matches,
            )
    finally:
        dense_keypoints.quantise, dense_tracks.cut_contradictions = saved
        dense_tracks.add_keypoints = saved_add


# ------------------------------------------------------------------------ the measures
def map_capture(
    images: ImageSet, pairs: Pairs, out: Path
) -> pycolmap.Reconstruction | None:
    """Verifies and maps; the principal point is known to be the centre."""
    config = DatabaseConfig(camera_model="SIMPLE_PINHOLE", focal_length=FOCAL)
    database = out / "database.db"
    with (
        FeatureStore(out / "features.h5") as features,
        MatchStore(out / "matches.h5") as matches,
    ):
        update_database(database, images, features, matches, pairs, config)
    verify_matches(database, pairs, config)
    options = pycolmap.IncrementalPipelineOptions()
    options.random_seed, options.extract_colors = 0, False
    models = pycolmap.incremental_mapping(database, out, out, options)
    best = max(models.values(), key=lambda m: m.num_reg_images(), default=None)
    return None if best is None else refined(best)


def refined(model: pycolmap.Reconstruction) -> pycolmap.Reconstruction:
    """After a last bundle adjustment."""
    return refine_model(model, MappingConfig(refine_principal_point="never"))


def describe(model: pycolmap.Reconstruction | None) -> str:
    """Registered images, points, track length, reprojection error, pose error."""
    if model is None:
        return "0 | 0 | - | - | -"
    truth = {view.name: view for view in cameras()}
    views = [
        (truth[model.images[k].name], model.images[k].cam_from_world().matrix())
        for k in model.reg_image_ids()
    ]
    errors = []
    for (true0, pose0), (true1, pose1) in itertools.combinations(views, 2):
        turn = pose1[:, :3] @ pose0[:, :3].T
        step = pose1[:, 3] - turn @ pose0[:, 3]
        true_turn = true1.rotation @ true0.rotation.T
        true_step = true1.rotation @ (true0.centre - true1.centre)
        errors.append(max(angle(turn, true_turn), between(step, true_step)))
    return (
        f"{model.num_reg_images()} | {model.num_points3D()}"
        f" | {model.compute_mean_track_length():.2f}"
        f" | {model.compute_mean_reprojection_error():.3f}"
        f" | {np.mean(errors):.3f}"
    )


def angle(turn0: np.ndarray, turn1: np.ndarray) -> float:
    """Degrees between two rotations."""
    chord = np.linalg.norm(turn0 - turn1) / np.sqrt(8)
    return float(np.degrees(2 * np.arcsin(min(chord, 1.0))))


def between(step0: np.ndarray, step1: np.ndarray) -> float:
    """Degrees between two directions."""
    cosine = step0 @ step1 / np.linalg.norm(step0) / np.linalg.norm(step1)
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


WAYS = (
    "one keypoint an endpoint",
    "one keypoint a start",
    "quantise only",
    "snap only",
    "snap + quantise",
    "snap + quantise + cut",
)
HEADER = (
    "| way | radius | noise | wrong | images | points | track length | error px"
    " | pose deg | remeasured: error px | pose deg | s |"
)


def run(way: str, radius: float, noise: Noise, *, window: int = NUM_IMAGES) -> str:
    """One row of the table."""
    images = image_set()
    pairs = sequential_pairs(images.names, window=window, quadratic=False)
    config = DenseConfig(
        matcher=XFeatStarConfig(max_size=max(SIZE)),
        radius=radius,
        max_keypoints=100_000,
    )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        with DenseStore(out / "dense.h5", {}) as dense:
            simulate(dense, pairs, noise)
            start = time.perf_counter()
            if way.startswith("one"):
                one_each(images, pairs, dense, out, stars=way.endswith("start"))
            else:
                ours(images, dense, out, config, way)
            seconds = time.perf_counter() - start
            model = map_capture(images, pairs, out)
            row = f"| {way} | {radius:g} | {noise.sigma_px:g} | {noise.wrong:g}"
            row += f" | {describe(model)}"
            if model is not None:
                scales = network_scales(images, config)
                radii = {name: radius * scale for name, scale in scales.items()}
                remeasure(model, ModelArrays.of(model), dense, radii=radii)
                row += f" | {' | '.join(describe(refined(model)).split(' | ')[3:])}"
            else:
                row += " | - | -"
    return f"{row} | {seconds:.1f} |"


def main() -> None:
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ways", nargs="*", default=WAYS)
    parser.add_argument("--radii", nargs="*", type=float, default=[2.0])
    parser.add_argument("--noise", nargs="*", type=float, default=[0.5])
    parser.add_argument("--wrong", type=float, default=0.1)
    parser.add_argument("--repeated", type=float, default=0.3)
    parser.add_argument("--kept", type=float, default=0.6)
    parser.add_argument("--window", type=int, default=NUM_IMAGES)
    options = parser.parse_args()
    pycolmap.logging.minloglevel = 2
    print(HEADER, "|---" * (HEADER.count("|") - 1) + "|", sep="\n", flush=True)
    for sigma, radius, way in itertools.product(
        options.noise, options.radii, options.ways
    ):
        noise = Noise(
            sigma_px=sigma,
            wrong=options.wrong,
            repeated=options.repeated,
            kept=options.kept,
        )
        print(run(way, radius, noise, window=options.window), flush=True)


if __name__ == "__main__":
    main()
