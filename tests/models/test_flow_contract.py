"""What `protocols.FlowEstimator` promises, asked of every estimator."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sfmprep.config import DisConfig, DroidConfig, RaftConfig
from sfmprep.errors import ConfigError
from sfmprep.models.build import build_flow_estimator
from sfmprep.models.flow.dis import Dis
from sfmprep.models.flow.droid_network import DroidNetwork
from sfmprep.models.flow.raft import Raft
from sfmprep.models.flow.raft_network import RaftNetwork
from sfmprep.models.identity import identity
from sfmprep.models.protocols import ConfidentFlowEstimator, FlowEstimator
from tests.support.batches import batch_of

SIZE = (150, 117)  # no multiples of 8


@pytest.fixture(scope="module", params=["dis", "raft-small", "raft-basic", "droid"])
def estimator(request, tmp_path_factory: pytest.TempPathFactory) -> FlowEstimator:
    config = DisConfig()
    if request.param == "droid":
        torch.manual_seed(0)
        path = tmp_path_factory.mktemp("weights") / "droid.pth"
        torch.save(DroidNetwork().state_dict(), path)
        config = DroidConfig(weights=path, num_iterations=2)
    elif request.param != "dis":
        torch.manual_seed(0)
        path = tmp_path_factory.mktemp("weights") / "raft.pth"
        network = RaftNetwork(is_small=request.param == "raft-small")
        torch.save(network.state_dict(), path)
        config = RaftConfig(model=request.param, weights=path, num_iterations=2)
    made = build_flow_estimator(config)
    assert made.identity == identity(config)
    return made


def picture(x: float = 0, y: float = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A smooth picture [H, W, 3] uint8 whose content has moved by (x, y) pixels."""
    row, column = np.mgrid[: size[1], : size[0]]
    waves = np.random.default_rng(3).uniform(-1, 1, (3, 12, 3))
    total = np.zeros((*row.shape, 3))
    for channel, each in enumerate(waves):
        for number, (fx, fy, phase) in enumerate(each):
            step = 0.02 + 0.02 * number
            angle = fx * step * (column - x) + fy * step * (row - y) + phase
            total[..., channel] += np.sin(2 * np.pi * angle) / (1 + 0.3 * number)
    return np.clip(np.rint(127.5 + 42 * total), 0, 255).astype(np.uint8)


def test_batches_equal_single_images_and_pairs(estimator: FlowEstimator) -> None:
    pictures = [picture(), picture(2, 1), picture(-1, 3)]
    together = estimator.prepare(batch_of(*pictures))
    alone = [estimator.prepare(batch_of(each))[0] for each in pictures]
    for one, other in zip(together, alone, strict=True):
        assert one.num_bytes == other.num_bytes > 0
    pairs = [(together[a], together[b]) for a in range(3) for b in range(3)]
    singles = [(alone[a], alone[b]) for a in range(3) for b in range(3)]
    for flow, single in zip(estimator.flow(pairs), singles, strict=True):
        np.testing.assert_allclose(flow, estimator.flow([single])[0], atol=1e-3)


def test_a_flow_has_the_size_of_the_pictures(estimator: FlowEstimator) -> None:
    for size in (SIZE, (64, 64), (72, 131), (9, 20), (1, 1), (300, 3)):
        images = estimator.prepare(batch_of(picture(size=size), picture(1, size=size)))
        [flow] = estimator.flow([tuple(images)])
        assert flow.shape == (size[1], size[0], 2)
        assert flow.dtype == np.float32
        assert np.isfinite(flow).all()


def test_a_start_is_taken_and_left_as_it_was(estimator: FlowEstimator) -> None:
    images = estimator.prepare(batch_of(picture(), picture(2, 1)))
    start = np.full((SIZE[1], SIZE[0], 2), (2, 1), np.float32)
    [flow], [plain] = (estimator.flow([tuple(images)], [s]) for s in (start, None))
    assert (start == (2, 1)).all()
    assert not np.array_equal(flow, plain)
    [again] = estimator.flow([tuple(images)])  # nothing of it stays
    np.testing.assert_array_equal(again, plain)


def test_dis_measures_a_shift_to_a_twentieth_of_a_pixel() -> None:
    shift = (3.4, -1.7)
    made = build_flow_estimator(DisConfig())
    pictures = picture(size=(512, 384)), picture(*shift, size=(512, 384))
    [flow] = made.flow([tuple(made.prepare(batch_of(*pictures)))])
    error = np.abs(flow - np.float32(shift))[20:-20, 20:-20]
    assert np.median(error) < 0.05


def test_images_of_two_sizes_or_of_another_estimator_are_refused(
    estimator: FlowEstimator,
) -> None:
    [one] = estimator.prepare(batch_of(picture()))
    [other] = estimator.prepare(batch_of(picture(size=(64, 80))))
    with pytest.raises(ValueError, match=r"expected the same"):
        estimator.flow([(one, other)])

    class Foreign:
        num_bytes = 0

    with pytest.raises(ValueError, match="got a Foreign but expected"):
        estimator.flow([(one, Foreign())])


def test_those_that_tell_how_sure_they_are_give_the_same_flow(
    estimator: FlowEstimator,
) -> None:
    if not isinstance(estimator, ConfidentFlowEstimator):
        assert isinstance(estimator, (Dis, Raft))
        return
    images = estimator.prepare(batch_of(picture(), picture(2, 1)))
    [(flow, sure)] = estimator.confident_flow([tuple(images)])
    np.testing.assert_array_equal(flow, estimator.flow([tuple(images)])[0])
    assert sure.shape == flow.shape[:2] and sure.dtype == np.float32
    assert ((sure >= 0) & (sure <= 1)).all()
    assert estimator.confident_flow([]) == []


def test_no_pairs_give_no_flow(estimator: FlowEstimator) -> None:
    assert estimator.flow([]) == []


@pytest.mark.parametrize("config", [DisConfig, RaftConfig, DroidConfig])
def test_half_precision_needs_a_gpu(config) -> None:
    with pytest.raises(ConfigError, match="only CUDA devices"):
        build_flow_estimator(config(), device="cpu", precision="half")
