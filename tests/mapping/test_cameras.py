"""What EXIF and the recipe tell about cameras, and whether it can be true."""

from __future__ import annotations

from pathlib import Path

import pycolmap
import pytest
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DatabaseConfig
from sfmprep.errors import ConfigError
from sfmprep.mapping.cameras import infer_camera, possible_cameras
from sfmprep.mapping.focal_priors import exif_focal_length

FOCAL_LENGTH, IN_35MM, ZOOM, LENS = 0x920A, 0xA405, 0xA404, 0xA434


def photographs(folder: Path, *exif: dict[int, object]) -> ImageSet:
    """Black JPEGs of 720 x 480 pixels, 20 a millimetre of film."""
    for k, tags in enumerate(exif):
        all_tags = Image.Exif()
        all_tags.update({271: "Maker", 272: "Model"})
        all_tags.get_ifd(0x8769).update(tags)
        path = folder / "images" / f"{k}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (720, 480)).save(path, exif=all_tags)
    return ImageSet.scan(folder / "images")


@pytest.mark.parametrize(
    ("told", "view"), [(1, "175"), (5, "154"), (65535, "0.0378"), (2000, "1.24")]
)
def test_focal_length_of_no_lens_is_a_guess(
    told: int, view: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = photographs(tmp_path, {IN_35MM: told})
    camera = infer_camera(images, "0.jpg", DatabaseConfig())
    assert camera.mean_focal_length() == pytest.approx(1.2 * 720)
    assert not camera.has_prior_focal_length
    assert caplog.messages == [
        f"{images.path('0.jpg')}: EXIF tells a focal length of {told} mm on 35 mm film,"
        f" with which it would see {view} degrees; lenses see 1.5 to 140. It is not"
        " used."
    ]


@pytest.mark.parametrize(("told", "pixels"), [(14, 280), (32, 640), (600, 12000)])
def test_focal_length_of_a_lens_is_a_prior(
    told: int, pixels: int, tmp_path: Path
) -> None:
    images = photographs(tmp_path, {IN_35MM: told})
    prior = exif_focal_length(images, "0.jpg")
    assert prior.pixels == pytest.approx(pixels)
    assert prior.doubt is None


@pytest.mark.parametrize(
    ("lens", "model"),
    [
        ("AF DX Fisheye-Nikkor 10.5mm f/2.8G ED", "SIMPLE_RADIAL_FISHEYE"),
        ("EF8-15mm f/4L FISHEYE USM", "SIMPLE_RADIAL_FISHEYE"),
        ("smc PENTAX-DA FISH-EYE 10-17mm", "SIMPLE_RADIAL_FISHEYE"),
        ("AF-S Nikkor 14-24mm f/2.8G ED", "SIMPLE_RADIAL"),
        (None, "SIMPLE_RADIAL"),
    ],
)
def test_a_lens_that_is_called_a_fisheye_is_one(
    lens: str | None, model: str, tmp_path: Path
) -> None:
    tags: dict[int, object] = {IN_35MM: 15}
    images = photographs(tmp_path, tags | ({LENS: lens} if lens else {}))
    camera = infer_camera(images, "0.jpg", DatabaseConfig())
    assert camera.model_name == model
    assert camera.has_prior_focal_length
    told = infer_camera(images, "0.jpg", DatabaseConfig(camera_model="OPENCV"))
    assert told.model_name == "OPENCV"


def test_fisheye_lenses_are_shorter(tmp_path: Path) -> None:
    images = photographs(tmp_path, {IN_35MM: 9})
    prior = exif_focal_length(images, "0.jpg", is_fisheye=True)
    assert prior.pixels == pytest.approx(180)


def test_sensor_of_no_resolution_tells_nothing(tmp_path: Path) -> None:
    zero = IFDRational(0, 1)
    images = photographs(
        tmp_path,
        {FOCAL_LENGTH: IFDRational(8, 1), 0xA20E: zero, 0xA20F: zero, 0xA210: 2},
    )
    camera = infer_camera(images, "0.jpg", DatabaseConfig())
    assert not camera.has_prior_focal_length
    assert camera.mean_focal_length() == pytest.approx(1.2 * 720)


def test_crop_factor_must_be_that_of_the_other_images(tmp_path: Path) -> None:
    phone = {FOCAL_LENGTH: IFDRational(4, 1), IN_35MM: 28}
    images = photographs(tmp_path, phone, phone, phone, {**phone, IN_35MM: 300})
    assert exif_focal_length(images, "0.jpg").pixels == pytest.approx(560)
    doubtful = exif_focal_length(images, "3.jpg")
    assert doubtful.pixels is None
    assert doubtful.doubt == (
        "EXIF tells a focal length of 4 mm that is 300 mm on 35 mm film, 75 times as"
        " much; other images of the same camera say 7 times"
    )


@pytest.mark.parametrize(
    ("in_35mm", "pixels"), [(56, 1120), (28, 1120), (27, 1080), (57, 1140)]
)
def test_digital_zoom_is_part_of_the_focal_length(
    in_35mm: int, pixels: float, tmp_path: Path
) -> None:
    """Some makers multiply the equivalent on film by it, others do not."""
    phone = {FOCAL_LENGTH: IFDRational(4, 1), IN_35MM: 28}
    zoomed = {**phone, IN_35MM: in_35mm, ZOOM: IFDRational(2, 1)}
    images = photographs(tmp_path, phone, phone, phone, zoomed)
    prior = exif_focal_length(images, "3.jpg")
    assert prior.doubt is None
    assert prior.pixels == pytest.approx(pixels)
    assert len(images.camera_groups("auto")) == 2


def test_equivalent_that_no_zoom_explains_is_refused(tmp_path: Path) -> None:
    phone = {FOCAL_LENGTH: IFDRational(4, 1), IN_35MM: 28}
    zoomed = {**phone, IN_35MM: 140, ZOOM: IFDRational(2, 1)}
    images = photographs(tmp_path, phone, phone, phone, zoomed)
    assert exif_focal_length(images, "3.jpg").doubt == (
        "EXIF tells a focal length of 4 mm that is 140 mm on 35 mm film and a digital"
        " zoom of 2, 35 times as much; other images of the same camera say 7 times"
    )


def test_zoom_of_a_camera_without_others_is_in_the_equivalent(tmp_path: Path) -> None:
    images = photographs(tmp_path, {IN_35MM: 56, ZOOM: IFDRational(2, 1)})
    assert exif_focal_length(images, "0.jpg").pixels == pytest.approx(1120)


def test_zoom_that_is_not_used_is_none(tmp_path: Path) -> None:
    images = photographs(tmp_path, {IN_35MM: 28, ZOOM: IFDRational(0, 1)})
    assert images.infos["0.jpg"].digital_zoom == 1


# -------------------------------------------------------------------- known intrinsics
def test_known_numbers_overrule_everything(tmp_path: Path) -> None:
    images = photographs(tmp_path, {IN_35MM: 32})
    params = [700.0, 350.0, 250.0, -0.1]
    camera = infer_camera(
        images, "0.jpg", DatabaseConfig(camera_params=params, focal_length=500)
    )
    assert camera.params.tolist() == params
    assert camera.has_prior_focal_length


def test_known_numbers_are_of_the_model_that_is_named(tmp_path: Path) -> None:
    """Also where a photograph is looked for in a finished model."""
    images = photographs(tmp_path, {IN_35MM: 32})
    config = DatabaseConfig(
        camera_model="OPENCV", camera_params=[700, 700, 360, 240, 0, 0, 0, 0]
    )
    [camera] = possible_cameras(pycolmap.Reconstruction(), images, "0.jpg", config)
    assert camera.model_name == "OPENCV"
    [guessed] = possible_cameras(
        *(pycolmap.Reconstruction(), images, "0.jpg"),
        DatabaseConfig(camera_model="OPENCV"),
    )
    assert guessed.model_name == "SIMPLE_RADIAL"


def test_known_numbers_go_by_folder(tmp_path: Path) -> None:
    for name in ("left/a/0.png", "right/0.png", "0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (720, 480)).save(tmp_path / name)
    images = ImageSet.scan(tmp_path)
    config = DatabaseConfig(
        camera_model="SIMPLE_PINHOLE",
        camera_params={"left": [600, 360, 240], ".": [500, 360, 240]},
    )
    focals = {
        name: infer_camera(images, name, config).mean_focal_length()
        for name in images.names
    }
    assert focals == {"left/a/0.png": 600, "right/0.png": 500, "0.png": 500}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            [700, 360, 240],
            "database.camera_params: SIMPLE_RADIAL has 4 numbers (f, cx, cy, k) but 3"
            " were given.",
        ),
        (
            [700, 720, 240, 0],
            "database.camera_params: 700, 720, 240, 0 (f, cx, cy, k) is no camera of"
            " 720 x 480 pixels: expected a focal length above 0 and a principal point"
            " inside the image. Give pixels of the file.",
        ),
    ],
)
def test_impossible_numbers_are_refused(
    params: list[float], message: str, tmp_path: Path
) -> None:
    images = photographs(tmp_path, {})
    with pytest.raises(ConfigError) as caught:
        infer_camera(images, "0.jpg", DatabaseConfig(camera_params=params))
    assert str(caught.value) == message
