"""The dataset folder: what is in it, that all its parts agree, that it is safe."""

from __future__ import annotations

import errno
import itertools
import json
import shutil
import struct
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sfmprep import coords
from sfmprep.capture.image_set import ImageSet
from sfmprep.errors import (
    ConfigError,
    ImageError,
    ReconstructionError,
    StoreError,
)
from sfmprep.export import install as install_module
from sfmprep.export.names import flat_names
from sfmprep.geometry.undistort import undistortion
from tests.support.export_scene import (
    CAMERAS,
    HEIGHT,
    WIDTH,
    centroid,
    draw_dots,
    export,
    files_in,
    read_model,
    synthesize,
    write_images,
)


# ------------------------------------------------------------------------ the folder
def test_folder_holds_what_trainers_read_and_nothing_else(tmp_path: Path) -> None:
    model = synthesize("OPENCV", "SIMPLE_RADIAL")
    images = write_images(model, tmp_path / "photos")
    summary = export(model, images, tmp_path / "out")
    names = {Path(name).name for name in images.names}
    model_files = {
        f"{n}.bin" for n in ["cameras", "images", "points3D", "rigs", "frames"]
    }
    expected = {f"sparse/0/{name}" for name in model_files | {"points3D.ply"}}
    expected |= {f"images{s}/{n}" for s in ("", "_2", "_4", "_8") for n in names}
    expected |= {"transforms.json", "dataset.json"}
    assert set(files_in(tmp_path / "out")) == expected
    assert not list((tmp_path / "out").glob(".*"))
    assert summary.num_images == 8
    assert summary.num_points == read_model(tmp_path / "out").num_points3D()
    assert summary.renamed == {}
    assert set(summary.folders.values()) == {tmp_path / "out"}


def test_only_registered_images_are_exported(tmp_path: Path) -> None:
    model = synthesize("SIMPLE_RADIAL")
    images = write_images(model, tmp_path / "photos")
    lost = model.images[2]
    model.deregister_frame(lost.frame_id)
    summary = export(model, images, tmp_path / "out")
    assert summary.num_images == 3
    assert not (tmp_path / "out" / "images" / lost.name).exists()
    assert len(read_model(tmp_path / "out").images) == 3


def test_old_readers_find_one_frame_and_rig_per_image_and_camera(
    tmp_path: Path,
) -> None:
    model = synthesize("OPENCV", "SIMPLE_RADIAL")
    export(model, write_images(model, tmp_path / "photos"), tmp_path / "out")
    raw = (tmp_path / "out" / "sparse" / "0" / "cameras.bin").read_bytes()
    count, first, kind = struct.unpack_from("<QIi", raw)
    assert (count, first, kind) == (2, 1, 1)  # 1 is PINHOLE in every version
    exported = read_model(tmp_path / "out")
    assert len(exported.frames) == 8
    assert len(exported.rigs) == 2


def test_json_agrees_with_model(tmp_path: Path) -> None:
    model = synthesize("OPENCV", "SIMPLE_RADIAL")
    images = write_images(model, tmp_path / "photos", orientations=(1, 6, 8, 3))
    export(model, images, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "transforms.json").read_text())
    assert content["applied_transform"] == np.eye(4)[:3].tolist()
    assert (tmp_path / "out" / content["ply_file_path"]).is_file()
    exported = read_model(tmp_path / "out")
    by_path = {f"images/{image.name}": image for image in exported.images.values()}
    assert [frame["file_path"] for frame in content["frames"]] == sorted(by_path)
    for frame in content["frames"]:
        image = by_path[frame["file_path"]]
        cam_from_world = np.linalg.inv(frame["transform_matrix"])
        for point in exported.points3D.values():
            x, y, z = cam_from_world[:3] @ [*point.xyz, 1]
            u = frame["fl_x"] * x / -z + frame["cx"]
            v = frame["fl_y"] * -y / -z + frame["cy"]
            np.testing.assert_allclose(
                (u, v), image.project_point(point.xyz), atol=1e-5
            )


def test_intrinsics_stand_at_top_when_all_images_share_them(tmp_path: Path) -> None:
    model = synthesize("SIMPLE_RADIAL")
    export(model, write_images(model, tmp_path / "photos"), tmp_path / "out")
    content = json.loads((tmp_path / "out" / "transforms.json").read_text())
    assert {"w", "h", "fl_x", "fl_y", "cx", "cy", "k1", "p2"} <= set(content)
    assert set(content["frames"][0]) == {"file_path", "transform_matrix"}


# -------------------------------------------------------------------------- geometry
@pytest.mark.parametrize("kind", CAMERAS)
def test_observations_agree_with_exported_cameras(kind: str, tmp_path: Path) -> None:
    model = synthesize(kind, num_frames=8)
    images = write_images(model, tmp_path / "photos", orientations=tuple(range(1, 9)))
    export(model, images, tmp_path / "out", downscales=())
    exported = read_model(tmp_path / "out")
    assert exported.num_points3D() > 20
    num_observations = 0
    for image in exported.images.values():
        camera = exported.cameras[image.camera_id]
        portrait = images.infos[image.name].orientation in (5, 6, 7, 8)
        assert (camera.width > camera.height) != portrait
        for row, observation in enumerate(image.points2D):
            assert (observation.xy >= 0).all()
            assert (observation.xy < (camera.width, camera.height)).all()
            if observation.has_point3D():
                point = exported.points3D[observation.point3D_id]
                want = image.project_point(point.xyz)
                np.testing.assert_allclose(observation.xy, want, atol=1e-6)
                elements = [(e.image_id, e.point2D_idx) for e in point.track.elements]
                assert (image.image_id, row) in elements
                num_observations += 1
    assert num_observations == exported.compute_num_observations()


@pytest.mark.parametrize(
    ("max_size", "factors"), [(None, (2, 4, 8)), (200, (2, 4)), (100, (2,))]
)
@pytest.mark.parametrize("kind", ["PINHOLE", "OPENCV", "OPENCV_FISHEYE"])
def test_bright_dots_are_where_points_project(
    kind: str, max_size: int | None, factors: tuple[int, ...], tmp_path: Path
) -> None:
    """Pins half pixels in undistortion, turning, resizing and downscaling."""
    model = synthesize(kind)
    images = write_images(model, tmp_path / "photos", orientations=(1, 3, 6, 8))
    drawn = draw_dots(model, images)
    export(model, images, tmp_path / "out", max_size=max_size, downscales=factors)
    exported = read_model(tmp_path / "out")
    for name, point_id in drawn.items():
        xyz = model.points3D[point_id].xyz
        want = exported.find_image_with_name(name).project_point(xyz)
        for factor in (1, *factors):
            folder = "images" if factor == 1 else f"images_{factor}"
            found = centroid(tmp_path / "out" / folder / name)
            np.testing.assert_allclose(found, want / factor, atol=0.1)


def test_exported_pixels_are_upright_but_stay_mirrored(tmp_path: Path) -> None:
    model = synthesize("SIMPLE_PINHOLE", num_frames=8)
    images = write_images(model, tmp_path / "photos", orientations=tuple(range(1, 9)))
    export(model, images, tmp_path / "out")
    for name, info in images.infos.items():
        with Image.open(images.path(name)) as source:
            upright = coords.upright_pixels(np.asarray(source), info.orientation)
        if coords.is_mirrored(info.orientation):
            upright = upright[:, ::-1]
        with Image.open(tmp_path / "out" / "images" / name) as exported:
            np.testing.assert_array_equal(np.asarray(exported), upright)


def test_no_orientation_survives_but_the_exposure_does(tmp_path: Path) -> None:
    model = synthesize("SIMPLE_PINHOLE", num_frames=8)
    names = {image.name: f"{i}.jpg" for i, image in model.images.items()}
    images = write_images(
        model, tmp_path / "photos", names=names, orientations=tuple(range(1, 9))
    )
    assert {info.orientation for info in images.infos.values()} == set(range(1, 9))
    export(model, images, tmp_path / "out")
    written = list((tmp_path / "out").glob("images*/*"))
    assert len(written) == 32
    for path in written:
        with Image.open(path) as picture:
            assert picture.getexif().get(0x0112, 1) == 1
            assert picture.getexif().get_ifd(0x8769)[0x829A] == pytest.approx(0.004)


def test_images_of_one_camera_turned_differently_get_cameras_of_their_own(
    tmp_path: Path,
) -> None:
    model = synthesize("SIMPLE_RADIAL")
    images = write_images(model, tmp_path / "photos", orientations=(1, 6))
    export(model, images, tmp_path / "out")
    sizes = {(c.width, c.height) for c in read_model(tmp_path / "out").cameras.values()}
    assert len(sizes) == 2
    assert {size[::-1] for size in sizes} == sizes


def test_strongly_off_centre_camera_keeps_its_view(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    camera = pycolmap.Camera(
        model="SIMPLE_PINHOLE", width=400, height=300, params=[500, 390, 150]
    )
    for orientation in (1, 6):
        view = undistortion(camera, orientation, camera_id=1, multiple=8)
        xy = np.array([[12.5, 200.25], [300, 10]])
        np.testing.assert_allclose(view.source_xy(view.target_xy(xy)), xy, atol=1e-6)
        cut = (xy - (0, 2)).astype(np.float32)
        target = coords.upright_xy(cut, (400, 296), orientation)
        np.testing.assert_allclose(view.target_xy(xy), target, atol=1e-4)
    assert "INRIA" in caplog.text


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("kind", CAMERAS)
def test_undistortion_is_inverted(kind: str, orientation: int) -> None:
    camera = pycolmap.Camera(
        model=kind, width=WIDTH, height=HEIGHT, params=CAMERAS[kind]
    )
    view = undistortion(camera, orientation, camera_id=1, multiple=8)
    xy = np.random.default_rng(0).uniform((0, 0), view.target_size, (500, 2))
    np.testing.assert_allclose(view.target_xy(view.source_xy(xy)), xy, atol=1e-6)


def test_rays_behind_a_fisheye_are_not_mirrored_into_the_image() -> None:
    camera = pycolmap.Camera(
        model="OPENCV_FISHEYE",
        width=400,
        height=400,
        params=[100, 100, 200, 200] + [0] * 4,
    )
    view = undistortion(camera, 1, camera_id=1)
    assert np.isnan(view.target_xy(np.array([[1.0, 1.0]]))).all()


def test_panoramas_are_refused() -> None:
    camera = pycolmap.Camera(
        model="EQUIRECTANGULAR", width=800, height=400, params=[800, 400]
    )
    with pytest.raises(ReconstructionError, match="panoramas"):
        undistortion(camera, 1, camera_id=1)


# ------------------------------------------------------------- pixels that are copied
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_undistorted_upright_images_are_copied_byte_for_byte(
    suffix: str, tmp_path: Path
) -> None:
    model = synthesize("PINHOLE")
    names = {image.name: f"{i}{suffix}" for i, image in model.images.items()}
    images = write_images(model, tmp_path / "photos", names=names)
    export(model, images, tmp_path / "out")
    assert files_in(tmp_path / "out" / "images") == files_in(tmp_path / "photos")


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16", "P"])
def test_other_pixel_formats_become_8_bit_rgb(mode: str, tmp_path: Path) -> None:
    model = synthesize("PINHOLE")
    images = write_images(model, tmp_path / "photos")
    for name in images.names:
        picture = Image.open(images.path(name))
        if mode == "I;16":
            grey = np.asarray(picture.convert("L"), np.uint16) * 257
            Image.fromarray(grey).save(images.path(name))
        else:
            picture.convert(mode).save(images.path(name))
    export(model, ImageSet.scan(images.root), tmp_path / "out")
    for path in (tmp_path / "out").glob("images*/*"):
        with Image.open(path) as picture:
            assert picture.mode == "RGB"


def test_16_bit_colours_are_not_copied(tmp_path: Path) -> None:
    model = synthesize("PINHOLE")
    images = write_images(model, tmp_path / "photos")
    path = images.path(images.names[0])
    pixels = np.full((HEIGHT, WIDTH, 3), 30000, np.uint16)
    assert cv2.imwrite(str(path), pixels)
    export(model, ImageSet.scan(images.root), tmp_path / "out")
    written = (tmp_path / "out" / "images" / path.name).read_bytes()
    assert path.read_bytes()[24] == 16
    assert written[24] == 8


def test_damaged_exif_numbers_do_not_stop_the_export(tmp_path: Path) -> None:
    model = synthesize("SIMPLE_RADIAL")
    names = {image.name: f"{i}.jpg" for i, image in model.images.items()}
    images = write_images(model, tmp_path / "photos", names=names)
    path = images.path("1.jpg")
    raw = path.read_bytes()
    old = next(
        pair
        for pair in (struct.pack("<II", 1, 250), struct.pack(">II", 1, 250))
        if pair in raw
    )
    assert raw.count(old) == 1
    path.write_bytes(raw.replace(old, old[:4] + bytes(4)))
    export(model, images, tmp_path / "out")
    assert (tmp_path / "out" / "images" / "1.jpg").is_file()


def test_max_size_bounds_the_longer_side(tmp_path: Path) -> None:
    model = synthesize("SIMPLE_RADIAL")
    images = write_images(model, tmp_path / "photos", orientations=(1, 6))
    export(model, images, tmp_path / "out", max_size=200, downscales=(2,))
    for path in (tmp_path / "out" / "images").iterdir():
        with Image.open(path) as picture:
            assert 190 < max(picture.size) <= 200
    assert not (tmp_path / "out" / "images_4").exists()


# ----------------------------------------------------------------------------- names
def test_flat_ascii_names_are_kept() -> None:
    names = ["DSC 1.JPG", "a.jpeg", "b.png"]
    assert flat_names(names) == {name: name for name in names}


def test_folders_umlauts_and_formats_are_spelled_out() -> None:
    names = ["left/Küche 2.JPG", "right/a.b.tif", "right/née.heic"]
    assert list(flat_names(names).values()) == [
        "left-Kueche_2.jpg",
        "right-a_b.png",
        "right-nee.jpg",
    ]
    assert flat_names(["日本.webp"]) == {"日本.webp": "_.jpg"}


def test_names_that_windows_refuses_are_spelled_out() -> None:
    names = ['a<b>:"|?*.jpg', "aux.JPG", "com1/b.jpg", "nul .png", "nulls.png"]
    assert list(flat_names(names).values()) == [
        "a_b_.jpg",
        "aux_.JPG",
        "com1-b.jpg",
        "nul _.png",
        "nulls.png",
    ]


def test_names_that_windows_alone_takes_for_equal_stay_apart() -> None:
    names = ["a:b.jpg", "a?b.jpg", "a_b.jpg"]
    assert list(flat_names(names).values()) == [
        "0001_a_b.jpg",
        "0002_a_b.jpg",
        "0003_a_b.jpg",
    ]


def test_long_names_leave_room_for_those_of_masks() -> None:
    names = ["n" * 250 + ".jpg", "n" * 249 + "o.jpg"]
    flat = list(flat_names(sorted(names)).values())
    assert flat == [f"{k:04d}_" + "n" * 200 + ".jpg" for k in (1, 2)]
    assert all(len(f"{name}.png") < 255 for name in flat)


@pytest.mark.parametrize(
    "names",
    [
        ["a.JPG", "a.png"],
        ["A.jpg", "a.jpg"],
        ["a-z/b.jpg", "a/b.jpg"],
        ["ä.jpg", "ö/ä.jpg", "日.jpg", "本.jpg"],
    ],
)
def test_clashes_and_lost_order_number_all_names(names: list[str]) -> None:
    flat = list(flat_names(sorted(names)).values())
    assert [name.split("_")[0] for name in flat] == [
        f"{i:04d}" for i in range(1, len(names) + 1)
    ]


def test_numbered_folders_keep_their_order_without_numbers() -> None:
    names = sorted(f"cam{i}/{j}.jpg" for i in (1, 2, 10) for j in range(3))
    assert flat_names(names)["cam10/0.jpg"] == "cam10-0.jpg"


_parts = st.one_of(
    st.text("aA0-_ .:?äß日\u0308", min_size=1, max_size=4).filter(
        lambda part: part.strip(". ") != ""
    ),
    st.sampled_from(["con", "Aux", "lpt9", "\u010bon", "n" * 251]),
)
_names = st.builds(
    lambda parts, suffix: "/".join(parts) + suffix,
    st.lists(_parts, min_size=1, max_size=3),
    st.sampled_from([".jpg", ".JPG", ".png", ".tif"]),
)


@given(st.lists(_names, unique=True, max_size=12).map(sorted))
def test_flat_names_are_ordered_unique_ascii_and_without_dots(names: list[str]) -> None:
    flat = list(flat_names(names).values())
    assert flat == sorted(flat)
    assert len({name.split(".")[0].lower() for name in flat}) == len(names)
    assert all(name.isascii() and "/" not in name for name in flat)
    assert all(name.count(".") == 1 for name in flat)
    assert not any(set(name) & set('<>:"|?*\\') or len(name) > 220 for name in flat)
    devices = {"con", "aux", "lpt9"}
    assert not any(name.split(".")[0].strip().lower() in devices for name in flat)


def test_renamed_images_are_listed_with_their_originals(tmp_path: Path) -> None:
    model = synthesize("SIMPLE_RADIAL", num_frames=3)
    originals = ["left/Küche 2.png", "left/ok.png", "plain.png"]
    in_order = [model.images[i].name for i in sorted(model.images)]
    names = dict(zip(in_order, originals, strict=True))
    images = write_images(model, tmp_path / "photos", names=names)
    summary = export(model, images, tmp_path / "out")
    assert summary.renamed == {
        "left/Küche 2.png": "left-Kueche_2.png",
        "left/ok.png": "left-ok.png",
    }
    listed = json.loads((tmp_path / "out" / "dataset.json").read_text("utf-8"))
    assert {name: image["original"] for name, image in listed["images"].items()} == {
        "left-Kueche_2.png": "left/Küche 2.png",
        "left-ok.png": "left/ok.png",
        "plain.png": "plain.png",
    }
    exported = {image.name for image in read_model(tmp_path / "out").images.values()}
    assert exported == {"left-Kueche_2.png", "left-ok.png", "plain.png"}


# --------------------------------------------------------------------- again, and safe
def test_second_export_replaces_the_first_and_leaves_other_files(
    tmp_path: Path,
) -> None:
    model = synthesize("SIMPLE_RADIAL")
    images = write_images(model, tmp_path / "photos")
    out = tmp_path / "out"
    export(model, images, out)
    (out / "notes.txt").write_text("mine")
    (out / "images_2_png").mkdir()
    model.deregister_frame(model.images[2].frame_id)
    export(model, images, out, downscales=(2,))
    assert (out / "notes.txt").read_text() == "mine"
    folders = {path.name for path in out.iterdir() if path.is_dir()}
    assert folders == {"images", "images_2", "sparse"}
    assert len(list((out / "images").iterdir())) == 3


def test_same_input_gives_same_bytes(tmp_path: Path) -> None:
    model = synthesize("OPENCV")
    images = write_images(model, tmp_path / "photos", orientations=(6, 1))
    export(model, images, tmp_path / "a")
    export(model, images, tmp_path / "b")
    assert files_in(tmp_path / "a") == files_in(tmp_path / "b")


@pytest.mark.parametrize("entry", ["images", "sparse", "images_4", "transforms.json"])
def test_entries_of_the_user_are_not_replaced(entry: str, tmp_path: Path) -> None:
    model = synthesize("SIMPLE_RADIAL")
    images = write_images(model, tmp_path / "photos")
    path = tmp_path / "out" / entry
    if path.suffix:
        path.parent.mkdir()
        path.write_text('{"frames": []}')
    else:
        path.mkdir(parents=True)
    with pytest.raises(ConfigError, match=entry):
        export(model, images, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == [entry]


def test_dataset_is_not_exported_onto_itself(tmp_path: Path) -> None:
    model = synthesize("SIMPLE_RADIAL")
    export(model, write_images(model, tmp_path / "photos"), tmp_path / "out")
    again = ImageSet.scan(tmp_path / "out" / "images")
    with pytest.raises(ConfigError, match="would replace it"):
        export(read_model(tmp_path / "out"), again, tmp_path / "out")
    assert len(list((tmp_path / "out" / "images").iterdir())) == 4


def test_full_disk_is_explained_and_keeps_the_old_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = synthesize("SIMPLE_RADIAL")
    images = write_images(model, tmp_path / "photos")
    export(model, images, tmp_path / "out")
    before = files_in(tmp_path / "out")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(StoreError, match="No space left"):
        export(model, images, tmp_path / "out")
    assert files_in(tmp_path / "out") == before


@pytest.mark.slow
def test_killed_export_never_looks_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops before each rename in turn, without any cleaning up, as SIGKILL would."""
    model = synthesize("SIMPLE_RADIAL", num_frames=3)
    images = write_images(model, tmp_path / "photos")
    config = {"downscales": (8,), "targets": ("nerfstudio", "colmap")}
    export(model, images, tmp_path / "before", **config)
    model.deregister_frame(model.images[2].frame_id)
    export(model, images, tmp_path / "after", **config)
    before, after = files_in(tmp_path / "before"), files_in(tmp_path / "after")
    places = ("", "targets/colmap/")
    states = set()
    for calls in itertools.count():
        out = tmp_path / "out"
        shutil.copytree(tmp_path / "before", out)
        with monkeypatch.context() as patch:
            _kill_after(calls, patch)
            try:
                export(model, images, out, **config)
            except _Killed:
                pass
            else:
                break
        now = {k: v for k, v in files_in(out).items() if not k.startswith(".partial")}
        states.add(tuple(_state(now, place, before, after) for place in places))
        export(model, images, out, **config)
        assert files_in(out) == after
        shutil.rmtree(out)
    assert {("old", "old"), ("begun", "begun"), ("new", "begun")} <= states
    assert not {("new", "old"), ("old", "new")} & states


class _Killed(BaseException):
    pass


def _kill_after(calls: int, patch: pytest.MonkeyPatch) -> None:
    left = [calls]

    def until_killed(move):  # noqa: ANN001, ANN202
        def moved(self: Path, target: Path) -> Path:
            if not left[0]:
                raise _Killed
            left[0] -= 1
            return move(self, target)

        return moved

    patch.setattr(Path, "rename", until_killed(Path.rename))
    patch.setattr(Path, "replace", until_killed(Path.replace))
    patch.setattr(install_module.shutil, "rmtree", lambda *a, **k: None)


def _state(
    now: dict[str, bytes],
    place: str,
    before: dict[str, bytes],
    after: dict[str, bytes],
) -> str:
    """What the dataset in this folder is; fails where it is half one."""

    def of(files: dict[str, bytes]) -> dict[str, bytes]:
        if place:
            return {k: v for k, v in files.items() if k.startswith(place)}
        return {k: v for k, v in files.items() if not k.startswith("targets/")}

    if of(now) == of(before):
        return "old"
    if of(now) == of(after):
        return "new"
    assert json.loads(now[f"{place}dataset.json"])["images"] == {}
    looks_complete = f"{place}sparse/0/images.bin" in now
    if f"{place}transforms.json" in now:
        assert looks_complete
    if looks_complete:
        del now[f"{place}dataset.json"]
        images = {k for k in of(now) if k.startswith(f"{place}images")}
        assert any(
            of(now).items() <= files.items()
            and images == {k for k in files if k.startswith(f"{place}images")}
            for files in (of(before), of(after))
        )
    return "begun"


# -------------------------------------------------------------------------- refusals
def test_model_without_images_is_refused(tmp_path: Path) -> None:
    model = synthesize("SIMPLE_RADIAL")
    images = write_images(model, tmp_path / "photos")
    with pytest.raises(ReconstructionError, match="no registered image"):
        export(pycolmap.Reconstruction(), images, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_model_without_points_is_refused(tmp_path: Path) -> None:
    model = synthesize("SIMPLE_RADIAL")
    images = write_images(model, tmp_path / "photos")
    for point_id in list(model.points3D):
        model.delete_point3D(point_id)
    with pytest.raises(ReconstructionError, match="no 3D point"):
        export(model, images, tmp_path / "out")


def test_missing_image_is_named(tmp_path: Path) -> None:
    model = synthesize("SIMPLE_RADIAL")
    images = write_images(model, tmp_path / "photos")
    lost = images.names[1]
    images.path(lost).unlink()
    with pytest.raises(ImageError, match=lost):
        export(model, ImageSet.scan(images.root), tmp_path / "out")


def test_image_of_another_size_is_named(tmp_path: Path) -> None:
    model = synthesize("SIMPLE_RADIAL")
    images = write_images(model, tmp_path / "photos")
    name = images.names[1]
    Image.new("RGB", (100, 80)).save(images.path(name))
    with pytest.raises(ReconstructionError, match=name):
        export(model, ImageSet.scan(images.root), tmp_path / "out")
    with pytest.raises(ImageError, match=name):  # changed after the scan
        export(model, images, tmp_path / "out")


def test_unwritable_folder_is_explained(tmp_path: Path) -> None:
    model = synthesize("SIMPLE_RADIAL")
    images = write_images(model, tmp_path / "photos")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(StoreError, match="cannot be written"):
        export(model, images, tmp_path / "out")


# ---------------------------------------------------------------------------- coords
@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotation_part_leaves_only_a_swap_of_left_and_right(orientation: int) -> None:
    turned = coords.upright_matrix(coords.rotation_part(orientation))
    swap = np.diag([-1.0 if coords.is_mirrored(orientation) else 1.0, 1.0])
    np.testing.assert_array_equal(swap @ turned, coords.upright_matrix(orientation))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_upright_pose_turns_projections_like_pixels(orientation: int) -> None:
    pose = np.hstack([np.eye(3), [[0.1], [0.2], [0.3]]])
    turned = coords.upright_pose(pose, orientation)
    ray = pose @ [0.3, -0.4, 2, 1]
    want = coords.upright_matrix(orientation) @ ray[:2]
    np.testing.assert_allclose(turned @ [0.3, -0.4, 2, 1], [*want, ray[2]])
    np.testing.assert_array_equal(coords.stored_pose(turned, orientation), pose)


def test_mirrored_poses_are_refused() -> None:
    with pytest.raises(ValueError, match="mirrored"):
        coords.upright_pose(np.eye(4)[:3], 5)
