from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

import sfmprep as sp
from tests.support.pointmaps import pointmap_tensors
from tests.support.textures import texture


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> sp.Pointmap:
    path = tmp_path_factory.mktemp("pointmaps") / "mast3r.safetensors"
    save_file(pointmap_tensors("mast3r"), path)
    return sp.Pointmap(weights=path, max_size=96)


def photograph(folder: Path, seed: int, size: tuple[int, int]) -> Path:
    path = folder / f"{seed}.png"
    Image.fromarray(texture(seed, size)).save(path)
    return path


def test_two_photographs_have_focal_lengths(network, tmp_path: Path) -> None:
    """Of random weights, so of no meaning; both orders are looked at."""
    paths = [photograph(tmp_path, k, size) for k, size in enumerate([(192, 128)] * 2)]
    found = sp.pointmap_geometry(*paths, network)
    assert np.isfinite(found.focal_px).all()
    assert found.confidence >= 1
    assert 0 <= found.share <= 1
    turned = sp.pointmap_geometry(*reversed(paths), network)
    assert turned.focal_px == pytest.approx(found.focal_px[::-1], rel=1e-4)


def test_a_photograph_that_is_missing_or_tiny_is_named(network, tmp_path: Path) -> None:
    path = photograph(tmp_path, 0, (192, 128))
    with pytest.raises(sp.ImageError, match=r"no\.png"):
        sp.pointmap_geometry(path, tmp_path / "no.png", network)
    tiny = photograph(tmp_path, 1, (40, 9))
    with pytest.raises(ValueError, match="fewer than 16 pixels a side"):
        sp.pointmap_geometry(path, tiny, network)
