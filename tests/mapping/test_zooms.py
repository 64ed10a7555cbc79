"""Photographs of one camera with two zooms."""

from __future__ import annotations

import pycolmap
import pytest

from sfmprep.config import DatabaseConfig
from sfmprep.mapping.adjust import adjust
from sfmprep.mapping.zooms import find_two_zooms
from sfmprep.report.focal_lengths import _two_zooms
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


def test_the_report_says_which_photographs(zoomed: pycolmap.Reconstruction) -> None:
    (finding,) = _two_zooms(DatabaseConfig(), zoomed)
    assert finding.code == "two_zooms"
    assert finding.text == (
        "7 photographs of camera 1, such as 02.jpg, fit clearly better with a focal"
        " length of their own, which is some 7% longer: the zoom was moved in between."
        " Poses are wrong by what one focal length cannot fit."
    )
    assert finding.advice == (
        "Give each photograph a camera: --set database.cameras=per-image."
    )
    assert list(_two_zooms(DatabaseConfig(focal_length=800), zoomed)) == []
