"""Items on cores of their own: results, order, threads and errors."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from sfmprep.config import CompactConfig
from sfmprep.models.extractors.compact import Compact
from sfmprep.models.shared.side_by_side import num_side_by_side, side_by_side
from tests.support.batches import batch_of


@pytest.fixture(autouse=True)
def four_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_results_keep_their_order_and_each_has_its_share_of_the_cores() -> None:
    found = side_by_side(lambda k: (k, torch.get_num_threads()), range(5), 2)
    assert found == [(k, 2) for k in range(5)]
    assert torch.get_num_threads() == 4  # as it was, here and in threads of later
    [later] = side_by_side(lambda _: torch.get_num_threads(), [0], 1)
    assert later == 4
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert seen == [4]


def test_so_many_as_cores_run_at_once() -> None:
    meeting = threading.Barrier(4, timeout=60)  # broken unless four come
    assert num_side_by_side() == 4
    assert len(side_by_side(lambda _: meeting.wait(), range(4))) == 4


def test_one_at_once_runs_in_the_thread_of_the_caller() -> None:
    torch.set_num_threads(1)
    assert (
        side_by_side(lambda _: threading.current_thread(), [0, 1])
        == [threading.current_thread()] * 2
    )


def test_no_items_give_no_results_and_an_error_comes_through() -> None:
    assert side_by_side(lambda k: k, []) == []
    with pytest.raises(ValueError, match="second"):
        side_by_side(_refuse_one, [0, 1, 2])
    assert torch.get_num_threads() == 4


def _refuse_one(item: int) -> int:
    if item == 1:
        raise ValueError("the second")
    return item


def test_nothing_is_recorded_for_gradients() -> None:
    weight = torch.ones(1, requires_grad=True)
    for at_once in (1, 2):
        [product] = side_by_side(lambda _: weight * 2, [0], at_once)
        assert product.is_inference()


def test_a_batch_is_bit_equal_to_its_items_whatever_goes_beside_them() -> None:
    extractor = Compact(CompactConfig(max_keypoints=200))
    assert extractor.batch_size == 4
    noise = np.random.default_rng(0)
    images = [noise.integers(0, 256, (96, 160, 3), np.uint8) for _ in range(3)]
    together = extractor.extract(batch_of(*images))
    for image, found in zip(images, together, strict=True):
        [alone] = extractor.extract(batch_of(image))
        assert (found.xy == alone.xy).all() and (found.scores == alone.scores).all()
        assert (found.descriptors == alone.descriptors).all()
