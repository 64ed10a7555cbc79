"""What happens when a batch does not fit into the memory of the device."""

from __future__ import annotations

import logging
import weakref

import pytest
import torch

from sfmprep.errors import DeviceError
from sfmprep.models.shared.out_of_memory import run_halving


class Device:
    """Squares numbers, at most `room` at once."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.seen: list[list[int]] = []

    def __call__(self, items):
        self.seen.append(list(items))
        if len(items) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.\nwith details")
        return [item**2 for item in items]


@pytest.mark.parametrize("room", [1, 2, 3, 5, 8, 20])
@pytest.mark.parametrize("num", [1, 2, 7, 8])
def test_results_are_those_of_all_items_in_order(room, num):
    device = Device(room)
    assert run_halving(device, range(num)) == [k**2 for k in range(num)]


def test_what_fits_runs_once_and_says_nothing(caplog):
    device = Device(4)
    with caplog.at_level(logging.INFO):
        run_halving(device, [1, 2, 3])
    assert device.seen == [[1, 2, 3]]
    assert not caplog.records


def test_parts_stay_small_and_what_is_done_is_kept(caplog):
    device = Device(2)
    with caplog.at_level(logging.INFO):
        run_halving(device, [0, 1, 2, 3, 4])
    assert device.seen == [[0, 1, 2, 3, 4], [0, 1, 2], [0, 1], [2, 3], [4]]
    assert "5 at once" in caplog.messages[0]
    assert "3 at once" in caplog.messages[1]


def test_an_item_that_does_not_fit_alone_is_an_error_that_says_what_to_set():
    with pytest.raises(DeviceError, match=r"max_keypoints") as error:
        run_halving(Device(0), [1, 2])
    assert "CUDA out of memory." in str(error.value)
    assert "details" not in str(error.value)


def test_without_items_nothing_runs():
    device = Device(0)
    assert run_halving(device, []) == []
    assert not device.seen


def test_other_errors_pass():
    def fail(items):
        raise ValueError("of another kind")

    with pytest.raises(ValueError, match="another kind"):
        run_halving(fail, [1, 2])


def test_tensors_of_a_failed_run_are_released_before_the_next():
    alive: list[weakref.ref[torch.Tensor]] = []

    def run(items):
        assert not [tensor for tensor in alive if tensor() is not None]
        held = torch.zeros(3)
        alive.append(weakref.ref(held))
        if len(items) > 1:
            raise torch.OutOfMemoryError("full")
        return list(items)

    assert run_halving(run, [1, 2, 3]) == [1, 2, 3]
    assert len(alive) == 5
