"""What a report says of graphs, models and runs whose truth is known."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from sfmprep.config.load import load_recipe
from sfmprep.errors import ConfigError
from sfmprep.geometry.views import ModelArrays
from sfmprep.mapping.view_graph import parts, strongest_edges, thin_cuts
from sfmprep.report import schema
from sfmprep.report.measure import measure_model
from sfmprep.report.reasons import explain_images
from sfmprep.report.schema import Report
from sfmprep.report.thresholds import check_thresholds
from tests.support.synthetic_run import Run, recipe, synthesize


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return synthesize(tmp_path)


def forget_pairs(database: Path, names: Sequence[str], *, also_between: bool) -> None:
    """Deletes what verification found of these images with others."""
    with pycolmap.Database.open(database) as opened:
        ids = {i.name: i.image_id for i in opened.read_all_images()}
        for name0, name1 in itertools.combinations(ids, 2):
            touched = (name0 in names) + (name1 in names)
            if touched == 1 or (touched == 2 and also_between):
                opened.delete_two_view_geometry(ids[name0], ids[name1])


def without_frame(model: pycolmap.Reconstruction, name: str) -> pycolmap.Reconstruction:
    copy = pycolmap.Reconstruction(model)
    image = next(i for i in copy.images.values() if i.name == name)
    copy.deregister_frame(image.frame_id)
    return copy


# ----------------------------------------------------------------------- view graph
def test_bridge_between_two_groups_is_the_thinnest_split() -> None:
    groups = [range(5), range(5, 9)]
    edges = [pair for g in groups for pair in itertools.combinations(g, 2)] + [(2, 6)]
    weights = np.array([200] * (len(edges) - 1) + [14])
    thinnest, *_ = thin_cuts(9, np.array(edges), weights, max_cuts=3, min_side=3)
    assert thinnest.strongest == (2, 6)
    assert (thinnest.num_pairs, thinnest.num_matches) == (1, 14)
    assert thinnest.smaller.tolist() == [5, 6, 7, 8]


def test_split_is_listed_though_single_images_hang_on_by_less() -> None:
    groups = [range(4), range(4, 8)]
    edges = [pair for g in groups for pair in itertools.combinations(g, 2)]
    edges += [(3, 4), (0, 8), (1, 9)]
    weights = np.array([200] * (len(edges) - 3) + [50, 15, 16])
    cuts = thin_cuts(10, np.array(edges), weights, max_cuts=2, min_side=3)
    assert [cut.num_matches for cut in cuts] == [15, 16, 50]


@settings(max_examples=60)
@given(st.data())
def test_cut_holds_all_that_crosses_it(data: st.DataObject) -> None:
    num = data.draw(st.integers(2, 9))
    pairs = list(itertools.combinations(range(num), 2))
    chosen = data.draw(st.lists(st.sampled_from(pairs), min_size=1, unique=True))
    index = np.array(chosen)
    weights = np.array([data.draw(st.integers(1, 50)) for _ in chosen])
    largest = set(parts(num, index)[0].tolist())
    cuts = thin_cuts(num, index, weights, max_cuts=99, min_side=99)
    assert len(cuts) == len(largest) - 1
    for cut in cuts:
        side = set(cut.smaller.tolist())
        crossing = (np.isin(index, list(side)).sum(axis=1) == 1).nonzero()[0]
        assert side < largest and 2 * len(side) <= len(largest)
        assert cut.num_pairs == len(crossing)
        assert cut.num_matches == weights[crossing].sum()
        assert cut.num_inliers == weights[crossing].max()


def test_no_edges_no_cuts_and_no_parts() -> None:
    none = np.empty((0, 2), np.int64)
    assert thin_cuts(5, none, none[:, 0], max_cuts=3, min_side=2) == []
    assert parts(5, none) == []


def test_an_edge_stays_if_one_of_its_images_has_few_better() -> None:
    index = np.array([[0, 1], [0, 2], [0, 3], [2, 3]])
    kept = strongest_edges(index, np.array([9, 8, 7, 6]), 1)
    assert kept.tolist() == [True, True, True, False]


# --------------------------------------------------------------------- measurements
def test_angles_and_errors_agree_with_other_ways_to_find_them(run: Run) -> None:
    measured = measure_model(ModelArrays.of(run.model))
    angles = []
    for point in run.model.points3D.values():
        seen = {element.image_id for element in point.track.elements}
        rays = [run.model.images[k].projection_center() - point.xyz for k in seen]
        angles.append(
            max(
                np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b)), a @ b))
                for a, b in itertools.combinations(rays, 2)
            )
        )
    assert measured.median_angle_deg == pytest.approx(np.median(angles), abs=1e-6)
    image = next(iter(run.model.images.values()))
    camera = run.model.cameras[image.camera_id]
    errors = [
        np.linalg.norm(
            camera.img_from_cam(
                image.cam_from_world() * run.model.points3D[p.point3D_id].xyz
            )
            - p.xy
        )
        for p in image.points2D
        if p.has_point3D()
    ]
    assert measured.images[image.name].mean_error_px == pytest.approx(np.mean(errors))
    assert measured.images[image.name].num_points == len(errors)


def test_noise_is_not_taken_for_distortion_but_a_shift_is(run: Run) -> None:
    (camera,) = measure_model(ModelArrays.of(run.model)).cameras
    assert camera.residuals.leftover_px < 0.15
    for image in run.model.images.values():
        for point in image.points2D:
            point.xy = point.xy + (0.8, 0)
    (camera,) = measure_model(ModelArrays.of(run.model)).cameras
    assert camera.residuals.leftover_px == pytest.approx(0.8, abs=0.1)
    assert [w.code for w in run.report().warnings] == [
        "few_images",
        "leftover_distortion",
    ]


# ------------------------------------------------------------------------- reports
def test_good_capture_has_no_warning_and_survives_json(tmp_path: Path) -> None:
    report = synthesize(tmp_path, num_frames=20).report()
    assert report.grade == "good" and report.warnings == []
    assert {i.status for i in report.images} == {"registered"}
    assert report.result is not None and report.result.num_registered == 20
    assert Report.model_validate_json(report.to_json()) == report


def test_without_a_model_the_report_says_why(run: Run) -> None:
    report = run.report(models=[])
    assert report.grade == "failed" and report.result is None
    assert report.failure is not None and report.verdict == report.failure
    assert "28 pairs" in report.failure
    assert {i.status for i in report.images} == {"not_connected"}


def test_without_mapping_nothing_is_called_a_failure_of_the_images(run: Run) -> None:
    report = run.report(
        models=[], recipe=load_recipe("sift", ("mapping.type=none",)), database=None
    )
    assert report.verdict == "No poses were asked for (mapping.type: none)."
    assert report.view_graph is None


def test_halves_that_share_little_are_named(run: Run) -> None:
    names = run.images.names[:4]
    forget_pairs(run.database, names, also_between=False)
    with pycolmap.Database.open(run.database) as opened:
        ids = {i.name: i.image_id for i in opened.read_all_images()}
        first, second = ids[run.images.names[3]], ids[run.images.names[4]]
        geometry = pycolmap.TwoViewGeometry()
        geometry.config = pycolmap.TwoViewGeometryConfiguration.CALIBRATED
        geometry.inlier_matches = opened.read_matches(first, second)[:14]
        opened.write_two_view_geometry(first, second, geometry)
    report = run.report()
    (warning,) = [w for w in report.warnings if w.code == "thin_cut"]
    assert "The two halves of this capture (4 and 4 images) share only 14" in (
        warning.text
    )
    assert run.images.names[3] in warning.text and run.images.names[4] in warning.text


def test_wrong_pose_is_contradicted_by_its_pairs(run: Run) -> None:
    name = run.images.names[2]
    frame = run.model.frames[run.image(name).frame_id]
    turn = pycolmap.Rigid3d(pycolmap.Rotation3d(np.array([0, 0, 0.5])), np.zeros(3))
    frame.rig_from_world = turn * frame.rig_from_world
    found = run.report().contradictions
    assert len(found) == 7  # all its pairs, and no other one
    assert all(name in (c.pair.name0, c.pair.name1) for c in found)


def test_blurred_photographs_are_named_worst_first_and_stay(run: Run) -> None:
    names = run.images.names
    shares = dict(zip(names, (0.9, 0.74, 0.31, 0.76), strict=False))
    report = run.report(sharpness=shares)

    (found,) = [each for each in report.warnings if each.code == "shaken"]
    assert found.images == [names[2], names[1]]
    assert found.text == (
        "Shaken or out of focus: 2 of the 4 photographs that can be compared. Of the"
        " contrast of the finest details that others show there, less than 75% is left:"
        f" {names[2]} (31%), {names[1]} (74%). A splat learns the blur too."
    )
    assert not found.blocks_training
    assert {i.name: i.sharpness for i in report.images if i.sharpness} == shares
    assert {i.status for i in report.images} == {"registered"}
    calm = run.report(sharpness={name: 0.75 for name in names})
    assert "shaken" not in {each.code for each in calm.warnings}


def test_each_image_that_is_left_out_has_its_reason(run: Run) -> None:
    lonely, unposed, outlier, blank = run.images.names[:4]
    forget_pairs(run.database, [lonely], also_between=True)
    model = run.model
    for name in (lonely, unposed, blank):
        model = without_frame(model, name)
    other = without_frame(run.model, outlier)
    report = run.report(models=[model, other], outliers={outlier: "it lies far away"})
    by_name = {i.name: i for i in report.images}
    assert by_name[lonely].status == "no_match"
    assert by_name[lonely].reason.endswith(
        "too few of them agree on one geometry: fewer than 15, or no more than chance"
        " gives."
    )
    assert by_name[outlier].status == "outlier"
    assert by_name[outlier].reason.endswith(
        "left out of the dataset: it lies far away."
    )
    assert by_name[unposed].status == "not_connected"
    assert "in another model, work/models/1" in by_name[unposed].reason

    report = run.report(models=[model])
    by_name = {i.name: i for i in report.images}
    assert by_name[unposed].status == "not_registered"
    assert "of its keypoints match points" in by_name[unposed].reason

    counts = {name: 1000 for name in run.images.names} | {blank: 7}
    explained = explain_images(
        run.images,
        recipe=recipe(),
        unreadable={"broken.jpg": "truncated"},
        num_keypoints=counts,
        pairs=None,
        models=[model],
    )
    assert explained[blank].status == "too_few_features"
    assert explained[blank].reason == (
        "It has 7 keypoints; 50 are needed. It is blurred, dark or blank."
    )
    small = replace(run.images.infos[blank], size=(160, 120))
    explained = explain_images(
        replace(run.images, infos={**run.images.infos, blank: small}),
        recipe=recipe(),
        unreadable={"broken.jpg": "truncated"},
        num_keypoints=counts,
        pairs=None,
        models=[model],
    )
    assert explained[blank].reason == (
        "It has 7 keypoints; 50 are needed. It is 160 x 120 pixels small; is it a"
        " thumbnail?"
    )
    assert explained["broken.jpg"].reason == "It cannot be used: truncated."


def test_infinite_uncertainty_is_null_because_json_has_none(run: Run) -> None:
    @dataclass
    class Pose:
        rotation_stddev_deg: float
        position_stddev: float

    first, second = run.images.names[:2]
    report = run.report(
        uncertainties={first: Pose(0.1, 0.2), second: Pose(float("inf"), 0.2)}
    )
    assert report.images[0].rotation_stddev_deg == 0.1
    assert report.images[1].rotation_stddev_deg is None
    assert report.images[2].position_stddev is None


def test_every_field_is_documented() -> None:
    records = [
        value
        for value in vars(schema).values()
        if isinstance(value, type) and issubclass(value, schema.Record)
    ]
    missing = [
        f"{record.__name__}.{name}"
        for record in records
        for name, field in record.model_fields.items()
        if not field.description
    ]
    assert issubclass(Report, BaseModel) and missing == []


# ---------------------------------------------------------------------- thresholds
def test_thresholds_that_are_met_say_nothing(run: Run) -> None:
    report = run.report()
    assert check_thresholds(report, ["registered=1", "points=250", "angle_deg=5"]) == []


def test_measure_below_its_threshold_is_told(run: Run) -> None:
    report = run.report(models=[without_frame(run.model, run.images.names[0])])
    assert check_thresholds(report, ["registered=0.9"]) == [
        "87.5% of the images are in the dataset, but at least 90.0% are wanted"
        " (registered)."
    ]
    failed = run.report(models=[])
    assert len(check_thresholds(failed, ["registered=0.1", "points=1"])) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("registerd=0.9", "Did you mean 'registered'?"),
        ("registered=90", "expected registered= and a number, 0 to 1"),
        ("registered", "such as registered=0.9"),
        ("points=-1", "0 or more"),
        ("points=nan", "0 or more"),
        ("", "'' is none of registered, points"),
    ],
)
def test_wrong_threshold_is_refused(run: Run, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_thresholds(run.report(), [text])
    assert expected in str(caught.value)


def test_failure_says_how_strong_the_strongest_pair_is(tmp_path: Path) -> None:
    run = synthesize(tmp_path)
    with pycolmap.Database.open(run.database) as database:
        ids, _ = database.read_two_view_geometry_num_inliers()
        for pair in map(pycolmap.pair_id_to_image_pair, ids):
            geometry = database.read_two_view_geometry(*pair)
            geometry.inlier_matches = np.asarray(geometry.inlier_matches)[:20]
            database.update_two_view_geometry(*pair, geometry)
    assert run.report(models=[]).failure == (
        "No poses were found: the strongest of 28 verified pairs of images of"
        f" {tmp_path / 'images'} has 20 matches that agree, too few to begin with. Take"
        " more photographs, a step apart, or try more keypoints (--set"
        " features.max_keypoints=8192)."
    )


def test_large_captures_are_said_to_be_mapped_in_parts(run: Run) -> None:
    assert run.report().mapper == "incremental"
    small = load_recipe("sift", ["mapping.part_size=10"])
    mapping = small.mapping.model_copy(update={"part_size": 3})
    parts = small.model_copy(update={"mapping": mapping})
    assert run.report(recipe=parts).mapper == (
        "incremental, in overlapping parts of about 3 images"
    )
