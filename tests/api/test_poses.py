"""From matches to a dataset by the library, on the demo scene, without a recipe."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest

import sfmprep as sp
from sfmprep.capture.masks import read_mask
from sfmprep.evaluation.reference import read_reference
from tests.support.made_once import common_folder
from tests.support.remembered import remember

pycolmap.logging.minloglevel = int(pycolmap.logging.FATAL)


@dataclass
class Job:
    """What each step of a job returned; not to be changed."""

    folder: Path
    images: sp.ImageSet
    features: sp.FeatureStore
    matches: sp.MatchStore
    database: sp.Database
    models: list[pycolmap.Reconstruction]


@pytest.fixture(scope="module")
def job(demo_scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("job")
    images = sp.scan(demo_scene / "images")
    with pytest.MonkeyPatch.context() as patch:
        remember(patch, common_folder(tmp_path_factory))
        features = sp.extract(images, sp.Sift(max_keypoints=1500))
        pairs = sp.exhaustive_pairs(images.names)
        matches = sp.match(features, pairs, sp.Nearest(ratio=0.81))
        database = sp.verify(images, features, matches, folder / "work" / "database.db")
        models = sp.map(database, images)
    return Job(folder, images, features, matches, database, models)


def refusal(kind: type[Exception], call: Any, *args: Any, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        call(*args, **options)
    return str(caught.value)


def test_poses_are_those_of_the_scene(job: Job, demo_scene: Path) -> None:
    found = sp.evaluate(job.models[0], demo_scene / "reference.json")
    assert found.registered == 8
    assert found.auc[5] > 90
    poses = read_reference(demo_scene)
    assert sp.evaluate(job.models[0], poses) == found
    assert sp.evaluate(job.models[0], str(demo_scene)) == found


def test_verified_pairs_are_counted_and_the_graph_agrees(job: Job) -> None:
    verified = job.database.verified
    table = sp.view_graph(job.database, job.images)
    assert verified.images == frozenset(job.images.names)
    assert (table.num_inliers > 0).sum() == verified.num_verified > 15
    assert table.num_inliers.sum() == verified.num_inliers
    weak = sp.weak_pairs(
        str(job.database.path), job.matches.pairs(), min_num_inliers=10**6
    )
    assert len(weak) == 28  # nothing is strong, so all of them


def test_the_same_stores_give_the_same_database_again(job: Job) -> None:
    path = job.folder / "again.db"
    for _ in range(2):  # made, then filled in place
        found = sp.verify(job.images, job.features, job.matches, str(path))
        assert found.verified == job.database.verified
    few = sp.verify(
        *(job.images, job.features, job.matches, path),
        pairs=sp.Pairs.of([job.images.names[:2]]),
    )
    assert few.verified.num_pairs == 1


def test_refined_keypoints_fit_better_and_the_model_stays(job: Job) -> None:
    before = job.models[0].compute_mean_reprojection_error()
    refined = sp.refine(job.models[0], job.images)
    assert job.models[0].compute_mean_reprojection_error() == before
    assert refined.compute_mean_reprojection_error() < before


def test_a_lost_camera_is_an_outlier_with_a_reason(job: Job) -> None:
    assert sp.drop_outliers(job.models[0])[1] == {}
    model = pycolmap.Reconstruction(job.models[0])
    lost = next(image for image in model.images.values() if image.has_pose)
    pose = lost.cam_from_world()
    pose.translation = pose.translation + [0, 0, 1e4]
    lost.frame.set_cam_from_world(lost.camera_id, pose)
    kept, reasons = sp.drop_outliers(model)
    assert list(reasons) == [lost.name]
    assert kept.num_reg_images() == 7
    assert model.num_reg_images() == 8
    config = sp.OutlierConfig(
        min_num_points=0, max_rotation_stddev_deg=None, max_distance_ratio=None
    )
    assert sp.drop_outliers(model, config=config)[1] == {}


def test_a_dataset_is_what_its_targets_open(job: Job) -> None:
    folder = job.folder / "dataset"
    summary = sp.export(
        *(job.models[0], job.images, str(folder)),
        targets=["gsplat", "nerfstudio"],
        config=sp.ExportConfig(downscales=(2,)),
    )
    assert summary.folders == {"gsplat": folder, "nerfstudio": folder}
    assert (folder / "transforms.json").is_file()
    assert len(os.listdir(folder / "images_2")) == summary.num_images == 8
    model = sp.read_model(folder)
    assert model.num_reg_images() == 8
    up = np.mean([i.viewing_direction() for i in model.images.values()], axis=0)
    assert abs(up[2]) < 0.6  # cameras look level: z is up


def test_points_by_a_network_are_for_runs(job: Job) -> None:
    config = sp.ExportConfig.model_validate(
        {"seed": {"pointmaps": {"type": "depth-anything"}}}
    )
    export = (sp.export, job.models[0], job.images, job.folder / "deep")
    assert refusal(sp.ConfigError, *export, config=config) == (
        "config.seed.pointmaps makes points by a network, which only a run does. Leave"
        " it out, or set export.seed.pointmaps in the recipe of a run."
    )


def test_semi_dense_points_come_from_the_stores(job: Job) -> None:
    config = sp.ExportConfig.model_validate({"seed": {"level": "semi"}})
    out = job.folder / "semi"
    export = (sp.export, job.models[0], job.images, out)
    message = (
        "config.seed.level is 'semi', which makes points of matches. Give features and"
        " matches too."
    )
    assert refusal(sp.ConfigError, *export, config=config) == message
    summary = sp.export(
        *(job.models[0], job.images, out),
        config=config.model_copy(update={"downscales": ()}),
        features=job.features,
        matches=job.matches,
    )
    assert summary.num_points > job.models[0].num_points3D()


def test_unknown_targets_are_refused(job: Job) -> None:
    for targets in (["gsplat", "unreal"], "gsplat"):
        assert refusal(
            *(sp.ConfigError, sp.export, job.models[0], job.images, job.folder / "x"),
            targets=targets,
        ) == (
            f"targets={targets!r} but expected a list of some of nerfstudio, gsplat,"
            " 3dgs, brush, lichtfeld, postshot, postshot-inverted, 3dgrut, colmap,"
            " nerfstudio-360"
        )


def test_mapping_without_a_mapper_or_without_pairs_is_refused(
    job: Job, tmp_path: Path
) -> None:
    config = sp.MappingConfig(type="none")
    found = refusal(sp.ConfigError, sp.map, job.database, job.images, config=config)
    assert found == "config.type is 'none' but expected 'incremental' or 'global'"
    empty = sp.verify(
        job.images, job.features, sp.MatchStore(), tmp_path / "database.db"
    )
    assert empty.verified.num_verified == 0
    assert refusal(sp.ReconstructionError, sp.map, empty, job.images).startswith(
        f"none of the 8 images of {job.images.root} matches another:"
    )


def test_models_and_reports_are_read_back(job: Job, demo_result: Path) -> None:
    (job.folder / "model").mkdir()
    job.models[0].write(job.folder / "model")
    assert sp.read_model(str(job.folder / "model")).num_reg_images() == 8
    assert sp.read_model(demo_result).num_reg_images() == 8
    report = sp.read_report(demo_result)
    assert report == sp.read_report(str(demo_result / "report.json"))
    assert len(report.images) == 8
    assert refusal(sp.StoreError, sp.read_report, job.folder) == (
        f"{job.folder / 'report.json'} cannot be read (No such file or directory). Give"
        " the report.json, or the output folder, of a run with this version of sfmprep."
    )
    (job.folder / "report.json").write_text("{}")
    assert refusal(sp.StoreError, sp.read_report, job.folder) == (
        f"{job.folder / 'report.json'} cannot be read (not a report). Give the"
        " report.json, or the output folder, of a run with this version of sfmprep."
    )


def test_reconstruct_takes_text_and_the_name_of_a_recipe(
    demo_scene: Path, demo_result: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(demo_result, tmp_path / "out")
    report = sp.reconstruct(
        str(demo_scene / "images"), str(out), str(out / "recipe.yaml")
    )
    assert report.images == sp.read_report(demo_result).images


def test_where_nothing_has_a_pose_masks_leave_nothing_out(
    demo_scene: Path, tmp_path: Path
) -> None:
    images = sp.scan(demo_scene / "images")
    masked = sp.mask_motion(images, [], tmp_path / "masks")
    assert masked.mask_root == tmp_path / "masks"
    assert len(list((tmp_path / "masks").iterdir())) == len(images)
    assert all(read_mask(masked, name).all() for name in images.names)


def test_motion_takes_two_neighbours_or_more(demo_scene: Path, tmp_path: Path) -> None:
    with pytest.raises(sp.ConfigError) as caught:
        sp.mask_motion(
            sp.scan(demo_scene / "images"), [], tmp_path / "masks", num_neighbours=1
        )
    assert str(caught.value) == (
        "max_size=640 and num_neighbours=1 but expected 1 and 2 or more"
    )
