"""What every network that describes whole images promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sfmprep.config import EigenPlacesConfig, MegaLocConfig, NetVladConfig
from sfmprep.errors import ConfigError
from sfmprep.models.build import build_retriever
from sfmprep.models.identity import identity
from sfmprep.models.protocols import Retriever
from sfmprep.models.retrieval.eigenplaces import EigenPlacesNetwork
from sfmprep.models.retrieval.netvlad import NetVladNetwork
from tests.support.batches import batch_of
from tests.support.retrieval import megaloc_tensors
from tests.support.textures import texture

SIZE = (112, 80)


@pytest.fixture(scope="module", params=["eigenplaces", "megaloc", "netvlad"])
def retriever(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Retriever:
    """One of random weights, as small as its kind can be."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    match request.param:
        case "eigenplaces":
            model = "eigenplaces-r18-256"
            tensors = EigenPlacesNetwork(18, 256).state_dict()
            config = EigenPlacesConfig(model=model, weights=path)
        case "megaloc":
            tensors = megaloc_tensors()
            config = MegaLocConfig(weights=path)
        case _:
            tensors = NetVladNetwork(8).state_dict()
            config = NetVladConfig(weights=path)
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    made = build_retriever(config)
    assert made.identity == identity(config)
    return made


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return [texture(seed, SIZE) for seed in range(3)]


def test_rows_are_unit_and_of_one_length(retriever, pictures) -> None:
    rows = retriever.embed(batch_of(*pictures))
    turned = retriever.embed(batch_of(pictures[0].transpose(1, 0, 2)))
    assert len(rows) == 3
    for row in (*rows, *turned):
        assert row.shape == rows[0].shape
        assert row.dtype == np.float32
        assert np.linalg.norm(row) == pytest.approx(1, abs=1e-5)


def test_a_batch_equals_its_images_one_by_one(retriever, pictures) -> None:
    together = retriever.embed(batch_of(*pictures))
    for picture, row in zip(pictures, together, strict=True):
        [alone] = retriever.embed(batch_of(picture))
        np.testing.assert_allclose(alone, row, atol=1e-5)


def test_a_picture_is_most_alike_to_a_darker_one(retriever, pictures) -> None:
    darker = [np.uint8(0.98 * picture) for picture in pictures]
    rows, others = (np.stack(retriever.embed(batch_of(*b))) for b in (pictures, darker))
    # random weights say nearly the same of all: what is left tells them apart
    products = (rows - rows.mean(0)) @ (others - rows.mean(0)).T
    assert products.argmax(1).tolist() == [0, 1, 2]


@pytest.mark.parametrize("size", [(1, 1), (15, 9), (300, 2), (14, 14)])
def test_tiny_and_blank_images_are_no_error(retriever, size: tuple[int, int]) -> None:
    blank = np.full((size[1], size[0], 3), 128, np.uint8)
    [row] = retriever.embed(batch_of(blank))
    assert np.isfinite(row).all()


@pytest.mark.parametrize("config", [EigenPlacesConfig, MegaLocConfig, NetVladConfig])
def test_half_precision_needs_a_gpu(config) -> None:
    with pytest.raises(ConfigError, match="only CUDA devices"):
        build_retriever(config(), device="cpu", precision="half")
