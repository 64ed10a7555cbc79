"""Photographs of one camera with two zooms."""

from __future__ import annotations

from pathlib import Path

import pycolmap
import pytest

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DatabaseConfig
from sfmprep.mapping.adjust import adjust
from sfmprep.mapping.zooms import find_two_zooms, with_two_cameras
from sfmprep.report.focal_lengths import _zooms
from tests.support.orbit import lens, orbit_model


def of_one_camera(*focals: float) -> pycolmap.Reconstruction:
    """An orbit whose photographs were taken with these in turn, as if with one."""
    model, _ = orbit_model(
        [lens("SIMPLE_RADIAL", focal) for focal in focals], num_points=400
    )
    shared = pycolmap.Reconstruction()
    shared.add_camera_with_trivial_rig(model.cameras[1])
    for key in sorted(model.reg_image_ids()):
        image = model.images[key]
        xy = pycolmap.Point2DList([pycolmap.Point2D(p.xy) for p in image.points2D])
        shared.add_image_with_trivial_frame(
            pycolmap.Image(name=image.name, points2D=xy, camera_id=1, image_id=key),
            image.cam_from_world(),
        )
    for point in model.points3D.values():
        shared.add_point3D(point.xyz, point.track, point.color)
    adjust(shared)
    return shared


@pytest.fixture(scope="module")
def zoomed() -> pycolmap.Reconstruction:
    return of_one_camera(800, 800, 860)


def test_two_zooms_are_found(zoomed: pycolmap.Reconstruction) -> None:
    (found,) = find_two_zooms(zoomed)
    names = {zoomed.images[key].name for key in zoomed.reg_image_ids()}
    longer = {name for name in names if int(name[:2]) % 3 == 2}
    assert {*found.longer} == longer
    assert {*found.shorter} == names - longer
    assert found.ratio == pytest.approx(1.075, abs=0.02)
    assert find_two_zooms(zoomed, known=[1]) == []


def test_one_zoom_is_not_split() -> None:
    assert find_two_zooms(of_one_camera(800)) == []
    assert find_two_zooms(pycolmap.Reconstruction()) == []


def test_the_report_says_which_photographs(
    zoomed: pycolmap.Reconstruction, tmp_path: Path
) -> None:
    names = tuple(sorted(image.name for image in zoomed.images.values()))
    images = ImageSet(tmp_path, names, {}, {})
    config = DatabaseConfig(cameras="single")
    assert list(_zooms(images, config, zoomed)) == []
    (found,) = find_two_zooms(zoomed)
    ids = [k for k, image in zoomed.images.items() if image.name in found.longer]
    split = with_two_cameras(zoomed, 1, ids)
    assert list(_zooms(images, config, split)) == []  # they are still alike
    for key, focal in ((1, 800.0), (2, 860.0)):
        split.cameras[key].params = [focal, 512, 384, 0]
    (finding,) = _zooms(images, config, split)
    assert finding.code == "two_zooms"
    assert finding.text == (
        "7 photographs of 20 that seemed to be of one camera have a focal length of"
        " their own, such as 02.jpg, with 860 px for 800 px: the zoom was moved in"
        " between, or the focus. In the model they have a camera of their own."
    )
    assert finding.advice == ("If that is not so: --set database.focal_length=PIXELS")
    assert finding.images == list(found.longer)
    known = DatabaseConfig(cameras="single", focal_length=800)
    assert list(_zooms(images, known, split)) == []
