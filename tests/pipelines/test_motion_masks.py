"""Masks of what moves in a whole run, and when they are made."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from sfmprep.capture.image_set import ImageSet
from sfmprep.capture.masks import read_mask
from sfmprep.config.load import load_recipe
from sfmprep.errors import ConfigError
from sfmprep.pipelines import motion_masks
from sfmprep.pipelines.motion_masks import STAGE, ledger_of_given, with_motion_masks
from sfmprep.pipelines.reconstruct import reconstruct
from sfmprep.pipelines.status import stages_of
from sfmprep.stores.tables import FeatureStore
from tests.support.made_once import made_once
from tests.support.moving_things import render_moving_things

RECIPE = load_recipe(
    "sift", ["motion_masks={max_size: 320, neighbours: 4}", "second_round=null"]
)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(
        tmp_path_factory,
        "moving-things",
        lambda folder: render_moving_things(
            folder, num_images=7, size=(320, 240), arc=0.15, until=0.3
        ),
    )


@pytest.mark.slow
def test_a_run_masks_what_moves_in_features_and_dataset(
    scene: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    reconstruct(scene / "images", out, RECIPE)
    masks = sorted((out / "work" / "motion_masks").iterdir())
    assert [path.name for path in masks] == [f"000{k}.jpg.png" for k in range(7)]
    assert not (out / "work" / "unmasked").exists()
    truth = cv2.imread(str(scene / "masks" / "0003.jpg.png"), 0) == 0
    with FeatureStore(out / "work" / "features.h5") as features:
        column, row = np.floor(features.get("0003.jpg").xy).astype(int).T
    assert truth[row, column].mean() < 0.2 * truth.mean()
    assert len(list((out / "masks").iterdir())) == 7

    # an editor's change counts, and nothing is looked for anew
    images = ImageSet.scan(scene / "images")
    done = {stage.name: stage for stage in stages_of(images, out, RECIPE)}
    assert all(stage.is_done for stage in done.values())
    assert next(iter(done)) == "motion masks"
    table = (out / "work" / "stages.json").read_text()
    cv2.imwrite(str(masks[0]), np.zeros((240, 320), np.uint8))
    masked = with_motion_masks(images, out, RECIPE)
    assert masked.mask_root == out / "work" / "motion_masks"
    assert not read_mask(masked, "0000.jpg").any()
    assert (out / "work" / "stages.json").read_text() == table
    done = {stage.name: stage for stage in stages_of(images, out, RECIPE)}
    assert done["motion masks"].is_done
    assert done["extract"].why == ["photographs or masks changed"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """What is found, without looking for it; to be filled by a test."""
    found: dict[str, np.ndarray] = {}

    def find(*args: object, **options: object) -> Iterator[tuple[str, np.ndarray]]:
        yield from found.items()

    def poses(images, recipe, workspace, device, progress):  # type: ignore[no-untyped-def]
        workspace.unmasked.mkdir(parents=True)
        return []

    monkeypatch.setattr(motion_masks, "find_motion", find)
    monkeypatch.setattr(motion_masks, "_models_without", poses)
    return found


def test_given_masks_are_joined_with_what_moves(
    quick: dict[str, np.ndarray], scene: Path, tmp_path: Path
) -> None:
    given = np.full((240, 320), 255, np.uint8)
    given[:60] = 0
    (tmp_path / "given").mkdir()
    cv2.imwrite(str(tmp_path / "given" / "0001.jpg.png"), given)
    still = np.ones((120, 160), bool)
    still[:, :20] = False
    quick["0001.jpg"] = quick["0002.jpg"] = still
    images = ImageSet.scan(scene / "images", mask_root=tmp_path / "given")
    masked = with_motion_masks(images, tmp_path / "out", RECIPE)
    used = {name: read_mask(masked, name) for name in images.names}
    expected = np.ones((240, 320), bool)
    assert (used["0000.jpg"] == expected).all()
    expected[:, :40] = False
    assert (used["0002.jpg"] == expected).all()
    expected[:60] = False
    assert (used["0001.jpg"] == expected).all()


def test_where_nothing_moves_there_are_no_masks(
    quick: dict[str, np.ndarray],
    scene: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    quick["0001.jpg"] = np.ones((120, 160), bool)
    images = ImageSet.scan(scene / "images")
    assert with_motion_masks(images, tmp_path / "out", RECIPE) is images
    assert "nothing was found to move, so nothing more is masked" in caplog.messages
    assert not list((tmp_path / "out" / "work" / "motion_masks").iterdir())


def test_masks_are_made_anew_for_other_settings_and_photographs_only(
    quick: dict[str, np.ndarray], scene: Path, tmp_path: Path
) -> None:
    def key(images: ImageSet, *settings: str) -> str:
        recipe = load_recipe("sift", ["motion_masks={}", *settings])
        with_motion_masks(images, tmp_path / "out", recipe)
        return ledger_of_given(images, tmp_path / "out", recipe).keys.state(STAGE)

    images = ImageSet.scan(scene / "images")
    first = key(images)
    assert key(images, "mapping.type=global") == first
    assert key(images, "motion_masks.neighbours=6") != first
    fewer = {name: images.infos[name] for name in images.names[1:]}
    assert key(replace(images, names=tuple(fewer), infos=fewer)) != first


def test_masks_that_were_deleted_are_made_again(
    quick: dict[str, np.ndarray], scene: Path, tmp_path: Path
) -> None:
    quick["0001.jpg"] = np.zeros((120, 160), bool)
    images, out = ImageSet.scan(scene / "images"), tmp_path / "out"
    masks = with_motion_masks(images, out, RECIPE).mask_root
    assert masks is not None
    shutil.rmtree(masks)
    assert not ledger_of_given(images, out, RECIPE).is_done(STAGE)
    with_motion_masks(images, out, RECIPE)
    assert len(list(masks.iterdir())) == 7


def test_nothing_is_begun_in_a_folder_of_others(
    quick: dict[str, np.ndarray], scene: Path, tmp_path: Path
) -> None:
    (tmp_path / "novel.txt").write_text("It was a dark night.")
    with pytest.raises(ConfigError, match="novel.txt"):
        with_motion_masks(ImageSet.scan(scene / "images"), tmp_path, RECIPE)
    assert [path.name for path in tmp_path.iterdir()] == ["novel.txt"]


def test_a_recipe_without_them_leaves_the_capture_as_it_is(scene: Path) -> None:
    images = ImageSet.scan(scene / "images")
    assert with_motion_masks(images, Path("nowhere"), load_recipe("sift")) is images
