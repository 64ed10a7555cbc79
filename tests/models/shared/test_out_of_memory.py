"""What happens when a batch does not fit into the memory of the device."""

from __future__ import annotations

import logging
import weakref

import pytest
import torch

from sfmprep.errors import DeviceError
from sfmprep.models.shared.out_of_memory import Memory


class Device:
    """Squares numbers, as many at once as there is room for."""

    def __init__(self, room: int, message: str = "CUDA out of memory.\nmore") -> None:
        self.room = room
        self.error: RuntimeError = torch.OutOfMemoryError(message)
        self.seen: list[list[int]] = []

    def __call__(self, items):
        self.seen.append(list(items))
        if len(items) > self.room:
            raise self.error
        return [item**2 for item in items]


@pytest.mark.parametrize("room", [1, 2, 3, 5, 8, 20])
@pytest.mark.parametrize("num", [1, 2, 7, 8])
def test_results_are_those_of_all_items_in_order(room, num):
    memory, device = Memory(), Device(room)
    for _ in range(2):
        assert memory.run(device, range(num)) == [k**2 for k in range(num)]


def test_what_fits_runs_once_and_says_nothing(caplog):
    device = Device(4)
    with caplog.at_level(logging.INFO):
        Memory().run(device, [1, 2, 3])
    assert device.seen == [[1, 2, 3]]
    assert not caplog.records


def test_parts_stay_small_and_what_is_done_is_kept(caplog):
    device = Device(2)
    with caplog.at_level(logging.INFO):
        Memory().run(device, [0, 1, 2, 3, 4])
    assert device.seen == [[0, 1, 2, 3, 4], [0, 1, 2], [0, 1], [2, 3], [4]]
    assert "5 at once" in caplog.messages[0]
    assert "3 at once" in caplog.messages[1]


def test_the_size_that_fitted_is_remembered():
    memory, device = Memory(), Device(2)
    memory.run(device, [0, 1, 2, 3])
    device.seen.clear()
    memory.run(device, [4, 5, 6, 7, 8])
    assert device.seen == [[4, 5], [6, 7], [8]]


def test_items_of_another_size_are_judged_by_what_they_cost():
    memory = Memory()
    memory.run(Device(2), [0, 1, 2, 3], 100)
    small, large, huge = Device(20), Device(20), Device(20)
    memory.run(small, range(9), 40)
    memory.run(large, range(3), 150)
    memory.run(huge, range(2), 1000)
    assert [len(part) for part in small.seen] == [5, 4]
    assert [len(part) for part in large.seen] == [1, 1, 1]
    assert [len(part) for part in huge.seen] == [1, 1]


def test_what_did_not_fit_alone_is_tried_once_more_when_the_rest_is_given_back():
    class Crowded(Device):
        def __call__(self, items):
            if len(self.seen) == 1:
                self.room = 1  # something else has gone
            return super().__call__(items)

    device = Crowded(0)
    assert Memory().run(device, [3]) == [9]
    assert device.seen == [[3], [3]]


def test_an_item_that_does_not_fit_alone_is_an_error_that_says_what_to_set():
    device = Device(0)
    with pytest.raises(DeviceError) as error:
        Memory().run(device, [1, 2])
    assert str(error.value) == (
        "the memory of the device is too small for a single item (CUDA out of memory.)."
        " Set a smaller features.max_keypoints, features.max_size,"
        " dense.matcher.max_size or engine.cache_gb, or use another device."
    )
    assert device.seen == [[1, 2], [1], [1]]


def test_without_items_nothing_runs():
    device = Device(0)
    assert Memory().run(device, []) == []
    assert not device.seen


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be ...",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "Unable to find a valid cuDNN algorithm to run convolution",
        "MPS backend out of memory (MPS allocated: 8.00 GB)",
        "[enforce fail at alloc_cpu.cpp:115] err == 0. DefaultCPUAllocator: can't"
        " allocate memory: you tried to allocate 1 bytes. Error code 12",
    ],
)
def test_allocations_that_fail_inside_libraries_count(message):
    device = Device(1)
    device.error = RuntimeError(message)
    assert Memory().run(device, [1, 2]) == [1, 4]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("of another kind"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_BAD_PARAM"),
    ],
)
def test_other_errors_pass(error):
    def fail(items):
        raise error

    with pytest.raises(type(error)) as raised:
        Memory().run(fail, [1, 2])
    assert raised.value is error


def test_an_allocation_that_fails_on_the_host_is_one():
    def allocate(items):
        if len(items) > 1:
            torch.empty(1 << 60, dtype=torch.uint8)
        return list(items)

    assert Memory().run(allocate, [1, 2]) == [1, 2]


def test_tensors_of_a_failed_run_are_released_before_the_next():
    alive: list[weakref.ref[torch.Tensor]] = []

    def run(items):
        assert not [tensor for tensor in alive if tensor() is not None]
        held = torch.zeros(3)
        alive.append(weakref.ref(held))
        if len(items) > 1:
            raise torch.OutOfMemoryError("full")
        return list(items)

    assert Memory().run(run, [1, 2, 3]) == [1, 2, 3]
    assert len(alive) == 5
