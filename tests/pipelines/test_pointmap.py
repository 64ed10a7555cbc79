"""The recipe `pointmap` from photographs to poses, on a small network."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file

from sfmprep.config.load import load_recipe
from sfmprep.errors import WeightsError
from sfmprep.pipelines.reconstruct import reconstruct
from sfmprep.stores.tables import DenseStore
from tests.support.pointmaps import pointmap_tensors

RECIPE = """\
like: pointmap
features: {type: sift, max_size: 480, max_keypoints: 1500}
matcher: {type: nearest}
stronger: null
beside: null
second_round: null
otherwise: []
dense:
  pairs: all
"""
SETTINGS = ("dense.matcher.max_size=96", "export.downscales=[2]")


@pytest.mark.slow
def test_matches_of_a_network_that_knows_nothing_do_no_harm(
    demo_scene: Path, tmp_path: Path
) -> None:
    """Of random weights: they are found, verified, and thrown out."""
    weights = tmp_path / "mast3r.safetensors"
    save_file(pointmap_tensors("mast3r"), weights)
    mine = tmp_path / "mine.yaml"
    mine.write_text(RECIPE + f"  matcher: {{type: pointmap, weights: {weights}}}\n")
    recipe = load_recipe(mine, SETTINGS)
    out = tmp_path / "out"
    report = reconstruct(demo_scene / "images", out, recipe)
    assert sum(image.model == 0 for image in report.images) == 8
    with DenseStore(out / "work" / "dense.h5") as dense:
        assert len(dense) == 2 * 28
        assert sum(len(matches) for _, matches in dense.items()) > 0


def test_the_file_is_asked_for_before_the_work(
    demo_scene: Path, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError) as told:
        reconstruct(demo_scene / "images", tmp_path / "out", load_recipe("pointmap"))
    assert str(told.value) == (
        "weights of mast3r are not here, and sfmprep does not fetch them: naver/mast3r"
        " allows CC-BY-NC-SA-4.0, non-commercial use only. Read"
        " https://github.com/naver/mast3r, fetch the file there if you accept it, and"
        " name it in the recipe (`weights: PATH`), or put it as mast3r.safetensors into"
        " the folder SFMPREP_WEIGHTS names."
    )
    assert not (tmp_path / "out").exists()
