"""From the stores and models of a run to its report."""

from __future__ import annotations

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import pycolmap

from sfmprep import __version__
from sfmprep.capture.batches import reduction_scales
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import Recipe
from sfmprep.geometry.parallax import parallax_deg
from sfmprep.geometry.uncertainty import PoseUncertainty
from sfmprep.geometry.views import ModelArrays
from sfmprep.mapping.contradictions import find_contradictions
from sfmprep.mapping.database import open_database
from sfmprep.mapping.failure import explain_failure
from sfmprep.mapping.from_poses import PoseChanges
from sfmprep.mapping.partitioned import how_mapped
from sfmprep.mapping.trust import Trust
from sfmprep.mapping.view_graph import (
    PairTable,
    parts,
    read_pair_table,
    strongest_edges,
    thin_cuts,
)
from sfmprep.mapping.wrong_pairs import WrongPair
from sfmprep.report.bursts import of_bursts
from sfmprep.report.findings import below_floors, list_findings, min_side_of_split
from sfmprep.report.focal_lengths import doubtful_focal_lengths
from sfmprep.report.given_poses import given_poses, of_given_poses
from sfmprep.report.measure import ModelMeasure, measure_model
from sfmprep.report.reasons import explain_images
from sfmprep.report.schema import (
    Added,
    Capture,
    Consistency,
    Contradiction,
    FilmReport,
    ImageReport,
    LookAlike,
    OtherModel,
    PairWay,
    Report,
    Result,
    Rung,
    SizeCount,
    ViewGraph,
    ViewPair,
    WeakLink,
)
from sfmprep.report.verdict import judge
from sfmprep.stores.tables import FeatureStore

_MAX_EDGES = 20_000
_EDGES_PER_IMAGE = 10  # above that
_MAX_LINKS = 20
_MAX_NAMES = 10
_MAX_LOOK_ALIKES = 100


def collect_report(
    images: ImageSet,
    *,
    recipe: Recipe,
    frontend: str,
    database: Path | None,
    features: FeatureStore | None,
    models: Sequence[pycolmap.Reconstruction],
    seconds: Mapping[str, float],
    unreadable: Mapping[str, str],
    outliers: Mapping[str, str],
    uncertainties: Mapping[str, PoseUncertainty],
    sharpness: Mapping[str, float] | None = None,
    world: Mapping[str, Any] | None,
    command: str,
    next_steps: Sequence[str],
    trust: Trust | None = None,
    pose_changes: PoseChanges | None = None,
    added: Added | None = None,
    num_dataset_points: int | None = None,
    pair_ways: Sequence[PairWay] = (),
    rungs: Sequence[Rung] = (),
    folders: Mapping[int, str] | None = None,
    failure: str | None = None,
    version: str = __version__,
) -> Report:
    """Gathers what is known of a run, also of one that found no model.

    Args:
        images: The capture.
        recipe: What was done.
        frontend: Features and matcher, for people.
        database: The verified database, or None; without it there is no view graph.
        features: Where keypoints are counted; None: in the database.
        models: Models of `images`, largest first, in the mapper's frame; may be empty.
        pair_ways: How many pairs each way proposed.
        rungs: What each matcher tried and gained.
        seconds: Wall-clock time by stage.
        unreadable: Images that could not be decoded, and why.
        outliers: Images of the first model left out of the dataset, and why.
        uncertainties: Of the poses, by image name; may lack images.
        sharpness: Of images of the first model: see `relative_sharpness`.
        world: The content of world_from_sfm.json, where there is one.
        command: What makes this result.
        next_steps: What opens it, if it is worth that.
        trust: How far the pairs and the first model agree; None without a model.
        pose_changes: What became of given poses; None where there were none.
        added: What joined a finished result; None where nothing did.
        num_dataset_points: Points that training starts from, where there is a dataset.
        folders: Datasets of models beside the first, by the model's number.
        failure: Why there is no model or no dataset, where that is known.
        version: Of sfmprep.

    Raises:
        StoreError: the database is not one of COLMAP, or is locked.
    """
    pairs = read_pair_table(database, images.names) if database else None
    scales = reduction_scales(images, recipe.features.max_size)
    reports = explain_images(
        images,
        recipe=recipe,
        unreadable=unreadable,
        num_keypoints=_num_keypoints(images, features, database),
        pairs=pairs,
        models=models,
        outliers=outliers,
        database=database,
    )
    arrays = ModelArrays.of(models[0]) if models else None
    measured = measure_model(arrays) if arrays else None
    parallax = list(parallax_deg(arrays).values()) if arrays else []
    listed = [
        _with_measures(report, measured, uncertainties, sharpness or {})
        for report in reports.values()
    ]
    result = (
        _result(models, measured, parallax, listed, num_dataset_points)
        if measured
        else None
    )
    graph = _view_graph(pairs, listed, images) if pairs else None
    links = _weak_links(pairs, models) if pairs else []
    consistency = _consistency(trust) if trust else None
    explained = {(p.name0, p.name1) for p in trust.left_out} if trust else set()
    contradictions = (
        _contradictions(database, models[0], pairs, scales, explained)
        if database and pairs and models
        else []
    )
    others = _other_models(models, folders or {}, pairs)
    findings = list_findings(
        listed,
        result=result,
        cameras=measured.cameras if measured else [],
        graph=graph,
        links=links,
        contradictions=contradictions,
        consistency=consistency,
        residuals=measured.residuals if measured else None,
        others=others,
        scale=median(scales.values()),
        films=images.films,
    )
    given = given_poses(pose_changes) if pose_changes else None
    findings += of_given_poses(given)
    findings += of_bursts(arrays)
    # poses that cannot be trusted contradict nothing
    trusted = () if any(f.blocks_training for f in findings) else models
    findings += doubtful_focal_lengths(images, recipe.database, database, trusted)
    if not models:
        failure = failure or _failure(images, recipe, pairs, database)
    verdict = judge(len(listed), result, findings, failure, others)
    opens = verdict.trainable or recipe.mapping.type == "none"
    return Report(
        sfmprep_version=version,
        recipe=recipe.name,
        frontend=frontend,
        mapper="from given poses"
        if recipe.known_poses is not None
        else how_mapped(recipe.mapping, len(images)),
        grade=verdict.grade,
        verdict=verdict.sentence,
        trainable=verdict.trainable,
        next_steps=list(next_steps) if opens else [],
        command=command,
        pair_ways=list(pair_ways),
        rungs=list(rungs),
        settings=recipe.model_dump(mode="json"),
        versions=_versions(version),
        failure=failure,
        capture=_capture(images, listed),
        result=result,
        other_models=others,
        warnings=findings,
        images=listed,
        cameras=measured.cameras if measured else [],
        view_graph=graph,
        weak_links=links,
        contradictions=contradictions,
        consistency=consistency,
        given_poses=given,
        added=added,
        residuals=measured.residuals if measured else None,
        track_lengths=measured.track_lengths if measured else None,
        angles_deg=measured.angles_deg if measured else None,
        world=dict(world) if world is not None else None,
        seconds=dict(seconds),
    )


def _num_keypoints(
    images: ImageSet, features: FeatureStore | None, database: Path | None
) -> dict[str, int]:
    if features is not None:
        return {n: features.num_keypoints(n) for n in images.names if n in features}
    if database is None:
        return {}
    with open_database(database) as opened:
        return {
            image.name: opened.num_keypoints_for_image(image.image_id)
            for image in opened.read_all_images()
        }


def _failure(
    images: ImageSet, recipe: Recipe, pairs: PairTable | None, database: Path | None
) -> str:
    if recipe.mapping.type == "none":
        return "No poses were asked for (mapping.type: none)."
    if pairs is None:
        return "No poses were found, and there is no database that says why."
    reason = explain_failure(images, pairs.verified, database)
    return f"No poses were found: {reason}"


def _capture(images: ImageSet, reports: Sequence[ImageReport]) -> Capture:
    infos = images.infos.values()
    devices = {device_name(info.make or "", info.model or "") for info in infos}
    return Capture(
        folder="/".join(images.source.resolve().parts[-2:]),
        num_images=len(reports),
        num_bytes=sum(info.num_bytes for info in infos),
        sizes=[
            SizeCount(width=width, height=height, num_images=count)
            for (width, height), count in Counter(i.size for i in infos).most_common()
        ],
        devices=sorted(devices - {""}),
        films=[FilmReport.model_validate(film) for film in images.films],
        copies=dict(images.copies),
    )


def device_name(make: str, model: str) -> str:
    """Make and model; many cameras write the make into the model, too."""
    make, model = make.strip(), model.strip()
    first = make.split()[:1]
    if first and model.casefold().startswith(first[0].casefold()):
        return model
    return f"{make} {model}".strip()


def _versions(version: str) -> dict[str, str]:
    of = importlib.metadata.version
    packages = ("pycolmap", "torch", "numpy")
    return {
        "sfmprep": version,
        "python": platform.python_version(),
        **{name: of(name) for name in packages},
        "opencv": cv2.__version__,  # its package has one of four names
        "platform": platform.platform(),
    }


def _with_measures(
    report: ImageReport,
    measured: ModelMeasure | None,
    uncertainties: Mapping[str, PoseUncertainty],
    sharpness: Mapping[str, float],
) -> ImageReport:
    if measured is None or report.name not in measured.images:
        return report
    image = measured.images[report.name]
    pose = uncertainties.get(report.name)
    return report.model_copy(
        update={
            **vars(image),
            "rotation_stddev_deg": _finite(pose.rotation_stddev_deg if pose else None),
            "position_stddev": _finite(pose.position_stddev if pose else None),
            "sharpness": sharpness.get(report.name),
        }
    )


def _finite(value: float | None) -> float | None:
    """JSON has no infinity, so a pose that nothing holds has no number."""
    return value if value is not None and np.isfinite(value) else None


def _result(
    models: Sequence[pycolmap.Reconstruction],
    measured: ModelMeasure,
    parallax: Sequence[float],
    reports: Sequence[ImageReport],
    num_dataset_points: int | None,
) -> Result:
    best = models[0]
    return Result(
        num_registered=best.num_reg_images(),
        num_dataset=sum(report.status == "registered" for report in reports),
        num_points=best.num_points3D(),
        num_dataset_points=num_dataset_points,
        num_observations=best.compute_num_observations(),
        mean_track_length=best.compute_mean_track_length(),
        median_angle_deg=measured.median_angle_deg,
        median_parallax_deg=float(np.median(parallax)) if parallax else None,
        model_sizes=[model.num_reg_images() for model in models],
    )


def _other_models(
    models: Sequence[pycolmap.Reconstruction],
    folders: Mapping[int, str],
    pairs: PairTable | None,
) -> list[OtherModel]:
    found = []
    inside = [{m.images[k].name for k in m.reg_image_ids()} for m in models]
    for number, model in enumerate(models[1:], 1):
        size = model.num_reg_images(), model.num_points3D()
        folder = folders.get(number)
        why_not = below_floors(*size) or "it was not asked for, or could not be made"
        links = _links_between(pairs, inside[0], inside[number]) if pairs else []
        found.append(
            OtherModel(
                number=number,
                num_images=size[0],
                num_points=size[1],
                folder=folder,
                reason="" if folder else why_not,
                num_links=len(links),
                strongest_link=max(links, key=lambda k: k.num_inliers, default=None),
            )
        )
    return found


def _links_between(
    pairs: PairTable, first: Collection[str], second: Collection[str]
) -> list[ViewPair]:
    """Verified pairs of an image of each that the other does not have."""
    index, inliers = pairs.verified_edges()
    side = np.array([(n in first) - (n in second) for n in pairs.names], np.int64)
    joins = side[index[:, 0]] * side[index[:, 1]] < 0
    return [
        ViewPair(name0=pairs.names[row0], name1=pairs.names[row1], num_inliers=number)
        for (row0, row1), number in zip(
            index[joins].tolist(), inliers[joins].tolist(), strict=True
        )
    ]


def _view_graph(
    pairs: PairTable, reports: Sequence[ImageReport], images: ImageSet
) -> ViewGraph:
    index, inliers = pairs.verified_edges()
    per_image = _EDGES_PER_IMAGE if len(index) > _MAX_EDGES else None
    keep = strongest_edges(index, inliers, per_image or len(index))
    # `images` of the report hold the unreadable ones, too
    row_of = {report.name: row for row, report in enumerate(reports)}
    row = np.array([row_of[name] for name in pairs.names])
    edges = np.column_stack([row[index[keep]], inliers[keep]])
    return ViewGraph(
        num_matched_pairs=pairs.verified.num_pairs,
        num_pairs=len(index),
        num_rotation_only=pairs.verified.num_rotation_only,
        edges=[(i, j, n) for i, j, n in edges.tolist()],
        max_edges_per_image=per_image,
        part_sizes=[len(part) for part in parts(len(images), index)],
    )


def _weak_links(
    pairs: PairTable, models: Sequence[pycolmap.Reconstruction]
) -> list[WeakLink]:
    """The thinnest cuts through the largest model, or else the whole view graph."""
    index, inliers = pairs.verified_edges()
    num_images = len(pairs.names)
    if models:
        best = models[0]
        posed = {best.images[k].name for k in best.reg_image_ids()}
        inside = np.array([name in posed for name in pairs.names])[index].all(axis=1)
        index, inliers = index[inside], inliers[inside]
        num_images = len(posed)
    cuts = thin_cuts(
        len(pairs.names),
        index,
        inliers,
        max_cuts=_MAX_LINKS - 1,
        min_side=min_side_of_split(num_images),
    )
    return [
        WeakLink(
            pair=ViewPair(
                name0=pairs.names[cut.strongest[0]],
                name1=pairs.names[cut.strongest[1]],
                num_inliers=cut.num_inliers,
            ),
            num_pairs=cut.num_pairs,
            num_matches=cut.num_matches,
            num_images=len(cut.smaller),
            images=[pairs.names[row] for row in cut.smaller[:_MAX_NAMES]],
        )
        for cut in cuts
    ]


def _consistency(trust: Trust) -> Consistency:
    return Consistency(
        consistency=round(trust.consistency, 4),
        num_asked=trust.num_asked,
        num_contradicted=trust.num_contradicted,
        num_overlaid=len(trust.overlaid),
        overlaid=_look_alikes(trust.overlaid),
        num_left_out=len(trust.left_out),
        left_out=_look_alikes(trust.left_out),
        broken=[ViewPair.model_validate(p) for p in trust.broken[:_MAX_LOOK_ALIKES]],
    )


def _look_alikes(pairs: Sequence[WrongPair]) -> list[LookAlike]:
    strongest = sorted(pairs, key=lambda p: (-p.num_inliers, p.name0, p.name1))
    return [
        LookAlike(
            pair=ViewPair.model_validate(each),
            absent=each.absent,
            certainty=each.certainty,
            loop_deg=each.loop_deg,
        )
        for each in strongest[:_MAX_LOOK_ALIKES]
    ]


def _contradictions(
    database: Path,
    model: pycolmap.Reconstruction,
    pairs: PairTable,
    scales: Mapping[str, float],
    explained: set[tuple[str, str]],
) -> list[Contradiction]:
    return [
        Contradiction(
            pair=ViewPair.model_validate(found),
            share_fitting=found.share_fitting,
        )
        for found in find_contradictions(
            database, model, pairs, scales=scales, explained=explained
        )
    ]
