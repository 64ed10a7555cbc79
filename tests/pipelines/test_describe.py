"""Pairs by a network that describes whole images, as stages of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import Recipe
from sfmprep.config.load import load_recipe
from sfmprep.errors import StoreError, WeightsError
from sfmprep.models.retrieval.eigenplaces import EigenPlacesNetwork
from sfmprep.pairing.pairs import Pairs, exhaustive_pairs
from sfmprep.pipelines import choose_pairs, stages
from sfmprep.pipelines.choose_pairs import make_pairs
from sfmprep.pipelines.run import open_run
from sfmprep.pipelines.status import stages_of
from sfmprep.stores.tables import RowStore
from tests.support.textures import texture

PLACES = ("barn", "mill")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "eigenplaces.safetensors"
    save_file(EigenPlacesNetwork(18, 256).state_dict(), path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two places of three views each, by the hour."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed, place in enumerate(PLACES):
        for hour in range(3):
            write(folder, place, hour, seed)
    return folder


def write(folder: Path, place: str, hour: int, seed: int) -> None:
    pixels = texture(seed, (160, 120)) * (1 - 0.02 * hour)
    Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{place}{hour}.png")


def recipe(weights: Path, *settings: str, pairs: str = "retrieval") -> Recipe:
    model = f"{{type: eigenplaces, model: eigenplaces-r18-256, weights: {weights}}}"
    found = f"{{model: {model}, num_neighbours: 2}}"
    if pairs == "retrieval":
        chosen = f"pairs={{type: retrieval, {found[1:]}"
    else:
        chosen = f"pairs={{type: auto, exhaustive_up_to: {pairs}, retrieval: {found}}}"
    return load_recipe("sift", (chosen, "features.max_keypoints=50", *settings))


def pairs_of(photos: Path, out: Path, asked: Recipe) -> Pairs:
    with open_run(ImageSet.scan(photos), out, asked) as run:
        features, _ = stages.extract(run)
        with features:
            return make_pairs(run, features)


def rows_of(out: Path) -> RowStore:
    return RowStore(out / "work" / "rows.h5")


WITHIN = Pairs.of(
    (f"{place}{a}.png", f"{place}{b}.png")
    for place in PLACES
    for a, b in ((0, 1), (0, 2), (1, 2))
)


def test_views_of_one_place_are_paired(
    photos: Path, tmp_path: Path, weights: Path
) -> None:
    out, asked = tmp_path / "out", recipe(weights)
    assert pairs_of(photos, out, asked) == WITHIN
    with rows_of(out) as rows:
        assert len(rows) == 6
        row = rows.get("mill1.png")
        assert (row.shape, row.dtype) == ((256,), np.float16)
        kept = row.copy()
    done = {stage.name: stage.is_done for stage in stages_of(*told(photos, out, asked))}
    assert (done["describe"], done["pairs"]) == (True, True)

    # one photograph more is described, and nothing twice
    write(photos, "barn", 3, 0)
    more = pairs_of(photos, out, asked)
    assert {pair for pair in more if "barn3.png" in pair}
    with rows_of(out) as rows:
        assert len(rows) == 7
        np.testing.assert_array_equal(rows.get("mill1.png"), kept)


def told(photos: Path, out: Path, asked: Recipe) -> tuple[ImageSet, Path, Recipe]:
    return ImageSet.scan(photos), out, asked


def test_a_second_run_needs_no_network(
    photos: Path, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = pairs_of(photos, out, recipe(weights))
    monkeypatch.setattr(choose_pairs, "build_retriever", None)
    assert pairs_of(photos, out, recipe(weights)) == first
    (out / "work" / "pairs.txt").unlink()
    assert pairs_of(photos, out, recipe(weights)) == first


def test_a_photograph_of_other_content_is_described_anew(
    photos: Path, tmp_path: Path, weights: Path
) -> None:
    out, asked = tmp_path / "out", recipe(weights)
    pairs_of(photos, out, asked)
    with rows_of(out) as rows:
        before = rows.get("barn0.png").copy()
    write(photos, "barn", 0, 7)
    pairs_of(photos, out, asked)
    with rows_of(out) as rows:
        assert len(rows) == 6
        assert not np.array_equal(rows.get("barn0.png"), before)


def test_a_small_capture_is_not_described(
    photos: Path, tmp_path: Path, weights: Path
) -> None:
    out, asked = tmp_path / "out", recipe(weights, pairs="6")
    names = sorted(path.name for path in photos.iterdir())
    assert pairs_of(photos, out, asked) == exhaustive_pairs(names)
    assert not (out / "work" / "rows.h5").exists()
    done = {stage.name: stage.is_done for stage in stages_of(*told(photos, out, asked))}
    assert "describe" not in done
    assert done["pairs"]
    assert pairs_of(photos, tmp_path / "more", recipe(weights, pairs="5")) == WITHIN


def test_weights_that_are_not_here_are_named(photos: Path, tmp_path: Path) -> None:
    asked = load_recipe("sift", ["pairs={type: retrieval, model: {type: megaloc}}"])
    with pytest.raises(WeightsError, match="weights of megaloc are not here"):
        pairs_of(photos, tmp_path / "out", asked)
    assert not (tmp_path / "out").exists()  # before any work


def test_an_unknown_image_has_no_row() -> None:
    with RowStore() as rows, pytest.raises(StoreError) as told:
        rows.get("a.jpg")
    assert str(told.value) == (
        "the store of rows in memory has no row of 'a.jpg'. Run `sfmprep pairs`."
    )
