"""What is decided once for all networks."""

from __future__ import annotations

from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from torch import nn

from sfmprep.config import CompactConfig
from sfmprep.errors import ConfigError, WeightsError
from sfmprep.models import build
from sfmprep.models.identity import identity
from sfmprep.models.shared.adapter import Adapter, below, full_float32, inference
from tests.support.models import MODELS


@pytest.mark.parametrize("model", MODELS)
def test_every_implementation_is_a_class_for_this_configuration(model) -> None:
    made = build.implementation(model)
    assert get_type_hints(made.__init__)["config"] is model


@pytest.fixture
def adapter() -> Adapter:
    return Adapter.of(CompactConfig(), device="cpu", precision="auto")


def test_a_cpu_runs_float32_and_an_image_a_core(
    adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert adapter.dtype == torch.float32
    assert adapter.device == torch.device("cpu")
    for cores, expected in ((1, 1), (3, 3), (20, 8)):
        monkeypatch.setattr(torch, "get_num_threads", lambda cores=cores: cores)
        assert adapter.batch_size(64) == expected
    assert adapter.batch_size(2048) == 4  # memory
    assert adapter.batch_size(2048, share=4) == 1
    assert adapter.identity == identity(CompactConfig())


def test_cuda_runs_half_where_the_network_can_and_as_many_as_fit() -> None:
    on_cuda = Adapter.of(CompactConfig(), device="cuda:1", precision="auto")
    assert on_cuda.dtype == torch.float16
    assert on_cuda.batch_size(1024) == 16
    assert on_cuda.batch_size(1024, share=4) == 4
    assert on_cuda.batch_size(100_000, share=4) == 1
    exact = Adapter.of(CompactConfig(), device="cuda", precision="float32")
    assert exact.dtype == torch.float32


def test_half_on_a_cpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="only CUDA devices gain"):
        Adapter.of(CompactConfig(), device="cpu", precision="half")


def test_loading_is_strict_and_sets_evaluation(tmp_path: Path) -> None:
    network = nn.Linear(2, 1)
    torch.save(network.state_dict(), tmp_path / "a.pt")
    config = CompactConfig(weights=tmp_path / "a.pt")
    adapter = Adapter.of(config, device="cpu", precision="auto")
    loaded = adapter.load(nn.Linear(2, 1))
    assert torch.equal(loaded.weight, network.weight)
    assert not loaded.training
    with pytest.raises(WeightsError, match="does not fit the network"):
        adapter.load(nn.Linear(3, 1))
    with pytest.raises(WeightsError, match="does not fit the network"):
        adapter.load(nn.Linear(2, 1), {"weight": network.weight})


def test_tensors_below_a_prefix_lose_it() -> None:
    one = torch.ones(1)
    assert below({"a.b": one, "ab": one, "b.a.c": one}, "a.") == {"b": one}
    assert below({"b": one}, "a.") == {}


def _precisions() -> tuple[object, ...]:
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    if hasattr(convolutions, "conv"):
        return convolutions.conv.fp32_precision, products.fp32_precision
    return convolutions.allow_tf32, products.allow_tf32


def test_inference_bars_tf32_and_gradients_and_restores_both() -> None:
    @inference
    def seen() -> tuple[object, ...]:
        assert torch.is_inference_mode_enabled()
        with full_float32():
            pass
        return _precisions()

    torch.set_float32_matmul_precision("high")
    try:
        before = _precisions()
        assert before != seen()
        assert seen() in (("ieee", "ieee"), (False, False))
        assert _precisions() == before
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_tf32_is_restored_after_an_error() -> None:
    before = _precisions()
    with pytest.raises(KeyError), full_float32():
        raise KeyError
    assert _precisions() == before
