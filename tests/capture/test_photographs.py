"""What of a folder is used, each photograph once, and what is said about the rest."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sfmprep.capture import photographs
from sfmprep.capture.image_set import ImageSet
from sfmprep.capture.photographs import find_photographs
from sfmprep.errors import ImageError
from tests.support.pictures import picture, write

PANORAMA_XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description'
    b' GPano:ProjectionType="equirectangular"/></x:xmpmeta>'
)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture):
    def messages() -> list[str]:
        return [record.getMessage() for record in caplog.records]

    return messages


# ---------------------------------------------------------------------------- layouts
def test_photographs_of_a_scene_lie_in_images(tmp_path: Path, said) -> None:
    for k in range(3):
        write(tmp_path / "images" / f"{k}.png", picture(seed=k))
        write(tmp_path / "images_2" / f"{k}.png", picture(30, 20, seed=k))
        write(tmp_path / "masks" / f"{k}.png", picture(seed=9) * 0)
        write(tmp_path / "depth" / f"{k}.png", picture(seed=10 + k))
    (tmp_path / "sparse" / "0").mkdir(parents=True)
    images = find_photographs(tmp_path)
    assert images.root == tmp_path / "images"
    assert images.names == ("0.png", "1.png", "2.png")
    assert images.unreadable == {}
    assert said() == [
        f"{tmp_path} is a scene: its photographs are taken from {tmp_path}/images"
        " alone; not read is what lies in depth, images_2, masks, sparse"
    ]


def test_photographs_of_a_scene_may_lie_in_input(tmp_path: Path) -> None:
    write(tmp_path / "input" / "a.png")
    (tmp_path / "distorted").mkdir()
    assert find_photographs(tmp_path).root == tmp_path / "input"


def test_masks_of_a_scene_can_be_given(tmp_path: Path, said) -> None:
    write(tmp_path / "images" / "a.png")
    write(tmp_path / "masks" / "a.png")
    images = find_photographs(tmp_path, mask_root=tmp_path / "masks")
    assert (images.names, images.mask_root) == (("a.png",), tmp_path / "masks")
    assert said() == [
        f"{tmp_path} is a scene: its photographs are taken from {tmp_path}/images alone"
    ]


@pytest.mark.parametrize("other", ["0.png", "masks/0.png", "left/0.png"])
def test_other_folders_are_no_scene(tmp_path: Path, other: str) -> None:
    if other != "masks/0.png":
        write(tmp_path / "images" / "1.png")
    write(tmp_path / "sparse" / "2.png", picture(seed=1)) if "/" not in other else None
    write(tmp_path / other, picture(seed=2))
    assert find_photographs(tmp_path).root == tmp_path
    assert other in find_photographs(tmp_path).names


def test_missing_folder_is_said_as_by_the_scan(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        find_photographs(tmp_path / "no")
    assert str(caught.value) == (
        f"the image folder {tmp_path}/no does not exist. Check the path for typing"
        " errors."
    )


# ------------------------------------------------------------------------- duplicates
def test_file_with_the_content_of_another_is_used_once(tmp_path: Path, said) -> None:
    write(tmp_path / "a.bmp")
    write(tmp_path / "b.bmp", picture(seed=1))  # of equal size
    (tmp_path / "c").mkdir()
    shutil.copy(tmp_path / "a.bmp", tmp_path / "c" / "other.bmp")
    images = find_photographs(tmp_path)
    assert images.names == ("a.bmp", "b.bmp")
    assert set(images.infos) == {"a.bmp", "b.bmp"}
    assert images.copies == {"c/other.bmp": "a.bmp"}
    assert images.unreadable == {}
    assert said() == []


def test_the_copy_is_that_with_the_longer_name(tmp_path: Path) -> None:
    write(tmp_path / "a.bmp")
    shutil.copy(tmp_path / "a.bmp", tmp_path / "a (1).bmp")
    images = find_photographs(tmp_path)
    assert images.names == ("a.bmp",)
    assert images.copies == {"a (1).bmp": "a.bmp"}


def test_files_that_differ_in_one_byte_are_both_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photographs, "_SAMPLE_BYTES", 64)
    path = write(tmp_path / "a.bmp")
    data = bytearray(path.read_bytes())
    data[len(data) // 4] ^= 1
    (tmp_path / "b.bmp").write_bytes(data)
    assert find_photographs(tmp_path).names == ("a.bmp", "b.bmp")


def test_only_files_of_one_size_are_read_for_their_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.png", picture(seed=1))
    write(tmp_path / "b.png", picture(seed=2))
    sizes = {path.stat().st_size for path in tmp_path.iterdir()}
    assert len(sizes) == 2
    monkeypatch.setattr(photographs, "_sample", None)
    assert len(find_photographs(tmp_path)) == 2


def test_copies_at_another_scale_are_named(tmp_path: Path, said) -> None:
    for k in range(3):
        write(tmp_path / "full" / f"{k}.jpg", picture(61, 40, seed=k))
        write(tmp_path / "half" / f"{k}.png", picture(30, 20, seed=k))
    assert len(find_photographs(tmp_path)) == 6
    assert said() == [
        f"3 images in {tmp_path} have the name of another at a fraction of its size,"
        " such as half/0.png at 1/2 of full/0.jpg; if these are copies, give the folder"
        " of the large ones alone"
    ]


@pytest.mark.parametrize("size", [(60, 40), (40, 30), (30, 30)])
def test_two_cameras_are_no_copies(tmp_path: Path, said, size: tuple[int, int]) -> None:
    write(tmp_path / "left" / "0.png")
    write(tmp_path / "right" / "0.png", picture(*size, seed=1))
    assert len(find_photographs(tmp_path)) == 2
    assert said() == []


# -------------------------------------------------------------- panoramas, films, RAW
def test_panoramas_are_named(tmp_path: Path, said) -> None:
    write(tmp_path / "a.jpg", xmp=PANORAMA_XMP)
    write(tmp_path / "b.jpg", picture(2048, 1024))
    write(tmp_path / "c.jpg", picture(64, 32))
    images = find_photographs(tmp_path)
    assert [images.infos[name].is_panorama for name in images.names] == [
        True,
        False,
        False,
    ]
    assert said() == [
        f"2 images in {tmp_path} seem 360° panoramas by their XMP or by their shape of"
        " 2:1, such as a.jpg, but each is taken for one ordinary photograph; those of"
        " the whole sphere are cut into views with --set panorama.cut=always"
    ]


def test_what_is_not_read_is_named_once(tmp_path: Path, said) -> None:
    write(tmp_path / "a.jpg")
    for name in ("b.CR2", "d/c.nef", "film.MP4", "e.gif", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    images = find_photographs(tmp_path)
    assert images.passed_over == ("b.CR2", "d/c.nef", "e.gif", "film.MP4")
    assert said() == [
        f"not read in {tmp_path}: 2 RAW files, such as b.CR2 (develop them to JPEG or"
        " to TIFF of 16 bits); 1 film file, such as film.MP4 (take frames from it"
        f" first, for example: ffmpeg -i {tmp_path}/film.MP4 -vf fps=2 -q:v 2"
        " FRAMES/%05d.jpg); 1 other file, such as e.gif (save them as JPEG or PNG)"
    ]


def test_raw_beside_jpeg_and_live_photographs_are_no_loss(tmp_path: Path, said) -> None:
    write(tmp_path / "IMG_1.JPG")
    for name in ("IMG_1.dng", "img_1.MOV"):
        (tmp_path / name).write_bytes(b"x")
    find_photographs(tmp_path)
    assert said() == []


def test_folder_of_raw_only_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.arw").write_bytes(b"x")
    with pytest.raises(ImageError) as caught:
        ImageSet.scan(tmp_path)
    assert str(caught.value).endswith(
        "; hidden ones do not count. Not read: 1 RAW file, such as a.arw (develop them"
        " to JPEG or to TIFF of 16 bits)"
    )


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("a\tb.jpg", "a\\tb.jpg"),
        ("a\nb.jpg", "a\\nb.jpg"),
        ("\u2028.jpg", "\\u2028.jpg"),
    ],
)
def test_names_with_control_characters_are_left_out(
    tmp_path: Path, name: str, printed: str
) -> None:
    write(tmp_path / "ä\u202f\u3000.jpg")  # odd blanks that phones and systems write
    write(tmp_path / name, picture(seed=1))
    images = find_photographs(tmp_path)
    assert images.names == ("ä\u202f\u3000.jpg",)
    assert images.unreadable == {
        printed: "its name has a tab, a line break or another control character;"
        " rename it"
    }
