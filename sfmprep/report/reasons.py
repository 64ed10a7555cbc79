"""Why each image is in the dataset or not, in plain words with numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pycolmap

from sfmprep.capture.image_file import ImageInfo
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import Recipe
from sfmprep.mapping.database import open_database
from sfmprep.mapping.view_graph import PairTable, parts
from sfmprep.report.schema import ImageReport
from sfmprep.report.sections import count

FEW_KEYPOINTS = 50
UNREADABLE = "It cannot be used: "
# COLMAP's abs_pose_min_num_inliers, and min_num_matches of a pair to be imported
_NEEDED_FOR_POSE = 30
_NEEDED_FOR_MATCH = 8
_MAX_NEIGHBOURS = 20
_THUMBNAIL_PX = 200  # a longer side below it is no photograph's


def explain_images(
    images: ImageSet,
    *,
    recipe: Recipe,
    unreadable: Mapping[str, str],
    num_keypoints: Mapping[str, int],
    pairs: PairTable | None,
    models: Sequence[pycolmap.Reconstruction],
    outliers: Mapping[str, str] | None = None,
    database: Path | None = None,
) -> dict[str, ImageReport]:
    """Says of every image what became of it; nothing of the model is measured here.

    Args:
        images: The capture.
        recipe: Its thresholds are named in the reasons.
        unreadable: Images that could not be decoded, and why; also those among
            `images.unreadable` are reported.
        num_keypoints: Keypoints of images, where known.
        pairs: `read_pair_table(database, images.names)`, or None without a database.
        models: Largest first; may be empty.
        outliers: Images of the largest model left out of the dataset, and why.
        database: Where matches are looked up that say why an image got no pose; None
            leaves these numbers out.

    Returns:
        One report for each image, sorted by name.
    """
    explainer = _Explainer(images, recipe, pairs, models, database)
    bad = {**images.unreadable, **unreadable}
    reports = {}
    for name in sorted({*images.names, *bad}):
        if name in bad:
            status, reason = (
                "unreadable",
                f"{UNREADABLE}{bad[name].rstrip('.')}.",
            )
            facts: dict[str, object] = {}
        else:
            found = num_keypoints.get(name)
            facts = {"num_keypoints": found, **explainer.facts(name)}
            if name in (outliers or {}):
                status, reason = "outlier", _outlier_sentence((outliers or {})[name])
            else:
                status, reason = explainer.status(name, found)
        facts |= {"name": name, "status": status, "reason": reason}
        reports[name] = ImageReport.model_validate(facts)
    return reports


def _outlier_sentence(reason: str) -> str:
    return f"It has a pose, but is left out of the dataset: {reason.rstrip('.')}."


class _Explainer:
    """The view graph and the models, ready to be asked about single images."""

    def __init__(
        self,
        images: ImageSet,
        recipe: Recipe,
        pairs: PairTable | None,
        models: Sequence[pycolmap.Reconstruction],
        database: Path | None,
    ) -> None:
        self._recipe, self._pairs, self._database = recipe, pairs, database
        self._models, self._names = models, images.names
        self._registered = [
            {model.images[k].name: k for k in model.reg_image_ids()} for model in models
        ]
        self._images = images
        self._row = {name: row for row, name in enumerate(images.names)}
        self._edges: dict[int, list[tuple[int, int, int]]] = {}
        self._part_of: dict[int, int] = {}
        self._part_sizes: list[int] = []
        if pairs is not None:
            rows = zip(
                pairs.index.tolist(),
                pairs.num_matches.tolist(),
                pairs.num_inliers.tolist(),
                strict=True,
            )
            for (row0, row1), matches, inliers in rows:
                self._edges.setdefault(row0, []).append((inliers, matches, row1))
                self._edges.setdefault(row1, []).append((inliers, matches, row0))
            index, _ = pairs.verified_edges()
            for number, part in enumerate(parts(len(images), index)):
                self._part_of |= dict.fromkeys(part.tolist(), number)
                self._part_sizes.append(len(part))

    def facts(self, name: str) -> dict[str, object]:
        """Numbers of the view graph, and the model that the image is in."""
        edges = [e for e in self._edges.get(self._row[name], ()) if e[0]]
        best = max(edges, key=lambda edge: edge[0], default=None)
        return {
            "num_pairs": len(edges),
            "num_inliers": sum(inliers for inliers, _, _ in edges),
            "best_partner": self._names[best[2]] if best else None,
            "best_inliers": best[0] if best else 0,
            "model": self._model_of(name),
        }

    def _model_of(self, name: str) -> int | None:
        return next(
            (k for k, names in enumerate(self._registered) if name in names), None
        )

    def status(self, name: str, num_keypoints: int | None) -> tuple[str, str]:
        """What became of an image that was read, and why."""
        if self._registered and name in self._registered[0]:
            return "registered", ""
        if num_keypoints is not None and num_keypoints < FEW_KEYPOINTS:
            return "too_few_features", (
                f"It has {count(num_keypoints, 'keypoint')}; {FEW_KEYPOINTS} are"
                f" needed. {_few_because(self._images.infos.get(name))}"
            )
        edges = self._edges.get(self._row[name], [])
        if not any(inliers for inliers, _, _ in edges):
            return "no_match", self._no_match(edges)
        if not self._models:
            if self._recipe.mapping.type == "none":
                return "not_mapped", "No poses were asked for (mapping.type: none)."
            return "not_connected", f"No model was found. {self._best(edges)}"
        return self._unposed(name, edges)

    def _unposed(self, name: str, edges: list[tuple[int, int, int]]) -> tuple[str, str]:
        """An image that is verified with others, but not in the largest model."""
        main = self._registered[0]
        posed = [e for e in edges if e[0] and self._names[e[2]] in main]
        other = self._model_of(name)
        if other is not None:
            shared = sum(inliers for inliers, _, _ in posed)
            link = (
                f"only {count(shared, 'match', 'matches')} with"
                f" {count(len(posed), 'image')} tie it"
                if posed
                else "no verified match ties it"
            )
            size = len(self._registered[other])
            return "not_connected", (
                f"It is in another model, work/models/{other}, with"
                f" {count(size - 1, 'other image')}; {link} to the main model."
            )
        if not posed:
            part = self._part_of[self._row[name]]
            return "not_connected", (
                f"It matches {count(self._part_sizes[part] - 1, 'other image')}"
                " directly or through others, but none of them has a pose."
                f" {self._best(edges)}"
            )
        sees = self._num_points_seen(name, posed)
        best = self._best(posed)
        if sees is None:
            return "not_registered", f"Its matches did not suffice for a pose. {best}"
        if sees < _NEEDED_FOR_POSE:
            return "not_registered", (
                f"Only {sees} of its keypoints match points of the model;"
                f" {_NEEDED_FOR_POSE} are needed for a pose. {best}"
            )
        return "not_registered", (
            f"{sees} of its keypoints match points of the model, but they do not agree"
            " on one pose: its matches are probably wrong (repeated structure) or its"
            f" camera differs. {best}"
        )

    def _no_match(self, edges: list[tuple[int, int, int]]) -> str:
        if self._pairs is None:
            return "No other image matches it."
        needed = self._recipe.database.min_num_inliers
        _, matches, row = max(edges, key=lambda edge: edge[1], default=(0, 0, 0))
        if not matches:
            return (
                f"No other image shares {_NEEDED_FOR_MATCH} matches with it: it shows"
                " something else, or is blurred."
            )
        return (
            f"Its best pair has {count(matches, 'match', 'matches')} with"
            f" {self._names[row]}, but too few of them agree on one geometry: fewer"
            f" than {needed}, or no more than chance gives."
        )

    def _best(self, edges: list[tuple[int, int, int]]) -> str:
        inliers, _, row = max(edges, key=lambda edge: edge[0])
        return (
            f"Its best pair shares {count(inliers, 'match', 'matches')} with"
            f" {self._names[row]}."
        )

    def _num_points_seen(
        self, name: str, posed: list[tuple[int, int, int]]
    ) -> int | None:
        """How many of its keypoints match a keypoint that sees a point of the model."""
        if self._database is None:
            return None
        found: set[int] = set()
        model, ids = self._models[0], self._registered[0]
        with open_database(self._database) as database:
            in_database = {i.name: i.image_id for i in database.read_all_images()}
            own = in_database[name]
            for _, _, row in sorted(posed, reverse=True)[:_MAX_NEIGHBOURS]:
                other = self._names[row]
                geometry = database.read_two_view_geometry(own, in_database[other])
                matches = geometry.inlier_matches
                image = model.images[ids[other]]
                seen = np.array([p.has_point3D() for p in image.points2D], bool)
                found |= set(matches[seen[matches[:, 1]], 0].tolist())
        return len(found)


def _few_because(info: ImageInfo | None) -> str:
    """Why an image has few keypoints."""
    if info is not None and max(info.size) < _THUMBNAIL_PX:
        width, height = info.size
        return f"It is {width} x {height} pixels small; is it a thumbnail?"
    return "It is blurred, dark or blank."
