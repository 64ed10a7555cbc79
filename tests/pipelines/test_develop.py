"""Films and RAW files become photographs of the capture, once."""

from __future__ import annotations

import builtins
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import sfmprep as sp
from sfmprep.capture import frames as frames_module
from sfmprep.capture.masks import check_masks, read_mask
from sfmprep.capture.raw import develop_raw
from sfmprep.cli.commands import run
from sfmprep.config.load import load_recipe
from sfmprep.errors import ImageError, WeightsError
from sfmprep.models.flow.raft import Raft
from sfmprep.models.flow.raft_network import RaftNetwork
from sfmprep.pipelines.develop import find_capture
from sfmprep.pipelines.rigs import find_rigs
from tests.support.films import Walk, add_subtitles, sound_only, write_film
from tests.support.pictures import picture, write
from tests.support.raw import write_dng

RECIPE = load_recipe("sift")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    walk = Walk()
    folder = tmp_path_factory.mktemp("film")
    return write_film(folder / "walk.mp4", [walk.at(2 * k) for k in range(40)])


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the films that are decoded."""
    names: list[str] = []
    read = frames_module.read_frames

    def noted(path: Path, passes_over):
        names.append(path.name)
        return read(path, passes_over)

    monkeypatch.setattr(frames_module, "read_frames", noted)
    return names


# ------------------------------------------------------------------------------ films
def test_film_is_a_capture(film: Path, tmp_path: Path, decoded: list[str]) -> None:
    images = find_capture(film, tmp_path / "out", RECIPE)
    assert images.root == tmp_path / "out" / "work" / "developed"
    assert images.source == film
    assert images.names == images.films[0].frames
    assert all(name.startswith("walk/00h00m0") for name in images.names)
    assert images.read_pixels(images.names[0]).shape == (120, 160, 3)
    assert len(images.camera_groups("auto")) == 1
    again = find_capture(film, tmp_path / "out", RECIPE)
    assert (again.names, again.films) == (images.names, images.films)
    assert decoded == ["walk.mp4"]


def test_scan_makes_photographs_of_films_where_told(
    film: Path, tmp_path: Path, decoded: list[str]
) -> None:
    images = sp.scan(film, out=tmp_path / "out", film=sp.FilmConfig(frames=4))
    assert len(images) == 4
    assert images.names == images.films[0].frames
    assert images.read_pixels(images.names[0]).shape == (120, 160, 3)
    again = sp.scan(str(film), out=str(tmp_path / "out"), film=sp.FilmConfig(frames=4))
    assert again.names == images.names
    assert decoded == ["walk.mp4"]
    write(film.parent / "a.jpg")
    assert sp.scan(film.parent).passed_over == ("walk.mp4",)
    with pytest.raises(sp.ConfigError) as caught:
        sp.scan(film.parent, film=sp.FilmConfig())
    (film.parent / "a.jpg").unlink()
    assert str(caught.value) == ("film without out: name the folder that frames go to.")


def test_films_and_photographs_are_one_capture(film: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write(folder / "a.jpg")
    write(folder / "IMG_1.JPG", picture(seed=1))
    shutil.copy(film, folder / "img_1.MOV")  # a live photograph
    (folder / "sub").mkdir()
    shutil.copy(film, folder / "sub" / "walk.mp4")
    images = find_capture(folder, tmp_path / "out", RECIPE)
    own = [name for name in images.names if not name.startswith("sub/walk/")]
    assert own == ["IMG_1.JPG", "a.jpg"]
    assert images.root == folder == images.source
    frame = images.films[0].frames[0]
    assert images.path(frame) == tmp_path / "out" / "work" / "developed" / frame
    assert images.path("a.jpg") == folder / "a.jpg"


def test_only_what_changed_is_made_anew(
    film: Path, tmp_path: Path, decoded: list[str]
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    shutil.copy(film, folder / "a.mp4")
    find_capture(folder, out, RECIPE)
    write_film(folder / "b.mp4", [Walk(5).at(2 * k) for k in range(20)])
    first = find_capture(folder, out, RECIPE)
    assert decoded == ["a.mp4", "b.mp4"]
    first.path(first.films[1].frames[0]).unlink()
    assert find_capture(folder, out, RECIPE).names == first.names
    assert decoded == ["a.mp4", "b.mp4", "b.mp4"]
    more = load_recipe("sift", ["film.max_overlap=0.95"])
    assert len(find_capture(folder, out, more)) > len(first)
    assert decoded[3:] == ["a.mp4", "b.mp4"]
    (folder / "b.mp4").unlink()
    assert len(find_capture(folder, out, more).films) == 1


def test_the_table_of_an_earlier_version_is_no_damage(
    film: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "out"
    names = find_capture(film, out, RECIPE).names
    path = out / "work" / "developed.json"
    table = json.loads(path.read_text("utf-8"))
    for entry in table.values():  # without the time of change, which came later
        size, modified, _, sha256 = entry["digest"]
        entry["digest"] = [size, modified, sha256]
    path.write_text(json.dumps(table), "utf-8")
    caplog.clear()
    monkeypatch.setattr(frames_module, "take_frames", None)  # it would fail
    assert find_capture(film, out, RECIPE).names == names
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == []
    (entry,) = json.loads(path.read_text("utf-8")).values()
    *seen, sha256 = entry["digest"]
    assert sha256 == table["walk.mp4"]["digest"][-1]
    assert len(seen) == 3 and seen[0] == film.stat().st_size


def test_frames_are_chosen_by_the_flow_of_the_recipe(
    film: Path, tmp_path: Path, decoded: list[str], monkeypatch
) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "raft.safetensors"
    save_file(RaftNetwork(is_small=True).state_dict(), weights)
    sizes = []

    def still(self, pairs, starts=None):
        sizes.extend(first.size for first, _ in pairs)
        return [np.zeros((*first.size[::-1], 2), np.float32) for first, _ in pairs]

    monkeypatch.setattr(Raft, "flow", still)
    flow = f"film.flow={{type: raft, weights: {weights}}}"
    images = find_capture(film, tmp_path / "out", load_recipe("sift", [flow]))
    assert len(images) == 1  # by this flow nothing moves
    assert set(sizes) == {(480, 360)}
    find_capture(film, tmp_path / "out", load_recipe("sift", [flow]))
    assert decoded == ["walk.mp4"]
    assert len(find_capture(film, tmp_path / "out", RECIPE)) > 1
    assert decoded == ["walk.mp4"] * 2


def test_flow_without_its_weights_is_told_before_a_film_is_decoded(
    film: Path, tmp_path: Path, decoded: list[str]
) -> None:
    recipe = load_recipe("sift", ["film.flow={type: raft, model: raft-basic}"])
    with pytest.raises(WeightsError, match="raft-basic"):
        find_capture(film, tmp_path / "out", recipe)
    assert decoded == []


def test_without_developing_nothing_is_made(
    film: Path, tmp_path: Path, decoded: list[str]
) -> None:
    with pytest.raises(ImageError):
        find_capture(film, tmp_path / "out", RECIPE, develops=False)
    assert decoded == []
    assert not (tmp_path / "out").exists()


def test_two_films_of_one_name(film: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(film, folder / "walk.mov")
    shutil.copy(film, folder / "walk.mp4")
    images = find_capture(folder, tmp_path / "out", RECIPE)
    assert images.unreadable == {
        "walk.mp4": "it has the name of walk.mov, which is used; rename it"
    }
    assert len(images.films) == 1


def test_film_that_cannot_be_used_is_left_out(film: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(film, folder / "a.mp4")
    (folder / "b.mp4").write_bytes(sound_only())
    images = find_capture(folder, tmp_path / "out", RECIPE)
    assert images.unreadable == {
        "b.mp4": "it holds sound but no picture; give the film itself"
    }
    assert images.passed_over == ()


def test_film_alone_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "b.mp4"
    path.write_bytes(b"")
    with pytest.raises(ImageError) as caught:
        find_capture(path, tmp_path / "out", RECIPE)
    assert str(caught.value) == f"{path}: the file is empty; copy it again"


def test_film_by_another_name_says_so(film: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write(folder / "a.jpg")
    shutil.copy(film, folder / "b.jpg")
    assert find_capture(folder, tmp_path / "out", RECIPE).unreadable == {
        "b.jpg": "its content is that of a film; give it the ending of one, such as"
        " .mp4"
    }


def test_film_in_which_nothing_moves_ends_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_film(tmp_path / "a.mp4", [Walk().at(0)] * 31)
    assert run(["reconstruct", str(path), str(tmp_path / "out")]) == 1
    printed = " ".join(capsys.readouterr().err.split())
    assert (
        "In the 1.0 s of a.mp4 nothing moves, so one frame is all that it gives. Walk"
        " around what you film." in printed
    )
    assert "poses need at least two" in printed
    assert "Traceback" not in printed


# -------------------------------------------------------------------- films of spheres
def test_film_of_spheres_becomes_views(tmp_path: Path, decoded: list[str]) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    walk = Walk(size=(512, 256))
    write_film(folder / "walk.mp4", [walk.at(4 * k) for k in range(40)])
    (folder / "walk.SRT").write_text(subtitles(1e-5))
    recipe = load_recipe("sift", ["panorama.cut=always"])
    images = find_capture(folder, out, recipe)
    (film,) = images.films
    number = len(film.frames)
    assert number > 2 and len(film.views) == 8
    assert f"{number} of 40 frames" in film.summary()
    assert " in 8 views each are used" in film.summary()
    assert len(images) == 8 * number == 8 * len(images.panoramas)
    assert {panorama.film for panorama in images.panoramas} == {"walk.mp4"}
    assert not (out / "work" / "developed" / "walk").exists()
    assert film.shots() == [
        [f"{view}{frame}" for frame in film.frames] for view in film.views
    ]
    assert sorted(name for shot in film.shots() for name in shot) == list(images.names)
    assert film.frames[0].startswith("walk/00h00m00s")
    assert film.views[0] == "panorama-160/y000p+20/"
    assert images.infos[images.names[0]].size == (160, 160)
    assert all(info.gps is not None for info in images.infos.values())
    (rig,) = find_rigs(images, recipe)
    assert [camera["image_prefix"] for camera in rig["cameras"]] == list(film.views)
    assert len(images.camera_groups("auto")) == 8
    again = find_capture(folder, out, recipe)
    assert (again.names, again.films) == (images.names, images.films)
    assert decoded == ["walk.mp4"]


def test_one_mask_is_that_of_all_spheres_of_a_film(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    walk = Walk(size=(512, 256))
    write_film(folder / "walk.mp4", [walk.at(4 * k) for k in range(20)])
    mask = np.full((256, 512), 255, np.uint8)
    mask[128:] = 0
    cv2.imwrite(str(tmp_path / "nadir.png"), mask)
    settings = ["panorama.cut=always", f"masks={tmp_path / 'nadir.png'}"]
    images = find_capture(folder, tmp_path / "out", load_recipe("sift", settings))
    check_masks(images)
    assert all(name.endswith(".png") for name in images.names)
    assert sorted(n for shot in images.films[0].shots() for n in shot) == list(
        images.names
    )
    used = read_mask(images, images.names[0])
    assert used is not None
    assert 0.3 < used.mean() < 0.9


def test_film_of_two_lenses_is_named(film: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write(folder / "a.jpg")
    shutil.copy(film, folder / "VID_1.insv")
    reason = find_capture(folder, tmp_path / "out", RECIPE).unreadable["VID_1.insv"]
    assert reason.startswith("it shows the two lenses of a 360° camera, not joined yet")


# ------------------------------------------------------------------------- subtitles
def subtitles(step: float, number: int = 40) -> str:
    """Of a drone that flies east, `step` degrees a frame."""
    return "".join(
        f"{k + 1}\n00:00:0{k // 30},{k % 30 * 1000 // 30:03} --> 00:00:09,000\n"
        f"FrameCnt: {k + 1}, [latitude: 52.0] [longitude: {13 + step * k:.6f}]"
        f" [rel_alt: 9.0 abs_alt: 40.5] [gb_pitch: -90.0 gb_roll: 0.0]\n\n"
        for k in range(number)
    )


TEXTS = subtitles(1e-5).strip().split("\n\n")


def test_subtitles_of_a_drone_place_the_frames(
    film: Path, tmp_path: Path, decoded: list[str]
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    shutil.copy(film, folder / "DJI_1.MP4")
    (folder / "DJI_1.SRT").write_text(subtitles(1e-5))
    images = find_capture(folder, out, RECIPE)
    (taken,) = images.films
    assert taken.num_located == len(images) > 2
    assert f", {len(images)} with a position by DJI_1.SRT, are used" in taken.summary()
    for name, seconds in zip(taken.frames, taken.times, strict=True):
        info = images.infos[name]
        longitude = 13 + 1e-5 * round(30 * seconds)
        assert info.gps == pytest.approx((52.0, longitude, 40.5), abs=1e-6)
        assert info.height_m == 9
        assert info.gravity == pytest.approx((0, 0, 1), abs=1e-9)
    assert find_capture(folder, out, RECIPE).films == images.films
    (folder / "DJI_1.SRT").write_text(subtitles(2e-5, 10))
    (taken,) = find_capture(folder, out, RECIPE).films
    assert decoded == ["DJI_1.MP4", "DJI_1.MP4"]
    assert [remark.text for remark in taken.remarks()] == []  # of 2 s, all are near


def test_subtitles_inside_a_film_place_the_frames(film: Path, tmp_path: Path) -> None:
    """In place of those beside it; a track of other words does not count."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    path = Path(shutil.copy(film, folder / "DJI_1.MP4"))
    said = [text.partition("\n")[2].partition("\n")[2] for text in TEXTS]
    add_subtitles(path, ["Ein schöner Tag", "..."])
    add_subtitles(path, said)
    images = find_capture(folder, out, RECIPE)
    (taken,) = images.films
    assert taken.num_located == len(images) > 2
    assert taken.subtitles == "the text track of DJI_1.MP4"
    for name, seconds in zip(taken.frames, taken.times, strict=True):
        gps = images.infos[name].gps
        assert gps is not None
        assert gps == pytest.approx((52, 13 + 3e-4 * seconds, 40.5), abs=1e-6)


def test_subtitles_that_are_of_no_use_are_named(film: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(film, folder / "a.mp4")
    (folder / "a.srt").write_text("1\n00:00:00,000 --> 00:00:09,000\nHello.\n")
    images = find_capture(folder, tmp_path / "out", RECIPE)
    assert [tuple(remark) for remark in images.films[0].remarks()] == [
        (
            "a.srt beside a.mp4 is not used: none of its 1 subtitles tells a position"
            " as DJI's drones do.",
            "Copy it from the drone again for metres and north; else it does no harm.",
        )
    ]
    assert images.infos[images.names[0]].gps is None
    assert images.passed_over == ()


# -------------------------------------------------------------------------------- RAW
def colours() -> np.ndarray:
    """Grey ones: what a camera's matrix makes of others is not of interest here."""
    grey = picture(64, 48)[..., :1] // 2 + 40
    return np.repeat(grey, 3, axis=2).astype(np.uint8)


def test_raw_is_developed_as_stored(tmp_path: Path) -> None:
    pytest.importorskip("rawpy", reason="the extra raw is not installed")
    write_dng(tmp_path / "in" / "a.DNG", colours(), orientation=6)
    write_dng(tmp_path / "in" / "b.dng", colours()[::-1])
    write(tmp_path / "in" / "b.jpg")  # what the camera made of it
    images = find_capture(tmp_path / "in", tmp_path / "out", RECIPE)
    assert images.names == ("a.jpg", "b.jpg")
    info = images.infos["a.jpg"]
    assert (info.size, info.orientation) == ((64, 48), 6)
    assert (info.make, info.model) == ("Maker", "Model 1")
    assert images.path("b.jpg") == tmp_path / "in" / "b.jpg"
    assert images.developed is not None
    assert images.developed.names == {"a.jpg"}
    developed, expected = (
        pixels.mean(axis=2).ravel()
        for pixels in (images.read_pixels("a.jpg"), colours())
    )
    assert np.corrcoef(developed, expected)[0, 1] > 0.9


def test_raw_without_rawpy_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args, **options):
        if name == "rawpy":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImageError) as caught:
        develop_raw(tmp_path / "a.dng", tmp_path / "a.jpg")
    assert str(caught.value) == (
        "RAW cannot be read; install sfmprep[raw], or develop it to JPEG or to TIFF of"
        " 16 bits"
    )


def test_damaged_raw_is_left_out(tmp_path: Path) -> None:
    pytest.importorskip("rawpy", reason="the extra raw is not installed")
    write(tmp_path / "in" / "b.jpg")
    (tmp_path / "in" / "a.nef").write_bytes(b"no RAW file" * 100)
    images = find_capture(tmp_path / "in", tmp_path / "out", RECIPE)
    assert list(images.unreadable) == ["a.nef"]
    assert images.unreadable["a.nef"].startswith("rawpy cannot read it (")
    assert images.unreadable["a.nef"].endswith("or develop it to JPEG")


# ----------------------------------------------------------------------------- whole
@pytest.mark.slow
def test_film_becomes_a_dataset(demo_scene: Path, tmp_path: Path, capsys) -> None:
    """The demo scene as a film: between its photographs the camera stands still."""
    pictures = [
        cv2.resize(cv2.imread(str(path)), (480, 360), interpolation=cv2.INTER_AREA)
        for path in sorted((demo_scene / "images").iterdir())
    ]
    path = write_film(tmp_path / "walk.mp4", [p for p in pictures for _ in range(4)])
    out = tmp_path / "out"
    settings = ["--recipe", "sift", "--set", "features.max_keypoints=1500"]
    assert run(["reconstruct", str(path), str(out), *settings]) == 0
    capsys.readouterr()
    used = sorted(file.name for file in (out / "images").rglob("*.jpg"))
    assert 6 <= len(used) <= len(pictures)
    page = (out / "report.html").read_text("utf-8")
    assert "<h2>Films</h2>" in page
    assert "walk.mp4" in page
    assert run(["status", str(path), str(out), *settings]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["develop", "done", str(out / "work" / "developed")]
    assert all("done" in line for line in lines)
