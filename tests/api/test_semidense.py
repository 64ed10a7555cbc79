"""Matching without a detector by the library."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

import sfmprep as sp
from tests.support.own_models import OwnDenseMatcher, OwnExtractor
from tests.support.textures import texture


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> sp.ImageSet:
    folder = tmp_path_factory.mktemp("photographs")
    whole = texture(1, (120, 64))
    for k in range(3):
        cv2.imwrite(str(folder / f"{k}.png"), whole[:, 8 * k : 8 * k + 96])
    return sp.scan(folder)


def test_both_directions_are_matched_once(images: sp.ImageSet, tmp_path: Path) -> None:
    matcher, path = OwnDenseMatcher(), tmp_path / "work" / "dense.h5"
    pairs = sp.exhaustive_pairs(images.names)
    made = {"name": "own dense", "weights_sha256": "ab", "max_size": 1600}
    for store in (path, sp.DenseStore(None, made)):
        matcher.num_pairs = 0
        for some, num_pairs in ((list(pairs)[:1], 2), (pairs, 6), (pairs, 6)):
            dense = sp.match_dense(images, some, matcher, store)
            assert len(dense) == matcher.num_pairs == num_pairs
            forth, back = dense.get("0.png", "1.png"), dense.get("1.png", "0.png")
            assert (forth.xy0 == 3.5).all() and (back.xy1 == 4.5).all()
            assert dense.provenance == made


def test_another_matcher_is_refused(images: sp.ImageSet) -> None:
    dense = sp.match_dense(images, [("0.png", "1.png")], OwnDenseMatcher())
    with pytest.raises(sp.StoreError) as caught:
        sp.match_dense(images, [], OwnDenseMatcher(), dense, max_size=64)
    assert str(caught.value) == (
        "the store of dense in memory was made with other settings: max_size is 1600"
        " there and 64 now. Choose another output folder, or delete the file."
    )


def test_joined_keypoints_begin_with_those_of_the_features(
    images: sp.ImageSet,
) -> None:
    pairs = sp.exhaustive_pairs(images.names)
    features = sp.extract(images, OwnExtractor(dims=9))
    matches = sp.match(features, pairs, sp.Nearest())
    dense = sp.match_dense(images, pairs, OwnDenseMatcher())
    config = sp.DenseConfig(matcher=sp.XFeatStar())
    joined, joined_matches = sp.join_dense(images, features, matches, dense, config)
    assert sorted(joined.names()) == list(images.names)
    for name in images.names:
        own, all_of_them = features.get(name), joined.get(name)
        np.testing.assert_array_equal(all_of_them.xy[: len(own)], own.xy)
        assert all_of_them.descriptors.shape[1] == 0
    assert sorted(joined_matches.pairs()) == list(pairs)
    assert joined.provenance["features"] == features.provenance
    none = sp.join_dense(images, features, matches, dense, config, pairs=sp.Pairs(()))[
        1
    ]
    assert sum(len(one) for _, one in none.items()) < sum(
        len(one) for _, one in joined_matches.items()
    )
