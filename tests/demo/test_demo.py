"""The demo scene: files, poses, and that its pixels lie where its poses say."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
from PIL import Image

from sfmprep.demo import courtyard as demo
from sfmprep.demo import textures
from sfmprep.demo.courtyard import build_courtyard, camera_walk, render_demo_scene
from sfmprep.demo.raycast import Camera, Rectangle, Surface, Texture, render_image
from sfmprep.errors import ConfigError
from sfmprep.evaluation.poses import evaluate_model
from sfmprep.evaluation.reference import read_reference

SMALL = {"num_images": 3, "size": (160, 120)}
GREY = np.full((2, 1, 3), 40, np.uint8)


def plain(grey: int) -> np.ndarray:
    return np.full((8, 8, 3), grey, np.uint8)


@pytest.fixture(scope="module", autouse=True)
def _coarse_paint(demo_scene: Path) -> Iterator[None]:
    """A quarter of the texels a metre: painting all takes four seconds each time.

    Not in the scene that is common to all tests, which is there first.
    """
    with pytest.MonkeyPatch.context() as patch:
        for module in (textures, demo):
            patch.setattr(module, "TEXELS", 64)
        yield


@pytest.fixture(scope="module")
def courtyard(_coarse_paint: None) -> tuple[list[Surface], Texture]:
    return build_courtyard(0)


@pytest.fixture(scope="module")
def scene(courtyard, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "a new folder"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "build_courtyard", lambda seed: courtyard)
        render_demo_scene(folder, **SMALL)
    return folder


def jpegs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "images").iterdir()}


def test_writes_images_and_their_reference(scene: Path):
    reference = json.loads((scene / "reference.json").read_text())
    assert "exact: rendered" in reference["quality"]
    assert sorted(reference["images"]) == ["0000.jpg", "0001.jpg", "0002.jpg"]
    assert jpegs(scene).keys() == reference["images"].keys()
    for name, camera in reference["images"].items():
        assert camera["K"] == [[136, 0, 80], [0, 136, 60], [0, 0, 1]]
        with Image.open(scene / "images" / name) as image:
            assert image.size == (camera["width"], camera["height"]) == (160, 120)
            assert not image.getexif()
            assert 40 < np.asarray(image).mean() < 200
    walk = camera_walk(3, (160, 120), 0)
    for camera, pose in zip(walk, read_reference(scene).values(), strict=True):
        np.testing.assert_allclose(pose.centre, camera.centre, atol=1e-12)


def test_same_arguments_give_the_same_files(scene: Path, tmp_path: Path):
    steps = []

    def watch(items, *, desc, total=None):
        for item in items:
            steps.append((desc, total))
            yield item

    render_demo_scene(tmp_path, **SMALL, progress=watch)
    assert jpegs(tmp_path) == jpegs(scene)
    text = (tmp_path / "reference.json").read_bytes()
    assert text == (scene / "reference.json").read_bytes()
    assert steps == [("render", 3)] * 3


def test_another_seed_takes_another_walk():
    one, two = (camera_walk(3, (160, 120), seed)[0].centre for seed in (0, 1))
    assert np.linalg.norm(one - two) > 0.01


def test_the_walk_turns_by_more_than_90_degrees_and_neighbours_by_less_than_10():
    axes = np.array([c.rotation[2] for c in camera_walk(24, (960, 720), 0)])
    assert np.degrees(np.arccos(axes[0] @ axes[-1])) > 90
    steps = np.degrees(np.arccos((axes[1:] * axes[:-1]).sum(axis=1)))
    assert steps.max() < 10


def test_no_camera_sees_past_the_edge_of_the_ground(courtyard):
    black = [recoloured(surface, 0) for surface in courtyard[0]]
    white_sky = np.full((2, 1, 3), 255, np.uint8)
    for camera in camera_walk(24, (96, 72), 0):
        y, x = np.indices((72, 96)) + 0.5
        rays = np.stack([x, y, np.ones_like(x)], axis=-1)
        up = (rays @ np.linalg.inv(camera.intrinsics).T @ camera.rotation)[..., 2]
        image = render_image(black, camera, white_sky)
        assert image[up < 0.02].max() == 0


def recoloured(surface: Surface, grey: int) -> Surface:
    return dataclasses.replace(surface, texture=plain(grey))


def facing_south(width: float, height: float, middle, texture, **options) -> Rectangle:
    corner = np.array(middle) + [-width / 2, 0, height / 2]
    right, down = np.array([width, 0.0, 0.0]), np.array([0.0, 0.0, -height])
    return Rectangle(texture=texture, corner=corner, right=right, down=down, **options)


def centre_of_light(image: np.ndarray, near: np.ndarray, radius: int) -> np.ndarray:
    """The centroid of what is bright around a COLMAP pixel, in COLMAP pixels."""
    column, row = np.floor(near).astype(int)
    window = image[
        row - radius : row + radius + 1, column - radius : column + radius + 1
    ]
    weight = (window.astype(float).mean(axis=2) - 100).clip(0)
    y, x = np.indices(weight.shape) + 0.5
    middle = [(weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()]
    return middle + np.array([column - radius, row - radius])


def test_markers_appear_where_the_reference_projects_them(tmp_path, monkeypatch):
    middles = [(x, 2.0, z) for x in (-1.5, -0.4, 0.7) for z in (0.4, 1.3, 2.1)]
    markers = [facing_south(0.16, 0.16, m, plain(230), is_round=True) for m in middles]
    board = facing_south(9, 9, (0, 2.01, 1), plain(20))
    monkeypatch.setattr(demo, "build_courtyard", lambda seed: ([board, *markers], GREY))
    render_demo_scene(tmp_path, num_images=5)
    reference = json.loads((tmp_path / "reference.json").read_text())["images"]
    across, up = np.mgrid[-0.08:0.08:61j, -0.08:0.08:61j].reshape(2, -1)
    inside = np.hypot(across, up) < 0.08
    disc = np.stack([across, 0 * across, up], axis=1)[inside]
    errors = []
    for name in list(reference)[:4]:  # the last one sees the board at a grazing angle
        k, r, t = (np.array(reference[name][key]) for key in "KRt")
        image = cv2.imread(str(tmp_path / "images" / name))
        for middle in middles:
            rays = (middle + disc) @ r.T + t
            xy = (rays @ k.T)[:, :2] / rays[:, 2:]
            # a flat patch's area in the image falls with the cube of its depth
            expected = np.average(xy, axis=0, weights=rays[:, 2] ** -3)
            if (expected > 20).all() and (expected < (940, 700)).all():
                errors.append(centre_of_light(image, expected, 18) - expected)
    assert len(errors) >= 25
    assert np.abs(errors).max() < 0.1
    assert np.abs(np.mean(errors, axis=0)).max() < 0.02


@pytest.mark.parametrize("distance", [1.0, 3.0, 10.0])
def test_textures_are_drawn_where_they_lie_at_every_mip_level(distance: float):
    texture = np.zeros((768, 1024, 3), np.uint8)
    y, x = np.indices((768, 1024)) + 0.5
    middle = np.array([331.3, 222.8])  # texels from the upper left corner
    texture[np.hypot(x - middle[0], y - middle[1]) < 40] = 255
    board = facing_south(1.024, 0.768, (0, 0, 0), texture)
    camera = Camera(
        size=(480, 360),
        intrinsics=np.array([[500, 0, 240], [0, 500, 180], [0, 0, 1.0]]),
        rotation=np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
        translation=np.array([0.0, 0.0, distance]),
    )
    expected = [240, 180] + (middle / 1000 - [0.512, 0.384]) * 500 / distance
    # a grey sky, so that the black board's surroundings do not count as light
    image = render_image([board], camera, GREY)
    found = centre_of_light(image, expected, int(30 / distance) + 3)
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_other_files_are_not_overwritten(tmp_path: Path):
    (tmp_path / "images").mkdir()
    photograph = tmp_path / "images" / "0000.jpg"
    photograph.write_bytes(b"precious")
    with pytest.raises(ConfigError, match="already holds other files"):
        render_demo_scene(tmp_path, **SMALL)
    assert photograph.read_bytes() == b"precious"
    assert not (tmp_path / "reference.json").exists()


def test_a_reference_of_something_else_is_not_overwritten(tmp_path: Path):
    (tmp_path / "reference.json").write_text('{"images": {}}')
    with pytest.raises(ConfigError, match="already holds other files"):
        render_demo_scene(tmp_path, **SMALL)


def test_images_of_a_longer_walk_are_not_mixed_in(scene: Path):
    with pytest.raises(ConfigError, match="already holds other files"):
        render_demo_scene(scene, num_images=2, size=(160, 120))
    assert len(jpegs(scene)) == 3


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file.scene cannot be made"):
        render_demo_scene(tmp_path / "file" / "scene", **SMALL)


@pytest.mark.parametrize("wrong", [{"num_images": 1}, {"size": (960, 20)}])
def test_too_few_images_or_pixels_are_refused(tmp_path: Path, wrong):
    with pytest.raises(ConfigError, match="at least 2 images"):
        render_demo_scene(tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_sift_reconstructs_the_scene(demo_scene: Path, tmp_path: Path):
    database, images = tmp_path / "database.db", demo_scene / "images"
    pycolmap.extract_features(database, images, camera_mode=pycolmap.CameraMode.SINGLE)
    pycolmap.match_exhaustive(database)
    models = pycolmap.incremental_mapping(database, images, tmp_path / "models")
    result = evaluate_model(models[0], read_reference(demo_scene))
    assert result.registered_reference == 8
    assert result.auc[1] > 85
