"""Photographs in the order in which they were taken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sfmprep.capture.exif import Moment
from sfmprep.capture.image_file import ImageInfo
from sfmprep.pairing.temporal import walks

BARE = ImageInfo(size=(40, 30), orientation=1, num_bytes=100, make="Maker")


def at(seconds: float | None, *, is_utc: bool = False, **others: Any) -> ImageInfo:
    taken = None if seconds is None else Moment(seconds, is_utc)
    return replace(BARE, taken=taken, **others)


def walks_of(infos: dict[str, ImageInfo], max_gap_s: float = 60.0) -> list[list[str]]:
    return walks(infos, max_gap_s=max_gap_s)


def test_the_order_is_that_of_times_and_a_pause_ends_a_walk() -> None:
    infos = {"d": at(0.5), "a": at(60.5), "c": at(0), "b": at(121), "e": at(150)}
    assert walks_of(infos) == [["c", "d", "a"], ["b", "e"]]
    assert walks_of(infos, 61) == [["c", "d", "a", "b", "e"]]
    assert walks_of({**infos, "f": at(999)}) == walks_of(infos)


def test_each_camera_has_a_clock_of_its_own() -> None:
    infos = {
        **{f"left/{k}": at(2 * k) for k in range(3)},
        **{f"right/{k}": at(2 * k + 1) for k in range(3)},
        **{f"one{k}": at(10 * k, serial="1") for k in range(2)},
        **{f"two{k}": at(10 * k + 5, serial="2") for k in range(2)},
        **{f"utc{k}": at(10 * k + 7, serial="2", is_utc=True) for k in range(2)},
    }
    assert walks_of(infos) == [
        *(["left/0", "left/1", "left/2"], ["one0", "one1"]),
        *(["right/0", "right/1", "right/2"], ["two0", "two1"], ["utc0", "utc1"]),
    ]


def test_a_serial_number_tells_a_camera_in_any_folder() -> None:
    infos = {
        "day1/a": at(0, serial="1"),
        "day1/b": at(1, serial="2"),
        "day2/a": at(2, serial="1"),
        "day2/b": at(3, serial="2"),
        "day2/c": at(4, serial="2", model="Other"),  # of another maker's numbers
    }
    assert walks_of(infos) == [["day1/a", "day2/a"], ["day1/b", "day2/b"]]


def test_a_burst_goes_on_by_name() -> None:
    infos = {f"{k}.jpg": at(7) for k in range(12)} | {"after.jpg": at(8)}
    assert walks_of(infos) == [[*(f"{k}.jpg" for k in range(12)), "after.jpg"]]


def test_times_that_tell_nothing_are_left() -> None:
    assert walks_of({}) == walks_of({"a": at(1)}) == []
    assert walks_of({"a": at(None), "b": at(1), "c": at(None)}) == []
    assert walks_of({f"{k}": at(7) for k in range(12)}) == []
    # more in a second than a camera takes: something else wrote that time
    copied = {f"{k:03}": at(50 + k / 1000) for k in range(121)}
    assert walks_of({**copied, "a": at(40), "b": at(60)}) == [["a", "b"]]


def test_thirty_thousand_photographs_make_one_walk() -> None:
    infos = {f"{k}": at(k // 3) for k in range(30_000)}
    [walk] = walks_of(infos)
    assert len(walk) == 30_000 and walk[:4] == ["0", "1", "2", "3"]
