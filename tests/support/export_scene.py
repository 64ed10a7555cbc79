"""A small synthetic scene with photographs, and readers of what is exported from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pycolmap
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import ExportConfig
from sfmprep.export.dataset import ExportSummary, export_dataset

WIDTH, HEIGHT = 384, 288
CAMERAS = {
    "SIMPLE_PINHOLE": [480, 192, 144],
    "PINHOLE": [480, 470, 192, 144],
    "SIMPLE_RADIAL": [480, 192, 144, -0.15],
    "OPENCV": [480, 470, 190.3, 146.8, 0.1, -0.05, 0.001, -0.002],
    "OPENCV_FISHEYE": [300, 300, 192, 144, 0.01, 0.002, 0, 0],
    "FULL_OPENCV": [480, 480, 192, 144, 0.1, 0, 0, 0, 0, 0.05, 0, 0],
}


def synthesize(*models: str, num_frames: int = 4) -> pycolmap.Reconstruction:
    """A model with one camera of each kind and `num_frames` images of each."""
    options = pycolmap.SyntheticDatasetOptions(
        num_rigs=len(models),
        num_frames_per_rig=num_frames,
        num_points3D=60,
        num_points2D_without_point3D=3,
        camera_width=WIDTH,
        camera_height=HEIGHT,
        camera_model_id=pycolmap.CameraModelId.SIMPLE_PINHOLE,
        camera_params=CAMERAS["SIMPLE_PINHOLE"],
    )
    pycolmap.set_random_seed(3)
    model = pycolmap.synthesize_dataset(options)
    for camera_id, kind in enumerate(models, 1):
        camera = model.cameras[camera_id]
        camera.model = pycolmap.CameraModelId.__members__[kind]
        camera.params = CAMERAS[kind]
    rng = np.random.default_rng(3)
    for point in model.points3D.values():
        point.color = rng.integers(0, 256, 3, np.uint8)
    for image in model.images.values():
        for observation in image.points2D:
            if observation.has_point3D():
                xyz = model.points3D[observation.point3D_id].xyz
                observation.xy = image.project_point(xyz)
    return model


def write_images(
    model: pycolmap.Reconstruction,
    root: Path,
    names: Mapping[str, str] | None = None,
    orientations: tuple[int, ...] = (1,),
) -> ImageSet:
    """Writes smooth noise for every image, renamed, with EXIF tags in turn."""
    rng = np.random.default_rng(5)
    for i, image_id in enumerate(sorted(model.images)):
        image = model.images[image_id]
        image.name = (names or {}).get(image.name, image.name)
        camera = model.cameras[image.camera_id]
        noise = rng.integers(0, 256, (9, 12, 3), np.uint8)
        picture = Image.fromarray(noise).resize((camera.width, camera.height))
        save(picture, root / image.name, orientations[i % len(orientations)])
    return ImageSet.scan(root)


def save(picture: Image.Image, path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif.get_ifd(0x8769)[0x829A] = IFDRational(1, 250)
    path.parent.mkdir(parents=True, exist_ok=True)
    # the usual compression took a third of all tests of export
    options = {"compress_level": 1} if path.suffix.lower() == ".png" else {}
    picture.save(path, exif=exif, **options)


def export(
    model: pycolmap.Reconstruction, images: ImageSet, out: Path, **config: object
) -> ExportSummary:
    return export_dataset(model, images, out, ExportConfig.model_validate(config))


def read_model(out: Path) -> pycolmap.Reconstruction:
    return pycolmap.Reconstruction(out / "sparse" / "0")


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def read_ply(path: Path) -> tuple[list[str], np.ndarray]:
    head, body = path.read_bytes().split(b"end_header\n", 1)
    lines = head.decode().splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    properties = [line.split()[1:] for line in lines if line.startswith("property")]
    types = {"float": "<f4", "uchar": "u1"}
    rows = np.frombuffer(body, [(name, types[kind]) for kind, name in properties])
    assert f"element vertex {len(rows)}" in lines
    return [name for _, name in properties], rows


def draw_dots(model: pycolmap.Reconstruction, images: ImageSet) -> dict[str, int]:
    """Replaces each photograph by a dot; returns the ids of the points it shows."""
    drawn = {}
    for image in model.images.values():
        xy, drawn[image.name] = off_middle(image)
        save(dot(xy), images.path(image.name), images.infos[image.name].orientation)
    return drawn


def off_middle(image: pycolmap.Image) -> tuple[np.ndarray, int]:
    """An observation as far off the middle as a dot fits: wrong turns show there."""
    middle = np.array([WIDTH, HEIGHT]) / 2
    seen = [(p.xy, p.point3D_id) for p in image.points2D if p.has_point3D()]
    fitting = [s for s in seen if (np.abs(s[0] - middle) < (130, 90)).all()]
    return max(fitting, key=lambda s: np.linalg.norm(s[0] - middle))


def dot(xy: np.ndarray) -> Image.Image:
    """A blurred dot; its deviation of 4 pixels is half a pixel in the smallest copy."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    square = (columns - xy[0]) ** 2 + (rows - xy[1]) ** 2
    grey = (250 * np.exp(-square / 2 / 4**2)).round().astype(np.uint8)
    return Image.fromarray(np.repeat(grey[..., None], 3, axis=2))


def centroid(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        weight = np.asarray(picture.convert("L"), np.float64)
    rows, columns = np.mgrid[: weight.shape[0], : weight.shape[1]] + 0.5
    return np.array([(columns * weight).sum(), (rows * weight).sum()]) / weight.sum()
