"""From photographs to matches by the library: models, stores, what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

import cv2
import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sfmprep as sp
from sfmprep.config import LightGlueConfig
from tests.support.own_models import OwnDenseMatcher, OwnExtractor
from tests.support.records import expect_features, expect_matches
from tests.support.textures import texture

T = TypeVar("T")


def write_noise(folder: Path, names: Iterable[str], size: tuple[int, int]) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(sum(name.encode()))
        pixels = random.integers(0, 255, (size[1], size[0], 3), np.uint8)
        cv2.imwrite(str(path), pixels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small photographs of two sizes; not to be changed."""
    folder = tmp_path_factory.mktemp("photographs")
    write_noise(folder, ("a.png", "b.png", "c/d.png"), (40, 30))
    write_noise(folder, ("e.png", "f.png"), (30, 40))
    return folder


@pytest.fixture(scope="module")
def images(folder: Path) -> sp.ImageSet:
    return sp.scan(folder)


def only(images: sp.ImageSet, *names: str) -> sp.ImageSet:
    infos = {name: images.infos[name] for name in names}
    return dataclasses.replace(images, names=names, infos=infos)


def refusal(kind: type[Exception], call: Any, *args: Any, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        call(*args, **options)
    return str(caught.value)


# ---------------------------------------------------------------------- configurations
def test_scan_takes_text_and_masks(folder: Path, tmp_path: Path) -> None:
    assert sp.scan(str(folder)).names == (
        *("a.png", "b.png", "c/d.png", "e.png", "f.png"),
    )
    (tmp_path / "masks").mkdir()
    found = sp.scan(folder, masks=str(tmp_path / "masks"))
    assert found.mask_root == tmp_path / "masks"


def test_lightglue_has_a_checkpoint_for_each_kind_of_features() -> None:
    kinds = ("aliked", "superpoint", "disk", "sift", "xfeat", "xfeat-l3", "compact")
    found = [sp.LightGlue(kind).model for kind in kinds]
    assert sorted(found) == sorted(
        get_args(LightGlueConfig.model_fields["model"].annotation)
    )
    assert sp.LightGlue("xfeat", min_score=0.3) == LightGlueConfig(
        model="lighterglue", min_score=0.3
    )
    assert refusal(sp.ConfigError, sp.LightGlue, "orb") == (
        "LightGlue has no weights for 'orb'. It has some for aliked, superpoint, disk,"
        " sift, xfeat, xfeat-l3, compact; `Nearest()` matches features of every kind."
    )


def test_max_size_beside_a_configuration_is_refused(images: sp.ImageSet) -> None:
    for call, config in ((sp.extract, sp.Sift()), (sp.match_dense, sp.Loftr())):
        message = refusal(
            *(sp.ConfigError, call, images),
            *((sp.Pairs(()), config) if call is sp.match_dense else (config,)),
            max_size=99,
        )
        assert message == (
            f"max_size=99 beside {type(config).__name__}, which has its own. Set it"
            " there."
        )


def test_a_model_without_identity_is_refused(images: sp.ImageSet) -> None:
    class Nameless:
        batch_size = 1

    assert refusal(sp.ConfigError, sp.extract, images, Nameless()) == (
        "Nameless has no identity, by which a store tells what it made from what others"
        " did. Give it an attribute `identity`, such as {'name': 'mine',"
        " 'weights_sha256': None}."
    )


def test_several_devices_need_a_configuration_and_a_path(
    images: sp.ImageSet, tmp_path: Path
) -> None:
    message = (
        "several devices need a configuration and the path of a store: each process"
        " builds the model itself, and all fill one file. Give both, or one device."
    )
    two = {"device": "cpu,cpu"}
    stores = OwnExtractor(), tmp_path / "f.h5"
    assert refusal(sp.ConfigError, sp.extract, images, *stores, **two) == message
    assert refusal(sp.ConfigError, sp.extract, images, sp.Sift(), **two) == message
    none, pairs = sp.FeatureStore(), sp.exhaustive_pairs(images.names)
    found = refusal(sp.ConfigError, sp.match, none, pairs, sp.Nearest(), **two)
    assert found == message
    assert refusal(
        *(sp.ConfigError, sp.match, none, pairs, sp.Nearest(), tmp_path / "m.h5"), **two
    ) == ("several devices need features on disk, not in memory")


# ------------------------------------------------------------------------------ stores
@pytest.mark.parametrize("on_disk", [True, False])
@pytest.mark.parametrize("dims", [3, 17])
def test_features_of_any_length_go_to_nearest_neighbours(
    images: sp.ImageSet, tmp_path: Path, on_disk: bool, dims: int
) -> None:
    paths = (
        (tmp_path / "work/f.h5", str(tmp_path / "m.h5")) if on_disk else (None, None)
    )
    with (
        sp.extract(images, OwnExtractor(dims), paths[0]) as features,
        sp.match(
            *(features, sp.exhaustive_pairs(images.names)),
            *(sp.Nearest(ratio=None), paths[1]),
        ) as matches,
    ):
        assert sorted(features.names()) == list(images.names)
        assert features.get("a.png").descriptors.shape == (50, dims)
        assert len(matches) == 10
        assert len(matches.get("a.png", "b.png")) > 0
        assert features.provenance == {
            "name": "own",
            "weights_sha256": None,
            "max_size": 1600,
        }
        assert matches.provenance["features"] == features.provenance
        assert matches.provenance["config"]["ratio"] is None


def test_a_file_is_added_to_and_what_is_there_is_not_made_again(
    images: sp.ImageSet, tmp_path: Path
) -> None:
    path, extractor = tmp_path / "f.h5", OwnExtractor()
    first = sp.extract(only(images, "a.png", "b.png"), extractor, path)
    assert (extractor.num_images, first.names()) == (2, ["a.png", "b.png"])
    second = sp.extract(images, extractor, path)  # while the first is still open
    assert (extractor.num_images, len(second), len(first)) == (5, 5, 2)
    expect_features(first.get("b.png"), second.get("b.png"))
    assert sp.extract(images, extractor, second) is second
    assert extractor.num_images == 5
    first.close()
    second.close()


def test_an_own_model_is_told_apart_by_name_and_size(
    images: sp.ImageSet, tmp_path: Path
) -> None:
    path = tmp_path / "f.h5"
    for store in (path, sp.FeatureStore()):
        if store == path:
            made = sp.extract(images, OwnExtractor(), store)
        else:
            made = sp.extract(images, OwnExtractor())
        again = path if store == path else made
        place = "the store of features in memory" if store != path else str(path)
        for change, words in (
            ({"extractor": OwnExtractor(name="b")}, "name is 'own' there and 'b' now"),
            ({"max_size": 20}, "max_size is 1600 there and 20 now"),
        ):
            options = {"extractor": OwnExtractor(), "store": again} | change
            assert refusal(sp.StoreError, sp.extract, images, **options) == (
                f"{place} was made with other settings: {words}. Choose another output"
                " folder, or delete the file."
            )
        made.close()


def test_masks_are_part_of_how_features_are_made(folder: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    mask = np.full((30, 40), 255, np.uint8)
    mask[:, :20] = 0
    cv2.imwrite(str(masks / "a.png.png"), mask)
    images = sp.scan(folder, masks=masks)
    with sp.extract(images, OwnExtractor()) as features:
        assert features.get("a.png").xy[:, 0].min() > 20
        before = features.provenance
        cv2.imwrite(str(masks / "a.png.png"), 255 - mask)
        assert refusal(
            sp.StoreError, sp.extract, images, OwnExtractor(), features
        ).startswith(
            "the store of features in memory was made with other settings:"
            f" masks_sha256 is {before['masks_sha256']!r} there and "
        )


def test_a_failure_closes_the_file_and_keeps_what_was_made(
    images: sp.ImageSet, tmp_path: Path
) -> None:
    class Failing(OwnExtractor):
        def extract(self, batch: sp.ImageBatch) -> list[sp.Features]:
            if self.num_images:
                raise MemoryError
            return super().extract(batch)

    path = tmp_path / "f.h5"
    with pytest.raises(MemoryError):
        sp.extract(images, Failing(), path)
    with h5py.File(path, "r") as file:  # "r+" if it were still open
        assert file.mode == "r"
    extractor = OwnExtractor()
    with sp.extract(images, extractor, path) as features:
        assert (extractor.num_images, len(features)) == (3, 5)


def test_an_image_that_cannot_be_decoded_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_noise(tmp_path, ("a.png", "b.png"), (40, 30))
    images = sp.scan(tmp_path)
    (tmp_path / "a.png").write_bytes(b"")
    with sp.extract(images, OwnExtractor()) as features:
        assert features.names() == ["b.png"]
        with sp.match(features, [("b.png", "a.png")], sp.Nearest()) as matches:
            assert len(matches) == 0
    assert caplog.messages == [
        f"{tmp_path / 'a.png'} is left out: the file is empty; copy it again"
    ]


def test_progress_is_shown_of_every_long_step(images: sp.ImageSet) -> None:
    seen: list[tuple[str, int | None]] = []

    def progress(
        items: Iterable[T], *, desc: str, total: int | None = None
    ) -> Iterator[T]:
        seen.append((desc, total))
        yield from items

    sp.scan(images.root, progress=progress)
    features = sp.extract(images, OwnExtractor(), progress=progress)
    pairs = sp.retrieval_pairs(features, num_neighbours=4, progress=progress)
    sp.match(features, pairs, sp.Nearest(), progress=progress)
    sp.match_dense(images, pairs, OwnDenseMatcher(), progress=progress)
    assert seen == [
        *(("scan", 5), ("extract", 5), ("retrieve", 5), ("match", 10)),
        ("match semi-dense", 10),
    ]


# ----------------------------------------------------------------------- batch, nothing
@settings(max_examples=10)
@given(
    batch_size=st.integers(1, 5),
    num_workers=st.integers(1, 3),
    names=st.permutations(["a.png", "b.png", "c/d.png", "e.png", "f.png"]),
)
def test_images_at_once_give_what_they_give_one_by_one(
    images: sp.ImageSet, batch_size: int, num_workers: int, names: list[str]
) -> None:
    one_by_one = sp.FeatureStore(None, {**OwnExtractor().identity, "max_size": 25})
    for name in names:
        alone = only(images, name)
        sp.extract(alone, OwnExtractor(), one_by_one, max_size=25)
    extractor = OwnExtractor(batch_size=batch_size)
    at_once = sp.extract(images, extractor, max_size=25, num_workers=num_workers)
    for name in images.names:
        expect_features(at_once.get(name), one_by_one.get(name))
    pairs = sp.exhaustive_pairs(images.names)
    nearest = sp.Nearest(ratio=None)
    together = sp.match(at_once, pairs, nearest)
    for pair in pairs:
        expect_matches(
            together.get(*pair), sp.match(at_once, [pair[::-1]], nearest).get(*pair)
        )


def test_the_packaged_network_gives_a_batch_what_it_gives_its_images(
    tmp_path: Path,
) -> None:
    for k in range(3):
        cv2.imwrite(str(tmp_path / f"{k}.png"), texture(k, (96, 64)))
    images, config = sp.scan(tmp_path), sp.Compact(max_keypoints=60)
    together = sp.extract(images, config)
    alone = [sp.extract(only(images, name), config) for name in images.names]
    for name, store in zip(images.names, alone, strict=True):
        found, wanted = together.get(name), store.get(name)
        assert len(found) == len(wanted) > 20
        np.testing.assert_allclose(found.xy, wanted.xy, atol=1e-3)
    matches = sp.match(
        together, sp.exhaustive_pairs(images.names), sp.LightGlue("compact")
    )
    assert len(matches) == 3


@pytest.mark.parametrize("matcher", [sp.Nearest(), sp.LightGlue("compact")])
def test_no_pairs_and_one_image_give_no_matches(
    images: sp.ImageSet, matcher: Any
) -> None:
    one = only(images, "a.png")
    with sp.extract(one, OwnExtractor()) as features:
        pairs = sp.exhaustive_pairs(one.names)
        assert pairs == sp.retrieval_pairs(features) == sp.Pairs(())
        for none in (pairs, [], [("x.png", "y.png")], [("a.png", "x.png")]):
            assert len(sp.match(features, none, matcher)) == 0
        assert sp.match_dense(one, pairs, OwnDenseMatcher()).pairs() == []


def test_images_without_any_feature_have_empty_matches(tmp_path: Path) -> None:
    for level, name in enumerate(("a.png", "b.png")):
        cv2.imwrite(str(tmp_path / name), np.full((30, 40, 3), level, np.uint8))
    images = sp.scan(tmp_path)
    with sp.extract(images, OwnExtractor()) as features:
        assert [len(features.get(name)) for name in images.names] == [0, 0]
        assert sp.retrieval_pairs(features) == sp.Pairs(())
        matches = sp.match(features, [("a.png", "b.png")], sp.Nearest())
        assert len(matches.get("a.png", "b.png")) == 0


def test_a_pair_of_an_image_with_itself_is_refused(images: sp.ImageSet) -> None:
    pairs = [("a.png", "a.png")]
    for call in (
        lambda: sp.match(sp.FeatureStore(), pairs, sp.Nearest()),
        lambda: sp.match_dense(images, pairs, OwnDenseMatcher()),
    ):
        assert refusal(ValueError, call) == "'a.png' is paired with itself"


def test_retrieval_asks_for_the_most_similar_of_the_names(images: sp.ImageSet) -> None:
    features = sp.extract(images, OwnExtractor())
    names = images.names[:3]
    assert sp.retrieval_pairs(features, names=names) == sp.exhaustive_pairs(names)
    assert len(sp.retrieval_pairs(features, num_neighbours=1)) < 10
    assert sp.retrieval_pairs(features, min_similarity=1.0) == sp.Pairs(())


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_two_processes_leave_what_one_leaves(
    images: sp.ImageSet, tmp_path: Path
) -> None:
    # COLMAP's SIFT gives the one keypoint of the smallest, 40 x 30 pixels, one
    # orientation or two, from run to run
    names = [name for name in images.names if min(images.infos[name].size) > 40]
    pairs, sift = sp.exhaustive_pairs(names), sp.Sift(max_keypoints=40)
    found = []
    for device in ("cpu", "cpu,cpu"):
        paths = tmp_path / f"f{len(device)}.h5", tmp_path / f"m{len(device)}.h5"
        features = sp.extract(images, sift, paths[0], device=device)
        matches = sp.match(features, pairs, sp.Nearest(), paths[1], device=device)
        found.append((features, matches))
    for name in names:
        expect_features(found[0][0].get(name), found[1][0].get(name))
    for pair in pairs:
        expect_matches(found[0][1].get(*pair), found[1][1].get(*pair))


# ---------------------------------------------------------------------- two photographs
def test_two_photographs_are_matched_where_they_show_the_same(tmp_path: Path) -> None:
    whole = texture(0, (200, 160))
    paths = tmp_path / "a" / "same.png", tmp_path / "b" / "same.png"
    for path, pixels in zip(paths, (whole[:, :180], whole[:, 20:]), strict=True):
        path.parent.mkdir()
        cv2.imwrite(str(path), pixels)
    for models in ((), (sp.Sift(),), (OwnExtractor(dims=9), sp.Nearest())):
        features, matches = sp.match_images(str(paths[0]), paths[1], *models)
        shift = (
            features[0].xy[matches.index[:, 0]] - features[1].xy[matches.index[:, 1]]
        )
        assert len(matches) > 10
        np.testing.assert_allclose(np.median(shift, axis=0), [20, 0], atol=0.1)


def test_a_photograph_that_cannot_be_matched_is_named(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), texture(0, (64, 48)))
    path = tmp_path / "b.png"
    assert (
        refusal(
            sp.ImageError, sp.match_images, tmp_path / "a.png", path, OwnExtractor()
        )
        == f"{path}: the file cannot be read: No such file or directory"
    )
    path.write_bytes((tmp_path / "a.png").read_bytes()[:-40])
    found = refusal(
        sp.ImageError, sp.match_images, tmp_path / "a.png", path, OwnExtractor()
    )
    assert found.startswith(f"{path}: ")
