"""What is written for each target: folders, lenses, masks, the listing, the cloud."""

from __future__ import annotations

import json
import logging
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
from PIL import Image, ImageDraw

from sfmprep import coords
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import ExportConfig
from sfmprep.dataset.world_frame import WorldFrame
from sfmprep.errors import ConfigError, ImageError
from sfmprep.export.dataset import export_dataset
from sfmprep.export.listing import listing
from sfmprep.export.ply import write_ply
from sfmprep.export.targets import LAYOUTS, plan_folders
from sfmprep.geometry.normals import SurfaceShapes, surface_shapes
from sfmprep.geometry.uncertainty import PoseUncertainty
from sfmprep.geometry.undistort import reduce_mask, undistortion
from sfmprep.geometry.views import ModelArrays
from tests.support.export_scene import (
    CAMERAS,
    HEIGHT,
    WIDTH,
    centroid,
    draw_dots,
    export,
    files_in,
    read_model,
    read_ply,
    save,
    synthesize,
    write_images,
)

ALL = tuple(target for target in LAYOUTS if target != "nerfstudio-360")
KEPT = {
    "SIMPLE_PINHOLE": [480, 190.3, 146.8],
    "PINHOLE": [480, 470, 190.3, 146.8],
    "SIMPLE_RADIAL": [480, 190.3, 146.8, -0.05],
    "RADIAL": [480, 190.3, 146.8, -0.05, 0.02],
    "OPENCV": [480, 470, 190.3, 146.8, 0.1, -0.05, 0.01, -0.02],
    "FULL_OPENCV": [480, 470, 190.3, 146.8, 0.1, -0.05, 0.01, -0.02, 0, 0, 0, 0],
    "SIMPLE_FISHEYE": [300, 190.3, 146.8],
    "FISHEYE": [300, 310, 190.3, 146.8],
    "SIMPLE_RADIAL_FISHEYE": [300, 190.3, 146.8, 0.02],
    "RADIAL_FISHEYE": [300, 190.3, 146.8, 0.02, -0.01],
    "OPENCV_FISHEYE": [300, 310, 190.3, 146.8, 0.02, -0.01, 0.005, -0.001],
}
RAW = sorted(set(pycolmap.CameraModelId.__members__) - {"INVALID"})


def camera_of(kind: str, params: list[float]) -> pycolmap.Camera:
    return pycolmap.Camera(model=kind, width=WIDTH, height=HEIGHT, params=params)


def lensed(kind: str, num_frames: int = 4) -> pycolmap.Reconstruction:
    """The synthetic scene, seen through one of the `KEPT` lenses."""
    model = synthesize("SIMPLE_PINHOLE", num_frames=num_frames)
    camera = model.cameras[1]
    camera.model = pycolmap.CameraModelId.__members__[kind]
    camera.params = KEPT[kind]
    for image in model.images.values():
        for observation in image.points2D:
            if observation.has_point3D():
                xyz = model.points3D[observation.point3D_id].xyz
                observation.xy = image.project_point(xyz)
    return model


def read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


# --------------------------------------------------------------------------- folders
@pytest.mark.parametrize(
    ("targets", "with_masks", "expected"),
    [
        (("nerfstudio", "gsplat", "3dgs", "brush"), False, {"": 4}),
        (("nerfstudio", "gsplat", "3dgs", "brush"), True, {"": 3, "targets/3dgs": 1}),
        (("3dgs", "gsplat", "brush"), True, {"": 1, "targets/gsplat": 2}),
        (("colmap",), True, {"": 1}),
        (("colmap", "3dgs", "colmap"), False, {"": 1, "targets/3dgs": 1}),
        (
            ALL,
            True,
            {"": 4}
            | {f"targets/{n}": 1 for n in ("3dgs", "lichtfeld", "3dgrut", "colmap")}
            | {"targets/postshot-inverted": 1},
        ),
        (ALL, False, {"": 7, "targets/lichtfeld": 1, "targets/colmap": 1}),
    ],
)
def test_targets_that_agree_share_a_folder(
    targets: tuple[str, ...], with_masks: bool, expected: dict[str, int]
) -> None:
    config = ExportConfig.model_validate({"targets": targets})
    folders = plan_folders(config, with_masks=with_masks)
    assert {folder.name: len(folder.targets) for folder in folders} == expected
    assert folders[0].name == ""


def test_no_target_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 item"):
        ExportConfig(targets=())


def test_3dgs_is_refused_with_original_lenses() -> None:
    with pytest.raises(ConfigError, match="Leave 3dgs out of export.targets"):
        plan_folders(ExportConfig(camera="original"), with_masks=False)


def test_each_folder_holds_what_its_targets_read_and_nothing_else(
    tmp_path: Path,
) -> None:
    model = synthesize("OPENCV")
    names = {image.name: f"{i}.jpg" for i, image in model.images.items()}
    images = masked(write_images(model, tmp_path / "photos", names=names))
    summary = export(model, images, tmp_path / "out", targets=ALL, downscales=(2,))
    out = tmp_path / "out"
    assert summary.folders == {
        "nerfstudio": out,
        "gsplat": out,
        "brush": out,
        "postshot": out,
        "3dgs": out / "targets" / "3dgs",
        "lichtfeld": out / "targets" / "lichtfeld",
        "postshot-inverted": out / "targets" / "postshot-inverted",
        "3dgrut": out / "targets" / "3dgrut",
        "colmap": out / "targets" / "colmap",
    }
    found = {path.relative_to(out).as_posix() for path in out.rglob("*.*")}
    bins = ("cameras", "frames", "images", "points3D", "rigs")
    sparse = {f"sparse/0/{name}.bin" for name in bins} | {"dataset.json"}
    ply = {"sparse/0/points3D.ply"}
    numbers = [*range(1, 5)]
    pictures = {f"images{s}/{i}.jpg" for s in ("", "_2") for i in numbers}
    beside = {f"images{s}/{i}_mask.png" for s in ("", "_2") for i in numbers}
    files = sparse | ply | pictures
    files |= {f"masks{s}/{i}.png" for s in ("", "_2") for i in numbers}
    expected = files | {"transforms.json"}
    expected |= {f"targets/lichtfeld/{name}" for name in files}
    expected |= {f"targets/postshot-inverted/{name}" for name in files}
    expected |= {f"targets/3dgrut/{n}" for n in sparse | ply | pictures | beside}
    alpha = sparse | ply | {f"images{s}/{i}.png" for s in ("", "_2") for i in numbers}
    stored = sparse | {f"images/{i}.jpg" for i in numbers}
    # The last image has no mask: COLMAP uses all of it, nerfstudio wants a white one.
    stored |= {f"colmap_masks/{i}.jpg.png" for i in numbers[:-1]}
    expected |= {f"targets/3dgs/{name}" for name in alpha}
    expected |= {f"targets/colmap/{name}" for name in stored}
    assert found == expected
    # Brush takes the model of most images, of equals the first path, and the last PLY.
    models = sorted(path.relative_to(out) for path in out.rglob("cameras.bin"))
    assert models[0] == Path("sparse/0/cameras.bin")
    clouds = {path.read_bytes() for path in out.rglob("*.ply")}
    assert len(clouds) == 1


def test_first_target_is_the_output_folder(tmp_path: Path) -> None:
    model = synthesize("OPENCV")
    images = write_images(model, tmp_path / "photos")
    out = tmp_path / "out"
    summary = export(model, images, out, targets=("colmap", "gsplat"))
    assert summary.folders == {"colmap": out, "gsplat": out / "targets" / "gsplat"}
    assert not (out / "transforms.json").exists()
    assert (out / "targets" / "gsplat" / "images_8").is_dir()


def test_datasets_of_earlier_targets_go_but_files_of_the_user_stay(
    tmp_path: Path,
) -> None:
    model = synthesize("OPENCV")
    images = masked(write_images(model, tmp_path / "photos"))
    out = tmp_path / "out"
    export(model, images, out, targets=ALL, downscales=())
    (out / "targets" / "3dgs" / "trained").mkdir()
    export(model, images, out, targets=("colmap", "gsplat"), downscales=())
    assert [p.name for p in (out / "targets" / "3dgs").iterdir()] == ["trained"]
    assert not (out / "targets" / "colmap").exists()
    assert not (out / "masks").exists()
    export(model, images, out, targets=("gsplat",), downscales=())
    assert not (out / "targets" / "gsplat").exists()
    assert not (out / "colmap_masks").exists()


def test_target_folder_of_the_user_is_not_replaced(tmp_path: Path) -> None:
    model = synthesize("OPENCV")
    images = write_images(model, tmp_path / "photos")
    (tmp_path / "out" / "targets" / "colmap" / "images").mkdir(parents=True)
    with pytest.raises(ConfigError, match="targets/colmap has images"):
        export(model, images, tmp_path / "out", targets=ALL)


def test_masks_are_not_replaced_by_their_own_export(tmp_path: Path) -> None:
    model = synthesize("OPENCV")
    images = masked(write_images(model, tmp_path / "photos"))
    out = tmp_path / "out"
    export(model, images, out)
    again = ImageSet.scan(images.root, mask_root=out / "masks")
    with pytest.raises(ConfigError, match="would replace it"):
        export(model, again, out)
    assert len(list((out / "masks").iterdir())) == 4


def test_same_input_gives_same_bytes_for_all_targets(tmp_path: Path) -> None:
    model = synthesize("OPENCV")
    images = masked(write_images(model, tmp_path / "photos", orientations=(6, 1)))
    export(model, images, tmp_path / "a", targets=ALL)
    export(model, images, tmp_path / "b", targets=ALL)
    assert files_in(tmp_path / "a") == files_in(tmp_path / "b")


# ---------------------------------------------------------------------------- colmap
@pytest.mark.parametrize("kind", RAW)
def test_colmap_gets_photographs_and_cameras_as_they_are(
    kind: str, tmp_path: Path
) -> None:
    model = synthesize("SIMPLE_PINHOLE")
    camera = pycolmap.Camera.create_from_model_name(1, kind, 400, WIDTH, HEIGHT)
    model.cameras[1].model, model.cameras[1].params = camera.model, camera.params
    names = dict(
        zip(
            sorted(image.name for image in model.images.values()),
            ("b/Küche.jpg", "b/a.TIF", "b/b.webp", "c.png"),
            strict=True,
        )
    )
    images = write_images(
        model, tmp_path / "photos", names=names, orientations=(6, 1, 5)
    )
    out = tmp_path / "out"
    summary = export(model, images, out, targets=("colmap",))
    exported = read_model(out)
    names = {old: summary.renamed.get(old, old) for old in images.names}
    assert list(names.values()) == ["b-Kueche.jpg", "b-a.TIF", "b-b.webp", "c.png"]
    for image in model.images.values():
        file = out / "images" / names[image.name]
        assert file.read_bytes() == images.path(image.name).read_bytes()
        other = exported.find_image_with_name(names[image.name])
        assert other.image_id == image.image_id
        np.testing.assert_array_equal(
            other.cam_from_world().matrix(), image.cam_from_world().matrix()
        )
        for a, b in zip(other.points2D, image.points2D, strict=True):
            np.testing.assert_array_equal(a.xy, b.xy)
            assert a.point3D_id == b.point3D_id
    assert exported.cameras[1].model_name == kind
    np.testing.assert_array_equal(exported.cameras[1].params, model.cameras[1].params)
    assert exported.num_points3D() == model.num_points3D()


def test_colmap_model_has_the_poses_of_the_other_targets(tmp_path: Path) -> None:
    model = synthesize("OPENCV")
    images = write_images(model, tmp_path / "photos")
    export(model, images, tmp_path / "out", targets=("gsplat", "colmap"))
    upright = read_model(tmp_path / "out")
    stored = read_model(tmp_path / "out" / "targets" / "colmap")
    for image in upright.images.values():
        other = stored.find_image_with_name(image.name)
        np.testing.assert_allclose(
            image.projection_center(), other.projection_center(), atol=1e-12
        )
    for point_id, point in upright.points3D.items():
        np.testing.assert_array_equal(point.xyz, stored.points3D[point_id].xyz)


def test_photograph_that_changed_is_not_copied(tmp_path: Path) -> None:
    model = synthesize("OPENCV")
    images = write_images(model, tmp_path / "photos")
    Image.new("RGB", (100, 80)).save(images.path(images.names[1]))
    with pytest.raises(ImageError, match=images.names[1]):
        export(model, images, tmp_path / "out", targets=("colmap",))


# --------------------------------------------------------------------- original lens
@pytest.mark.parametrize("kind", KEPT)
def test_kept_lens_is_the_lens(kind: str) -> None:
    camera = camera_of(kind, KEPT[kind])
    view = undistortion(camera, 1, camera_id=1, multiple=8, keep_lens=True)
    rng = np.random.default_rng(0)
    rays = np.column_stack([rng.uniform(-0.3, 0.3, (50, 2)), np.ones(50)])
    stored = camera.img_from_cam(rays)
    np.testing.assert_allclose(
        view.target.img_from_cam(rays), view.target_xy(stored), atol=1e-9
    )
    np.testing.assert_allclose(view.source_xy(view.target_xy(stored)), stored)


@pytest.mark.parametrize("max_size", [None, 200])
@pytest.mark.parametrize("kind", KEPT)
def test_kept_lens_is_turned_with_the_image(
    kind: str, max_size: int | None, tmp_path: Path
) -> None:
    """Points project to where their photographed dots are, all four ways up."""
    model = lensed(kind)
    images = write_images(model, tmp_path / "photos", orientations=(1, 3, 6, 8))
    drawn = draw_dots(model, images)
    config = {"targets": ("nerfstudio", "gsplat"), "camera": "original"}
    out = tmp_path / "out"
    export(model, images, out, **config, downscales=(2,), max_size=max_size)
    exported = read_model(out)
    for name, point_id in drawn.items():
        want = exported.find_image_with_name(name).project_point(
            model.points3D[point_id].xyz
        )
        for factor, folder in ((1, "images"), (2, "images_2")):
            found = centroid(out / folder / name)
            np.testing.assert_allclose(found, want / factor, atol=0.1)
    for image in exported.images.values():
        for observation in image.points2D:
            if observation.has_point3D():
                xyz = exported.points3D[observation.point3D_id].xyz
                np.testing.assert_allclose(
                    observation.xy, image.project_point(xyz), atol=1e-6
                )


def test_whole_pixels_of_a_kept_perspective_lens_are_not_resampled(
    tmp_path: Path,
) -> None:
    model = synthesize("OPENCV")
    images = write_images(model, tmp_path / "photos")
    # 384 x 288 are multiples of 8, so that nothing is cut either.
    export(model, images, tmp_path / "out", targets=("gsplat",), camera="original")
    assert files_in(tmp_path / "out" / "images") == files_in(tmp_path / "photos")


def test_kept_fisheye_is_centred_in_every_size(tmp_path: Path) -> None:
    model = lensed("OPENCV_FISHEYE")
    images = write_images(model, tmp_path / "photos", orientations=(1, 6))
    export(model, images, tmp_path / "out", targets=("gsplat",), camera="original")
    for camera in read_model(tmp_path / "out").cameras.values():
        assert camera.model_name == "OPENCV_FISHEYE"
        for factor in (1, 2, 4, 8):  # gsplat takes width // factor // 2
            assert camera.principal_point_x / factor == camera.width // factor // 2
            assert camera.principal_point_y / factor == camera.height // factor // 2


@pytest.mark.parametrize("kind", ["OPENCV", "OPENCV_FISHEYE"])
def test_json_has_the_kept_lens(kind: str, tmp_path: Path) -> None:
    model = lensed(kind)
    images = write_images(model, tmp_path / "photos", orientations=(1, 6))
    out = tmp_path / "out"
    export(model, images, out, targets=("nerfstudio",), camera="original")
    content = read_json(out / "transforms.json")
    assert content["camera_model"] == kind
    names = ["k1", "k2", *(("p1", "p2") if kind == "OPENCV" else ("k3", "k4"))]
    assert not set(names) & set(content)  # nerfstudio would take them for all frames
    exported = read_model(out)
    for frame in content["frames"]:
        image = exported.find_image_with_name(Path(frame["file_path"]).name)
        params = exported.cameras[image.camera_id].params.tolist()
        keys = ("fl_x", "fl_y", "cx", "cy", *names)
        assert [frame[key] for key in keys] == params


def test_tangential_distortion_turns_as_a_vector() -> None:
    camera = camera_of("OPENCV", [480, 470, 192, 144, 0.1, -0.05, 0.01, -0.02])
    turned = undistortion(camera, 6, camera_id=1, keep_lens=True).target
    # A quarter turn clockwise takes +x to +y and +y to -x.
    want = [470, 480, 144, 192, 0.1, -0.05, -0.02, -0.01]
    np.testing.assert_allclose(turned.params, want)


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        ("FULL_OPENCV", [480, 480, 192, 144, 0.1, 0, 0, 0, 0.01, 0, 0, 0]),
        ("THIN_PRISM_FISHEYE", [300, 300, 192, 144] + [0] * 8),
        ("FOV", [300, 300, 192, 144, 0.5]),
        ("EUCM", [300, 300, 192, 144, 0.5, 1]),
    ],
)
def test_lenses_that_no_trainer_reads_are_not_kept(
    kind: str, params: list[float]
) -> None:
    with pytest.raises(ConfigError, match=kind):
        undistortion(camera_of(kind, params), 1, camera_id=1, keep_lens=True)


def test_lenses_of_two_kinds_are_not_kept(tmp_path: Path) -> None:
    model = synthesize("OPENCV", "OPENCV_FISHEYE")
    images = write_images(model, tmp_path / "photos")
    with pytest.raises(ConfigError, match="one camera model for all"):
        export(model, images, tmp_path / "out", targets=("brush",), camera="original")


# ------------------------------------------------------------------------ wide lenses
@pytest.mark.parametrize(
    ("focal", "kind"),
    [(f, k) for f in (160, 191, 230, 320) for k in ("FISHEYE", "OPENCV_FISHEYE")],
)
def test_view_of_a_fisheye_is_sane(
    focal: float, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """191 pixels a radian are 180 degrees on 600 pixels."""
    zeros = [0] * (4 if kind == "OPENCV_FISHEYE" else 0)
    camera = pycolmap.Camera(
        model=kind, width=600, height=600, params=[focal, focal, 300, 300, *zeros]
    )
    view = undistortion(camera, 1, camera_id=1, multiple=8)
    half = np.degrees(np.arctan(view.target.width / 2 / view.target.focal_length_x))
    assert 45 <= half <= 60
    edge = view.source_xy(np.array([[0, 0], view.target_size]))
    assert ((edge >= -1) & (edge <= 601)).all()  # no blank corners
    assert 0.2 < view.shown_share < 0.9
    lost = f"{100 * (1 - view.shown_share):.0f} %"
    assert (lost in caplog.text) == (view.shown_share < 0.8)


def test_loss_of_an_ordinary_lens_is_not_worth_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        view = undistortion(camera_of("OPENCV", CAMERAS["OPENCV"]), 1, camera_id=1)
    assert view.shown_share > 0.8
    assert not caplog.text


# ----------------------------------------------------------------------------- masks
def masked(images: ImageSet, xy: tuple[float, float] = (200, 130)) -> ImageSet:
    """Draws a white disc into all photographs; the last has no mask that shows it."""
    for name in images.names:
        disc = Image.new("L", (WIDTH, HEIGHT))
        ImageDraw.Draw(disc).circle(xy, 70, 255)
        orientation = images.infos[name].orientation
        save(disc.convert("RGB"), images.path(name), orientation)
        path = images.root.parent / "masks" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if name != images.names[-1]:
            upright = coords.upright_pixels(np.asarray(disc), orientation)
            Image.fromarray(upright).save(path)
    return ImageSet.scan(images.root, mask_root=images.root.parent / "masks")


def read_grey(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("L"))


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("PINHOLE", {}),
        ("OPENCV", {}),
        ("OPENCV", {"max_size": 190}),
        ("OPENCV_FISHEYE", {}),
        ("OPENCV_FISHEYE", {"camera": "original"}),
    ],
)
def test_masks_lie_on_what_they_mask(
    kind: str, config: dict[str, Any], tmp_path: Path
) -> None:
    model = synthesize(kind)
    images = masked(write_images(model, tmp_path / "photos", orientations=(1, 6, 3, 8)))
    out = tmp_path / "out"
    targets = ("gsplat",) if config.get("camera") else ("gsplat", "3dgs")
    export(model, images, out, targets=targets, downscales=(2, 4), **config)
    for suffix in ("", "_2", "_4"):
        for name in images.names:
            shown = read_grey(out / f"images{suffix}" / name) > 127
            mask = read_grey(out / f"masks{suffix}" / name)
            assert mask.shape == shown.shape
            if name == images.names[-1]:
                assert (mask == 255).all()
            else:
                assert set(np.unique(mask)) == {0, 255}
                # Two pixels along the rim of the disc, at the largest.
                assert ((mask > 0) != shown).mean() < 0.01
                assert 0.05 < shown.mean() < 0.9
            if "3dgs" in targets:
                path = out / "targets" / "3dgs" / f"images{suffix}" / name
                with Image.open(path) as picture:
                    assert picture.mode == "RGBA"
                    np.testing.assert_array_equal(picture.getchannel("A"), mask)


def test_masks_of_3dgrut_are_found_beside_the_images(tmp_path: Path) -> None:
    """It looks for STEM_mask.png, and takes each file of sparse/ for an image."""
    model = synthesize("OPENCV")
    taken = ("a.jpg", "a_mask.jpg", "b.jpg", "c.jpg")  # an image with a mask's name
    names = dict(zip(sorted(i.name for i in model.images.values()), taken, strict=True))
    images = masked(write_images(model, tmp_path / "photos", names=names))
    out = tmp_path / "out"
    summary = export(model, images, out, targets=("3dgrut", "gsplat"), downscales=(2,))
    assert summary.renamed == {n: f"{k:04d}.jpg" for k, n in enumerate(taken, 1)}
    for suffix in ("", "_2"):
        for k, name in enumerate(taken, 1):
            beside = read_grey(out / f"images{suffix}" / f"{k:04d}_mask.png")
            other = out / "targets" / "gsplat" / f"masks{suffix}"
            expected = read_grey(other / f"{Path(name).stem}.png")
            np.testing.assert_array_equal(beside, expected)
    model = read_model(out)
    assert sorted(i.name for i in model.images.values()) == [
        f"{k:04d}.jpg" for k in range(1, 5)
    ]


def test_masks_of_postshot_are_to_be_had_in_both_polarities(tmp_path: Path) -> None:
    model = synthesize("OPENCV", num_frames=3)
    images = masked(write_images(model, tmp_path / "photos"))
    out = tmp_path / "out"
    targets = ("postshot", "postshot-inverted")
    summary = export(model, images, out, targets=targets, downscales=(2,))
    inverted = summary.folders["postshot-inverted"]
    assert summary.folders["postshot"] == out != inverted
    for folder in ("masks", "masks_2"):
        files = sorted((out / folder).iterdir())
        assert len(files) == len({path.stem for path in (out / "images").iterdir()})
        for path in files:
            used = read_grey(path)
            np.testing.assert_array_equal(
                read_grey(inverted / folder / path.name), 255 - used
            )
    assert not (inverted / "transforms.json").exists()  # which would name the masks


def test_lichtfeld_finds_nothing_but_a_colmap_model_of_pinholes(tmp_path: Path) -> None:
    """transforms.json would do as well for it, and give random initial points."""
    model = synthesize("OPENCV", "SIMPLE_RADIAL", num_frames=3)
    images = write_images(model, tmp_path / "photos")
    out = tmp_path / "out"
    summary = export(model, images, out, targets=("lichtfeld",))
    assert summary.folders == {"lichtfeld": out}
    assert not [*out.rglob("transforms*.json"), *out.rglob("pointcloud.ply")]
    written = read_model(out)
    assert {c.model_name for c in written.cameras.values()} == {"PINHOLE"}
    assert {i.name for i in written.images.values()} == {
        path.name for path in (out / "images").iterdir()
    }
    assert (out / "sparse" / "0" / "points3D.bin").stat().st_size > 8


def test_masks_of_colmap_are_as_stored(tmp_path: Path) -> None:
    model = synthesize("OPENCV")
    images = masked(write_images(model, tmp_path / "photos", orientations=(6,)))
    export(model, images, tmp_path / "out", targets=("colmap",))
    for name in images.names[:-1]:
        stored = np.asarray(Image.open(images.path(name)).convert("L"))
        mask = read_grey(tmp_path / "out" / "colmap_masks" / f"{name}.png")
        np.testing.assert_array_equal(mask, stored)


def test_transparency_is_a_mask(tmp_path: Path) -> None:
    model = synthesize("PINHOLE")
    images = write_images(model, tmp_path / "photos")
    for name in images.names:
        picture = Image.open(images.path(name)).convert("RGBA")
        alpha = Image.new("L", picture.size, 255)
        alpha.paste(0, (0, 0, 96, 288))
        picture.putalpha(alpha)
        picture.save(images.path(name))
    images = ImageSet.scan(images.root)
    export(model, images, tmp_path / "out", downscales=(2,))
    for name in images.names:
        with Image.open(tmp_path / "out" / "images" / name) as picture:
            assert picture.mode == "RGB"
        mask = read_grey(tmp_path / "out" / "masks_2" / name)
        assert (mask[:, :48] == 0).all()
        assert (mask[:, 48:] == 255).all()


def test_every_frame_has_a_mask_or_none_has(tmp_path: Path) -> None:
    model = synthesize("OPENCV")
    plain = write_images(model, tmp_path / "photos")
    export(model, plain, tmp_path / "out")
    frames = read_json(tmp_path / "out" / "transforms.json")["frames"]
    assert not any("mask_path" in frame for frame in frames)
    assert not list((tmp_path / "out").glob("masks*"))
    export(model, masked(plain), tmp_path / "out")
    for frame in read_json(tmp_path / "out" / "transforms.json")["frames"]:
        stem = Path(frame["file_path"]).stem
        assert frame["mask_path"] == f"masks/{stem}.png"
        for factor in ("", "_2", "_4", "_8"):
            assert (tmp_path / "out" / f"masks{factor}" / f"{stem}.png").is_file()


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_mask_that_is_only_turned_stays_the_same(orientation: int) -> None:
    camera = camera_of("PINHOLE", CAMERAS["PINHOLE"])
    view = undistortion(camera, orientation, camera_id=1)
    mask = np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.5
    turned = coords.upright_pixels(mask.view(np.uint8), orientation)
    np.testing.assert_array_equal(view.warp_mask(mask, view.maps()), turned)


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_reduced_mask_takes_the_middle_of_whole_blocks(factor: int) -> None:
    mask = np.zeros((2 * factor + 1, 3 * factor), np.bool_)
    mask[factor + factor // 2, factor // 2] = True
    reduced = reduce_mask(mask, factor)
    assert reduced.shape == (mask.shape[0] // factor, 3)
    assert np.argwhere(reduced).tolist() == [[1, 0]]


# ---------------------------------------------------------------------- dataset.json
def test_listing_has_originals_splits_and_uncertainties(tmp_path: Path) -> None:
    model = synthesize("SIMPLE_RADIAL", num_frames=10)
    images = write_images(model, tmp_path / "photos")
    first, second = images.names[:2]
    known = {first: PoseUncertainty(rotation_stddev_deg=0.1, position_stddev=0.01)}
    known[second] = PoseUncertainty(
        rotation_stddev_deg=float("inf"), position_stddev=0.01
    )
    export_dataset(model, images, tmp_path / "out", ExportConfig(), uncertainties=known)
    content = read_json(tmp_path / "out" / "dataset.json")
    assert (content["generator"], content["version"]) == ("sfmprep", 1)
    assert list(content["images"]) == list(images.names)
    test = [n for n, i in content["images"].items() if i["split"] == "test"]
    assert test == [images.names[0], images.names[8]]
    assert content["images"][first]["rotation_stddev_deg"] == 0.1
    assert 0 < content["images"][first]["weight"] < 1
    assert set(content["images"][second]) == {"original", "split"}


@pytest.mark.parametrize(
    ("rotation", "position", "weight"),
    [(0, 0, 1), (np.degrees(1 / 480), 0, 0.5), (0, 3 / 480, 0.5), (90, 0, 0)],
)
def test_weight_halves_where_the_pose_moves_the_image_by_one_pixel(
    rotation: float, position: float, weight: float
) -> None:
    model = synthesize("PINHOLE", num_frames=2)
    camera = model.cameras[1]
    camera.params = [480, 480, 192, 144]
    image = model.images[1]
    image.frame.rig_from_world = pycolmap.Rigid3d()
    for point in model.points3D.values():
        point.xyz = [0, 0, 3]
    known = PoseUncertainty(rotation_stddev_deg=rotation, position_stddev=position)
    content = listing(model, {image.name: "a.jpg"}, {image.name: known}, num_points=7)
    assert content["num_points"] == 7
    assert content["images"]["a.jpg"]["weight"] == pytest.approx(weight, abs=1e-5)


def test_world_is_written_down_and_taken_away(tmp_path: Path) -> None:
    model = synthesize("OPENCV")
    images = write_images(model, tmp_path / "photos")
    out = tmp_path / "out"
    world = WorldFrame(
        world_from_sfm=pycolmap.Sim3d(), up="kept", scale="arbitrary", origin=None
    )
    export_dataset(
        model, images, out, ExportConfig(targets=("gsplat", "colmap")), world=world
    )
    for folder in (out, out / "targets" / "colmap"):
        assert read_json(folder / "world_from_sfm.json") == json.loads(
            json.dumps(world.to_json())
        )
    export(model, images, out)
    assert not (out / "world_from_sfm.json").exists()


def test_place_is_written_where_lengths_are_metres(tmp_path: Path) -> None:
    model = synthesize("PINHOLE")
    images = write_images(model, tmp_path / "photos")
    out = tmp_path / "out"
    origin = (52.5, 13.4, 99.0)
    world = WorldFrame(
        world_from_sfm=pycolmap.Sim3d(), up="kept", scale="metres", origin=origin
    )
    config = ExportConfig(targets=("gsplat",))
    export_dataset(model, images, out, config, world=world)
    place = read_json(out / "georeference.json")
    assert place["origin"] == {
        "latitude_deg": 52.5,
        "longitude_deg": 13.4,
        "altitude_m": 99.0,
    }
    earth = pycolmap.GPSTransform()
    ecef_from_dataset = np.array(place["ecef_from_dataset"])
    for image in read_model(out).images.values():
        ecef = ecef_from_dataset @ [*image.projection_center(), 1]
        known = earth.ellipsoid_to_ecef(np.array([place["images"][image.name]]))
        np.testing.assert_allclose(ecef[:3], np.asarray(known)[0], atol=1e-5)
    export_dataset(model, images, out, config)
    assert not (out / "georeference.json").exists()


def test_tracks_are_without_points_that_one_image_sees(tmp_path: Path) -> None:
    """Points of depths have no error, and would make the noise of keypoints none."""
    model = synthesize("PINHOLE")
    images = write_images(model, tmp_path / "photos")
    config = ExportConfig(targets=("gsplat",), tracks=True)
    image = model.images[min(model.reg_image_ids())]
    found = []
    for out in (tmp_path / "without", tmp_path / "with"):
        export_dataset(model, images, out, config)
        with np.load(out / "tracks.npz") as tracks:
            found.append(dict(tracks))
        for step in range(500):
            row = len(image.points2D)
            image.points2D.append(pycolmap.Point2D(np.array([5.0 + step / 50, 7])))
            element = pycolmap.TrackElement(image.image_id, row)
            away = image.cam_from_world().inverse() * np.array([0, 0, 2.0])
            model.add_point3D(away, pycolmap.Track([element]), np.zeros(3, np.uint8))
    assert read_model(tmp_path / "with").num_points3D() > len(found[1]["point_ids"])
    assert found[0].keys() == found[1].keys()
    for key, told in found[0].items():
        np.testing.assert_array_equal(found[1][key], told, key)


def test_tracks_hold_what_the_model_holds(tmp_path: Path) -> None:
    model = synthesize("OPENCV")
    images = write_images(model, tmp_path / "photos")
    name, *_ = images.names
    known = {name: PoseUncertainty(rotation_stddev_deg=0.1, position_stddev=0.2)}
    out = tmp_path / "out"
    config = ExportConfig(targets=("gsplat",), tracks=True)
    export_dataset(model, images, out, config, uncertainties=known)
    with np.load(out / "tracks.npz") as tracks:
        kept = dict(tracks)
    written = read_model(out)
    assert kept["names"].tolist() == sorted(i.name for i in written.images.values())
    assert kept["point_ids"].tolist() == sorted(written.points3D)
    by_name = {image.name: image for image in written.images.values()}
    point = np.repeat(
        np.arange(len(kept["xyz"])), np.diff([*kept["starts"], len(kept["view"])])
    )
    for row, image_name in enumerate(kept["names"].tolist()):
        image = by_name[image_name]
        np.testing.assert_allclose(
            kept["cam_from_world"][row], image.cam_from_world().matrix(), atol=1e-12
        )
        seen = kept["view"] == row
        assert seen.sum() == image.num_points3D
        camera = written.cameras[image.camera_id]
        local = (
            kept["cam_from_world"][row]
            @ np.column_stack([kept["xyz"][point[seen]], np.ones(seen.sum())]).T
        )
        np.testing.assert_allclose(
            camera.img_from_cam(local.T), kept["xy"][seen], atol=1e-3
        )
    is_known = kept["names"] == name
    assert kept["rotation_stddev_deg"][is_known].tolist() == [0.1]
    assert kept["position_stddev"][is_known].tolist() == [0.2]
    assert np.isnan(kept["rotation_stddev_deg"][~is_known]).all()
    assert (kept["distance_stddev"] >= 0).all() and kept["noise_px"] < 1e-3


# ------------------------------------------------------------------------- the cloud
def shaped_cloud(path: Path) -> tuple[pycolmap.Reconstruction, SurfaceShapes]:
    model = synthesize("PINHOLE")
    shapes = surface_shapes(ModelArrays.of(model))
    write_ply(path, model, shapes)
    return model, shapes


def test_cloud_has_normals_and_scales(tmp_path: Path) -> None:
    model, shapes = shaped_cloud(tmp_path / "cloud.ply")
    names, rows = read_ply(tmp_path / "cloud.ply")
    assert names == [
        *("x", "y", "z", "nx", "ny", "nz"),
        "red",
        "green",
        "blue",
        "scale",
    ]
    normals = np.column_stack([rows["nx"], rows["ny"], rows["nz"]])
    np.testing.assert_array_equal(normals, shapes.normals)
    np.testing.assert_array_equal(rows["scale"], shapes.scales)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)
    point = model.points3D[int(shapes.point_ids[7])]
    np.testing.assert_allclose([rows[axis][7] for axis in "xyz"], point.xyz, rtol=1e-6)


def test_plyfile_reads_the_cloud(tmp_path: Path) -> None:
    plyfile = pytest.importorskip("plyfile")
    model, shapes = shaped_cloud(tmp_path / "cloud.ply")
    vertex = plyfile.PlyData.read(str(tmp_path / "cloud.ply"))["vertex"]
    assert vertex.count == model.num_points3D()
    np.testing.assert_array_equal(vertex["nz"], shapes.normals[:, 2])
    np.testing.assert_array_equal(vertex["scale"], shapes.scales)
    assert vertex["red"].dtype == np.uint8


@pytest.mark.nerfstudio
@pytest.mark.slow
def test_open3d_reads_the_cloud(tmp_path: Path) -> None:
    python = os.environ.get("SFMPREP_NERFSTUDIO_PYTHON")
    if not python:
        pytest.skip("no nerfstudio; name its Python in SFMPREP_NERFSTUDIO_PYTHON")
    model, shapes = shaped_cloud(tmp_path / "cloud.ply")
    code = (
        "import sys, json, numpy, open3d; c = open3d.io.read_point_cloud(sys.argv[1]);"
        "print(json.dumps([numpy.asarray(a).tolist()"
        " for a in (c.points, c.normals, c.colors)]))"
    )
    seen = subprocess.run(
        [python, "-c", code, str(tmp_path / "cloud.ply")],
        capture_output=True,
        check=True,
        timeout=300,
    )
    xyz, normals, colours = json.loads(seen.stdout.splitlines()[-1])
    points = [model.points3D[i] for i in shapes.point_ids.tolist()]
    np.testing.assert_allclose(xyz, [p.xyz for p in points], rtol=1e-6)
    np.testing.assert_allclose(normals, shapes.normals, atol=1e-7)
    np.testing.assert_allclose(
        np.array(colours) * 255, [p.color for p in points], atol=1e-6
    )


# ------------------------------------------------------------------------------ HEIC
@pytest.mark.parametrize("target", ["gsplat", "colmap"])
def test_heic_is_exported(target: str, tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    model = synthesize("OPENCV")
    images = write_images(model, tmp_path / "photos")
    for image in model.images.values():
        path = images.path(image.name)
        heif.from_pillow(Image.open(path).convert("RGB")).save(
            path.with_suffix(".heic"), quality=90
        )
        path.unlink()
        image.name = path.with_suffix(".heic").name
    images = ImageSet.scan(images.root)
    export(model, images, tmp_path / "out", targets=(target,))
    written = sorted((tmp_path / "out" / "images").iterdir())
    names = [image.name for image in read_model(tmp_path / "out").images.values()]
    assert sorted(names) == [path.name for path in written]
    if target == "colmap":
        assert files_in(tmp_path / "out" / "images") == files_in(images.root)
    for path in written if target == "gsplat" else ():
        with Image.open(path) as picture:
            assert (picture.format, picture.mode) == ("JPEG", "RGB")
