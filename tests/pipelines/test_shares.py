"""Shares that tasks of an array job do are together what one command does."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import Recipe
from sfmprep.config.load import load_recipe
from sfmprep.errors import ConfigError, StoreError
from sfmprep.pairing.pairs import exhaustive_pairs
from sfmprep.pipelines import stages
from sfmprep.pipelines.choose_pairs import make_pairs
from sfmprep.pipelines.run import open_run
from sfmprep.pipelines.shares import Share, extract_share, match_share
from sfmprep.stores.tables import FeatureStore, MatchStore
from tests.support.records import expect_features, expect_matches

FAST = ["features.max_keypoints=200", "features.max_size=320"]


@pytest.fixture
def images(demo_scene: Path) -> ImageSet:
    return ImageSet.scan(demo_scene / "images")


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("sift", FAST)


def whole(images: ImageSet, out: Path, recipe: Recipe) -> tuple[Path, Path]:
    """Runs two stages without shares; returns their stores."""
    with open_run(images, out, recipe) as run:
        features, _ = stages.extract(run)
        with features:
            pairs = make_pairs(run, features)
            stages.match(run, pairs, features).close()
        return run.workspace.features, run.workspace.matches


def test_shares_in_any_order_are_joined_to_what_one_command_makes(
    images: ImageSet, recipe: Recipe, tmp_path: Path
) -> None:
    wanted = whole(images, tmp_path / "one", recipe)
    out = tmp_path / "many"
    counts = []
    for number in (3, 1, 3):  # the second is never done, the third twice
        path, count = extract_share(images, out, recipe, Share(number, 3))
        assert path == out / "work/features.h5.parts" / f"share-000{number}-of-0003.h5"
        counts.append(count)
    assert counts == [3, 2, 3]
    with open_run(images, out, recipe) as run:
        features, _ = stages.extract(run)
        with features:
            make_pairs(run, features)
    assert sum(match_share(images, out, recipe, Share(k, 2))[1] for k in (1, 2)) == 28
    # what is joined is not done once more
    features_path, matches_path = whole(images, out, recipe)
    assert match_share(images, out, recipe, Share(1, 1))[1] == 0
    with FeatureStore(wanted[0]) as one, FeatureStore(features_path) as many:
        assert sorted(many.names()) == sorted(one.names())
        for name, features in one.items():
            expect_features(many.get(name), features)
    with MatchStore(wanted[1]) as one, MatchStore(matches_path) as many:
        assert sorted(many.pairs()) == sorted(one.pairs())
        for pair, matches in one.items():
            expect_matches(many.get(*pair), matches)


def test_a_damaged_share_is_made_again(
    images: ImageSet,
    recipe: Recipe,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path, _ = extract_share(images, tmp_path / "out", recipe, Share(1, 4))
    path.write_bytes(path.read_bytes()[:500])
    assert extract_share(images, tmp_path / "out", recipe, Share(1, 4)) == (path, 2)
    assert "it is made again: " in caplog.text


def test_what_was_extracted_without_a_mask_is_not_joined_with_one(
    images: ImageSet,
    recipe: Recipe,
    demo_scene: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    left = np.zeros((*images.infos["0001.jpg"].size[::-1], 1), np.uint8)
    left[:, : left.shape[1] // 2] = 255
    cv2.imwrite(str(masks / "0001.jpg.png"), left)
    masked = ImageSet.scan(demo_scene / "images", mask_root=masks)
    one, other = tmp_path / "one", tmp_path / "other"
    for number in (1, 2):
        extract_share(images, one, recipe, Share(number, 2))
        # a share that was begun without goes on with
        extract_share(images, other, recipe, Share(number, 2))
        extract_share(masked, other, recipe, Share(number, 2))
    wanted = whole(masked, tmp_path / "wanted", recipe)[0]
    assert "are not what shares were extracted of" not in caplog.text
    for out in (one, other):
        found = whole(masked, out, recipe)[0]
        with FeatureStore(wanted) as of_one, FeatureStore(found) as of_many:
            for name, features in of_one.items():
                expect_features(of_many.get(name), features)
        assert not list((out / "work").glob("*.parts"))
    assert caplog.text.count("are not what shares were extracted of") == 1
    assert (
        "1 images or their masks, such as 0001.jpg, are not what shares were extracted"
        " of; their features are made anew"
    ) in caplog.messages


def test_a_share_beside_other_settings_is_refused(
    images: ImageSet, recipe: Recipe, tmp_path: Path
) -> None:
    whole(images, tmp_path / "out", recipe)
    other = load_recipe("sift", FAST[1:])
    with pytest.raises(StoreError) as raised:
        extract_share(images, tmp_path / "out", other, Share(1, 2))
    assert str(raised.value) == (
        f"{tmp_path / 'out/work/features.h5'} was made with other settings. Run the"
        " command once without --shard, or choose another output folder."
    )


def test_matching_needs_features(
    images: ImageSet, recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(StoreError) as raised:
        match_share(images, tmp_path, recipe, Share(1, 2))
    assert str(raised.value) == (
        f"{tmp_path / 'work/features.h5'} is missing. Run `sfmprep extract` first."
    )


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "-1/3", "1/0", ""])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Share.parse(text)
    assert str(raised.value) == (
        f"--shard {text}: expected I/N with I from 1 to N, such as 3/100 for the third"
        " of a hundred."
    )


@pytest.mark.parametrize("count", [1, 3, 7, 40])
def test_shares_cover_all_once(count: int) -> None:
    items = exhaustive_pairs([f"{k}" for k in range(7)]).items
    shares = [Share(k + 1, count).of(items) for k in range(count)]
    assert [item for share in shares for item in share] == list(items)
