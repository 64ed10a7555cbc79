"""Panoramas as they are, by nerfstudio's rules for its equirectangular camera."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image

from sfmprep.capture.developed import Developed
from sfmprep.capture.image_set import ImageSet
from sfmprep.capture.panorama import cut_panorama, focal_px, views_of
from sfmprep.config import ExportConfig
from sfmprep.config.load import load_recipe
from sfmprep.errors import ConfigError
from sfmprep.export.dataset import export_dataset
from sfmprep.export.next_steps import next_steps
from sfmprep.types import Float64

VIEWS = views_of((20, -20), 4)
WIDTH = 512
NAMES = ("a.png", "sub/b.jpg", "sub/c.jpg")
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description GPano:ProjectionType='
    '"equirectangular" GPano:CroppedAreaImageWidthPixels="512"'
    ' GPano:CroppedAreaImageHeightPixels="200" GPano:CroppedAreaLeftPixels="0"'
    ' GPano:CroppedAreaTopPixels="30" GPano:FullPanoWidthPixels="512"'
    ' GPano:FullPanoHeightPixels="256"/></x:xmpmeta>'
)


class Capture:
    """Three panoramas around a cloud of points, cut and put into a model."""

    def __init__(self, folder: Path, *, film: str | None = None) -> None:
        rng = np.random.default_rng(0)
        self.centres = rng.normal(0, 1, (3, 3))
        self.rotations = [
            np.asarray(pycolmap.Rotation3d(rng.normal(0, 1, 3)).matrix()) for _ in NAMES
        ]  # panorama from world
        self.points = rng.normal(0, 1, (40, 3)) * 8
        root, developed = folder / "photos", folder / "developed"
        panoramas = []
        for name in NAMES:
            noise = rng.integers(0, 256, (256, WIDTH, 3), np.uint8)
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            last = name == NAMES[-1]
            picture = Image.fromarray(noise[30:230] if last else noise)
            picture.save(root / name, **({"xmp": XMP.encode()} if last else {}))
            panorama = cut_panorama(root / name, name, developed, VIEWS)
            panoramas.append(replace(panorama, film=film))
        views = [view for panorama in panoramas for view in panorama.views]
        self.images = ImageSet.scan(
            root,
            developed=Developed(
                source=root,
                folder=developed,
                names=frozenset(views),
                checksums=dict.fromkeys(NAMES, "0"),
                failures={},
                films=(),
                panoramas=tuple(panoramas),
            ),
        )
        self.model = self._model(panoramas)

    def _model(self, panoramas: list) -> pycolmap.Reconstruction:
        model = pycolmap.Reconstruction()
        camera = pycolmap.Camera(
            model="SIMPLE_PINHOLE",
            width=160,
            height=160,
            params=[focal_px(160), 80, 80],
            camera_id=1,
        )
        model.add_camera_with_trivial_rig(camera)
        tracks: list[list[tuple[int, int]]] = [[] for _ in self.points]
        image_id = 0
        for k, panorama in enumerate(panoramas):
            for view, name in zip(VIEWS, panorama.views, strict=True):
                image_id += 1
                rotation = view.rig_from_view.T @ self.rotations[k]
                local = (self.points - self.centres[k]) @ rotation.T
                xy = focal_px(160) * local[:, :2] / local[:, 2:] + 80
                seen = (local[:, 2] > 0.1) & ((xy > 0) & (xy < 160)).all(axis=1)
                rows = np.flatnonzero(seen)
                image = pycolmap.Image(
                    name=name, keypoints=xy[rows], camera_id=1, image_id=image_id
                )
                pose = np.column_stack([rotation, -rotation @ self.centres[k]])
                model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose))
                for row, point in enumerate(rows.tolist()):
                    tracks[point].append((image_id, row))
        for xyz, elements in zip(self.points, tracks, strict=True):
            track = pycolmap.Track()
            for element in elements:
                track.add_element(*element)
            if len(elements) > 1:
                model.add_point3D(xyz, track)
        return model


def export(capture: Capture, out: Path, **config: object) -> dict:
    settings = {"targets": ("nerfstudio-360",), "downscales": (2,), **config}
    export_dataset(
        *(capture.model, capture.images, out, ExportConfig.model_validate(settings))
    )
    return json.loads((out / "transforms.json").read_text())


def pixel(point: Float64, frame: dict) -> tuple[float, float]:
    """Where nerfstudio's rays of an equirectangular camera meet a point."""
    camera_from_world = np.linalg.inv(np.array(frame["transform_matrix"]))
    x, y, z = camera_from_world[:3, :3] @ point + camera_from_world[:3, 3]
    theta = math.atan2(-x, -z)  # its direction is (-sin t sin p, cos p, -cos t sin p)
    phi = math.acos(y / math.sqrt(x * x + y * y + z * z))
    across, up = -theta / math.pi, 0.5 - phi / math.pi
    return (
        frame["cx"] + across * frame["fl_x"],
        frame["cy"] - up * frame["fl_y"],
    )


def test_rays_of_panoramas_meet_the_points(tmp_path: Path) -> None:
    capture = Capture(tmp_path)
    content = export(capture, tmp_path / "out")
    assert content["camera_model"] == "EQUIRECTANGULAR"
    files = [frame["file_path"] for frame in content["frames"]]
    assert files == ["images/a.png", "images/sub-b.jpg", "images/sub-c.jpg"]
    for k, frame in enumerate(content["frames"]):
        assert (frame["w"], frame["h"]) == (WIDTH, 200 if k == 2 else 256)
        local = (capture.points - capture.centres[k]) @ capture.rotations[k].T
        for point, (x, y, z) in zip(capture.points, local, strict=True):
            column = (math.atan2(x, z) / (2 * math.pi) + 0.5) * WIDTH
            row = (0.5 + math.atan2(y, math.hypot(x, z)) / math.pi) * 256
            row -= 30 if k == 2 else 0
            assert pixel(point, frame) == pytest.approx((column, row), abs=1e-6)


def test_panoramas_are_copied_and_reduced(tmp_path: Path) -> None:
    capture = Capture(tmp_path)
    out = tmp_path / "out"
    export(capture, out)
    names = {path.relative_to(out).as_posix() for path in out.rglob("*.*")}
    pictures = ("a.png", "sub-b.jpg", "sub-c.jpg")
    assert names == {
        *("transforms.json", "sparse/points3D.ply", "dataset.json"),
        *(f"images{s}/{name}" for s in ("", "_2") for name in pictures),
    }
    root = tmp_path / "photos"
    assert (out / "images/a.png").read_bytes() == (root / "a.png").read_bytes()
    assert Image.open(out / "images_2" / "sub-c.jpg").size == (256, 100)
    listed = json.loads((out / "dataset.json").read_text())["images"]
    assert listed["sub-b.jpg"]["original"] == "sub/b.jpg"


def test_masks_of_panoramas_go_with_them(tmp_path: Path) -> None:
    capture = Capture(tmp_path)
    mask = np.full((256, WIDTH), 255, np.uint8)
    mask[200:] = 0
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks" / "a.png")
    capture.images = replace(capture.images, mask_root=tmp_path / "masks")
    content = export(capture, tmp_path / "out")
    found = [frame["mask_path"] for frame in content["frames"]]
    assert found == ["masks/a.png", "masks/sub-b.png", "masks/sub-c.png"]
    shown = np.asarray(Image.open(tmp_path / "out" / "masks" / "a.png"))
    np.testing.assert_array_equal(shown, mask)
    assert np.asarray(Image.open(tmp_path / "out" / "masks_2" / "sub-b.png")).all()


def test_beside_views_they_have_a_folder(tmp_path: Path) -> None:
    capture = Capture(tmp_path)
    out = tmp_path / "out"
    content = export(capture, out, targets=("nerfstudio", "nerfstudio-360"))
    assert content["camera_model"] == "OPENCV"
    assert len(content["frames"]) == 24
    assert (out / "targets" / "nerfstudio-360" / "transforms.json").is_file()
    recipe = load_recipe("sift", ["export.targets=[nerfstudio,nerfstudio-360]"])
    assert next_steps(tmp_path, out, recipe)[1] == (
        "ns-train nerfacto nerfstudio-data --data"
        f" {out / 'targets' / 'nerfstudio-360'}  # splats cannot"
    )


def test_without_panoramas_it_is_refused(tmp_path: Path) -> None:
    capture = Capture(tmp_path, film="walk.mp4")
    with pytest.raises(ConfigError) as caught:
        export(capture, tmp_path / "out")
    assert str(caught.value) == (
        "export.targets: nerfstudio-360 takes 360° photographs as they are, but none of"
        f" them is in {tmp_path / 'photos'} or has a pose (frames of a film are kept as"
        " views alone). Leave nerfstudio-360 out."
    )
    assert not (tmp_path / "out" / "transforms.json").exists()
