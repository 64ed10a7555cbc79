"""One stage of a made capture, in a process of its own.

    python -m tests.bench.scale.stages FOLDER NUM_IMAGES STAGE

It reads what the stages before it left in the folder, and writes what it made and, into
STAGE.json, what it found out. What comes behind the mapper takes a model of the true
poses, so that it can be measured where mapping would take hours.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from sfmprep.config import DatabaseConfig, MappingConfig, Recipe, RetrievalConfig
from sfmprep.config.export import ExportConfig, OutlierConfig, SeedConfig, WorldConfig
from sfmprep.config.load import load_recipe
from sfmprep.dataset.initial_points import seed_points
from sfmprep.dataset.world_frame import apply_world, find_world
from sfmprep.evaluation.poses import evaluate_model
from sfmprep.export.listing import listing
from sfmprep.export.model import export_model
from sfmprep.export.names import flat_names
from sfmprep.export.nerfstudio import transforms
from sfmprep.export.targets import plan_folders
from sfmprep.files import write_text
from sfmprep.frontend.match import match_features
from sfmprep.geometry.uncertainty import pose_uncertainties
from sfmprep.geometry.views import ModelArrays
from sfmprep.mapping.database import update_database
from sfmprep.mapping.mapper import map_images
from sfmprep.mapping.models import read_packed, write_packed
from sfmprep.mapping.outliers import find_outliers
from sfmprep.mapping.trust import measure_trust
from sfmprep.mapping.verify import read_verified, verify_matches
from sfmprep.pairing.near_views import near_partners
from sfmprep.pairing.pairs import Pairs, pairs_from_file, sequential_pairs
from sfmprep.pairing.retrieval import retrieval_pairs
from sfmprep.progress import batched
from sfmprep.report.collect import collect_report
from sfmprep.report.page import write_page
from sfmprep.stores.tables import FeatureStore, MatchStore
from tests.bench.scale.city import FOCAL, NOTHING, SIZE, City, point_ids
from tests.bench.scale.truth import TrueMatcher

Facts = dict[str, Any]

_NEIGHBOURS = 20
_CACHE_BYTES = 256 << 20
_GPS_M, _COMPASS_DEG = 3.0, 10.0  # what is told of poses is off


class Folder:
    """What lies where, and what was photographed."""

    def __init__(self, root: Path, num_images: int) -> None:
        self.root = root
        self.city = City(num_images=num_images)
        self.images = self.city.images(root / "photographs")
        self.features = root / "features.h5"
        self.matches = root / "matches.h5"
        self.database = root / "database.db"
        self.model = root / "true.zip"

    def pairs(self) -> Pairs:
        """Those that are matched."""
        return pairs_from_file(self.root / "retrieval.txt", self.city.names)

    def true_model(self) -> pycolmap.Reconstruction:
        """The model of the true poses."""
        return read_packed(self.model)[0]


# ----------------------------------------------------------------------- before mapping
def make(folder: Folder) -> Facts:
    """Features, as an extractor would have left them."""
    folder.images.root.mkdir(parents=True, exist_ok=True)
    count = 0
    with FeatureStore(folder.features, {"made": "city"}) as store:
        for batch in batched(folder.city.features(), 100):
            store.append(batch)
            count += sum(len(features) for _, features in batch)
    return {"keypoints": count}


def retrieval(folder: Folder) -> Facts:
    """The pairs that are matched afterwards."""
    with FeatureStore(folder.features) as features:
        config = RetrievalConfig(num_neighbours=_NEIGHBOURS)
        pairs = retrieval_pairs(folder.city.names, features, config)
    return _written(folder, "retrieval", pairs)


def sequential(folder: Folder) -> Facts:
    """Pairs by the order of time."""
    return _written(folder, "sequential", sequential_pairs(folder.city.names))


def spatial(folder: Folder) -> Facts:
    """Pairs by places, as GPS and compass tell them."""
    rng = np.random.default_rng(0)
    rotations, centres = folder.city.poses()
    turns = np.radians(rng.normal(0, _COMPASS_DEG, len(centres)))
    about = np.zeros((len(centres), 3, 3))
    about[:, 0, 0] = about[:, 1, 1] = np.cos(turns)
    about[:, 1, 0], about[:, 0, 1], about[:, 2, 2] = np.sin(turns), -np.sin(turns), 1
    partners = near_partners(
        folder.city.names,
        rotations @ about,
        centres + rng.normal(0, _GPS_M, centres.shape),
        num_neighbours=_NEIGHBOURS,
    )
    return _written(folder, "spatial", Pairs.of_partners(partners))


def _written(folder: Folder, name: str, pairs: Pairs) -> Facts:
    pairs.write(folder.root / f"{name}.txt")
    return {"pairs": len(pairs)}


def match(folder: Folder) -> Facts:
    """Matches of the pairs by retrieval, from the truth."""
    matcher = TrueMatcher()
    folder.matches.unlink(missing_ok=True)
    with (
        FeatureStore(folder.features) as features,
        MatchStore(folder.matches, {"matcher": dict(matcher.identity)}) as store,
    ):
        pairs = folder.pairs()
        match_features(pairs, features, matcher, store, cache_bytes=_CACHE_BYTES)
    return {"pairs": len(pairs)}


def fill(folder: Folder) -> Facts:
    """Keypoints and matches into COLMAP's database."""
    with (
        FeatureStore(folder.features) as features,
        MatchStore(folder.matches) as matches,
    ):
        update_database(
            *(folder.database, folder.images, features, matches),
            *(folder.pairs(), DatabaseConfig()),
        )
    return {}


def verify(folder: Folder) -> Facts:
    """Two-view geometries."""
    verify_matches(folder.database, folder.pairs(), DatabaseConfig())
    return _verified(folder)


def true_pairs(folder: Folder) -> Facts:
    """Two-view geometries from the truth, where to verify them would take hours."""
    with FeatureStore(folder.features) as features:
        shown = {
            name: np.where((ids := point_ids(found)) < NOTHING, ids, -1).astype(
                np.int32
            )
            for name, found in features.keypoints()
        }
    rotations, centres = folder.city.poses()
    row_of = {name: row for row, name in enumerate(folder.city.names)}
    kind = pycolmap.TwoViewGeometryConfiguration.CALIBRATED
    with (
        MatchStore(folder.matches) as matches,
        pycolmap.Database.open(folder.database) as database,
    ):
        id_of = {image.name: image.image_id for image in database.read_all_images()}
        for (name0, name1), index in matches.indices():
            first, second = shown[name0][index[:, 0]], shown[name1][index[:, 1]]
            found = pycolmap.TwoViewGeometry()
            right = (first == second) & (first >= 0)
            if right.sum() >= DatabaseConfig().min_num_inliers:
                row0, row1 = row_of[name0], row_of[name1]
                turn = rotations[row1] @ rotations[row0].T
                shift = rotations[row1] @ (centres[row0] - centres[row1])
                found.config, found.inlier_matches = (
                    kind,
                    index[right].astype(np.uint32),
                )
                found.cam2_from_cam1 = pycolmap.Rigid3d(np.column_stack([turn, shift]))
            database.write_two_view_geometry(id_of[name0], id_of[name1], found)
    return _verified(folder)


def _verified(folder: Folder) -> Facts:
    found = read_verified(folder.database)
    return {
        "pairs": found.num_pairs,
        "verified": found.num_verified,
        "images": len(found.images),
    }


# ------------------------------------------------------------------------------ mapping
_MAPPERS: dict[str, dict[str, object]] = {
    "incremental": {"part_size": None},
    "global": {"type": "global"},
    "partitioned": {},
}


def _map(kind: str) -> Callable[[Folder], Facts]:
    def run(folder: Folder) -> Facts:
        place = folder.root / f"map-{kind}"
        shutil.rmtree(place, ignore_errors=True)
        how = _MAPPERS[kind]
        if kind == "partitioned":
            size = min(MappingConfig().part_size or 0, len(folder.images) // 4)
            how = {"part_size": size}
        config = MappingConfig.model_validate(how)
        models = map_images(folder.database, folder.images, place, config)
        found = evaluate_model(models[0], folder.city.reference())
        return {
            "registered": found.registered,
            "models": len(models),
            "points": found.num_points,
            "auc": found.auc,
            "error_px": found.mean_reprojection_error_px,
            "median_error_m": found.median_centre_error,
        }

    return run


# ----------------------------------------------------------------------- behind mapping
def true_model(folder: Folder) -> Facts:
    """A model of the true poses, with the points that three photographs show."""
    with FeatureStore(folder.features) as features:
        seen = {name: (f.xy, point_ids(f)) for name, f in features.keypoints()}
    ids = np.concatenate([points for _, points in seen.values()])
    points, counts = np.unique(ids, return_counts=True)
    points = points[(counts >= 3) & (points < NOTHING)]
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera.create_from_model_name(1, "SIMPLE_RADIAL", FOCAL, *SIZE)
    camera.params = [FOCAL, SIZE[0] / 2, SIZE[1] / 2, -0.03]
    model.add_camera_with_trivial_rig(camera)
    rotations, centres = folder.city.poses()
    for k, name in enumerate(folder.city.names):
        image = pycolmap.Image(
            name=name, keypoints=seen[name][0], camera_id=1, image_id=k + 1
        )
        pose = np.column_stack([rotations[k], -rotations[k] @ centres[k]])
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose))
    tracks: dict[int, pycolmap.Track] = {}
    xyz = folder.city.xyz(points)
    for k, name in enumerate(folder.city.names, 1):
        shown = seen.pop(name)[1]
        for row in np.flatnonzero(np.isin(shown, points)).tolist():
            tracks.setdefault(int(shown[row]), pycolmap.Track()).add_element(k, row)
    for point, place in zip(points.tolist(), xyz, strict=True):
        model.add_point3D(place, tracks.pop(point), np.full(3, 128, np.uint8))
    model.update_point_3d_errors()
    write_packed(folder.model, [model])
    return {
        "points": model.num_points3D(),
        "observations": model.compute_num_observations(),
        "error_px": model.compute_mean_reprojection_error(),
    }


def trust(folder: Folder) -> Facts:
    """How far pairs and model agree."""
    found = measure_trust(folder.database, [folder.true_model()])
    found.write(folder.root / "consistency.json")
    return {"consistency": found.consistency}


def outliers(folder: Folder) -> Facts:
    """Uncertainties, and images that are not supported."""
    model = folder.true_model()
    arrays = ModelArrays.of(model)
    found = pose_uncertainties(model, arrays)
    return {
        "uncertainties": len(found),
        "outliers": len(find_outliers(arrays, OutlierConfig(), found)),
    }


def points(folder: Folder) -> Facts:
    """Initial points."""
    model = folder.true_model()
    with (
        FeatureStore(folder.features) as features,
        MatchStore(folder.matches) as matches,
    ):
        found = seed_points(
            *(model, ModelArrays.of(model), folder.images, features, matches),
            SeedConfig(),
        )
    return {"points": found.num_points3D()}


def report(folder: Folder) -> Facts:
    """report.json and report.html; bytes of both."""
    recipe: Recipe = load_recipe("sift")
    model = folder.true_model()
    with FeatureStore(folder.features) as features:
        found = collect_report(
            folder.images,
            recipe=recipe,
            frontend="made",
            database=folder.database,
            features=features,
            models=[model],
            seconds={},
            unreadable={},
            outliers={},
            uncertainties={},
            world=None,
            command="",
            next_steps=[],
        )
        table, page = folder.root / "report.json", folder.root / "report.html"
        write_text(table, found.to_json())
        write_page(
            *(page, found, folder.images),
            model=model,
            features=features,
            database=folder.database,
        )
    return {
        "json_bytes": table.stat().st_size,
        "page_bytes": page.stat().st_size,
        "grade": found.grade,
    }


def evaluation(folder: Folder) -> Facts:
    """The true model against itself: what the comparison takes."""
    found = evaluate_model(folder.true_model(), folder.city.reference())
    return {"auc": found.auc}


def export(folder: Folder) -> Facts:
    """The dataset but for its photographs: model, transforms.json, dataset.json."""
    config = ExportConfig()
    model = folder.true_model()
    world = find_world(model, folder.images, WorldConfig())
    model = apply_world(model, world.world_from_sfm)
    names = flat_names(sorted(folder.city.names))
    folders = plan_folders(config, with_masks=False)
    exported = export_model(model, folder.images, list(names), config)
    out = folder.root / "dataset"
    out.mkdir(exist_ok=True)
    exported.model.write(out)
    content = transforms(exported.model, ply="points.ply", with_masks=False)
    write_text(out / "transforms.json", json.dumps(content))
    table = listing(model, names, {}, num_points=exported.model.num_points3D())
    write_text(out / "dataset.json", json.dumps(table))
    return {"folders": len(folders)}


STAGES: dict[str, Callable[[Folder], Facts]] = {
    "make": make,
    "sequential": sequential,
    "spatial": spatial,
    "retrieval": retrieval,
    "match": match,
    "database": fill,
    "verify": verify,
    "true pairs": true_pairs,
    "true model": true_model,
    "consistency": trust,
    "outliers": outliers,
    "points": points,
    "report": report,
    "evaluation": evaluation,
    "export": export,
    "map partitioned": _map("partitioned"),
    "map global": _map("global"),
    "map incremental": _map("incremental"),
}


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def main() -> None:
    """Does one stage."""
    root, num_images, stage = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    root.mkdir(parents=True, exist_ok=True)
    form = "%(asctime)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, filename=root / f"{stage}.log")
    began = _peak_bytes()
    facts = STAGES[stage](Folder(root, num_images))
    result = {"facts": facts, "peak_bytes": _peak_bytes(), "began_bytes": began}
    (root / f"{stage}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
