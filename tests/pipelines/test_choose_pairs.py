"""Pairs by GPS and time, alone and beside those by likeness, within a budget."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfmprep.capture.exif import Moment
from sfmprep.capture.image_set import ImageSet
from sfmprep.config.load import load_recipe
from sfmprep.errors import ConfigError
from sfmprep.evaluation.reference import CameraPose
from sfmprep.pairing.pairs import Pairs
from sfmprep.pipelines import stages
from sfmprep.pipelines.choose_pairs import make_pairs
from sfmprep.pipelines.run import open_run
from tests.support.tables import write_table
from tests.support.textures import texture

_STEP = 1e-4  # degrees of latitude, some 11 m
LIKENESS = "type: auto, exhaustive_up_to: 0, retrieval: {num_neighbours: 1}"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """Two pictures thrice each, which GPS places in pairs of one of each."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(6):
        pixels = texture(number % 2, (160, 120)) * (1 - 0.02 * number)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return placed(ImageSet.scan(folder), 5 * _STEP)


def placed(images: ImageSet, step: float, accuracy_m: float | None = None) -> ImageSet:
    """0 and 1 a tenth of a step apart, then 2 and 3, then 4 and 5."""
    infos = {
        name: replace(
            images.infos[name],
            gps=(48 + step * (number // 2 + 0.1 * (number % 2)), 11.0, None),
            gps_accuracy_m=accuracy_m,
        )
        for number, name in enumerate(images.names)
    }
    return replace(images, infos=infos)


def pairs_of(
    images: ImageSet, out: Path, pairs: str, *others: str, kept: Pairs | None = None
) -> Pairs:
    settings = [f"pairs={{{pairs}}}", "features.max_keypoints=50", *others]
    with open_run(images, out, load_recipe("sift", settings)) as run:
        features, _ = stages.extract(run)
        with features:
            return make_pairs(run, features, kept=kept)


NEAR = {("0.png", "1.png"), ("2.png", "3.png"), ("4.png", "5.png")}


def test_photographs_taken_near_each_other_are_paired(
    photos: ImageSet, tmp_path: Path
) -> None:
    found = pairs_of(photos, tmp_path / "a", "type: spatial, num_neighbours: 1")
    assert set(found) == NEAR
    auto = f"{LIKENESS}, spatial: {{num_neighbours: 1}}"
    both = set(pairs_of(photos, tmp_path / "b", auto))
    alone = set(pairs_of(photos, tmp_path / "c", f"{LIKENESS}, spatial: null"))
    assert both == NEAR | alone
    assert not NEAR & alone


def test_where_gps_tells_nothing_likeness_decides_alone(
    photos: ImageSet, tmp_path: Path
) -> None:
    alone = pairs_of(photos, tmp_path / "a", f"{LIKENESS}, spatial: null")
    for name, images in {
        "close": placed(photos, 0.5 * _STEP),
        "vague": placed(photos, 5 * _STEP, accuracy_m=40.0),
    }.items():
        assert pairs_of(images, tmp_path / name, LIKENESS) == alone


def test_photographs_without_gps_have_no_such_pairs(
    photos: ImageSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bare = {name: replace(info, gps=None) for name, info in photos.infos.items()}
    bare["0.png"] = photos.infos["0.png"]
    with pytest.raises(ConfigError) as caught:
        pairs_of(replace(photos, infos=bare), tmp_path / "out", "type: spatial")
    assert str(caught.value) == (
        "pairs.type: spatial needs GPS positions, but 1 of 6 photographs have one."
        " Choose by likeness: --set pairs.type=retrieval"
    )
    bare |= {name: photos.infos[name] for name in ("1.png", "2.png", "3.png")}
    assert "in no pair" not in caplog.text
    pairs_of(replace(photos, infos=bare), tmp_path / "some", "type: spatial")
    assert (
        "2 of 6 images, such as 4.png, have no position of their own, so they are in no"
        " pair; --set pairs.type=auto pairs them by likeness"
    ) in caplog.text


def timed(images: ImageSet, *seconds: float | None) -> ImageSet:
    """Without GPS, taken then."""
    infos = {
        name: replace(
            images.infos[name],
            gps=None,
            taken=None if when is None else Moment(when, is_utc=False),
        )
        for name, when in zip(images.names, seconds, strict=True)
    }
    return replace(images, infos=infos)


APART = (0, 4000, 1, 4001, 2, None)  # 0, 2, 4 after each other, then 1 and 3
AFTER = {("0.png", "2.png"), ("2.png", "4.png"), ("1.png", "3.png")}


def test_photographs_taken_after_each_other_are_paired(
    photos: ImageSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images, window = timed(photos, *APART), "window: 1, quadratic: false"
    found = pairs_of(images, tmp_path / "a", f"type: temporal, {window}")
    assert set(found) == AFTER
    assert (
        "1 of 6 images, such as 5.png, have no time near that of another photograph of"
        " their camera, so they are in no pair; --set pairs.type=auto pairs them by"
        " likeness"
    ) in caplog.text
    both = pairs_of(images, tmp_path / "b", f"{LIKENESS}, temporal: {{{window}}}")
    alone = pairs_of(images, tmp_path / "c", f"{LIKENESS}, temporal: null")
    assert set(both) == AFTER | set(alone)
    assert ways_in(tmp_path / "b") == {
        "retrieval": (len(alone), len(alone)),
        "temporal": (3, 3),
    }
    equal = timed(photos, *[7.0] * 6)
    assert pairs_of(equal, tmp_path / "d", LIKENESS) == alone
    for number, untold in enumerate((equal, timed(photos, *[None] * 6))):
        with pytest.raises(ConfigError) as caught:
            pairs_of(untold, tmp_path / f"e{number}", "type: temporal")
        assert str(caught.value) == (
            "pairs.type: temporal needs times in EXIF that tell an order, but 0 of 6"
            " photographs have one. Choose by likeness: --set pairs.type=retrieval"
        )


def test_a_photograph_after_a_long_pause_is_told(
    photos: ImageSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = timed(photos, 0, 1, 9000, None, None, None)
    assert set(pairs_of(images, tmp_path / "a", "type: temporal")) == {
        ("0.png", "1.png")
    }
    assert (
        "4 of 6 images, such as 2.png, have no time near that of another photograph of"
        " their camera, so they are in no pair; --set pairs.type=auto pairs them by"
        " likeness"
    ) in caplog.text


def ways_in(out: Path) -> dict[str, tuple[int, int]]:
    ways = json.loads((out / "work" / "pairs.json").read_text())
    return {way["way"]: (way["num_proposed"], way["num_kept"]) for way in ways}


def test_all_ways_share_one_budget(
    photos: ImageSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    infos = {
        name: replace(info, taken=Moment(float(number), is_utc=False))
        for number, (name, info) in enumerate(photos.infos.items())
    }
    images = replace(photos, infos=infos)
    auto = "type: auto, exhaustive_up_to: 0, retrieval: {num_neighbours: 4}"
    every = pairs_of(images, tmp_path / "a", f"{auto}, per_image: null")
    assert "pairs.per_image lets" not in caplog.text
    few = pairs_of(images, tmp_path / "b", f"{auto}, per_image: 2")
    assert (
        "pairs.per_image lets each image ask for 2 pairs, of all ways together, but"
        " retrieval proposes up to 4; --set pairs.per_image=null takes all"
    ) in caplog.text
    assert len(few) <= 12 < len(every)
    assert set(few) < set(every)
    assert {name for pair in few for name in pair} == set(images.names)
    proposed = ways_in(tmp_path / "a")
    assert list(proposed) == ["retrieval", "temporal", "spatial"]
    kept = ways_in(tmp_path / "b")
    assert {way: n for way, (n, _) in kept.items()} == {
        way: n for way, (n, _) in proposed.items()
    }
    assert all(n == k for n, k in proposed.values())
    assert sum(k for _, k in kept.values()) < sum(n for n, _ in kept.values())


def test_pairs_stay_where_their_counts_are_lost(
    photos: ImageSet, tmp_path: Path
) -> None:
    found = pairs_of(photos, tmp_path, LIKENESS)
    counts, file = (tmp_path / "work" / name for name in ("pairs.json", "pairs.txt"))
    before = file.stat()
    counts.unlink()
    assert pairs_of(photos, tmp_path, LIKENESS) == found
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (
        before.st_ino,
        before.st_mtime_ns,
    )
    assert not counts.exists()


def test_only_pairs_of_new_photographs_join_those_that_are_kept(
    photos: ImageSet, tmp_path: Path
) -> None:
    kept = Pairs((("0.png", "2.png"), ("1.png", "3.png")))
    few = f"{LIKENESS}, per_image: 1, spatial: null"
    found = set(pairs_of(photos, tmp_path, few, kept=kept))
    new = {"4.png", "5.png"}
    assert {pair for pair in found if new.isdisjoint(pair)} == set(kept)
    assert {name for pair in found for name in pair} == set(photos.names)
    assert ways_in(tmp_path)["retrieval"][1] == len(found) - len(kept)


def test_a_small_budget_does_not_part_a_film(photos: ImageSet, tmp_path: Path) -> None:
    auto = (
        "type: auto, exhaustive_up_to: 0, retrieval: {num_neighbours: 4}, per_image: 2,"
        " spatial: {num_neighbours: 4}, sequential: {window: 1, quadratic: false}"
    )
    found = pairs_of(timed(photos, *[None] * 6), tmp_path, auto, "tracks={}")
    assert set(found) >= set(itertools.pairwise(photos.names))
    assert ways_in(tmp_path)["sequential"] == (5, 5)


def test_likeness_pairs_only_what_has_no_pose_where_there_are_poses(
    photos: ImageSet, tmp_path: Path
) -> None:
    poses = {
        name: CameraPose(rotation=np.eye(3), centre=np.array([0.3 * number, 0, 0]))
        for number, name in enumerate(photos.names[:4])
    }
    table = write_table(tmp_path / "poses.csv", poses)
    alike = f"{LIKENESS}, spatial: null, per_image: null"
    alone = pairs_of(photos, tmp_path / "alone", alike)
    given = f"known_poses={{path: {table}, num_neighbours: 2}}"
    found = pairs_of(photos, tmp_path / "given", alike, given)
    unposed = {pair for pair in found if not poses.keys() >= set(pair)}
    assert unposed == {pair for pair in alone if not poses.keys() >= set(pair)}
    ways = ways_in(tmp_path / "given")
    assert list(ways) == ["poses", "retrieval"]
    assert ways["poses"] == (len(found) - len(unposed),) * 2
    assert ways["retrieval"] == (len(unposed),) * 2
