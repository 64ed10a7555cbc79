"""Panoramas and the views that are cut from them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image

from sfmprep.capture.exif import Moment
from sfmprep.capture.image_file import read_info
from sfmprep.capture.image_set import ImageSet
from sfmprep.capture.panorama import (
    Panorama,
    View,
    cut_panorama,
    focal_px,
    is_cut,
    panorama_rigs,
    views_of,
)
from sfmprep.errors import ImageError
from sfmprep.mapping.focal_priors import exif_focal_length
from sfmprep.types import Bytes, Float64

VIEWS = views_of((20, -20), 4)
GPANO = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF'
    b' xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description'
    b' xmlns:GPano="http://ns.google.com/photos/1.0/panorama/"'
    b' GPano:ProjectionType="equirectangular"/></rdf:RDF></x:xmpmeta>'
)


def sphere(width: int) -> Bytes:
    """Colours that are the direction: 127.5 + 127.5 (x, y, z) of the rig's axes."""
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(width // 2) + 0.5)
    longitude = (columns / width - 0.5) * 2 * np.pi
    latitude = (0.5 - rows / (width // 2)) * np.pi
    rays = np.dstack(
        [
            np.sin(longitude) * np.cos(latitude),
            -np.sin(latitude),
            np.cos(longitude) * np.cos(latitude),
        ]
    )
    return np.round(127.5 + 127.5 * rays).astype(np.uint8)


def save(path: Path, pixels: Bytes, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def rays_of(side: int) -> Float64:
    camera = pycolmap.Camera.create_from_model_name(
        0, "SIMPLE_PINHOLE", focal_px(side), side, side
    )
    x, y = np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5)
    xy = np.column_stack([x.ravel(), y.ravel()])
    rays = np.asarray(camera.cam_ray_from_img(xy))
    return (rays / np.linalg.norm(rays, axis=1)[:, None]).reshape(side, side, 3)


def test_every_pixel_of_a_view_shows_its_direction(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", sphere(512))
    panorama = cut_panorama(path, "a.png", tmp_path / "out", VIEWS)
    assert (panorama.side, len(panorama.views)) == (160, 8)
    rays = rays_of(panorama.side)
    for view, name in zip(VIEWS, panorama.views, strict=True):
        shown = np.asarray(Image.open(tmp_path / "out" / name), np.float64)
        expected = 127.5 + 127.5 * rays @ view.rig_from_view.T
        # the seam at the back too: a view of a whole turn's end has no gap
        assert np.abs(shown - expected).max() < 6, name
        assert np.abs(shown - expected).mean() < 1, name


def test_views_turn_right_and_up() -> None:
    assert [view.name for view in VIEWS] == [
        *("y000p+20", "y090p+20", "y180p+20", "y270p+20"),
        *("y045p-20", "y135p-20", "y225p-20", "y315p-20"),
    ]
    ahead = View(90, 30).rig_from_view @ (0, 0, 1)
    np.testing.assert_allclose(ahead, [np.sqrt(0.75), -0.5, 0], atol=1e-12)


def test_every_direction_but_the_caps_is_in_a_view() -> None:
    rng = np.random.default_rng(0)
    rays = rng.normal(size=(2000, 3))
    rays /= np.linalg.norm(rays, axis=1)[:, None]
    rays = rays[np.abs(rays[:, 1]) < np.sin(np.radians(60))]
    half = 0.5 / focal_px(1)
    seen = np.zeros(len(rays), np.bool_)
    for view in VIEWS:
        local = rays @ view.rig_from_view
        inside = (np.abs(local[:, :2]) < half * local[:, 2:]).all(axis=1)
        seen |= inside & (local[:, 2] > 0)
    assert seen.mean() > 0.99


def test_exif_of_a_view_tells_its_focal_length_exactly(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 30.0, 0.0), 3: "E", 4: (13, 24, 0)})
    exif.get_ifd(0x8769).update({0x829A: 0.01, 0x9003: "2026:05:01 10:00:00"})
    exif.get_ifd(0x8769).update({0x9291: "25", 0x9011: "+02:00", 0xA431: "7"})
    taken = Moment(datetime(2026, 5, 1, 8, tzinfo=UTC).timestamp() + 0.25, is_utc=True)
    path = save(tmp_path / "a.jpg", sphere(1024), exif=exif)
    panorama = cut_panorama(path, "a.jpg", tmp_path / "out", VIEWS)
    images = ImageSet.scan(tmp_path / "out")
    assert images.names == tuple(sorted(panorama.views))
    for name in images.names:
        assert images.infos[name].size == (panorama.side, panorama.side)
        assert images.infos[name].gps == pytest.approx((52.5, 13.4, None))
        assert images.infos[name].taken == taken
        assert images.infos[name].serial is None  # folders tell the views apart
        focal = exif_focal_length(images, name).pixels
        assert focal == pytest.approx(focal_px(panorama.side), rel=1e-12)


def test_mask_becomes_the_transparency_of_views(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", sphere(512))
    mask = np.ones((256, 512), np.bool_)
    mask[180:] = False  # 36 degrees down and more
    panorama = cut_panorama(path, "sub/a.jpg", tmp_path / "out", VIEWS, mask=mask)
    rays = rays_of(panorama.side)
    limit = np.sin(np.radians((180 / 256 - 0.5) * 180))
    for view, name in zip(VIEWS, panorama.views, strict=True):
        assert name.endswith("/sub/a.png")
        shown = np.asarray(Image.open(tmp_path / "out" / name))
        is_used = (rays @ view.rig_from_view.T)[..., 1] < limit
        assert ((shown[..., 3] > 0) != is_used).mean() < 0.02
        assert set(np.unique(shown[..., 3])) <= {0, 255}


@pytest.mark.parametrize(
    ("size", "options", "which", "expected"),
    [
        ((2048, 1024), {}, "auto", True),
        ((2048, 1024), {"crop": 400}, "auto", False),  # of that shape by chance
        ((2048, 1024), {"crop": 400}, "always", True),
        ((1024, 512), {}, "auto", False),
        ((1024, 512), {}, "always", True),
        ((1024, 512), {"xmp": GPANO}, "auto", True),
        ((1024, 512), {"xmp": GPANO}, "never", False),
        ((1024, 400), {"xmp": GPANO}, "auto", False),  # a part of the sphere
        ((2048, 1024), {"focal": True}, "auto", False),
        ((2048, 1024), {"focal": True}, "always", True),
    ],
)
def test_whole_spheres_are_cut(
    size: tuple[int, int],
    options: dict[str, object],
    which: str,
    expected: bool,
    tmp_path: Path,
) -> None:
    exif = Image.Exif()
    if options.pop("focal", False):
        exif.get_ifd(0x8769)[0xA405] = 28
    crop = options.pop("crop", 0)
    pixels = sphere(size[0] + 2 * crop)[crop : crop + size[1], : size[0]]
    path = save(tmp_path / "a.jpg", pixels, exif=exif, **options)
    assert is_cut(path, which) is expected


def test_two_lenses_are_looked_at_to_be_named(tmp_path: Path) -> None:
    assert is_cut(save(tmp_path / "a.png", two_lenses(1024)), "auto")


def test_what_is_no_image_is_not_cut(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    assert not is_cut(tmp_path / "a.jpg", "always")
    assert not is_cut(tmp_path / "none.jpg", "always")


def test_turned_panoramas_are_refused(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "a.jpg", sphere(512), exif=exif)
    with pytest.raises(ImageError) as caught:
        cut_panorama(path, "a.jpg", tmp_path / "out", VIEWS)
    assert str(caught.value) == (
        "a 360° panorama that EXIF turns, which no camera writes; save it upright"
    )


def gpano(width: int, height: int, left: int, top: int, full: int) -> bytes:
    """XMP of a part of a sphere of `full` x `full / 2` pixels."""
    told = (
        f' GPano:CroppedAreaImageWidthPixels="{width}"'
        f' GPano:CroppedAreaImageHeightPixels="{height}"'
        f' GPano:CroppedAreaLeftPixels="{left}" GPano:CroppedAreaTopPixels="{top}"'
        f' GPano:FullPanoWidthPixels="{full}"'
        f' GPano:FullPanoHeightPixels="{full // 2}"/>'
    )
    return GPANO.replace(b"/></rdf:RDF>", told.encode() + b"</rdf:RDF>")


@pytest.mark.parametrize(
    ("left", "top", "width", "height", "num_views"),
    [
        (0, 40, 512, 216, 8),  # without what is straight above: no part of any view
        (0, 100, 512, 100, 8),  # a band along the horizon
        (256, 0, 256, 256, 5),  # the right half
        (300, 60, 150, 100, 3),
    ],
)
def test_a_part_of_a_sphere_is_cut_where_it_shows_something(
    left: int, top: int, width: int, height: int, num_views: int, tmp_path: Path
) -> None:
    part = sphere(512)[top : top + height, left : left + width]
    xmp = gpano(width, height, left, top, 512)
    path = tmp_path / "a.jpg"
    Image.fromarray(part).save(path, quality=100, subsampling=0, xmp=xmp)
    assert is_cut(path, "auto")
    panorama = cut_panorama(path, "a.jpg", tmp_path / "out", VIEWS)
    assert (panorama.side, len(panorama.views)) == (160, num_views)
    rays = rays_of(panorama.side)
    shares = []
    for view in VIEWS:
        name = f"panorama-160/{view.name}/a.png"
        if name not in panorama.views:
            continue
        shown = np.asarray(Image.open(tmp_path / "out" / name), np.float64)
        used = shown[..., 3] == 255
        assert set(np.unique(shown[..., 3])) <= {0, 255}
        expected = 127.5 + 127.5 * rays @ view.rig_from_view.T
        off = np.abs(shown[..., :3] - expected)[used]
        assert off.max() < 9 and off.mean() < 1.5, name
        directions = rays @ view.rig_from_view.T
        longitude = np.arctan2(directions[..., 0], directions[..., 2])
        latitude = np.arcsin(-directions[..., 1])
        column = (longitude / (2 * np.pi) + 0.5) * 512
        row = (0.5 - latitude / np.pi) * 256
        inside = (row > top) & (row < top + height)
        inside &= (column > left) & (column < left + width)
        assert not (used & ~inside).any(), name
        shares.append(used.sum() / inside.sum())
    assert min(shares) > 0.8  # but for a border of two pixels
    (rig,) = panorama_rigs([panorama], VIEWS)
    prefixes = [camera["image_prefix"] for camera in rig["cameras"]]
    assert prefixes == [name.removesuffix("a.png") for name in panorama.views]
    assert rig["cameras"][0]["ref_sensor"]


def test_a_part_that_no_view_reaches_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    part = np.full((40, 512, 3), 99, np.uint8)
    Image.fromarray(part).save(path, xmp=gpano(512, 40, 0, 0, 512))
    with pytest.raises(ImageError) as caught:
        cut_panorama(path, "a.jpg", tmp_path / "out", VIEWS)
    assert str(caught.value) == (
        "a part of a 360° panorama that no view reaches; let views look there, for"
        " example --set panorama.pitches_deg=[60,0,-60]"
    )


@pytest.mark.parametrize(
    ("size", "xmp"),
    [
        ((512, 200), gpano(512, 256, 0, 0, 512)),  # its shape is another one
        ((512, 200), gpano(512, 200, 9, 0, 512)),  # it sticks out
        ((512, 200), gpano(0, 200, 0, 0, 512)),
    ],
)
def test_parts_that_cannot_be_are_not_cut(
    size: tuple[int, int], xmp: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", size).save(path, xmp=xmp)
    assert not is_cut(path, "always")


def two_lenses(height: int) -> Bytes:
    """Two circles of noise in the dark."""
    noise = np.random.default_rng(0).integers(90, 256, (height, height, 3), np.uint8)
    y, x = np.mgrid[:height, :height] / height - 0.5
    lens = noise * (x**2 + y**2 < 0.25)[..., None].astype(np.uint8)
    return np.hstack([lens, lens])


def test_two_lenses_side_by_side_are_no_sphere(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", two_lenses(128))
    with pytest.raises(ImageError) as caught:
        cut_panorama(path, "a.png", tmp_path / "out", VIEWS)
    assert str(caught.value) == (
        "it shows the two lenses of a 360° camera, not joined yet; export it as a 360°"
        " photograph with the camera's program"
    )


@pytest.mark.parametrize("layout", ["top-bottom", "left-right"])
def test_of_two_eyes_the_left_one_is_used(layout: str, tmp_path: Path) -> None:
    other = np.zeros((256, 512, 3), np.uint8)
    both = [sphere(512), other]
    stack = np.vstack if layout == "top-bottom" else np.hstack
    path = save(tmp_path / "a.png", stack(both))
    panorama = cut_panorama(path, "a.png", tmp_path / "out", VIEWS, layout=layout)
    alone = save(tmp_path / "b.png", sphere(512))
    expected = cut_panorama(alone, "b.png", tmp_path / "out", VIEWS)
    for name, same in zip(panorama.views, expected.views, strict=True):
        shown, wanted = (Image.open(tmp_path / "out" / n) for n in (name, same))
        np.testing.assert_array_equal(np.asarray(shown), np.asarray(wanted))


def test_tiny_panoramas_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.zeros((8, 16, 3), np.uint8))
    with pytest.raises(ImageError) as caught:
        cut_panorama(path, "a.png", tmp_path / "out", VIEWS)
    assert str(caught.value) == "a 360° panorama of 16 x 8 pixels is too small"


def test_rigs_are_what_colmap_reads(tmp_path: Path) -> None:
    import json

    panoramas = [
        Panorama(
            name=f"{side}.jpg",
            side=side,
            views=tuple(f"panorama-{side}/{v.name}/{side}.jpg" for v in VIEWS),
        )
        for side in (160, 320, 160)
    ]
    content = panorama_rigs(panoramas, VIEWS)
    (tmp_path / "rigs.json").write_text(json.dumps(content))
    rigs = pycolmap.read_rig_config(tmp_path / "rigs.json")
    assert [len(rig.cameras) for rig in rigs] == [8, 8]
    for side, rig in zip((160, 320), rigs, strict=True):
        for view, camera in zip(VIEWS, rig.cameras, strict=True):
            assert camera.image_prefix == f"panorama-{side}/{view.name}/"
            assert camera.camera.params.tolist() == [focal_px(side), side / 2, side / 2]
            if view is VIEWS[0]:
                assert camera.ref_sensor
                continue
            expected = view.rig_from_view.T @ VIEWS[0].rig_from_view
            found = camera.cam_from_rig.rotation.matrix()
            np.testing.assert_allclose(found, expected, atol=1e-9)
            assert not np.any(camera.cam_from_rig.translation)
    assert panorama_rigs([], VIEWS) == []


def test_header_of_a_view_is_whole(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", sphere(512))
    panorama = cut_panorama(path, "a.jpg", tmp_path / "out", VIEWS)
    info = read_info(tmp_path / "out" / panorama.views[0])
    assert (info.make, info.model) == ("sfmprep", "view of a panorama")
    assert info.orientation == 1 and not info.has_alpha
