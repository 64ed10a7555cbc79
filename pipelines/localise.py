"""Photographs against a finished result: where each was taken. Nothing is changed."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
from scipy.spatial.transform import Rotation

from sfmprep.capture.batches import reduction_scales
from sfmprep.capture.folder import is_image
from sfmprep.capture.image_file import ImageInfo, read_info
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import MatcherConfig, Recipe
from sfmprep.config.load import read_resolved
from sfmprep.errors import ConfigError, ImageError, StoreError
from sfmprep.export.install import WORLD
from sfmprep.files import read_table, write_text
from sfmprep.frontend.extract import extract_features
from sfmprep.frontend.match import pairs_per_batch
from sfmprep.mapping.cameras import possible_cameras
from sfmprep.mapping.localise import Located, Sightings, locate
from sfmprep.mapping.models import read_model
from sfmprep.models.build import build_extractor, build_matcher
from sfmprep.models.protocols import Matcher
from sfmprep.pairing.retrieval import most_similar
from sfmprep.pipelines.ledger import expect_as_written
from sfmprep.pipelines.workspace import Workspace
from sfmprep.progress import Progress, batched, silent
from sfmprep.stores.tables import FeatureStore
from sfmprep.types import Features, Index
from sfmprep.weights import weights_here

logger = logging.getLogger(__name__)

_ALL_UP_TO = 40  # images of a model, above which the most similar are asked
_NUM_ASKED = 20
_SAME_PX = 8.0  # of what features saw: refinement moves no keypoint further


def localise(
    out: Path,
    photographs: Sequence[Path],
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> list[Located]:
    """Finds where photographs were taken, in the world of a finished dataset.

    Their features are matched with those of the images of the largest model that are
    most similar, by the first matcher of its recipe, and where that does not do by the
    stronger one.

    Args:
        out: The output folder of a run; nothing in it is changed.
        photographs: Files, or one folder; they need not be new.
        device: Where networks run.
        progress: Wraps the loop over photographs.

    Returns:
        One entry a photograph, in the order of names; those that cannot be read are
        unknown.

    Raises:
        ConfigError: `out` is no output folder with a model.
        ImageError: no photograph can be read.
        StoreError: features or model are damaged, not what the run wrote, or not of
            each other.
        WeightsError, DeviceError: as for a run.
    """
    recipe, model, place = _open_result(out)
    images = _scanned(photographs)
    extractor = build_extractor(
        recipe.features, device=device, precision=recipe.engine.precision
    )
    with FeatureStore() as queries, FeatureStore(place.features) as features:
        unreadable = extract_features(
            *(images, extractor, queries),
            max_size=recipe.features.max_size,
            num_workers=recipe.engine.num_workers,
        )
        known = _Known(model, features, recipe)
        matchers = [
            build_matcher(config, device=device, precision=recipe.engine.precision)
            for config in _matchers(recipe)
        ]
        asked = known.most_similar(queries)
        scales = reduction_scales(images, recipe.features.max_size)
        found = {}
        for name in progress(asked, desc="localise", total=len(asked)):
            for matcher in matchers:
                seen = known.sightings(queries.get(name), asked[name], matcher, device)
                found[name] = locate(
                    *(name, seen, known.cameras(images, name)),
                    max_error_px=recipe.database.max_error_px * scales[name],
                    seed=recipe.seed,
                )
                if found[name].verdict == "found":
                    break
    reasons = {**images.unreadable, **unreadable}
    lost = {n: Located(name=n, verdict="unknown", reason=r) for n, r in reasons.items()}
    world = _world(out)
    return [each.moved(world) for _, each in sorted({**found, **lost}.items())]


def write_located(located: Sequence[Located], path: Path) -> None:
    """Writes poses to a file whose suffix tells the format.

    `.json` holds all of it. `.csv` is the table name,x,y,z,qw,qx,qy,qz that `refine`
    reads, and `.txt` or `.tum` a trajectory of TUM, its times the numbers that are the
    file names, else 0, 1, ...; both are of world_from_cam with the axes of OpenCV, and
    without what is unknown.

    Raises:
        ConfigError: another suffix.
        StoreError: it cannot be written.
    """
    posed = [each for each in located if each.rotation is not None]
    suffix = path.suffix.lower()
    if suffix == ".json":
        text = to_json(located)
    elif suffix == ".csv":
        lines = io.StringIO()
        rows = csv.writer(lines, lineterminator="\n")
        rows.writerow(["name", "x", "y", "z", "qw", "qx", "qy", "qz"])
        for each in posed:
            x, y, z, w = _quaternion(each)
            rows.writerow([each.name, *_list(each.centre), w, x, y, z])
        text = lines.getvalue()
    elif suffix in (".txt", ".tum"):
        lines_of = (
            [_time(each.name, row), *_list(each.centre), *_quaternion(each)]
            for row, each in enumerate(posed)
        )
        text = "".join(f"{' '.join(map(str, line))}\n" for line in lines_of)
    else:
        raise ConfigError(
            f"{path}: expected a name that ends in .json, .csv, .txt or .tum."
        )
    write_text(path, text)


def to_json(located: Sequence[Located]) -> str:
    """What was found as a JSON list; what is not known is null."""
    return json.dumps([_entry(each) for each in located], indent=1, ensure_ascii=False)


def _entry(each: Located) -> dict[str, Any]:
    pose = camera = None
    if each.rotation is not None and each.centre is not None and each.camera:
        x, y, z, w = Rotation.from_matrix(each.rotation).as_quat().tolist()
        pose = {
            "rotation": each.rotation.tolist(),
            "quaternion_wxyz": [w, x, y, z],
            "translation": (-each.rotation @ each.centre).tolist(),
        }
        camera = {
            "model": each.camera.model.name,
            "width": each.camera.width,
            "height": each.camera.height,
            "params": each.camera.params.tolist(),
        }
    return {
        "name": each.name,
        "verdict": each.verdict,
        "reason": each.reason,
        "num_matches": each.num_matches,
        "num_inliers": each.num_inliers,
        "cam_from_world": pose,
        "centre": None if each.centre is None else each.centre.tolist(),
        "rotation_stddev_deg": each.rotation_stddev_deg,
        "position_stddev": each.position_stddev,
        "camera": camera,
    }


def _quaternion(each: Located) -> list[float]:
    """x, y, z, w of world_from_cam."""
    values: list[float] = Rotation.from_matrix(each.rotation).inv().as_quat().tolist()
    return values


def _list(centre: Any) -> list[float]:
    values: list[float] = np.asarray(centre).tolist()
    return values


def _time(name: str, row: int) -> str:
    try:
        return f"{float(Path(name).stem):.6f}"
    except ValueError:
        return str(row)


class _Known:
    """A model, and what its images see."""

    def __init__(
        self, model: pycolmap.Reconstruction, features: FeatureStore, recipe: Recipe
    ) -> None:
        self._model, self._features, self._recipe = model, features, recipe
        self._ids = {
            model.images[key].name: key
            for key in sorted(model.reg_image_ids())
            if model.images[key].name in features
        }
        if not self._ids:
            raise StoreError(
                f"{features.place} holds none of the images of the model. Run the same"
                " `sfmprep reconstruct` again."
            )

    def most_similar(self, queries: FeatureStore) -> Mapping[str, Sequence[str]]:
        """The images that each photograph is matched with."""
        names = sorted(queries.names())
        if len(self._ids) <= _ALL_UP_TO:
            return {name: list(self._ids) for name in names}
        return most_similar(
            *(names, queries, list(self._ids), self._features),
            count=_NUM_ASKED,
            seed=self._recipe.seed,
        )

    def sightings(
        self, query: Features, names: Sequence[str], matcher: Matcher, device: str
    ) -> Sightings:
        """What a photograph may see of the points of some images."""
        own = matcher.prepare(query)
        found: dict[tuple[int, int], int] = {}
        for batch in batched(names, pairs_per_batch(device)):
            others = [self._features.get(name) for name in batch]
            matched = matcher.match([(own, other) for other in others])
            for name, other, matches in zip(batch, others, matched, strict=True):
                key, points = self._ids[name], self._points(name, other)
                for row, theirs in matches.index.tolist():
                    if points[theirs] >= 0:
                        found.setdefault((row, int(points[theirs])), key)
        keypoint = np.array([row for row, _ in found], np.int64)
        xyz = [self._model.points3D[point].xyz for _, point in found]
        return Sightings(
            keypoint=keypoint,
            xy=query.xy[keypoint].astype(np.float64).reshape(-1, 2),
            xyz=np.array(xyz, np.float64).reshape(-1, 3),
            image=np.array(list(found.values()), np.int64),
        )

    def _points(self, name: str, features: Features) -> Index:
        """For each keypoint of an image the point that it sees, or -1."""
        keypoints = self._model.images[self._ids[name]].points2D
        points = np.full(len(features.xy), -1, np.int64)
        seeing = [
            (row, keypoint)
            for row, keypoint in enumerate(keypoints[: len(points)])
            if keypoint.has_point3D()
        ]
        for row, keypoint in seeing:
            points[row] = keypoint.point3D_id
        off = [np.linalg.norm(k.xy - features.xy[row]) for row, k in seeing]
        scale = max(max(features.image_size) / self._recipe.features.max_size, 1.0)
        if off and float(np.median(off)) > _SAME_PX * scale:
            raise StoreError(
                f"{self._features.place} is not what the model was made of: keypoints"
                f" of {name} lie elsewhere. Run the same `sfmprep reconstruct` again."
            )
        return points

    def cameras(self, images: ImageSet, name: str) -> list[pycolmap.Camera]:
        """The cameras that may have taken a photograph: those of the model first."""
        return possible_cameras(self._model, images, name, self._recipe.database)


def _open_result(out: Path) -> tuple[Recipe, pycolmap.Reconstruction, Workspace]:
    place = Workspace(out)
    if not place.recipe.is_file() or not place.features.is_file():
        raise ConfigError(
            f"{out} is not an output of sfmprep with its work folder: there is no"
            " recipe.yaml, or no work/features.h5. Run `sfmprep reconstruct` first."
        )
    if not (place.models / "0").is_dir():
        raise ConfigError(
            f"{out} holds no model to localise in. Run `sfmprep reconstruct` first."
        )
    expect_as_written(place.models / "0", out)
    return read_resolved(place.recipe), read_model(place.models / "0"), place


def _matchers(recipe: Recipe) -> Iterator[MatcherConfig]:
    """The first matcher, and the stronger one where its weights are here."""
    yield recipe.matcher
    if recipe.stronger is not None:
        needed = recipe.stronger.matcher.needed_weights()
        if all(weights_here(*weights) for weights in needed):
            yield recipe.stronger.matcher


def _scanned(photographs: Sequence[Path]) -> ImageSet:
    """The photographs that were named, or those of one folder."""
    if len(photographs) == 1 and photographs[0].is_dir():
        return ImageSet.scan(photographs[0])
    infos: dict[str, ImageInfo] = {}
    unreadable: dict[str, str] = {}
    for path in photographs:
        try:
            if not is_image(path.name):
                raise ImageError("it is not a photograph, nor the only folder")
            infos[path.resolve().as_posix().lstrip("/")] = read_info(path)
        except ImageError as error:
            unreadable[path.resolve().as_posix().lstrip("/")] = str(error)
    if not infos:
        reasons = "; ".join(f"/{name}: {why}" for name, why in unreadable.items())
        raise ImageError(
            f"no photograph to localise: {reasons or 'none was named'}. Give files or a"
            " folder that can be read."
        )
    return ImageSet(Path("/"), tuple(sorted(infos)), infos, unreadable)


def _world(out: Path) -> pycolmap.Sim3d:
    """How the dataset lies in the frame of the model; the same where there is none."""
    content = read_table(out / WORLD)
    matrix = np.array(content["world_from_sfm"])[:3] if content else np.eye(3, 4)
    return pycolmap.Sim3d(matrix)
