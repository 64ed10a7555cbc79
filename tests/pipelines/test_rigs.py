"""Panoramas and rigs on their way through a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfmprep.capture.image_set import ImageSet
from sfmprep.capture.masks import read_mask
from sfmprep.config import Recipe
from sfmprep.config.load import load_recipe
from sfmprep.errors import ConfigError
from sfmprep.pipelines.develop import find_capture
from sfmprep.pipelines.rigs import find_rigs, views_at_one_spot
from sfmprep.pipelines.run import open_run
from sfmprep.pipelines.stage_keys import Keys

PREFIXES = [
    *(f"panorama-160/{v}/" for v in ("y000p+20", "y090p+20", "y180p+20", "y270p+20")),
    *(f"panorama-160/{v}/" for v in ("y045p-20", "y135p-20", "y225p-20", "y315p-20")),
]


def save(path: Path, size: tuple[int, int], seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (8, 16, 3), np.uint8)
    Image.fromarray(noise).resize(size).save(path)
    return path


def recipe(**settings: Any) -> Recipe:
    return load_recipe("sift", [f"{key}={value}" for key, value in settings.items()])


def cut(tmp_path: Path, **settings: Any) -> ImageSet:
    settings = {"panorama.cut": "always", **settings}
    return find_capture(tmp_path / "photos", tmp_path / "out", recipe(**settings))


def test_panoramas_are_taken_as_their_views(tmp_path: Path) -> None:
    for k, name in enumerate(("a.jpg", "sub/b.jpg")):
        save(tmp_path / "photos" / name, (512, 256), k)
    save(tmp_path / "photos" / "plain.jpg", (64, 48))
    images = cut(tmp_path)
    views = [p + name for p in PREFIXES for name in ("a.jpg", "sub/b.jpg")]
    assert images.names == tuple(sorted([*views, "plain.jpg"]))
    assert images.views_of_panoramas["panorama-160/y000p+20/sub/b.jpg"] == "sub/b.jpg"
    assert {images.infos[name].size for name in views} == {(160, 160)}
    pairs = set(views_at_one_spot(images))
    assert len(pairs) == 2 * 28
    assert all(a < b and a[-5:] == b[-5:] for a, b in pairs)
    rig, *others = find_rigs(images, recipe())
    assert not others and [c["image_prefix"] for c in rig["cameras"]] == PREFIXES
    groups = images.camera_groups("auto")
    assert len(groups) == 8 * 2 + 1


def test_views_are_cut_again_where_something_changed(tmp_path: Path) -> None:
    save(tmp_path / "photos" / "a.png", (512, 256))
    images = cut(tmp_path)
    view = images.path(images.names[0])
    first = view.stat().st_mtime_ns
    cut(tmp_path)
    assert view.stat().st_mtime_ns == first
    mask = save(tmp_path / "masks" / "a.png", (512, 256), 1)
    Image.new("L", (512, 256), 255).save(mask)
    masked = cut(tmp_path, masks=tmp_path / "masks")
    assert all(name.endswith(".png") for name in masked.names)
    assert all(masked.infos[name].has_alpha for name in masked.names)
    other = masked.path(masked.names[0]).read_bytes()
    Image.new("L", (512, 256), 0).save(mask)
    again = cut(tmp_path, masks=tmp_path / "masks")
    assert again.path(again.names[0]).read_bytes() != other


def test_one_mask_is_that_of_all(tmp_path: Path) -> None:
    save(tmp_path / "photos" / "a.jpg", (64, 48))
    save(tmp_path / "photos" / "b.jpg", (128, 96))
    mask = Image.new("L", (64, 48), 255)
    mask.paste(0, (0, 0, 32, 48))
    mask.save(tmp_path / "rig.png")
    images = ImageSet.scan(tmp_path / "photos", mask_root=tmp_path / "rig.png")
    for name, width in (("a.jpg", 64), ("b.jpg", 128)):
        found = read_mask(images, name)
        assert found is not None
        assert not found[:, : width // 2].any() and found[:, width // 2 :].all()


def test_panoramas_are_photographs_where_they_are_not_to_be_cut(tmp_path: Path) -> None:
    save(tmp_path / "photos" / "a.jpg", (512, 256))
    images = cut(tmp_path, **{"panorama.cut": "never"})
    assert images.names == ("a.jpg",)
    assert not find_rigs(images, recipe())


def test_a_damaged_panorama_is_named(tmp_path: Path) -> None:
    whole = save(tmp_path / "photos" / "a.jpg", (512, 256))
    damaged = save(tmp_path / "photos" / "b.jpg", (512, 256), 1)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2 : -2] = bytes(len(content) - len(content) // 2 - 2)
    damaged.write_bytes(bytes(content))
    images = cut(tmp_path)
    assert whole.is_file() and len(images) == 8
    assert list(images.unreadable) == ["b.jpg"]


def rig_file(tmp_path: Path, prefixes: list[str]) -> Path:
    path = tmp_path / "rig_config.json"
    cameras: list[dict[str, Any]] = [{"image_prefix": prefix} for prefix in prefixes]
    cameras[0]["ref_sensor"] = True
    path.write_text(json.dumps([{"cameras": cameras}]))
    return path


def test_rigs_of_a_file_are_those_of_the_run(tmp_path: Path) -> None:
    for name in ("left/1.jpg", "right/1.jpg"):
        save(tmp_path / "photos" / name, (64, 48))
    path = rig_file(tmp_path, ["left/", "right/"])
    images = ImageSet.scan(tmp_path / "photos")
    assert find_rigs(images, recipe(rigs=path)) == json.loads(path.read_text())


def test_cameras_that_took_nothing_are_named(tmp_path: Path) -> None:
    for name in ("left/1.jpg", "right/1.jpg"):
        save(tmp_path / "photos" / name, (64, 48))
    path = rig_file(tmp_path, ["left/", "top/"])
    with pytest.raises(ConfigError) as caught:
        find_rigs(ImageSet.scan(tmp_path / "photos"), recipe(rigs=path))
    assert str(caught.value) == (
        f"rigs: {path} names the camera 'top/', but no image's name begins so. Images"
        " are in: left, right."
    )


def test_panoramas_that_are_wanted_and_not_there_are_told_at_once(
    tmp_path: Path,
) -> None:
    for name in ("a.jpg", "b.jpg"):
        save(tmp_path / "photos" / name, (64, 48))
    images = ImageSet.scan(tmp_path / "photos")
    wanted = recipe(**{"export.targets": "[nerfstudio-360]"})
    with (
        pytest.raises(ConfigError) as caught,
        open_run(images, tmp_path / "out", wanted),
    ):
        pass
    assert str(caught.value) == (
        "export.targets: nerfstudio-360 takes 360° photographs as they are, but none of"
        f" them is in {tmp_path / 'photos'} or has a pose (frames of a film are kept as"
        " views alone). Leave nerfstudio-360 out."
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot open file"),
        ("{bad", "expected key string"),
        (
            '[{"cameras": [{"image_prefix": "a"}]}]',
            "Rig must have one reference sensor",
        ),
    ],
)
def test_files_that_are_none_of_rigs_are_named(
    content: str | None, reason: str, tmp_path: Path
) -> None:
    save(tmp_path / "photos" / "a.jpg", (64, 48))
    path = tmp_path / "rigs.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        find_rigs(ImageSet.scan(tmp_path / "photos"), recipe(rigs=path))
    assert str(caught.value).startswith(
        f"rigs: {path} cannot be read as COLMAP's rig_config.json ("
    )
    assert reason in str(caught.value)


@pytest.mark.parametrize("content", ["{}", "[]"])
def test_a_file_without_a_rig_is_refused(content: str, tmp_path: Path) -> None:
    save(tmp_path / "photos" / "a.jpg", (64, 48))
    path = tmp_path / "rigs.json"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        find_rigs(ImageSet.scan(tmp_path / "photos"), recipe(rigs=path))
    assert str(caught.value) == (
        f"rigs: {path} holds no rig. Expected a list of them, as COLMAP's"
        " rig_config.json is."
    )


def test_rigs_are_a_stage_where_there_are_any() -> None:
    with_rigs, without, other = (
        Keys(recipe(), {}, {}, rigs=rigs)
        for rigs in ([{"cameras": ["a"]}], [], [{"cameras": ["b"]}])
    )
    assert with_rigs.applies("hold rigs") and not without.applies("hold rigs")
    assert without.nearest("hold rigs") == without.nearest("refine")
    states = {keys.state("outliers") for keys in (with_rigs, without, other)}
    assert len(states) == 3
    assert len({k.state("map") for k in (with_rigs, without, other)}) == 1
