"""Films: their frames and times, what is chosen of them, and files that are none."""

from __future__ import annotations

import functools
import gc
import struct
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from sfmprep.capture import frames as frames_module
from sfmprep.capture.developed import Film
from sfmprep.capture.film import (
    Colours,
    Frame,
    colours_of,
    correction,
    read_frames,
    read_header,
)
from sfmprep.capture.frames import frame_name, take_frames
from sfmprep.capture.keyframes import (
    Chooser,
    Keyframe,
    Look,
    choose,
    find_blurred,
    sharpness,
    thin_out,
)
from sfmprep.config import FilmConfig
from sfmprep.errors import ImageError
from sfmprep.models.flow.dis import Dis
from sfmprep.models.flow.pictures import FlowOfPictures
from tests.support.films import SIZE, Walk, as_frames, sound_only, texture, write_film

WALK = Walk()
FLOW = FlowOfPictures(Dis(FilmConfig().flow))


def chosen(pictures, max_overlap: float = 0.9) -> list[Keyframe]:
    return list(choose(as_frames(pictures), Chooser(max_overlap, FLOW)))


@functools.cache
def chosen_of_walk(step: float, number: int) -> list[Keyframe]:
    """Of a walk whose frames are so many and so far apart; some tests ask the same."""
    return chosen([WALK.at(step * k) for k in range(number)])


def numbers(keyframes: list[Keyframe]) -> list[int]:
    return [keyframe.frame.number for keyframe in keyframes]


def reason_of(path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        list(read_frames(path))
    return str(caught.value)


# -------------------------------------------------------------------------- decoding
def test_frames_come_in_order_with_their_times(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mp4", [WALK.at(4 * k) for k in range(8)], rate=25)
    found = list(read_frames(path))
    assert [frame.number for frame in found] == list(range(8))
    assert [frame.seconds for frame in found] == pytest.approx(np.arange(8) / 25)
    for k, frame in enumerate(found):
        assert np.abs(frame.pixels.astype(int) - WALK.at(4 * k)).mean() < 12
    header = read_header(path)
    assert (header.num_frames, header.seconds) == (8, pytest.approx(8 / 25))


def test_times_are_those_of_the_film_where_its_rate_varies(tmp_path: Path) -> None:
    durations = [0.5, 1.5, 0.5, 1.5, 1.75, 0.25]
    pictures = [WALK.at(k) for k in range(6)]
    path = write_film(tmp_path / "a.mp4", pictures, durations=durations)
    found = [frame.seconds for frame in read_frames(path)]
    starts = np.cumsum([0, *durations[:-1]]) / 30
    assert found == pytest.approx(starts, abs=1e-3)


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_frames_are_turned_as_the_film_says(tmp_path: Path, quarter_turns: int) -> None:
    upright = texture(96, 128)
    stored = np.ascontiguousarray(np.rot90(upright, quarter_turns))
    path = write_film(tmp_path / "a.mp4", [stored] * 3, quarter_turns=quarter_turns)
    for frame in read_frames(path):
        assert frame.pixels.shape == upright.shape
        assert np.abs(frame.pixels.astype(int) - upright).mean() < 16


def test_name_with_a_pattern_is_a_name(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a%03d.mp4", [WALK.at(0)] * 2)
    assert len(list(read_frames(path))) == 2


def test_film_that_is_left_early_is_closed(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mp4", [WALK.at(0)] * 30)
    frames = read_frames(path)
    assert next(frames).number == 0
    frames.close()
    path.unlink()


# ------------------------------------------------------------------------- no films
def test_empty_file_is_no_film(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"")
    assert reason_of(tmp_path / "a.mp4") == "the file is empty; copy it again"


def test_missing_file_is_no_film(tmp_path: Path) -> None:
    assert reason_of(tmp_path / "a.mp4") == (
        "the file cannot be read: No such file or directory"
    )


def test_other_content_is_no_film(tmp_path: Path) -> None:
    path = tmp_path / "a film.mkv"
    path.write_bytes(b"no film at all" * 100)
    assert reason_of(path) == (
        "it is no film that can be decoded: sound alone, damaged, or of a rare kind."
        f" Convert it, for example: ffmpeg -i '{path}' 'a film-new.mp4'"
    )


def test_sound_alone_is_no_film(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(sound_only())
    assert reason_of(tmp_path / "a.mp4") == (
        "it holds sound but no picture; give the film itself"
    )


def test_recording_that_was_not_finished_is_no_film(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mp4", [WALK.at(4 * k) for k in range(20)])
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"moov") - 4])
    assert reason_of(path) == (
        "its index (moov) is missing: the recording or the copy was not finished."
        " Copy it from the camera again, or play it there once, which repairs it"
    )


def test_film_without_a_frame_is_an_error(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mp4", [WALK.at(4 * k) for k in range(20)])
    data = bytearray(path.read_bytes())
    start, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    data[start:end] = bytes(end - start)
    path.write_bytes(data)
    assert reason_of(path) == "not one frame of it can be decoded; copy the film again"


# -------------------------------------------------------------------------- choosing
def test_step_follows_the_motion() -> None:
    """The median point moves by a pixel a frame: the wall is three quarters."""
    found = numbers(chosen_of_walk(1, 160))
    assert found[0] <= 6
    steps = np.diff(found)
    assert (steps >= 7).all()
    assert (steps <= 17).all()


def test_twice_as_fast_gets_twice_as_many() -> None:
    slow, fast = chosen_of_walk(1, 160), chosen_of_walk(2, 160)
    assert 1.6 < len(fast) / len(slow) < 2.4


def test_standing_still_adds_nothing() -> None:
    there = [WALK.at(2 * k) for k in range(40)]
    still = [WALK.at(78)] * 90
    on = [WALK.at(78 + 2 * k) for k in range(40)]
    found = numbers(chosen([*there, *still, *on]))
    assert len([n for n in found if 45 < n < 128]) == 0
    assert len([n for n in found if n >= 128]) >= 3


def test_nothing_moves_and_one_frame_is_taken() -> None:
    assert len(chosen([WALK.at(10)] * 40)) == 1


def test_shaking_hand_adds_nothing() -> None:
    shakes = [WALK.at(100 + 6 * np.sin(k)) for k in range(90)]
    assert len(chosen(shakes)) <= 2


def test_blurred_frames_are_avoided() -> None:
    """Two of three are blurred, as by a shaking hand; every nth takes two of three."""
    pictures = [WALK.at(k, blur=0 if k % 3 == 1 else 7) for k in range(200)]
    found = numbers(chosen(pictures))
    assert len(found) > 10
    blurred = sum(n % 3 != 1 for n in found)
    every_nth = np.arange(0, 200, 200 / len(found)).astype(int)
    assert blurred <= sum(every_nth % 3 != 1) / 3


def test_sharp_frame_is_waited_for() -> None:
    """All frames at which one would be due are blurred, those soon after are not."""
    pictures = [WALK.at(k, blur=9 if 8 <= k < 20 else 0) for k in range(60)]
    assert all(not 8 <= n < 20 for n in numbers(chosen(pictures)))


def test_where_points_end_a_sharp_frame_is_taken_before() -> None:
    """Nothing moves, but column by column the scene is another; each 4th is blurred."""
    scene, pictures = texture(*SIZE), []
    for k in range(80):
        column = slice(12 * (k % 13), 12 * (k % 13) + 12)
        scene[:, column] = texture(*SIZE, seed=k + 1)[:, column]
        pictures.append(cv2.blur(scene, (4, 1)) if k % 4 == 0 else scene.copy())
    found = numbers(chosen(pictures))
    assert len(found) >= 6
    assert all(n % 4 for n in found)


def spared_of(fast: Sequence[float], then: float) -> tuple[int, int]:
    """Blurred frames taken of a camera that turns fast, and how many are needless.

    It turns slowly before, up to 140 pixels, and after.

    Args:
        fast: Where it looks, pixels, frame by frame; blurred as that is fast.
        then: Where it looks when it turns slowly again.
    """
    scene = texture(1200, 120)
    places = [*range(100, 140), *fast, *np.arange(then, then + 40)]
    speeds = np.abs(np.gradient(places))
    blurs = [max(round(speed), 1) if speed > 2 else 1 for speed in speeds]
    pictures = [
        cv2.blur(np.ascontiguousarray(scene[:, int(x) : int(x) + 160]), (blur, 1))
        for x, blur in zip(places, blurs, strict=True)
    ]
    chooser = Chooser(0.9, FLOW)
    taken = [k.frame.number for k in choose(as_frames(pictures), chooser)]
    blurred = {n for n in taken if blurs[n] > 1}
    assert chooser.spared <= blurred
    return len(blurred), len(chooser.spared)


def test_of_a_glance_aside_no_blurred_frame_is_needed() -> None:
    aside = [140 + 70 * np.sin(a) for a in np.linspace(0, np.pi, 40)]
    taken, spared = spared_of(aside, 140)
    assert taken > 2
    assert spared >= taken - 1  # one may be blurred hardly


def test_blurred_frames_that_lead_elsewhere_are_kept() -> None:
    taken, spared = spared_of([140.0 + 6 * k for k in range(40)], 380)
    assert taken - spared > 2


def test_blurred_are_frames_between_sharper_ones_of_the_same_scene() -> None:
    def looks(values: list[float], segments: list[int]) -> list[Look]:
        each = enumerate(zip(values, segments, strict=True))
        return [Look(k, k / 30, value, segment) for k, (value, segment) in each]

    slope = [1.0 * 0.95**k for k in range(60)]  # what is shown has less and less detail
    assert not any(find_blurred(looks(slope, [0] * 60)))
    assert not any(find_blurred(looks([1.0] * 20 + [0.1] * 20, [0] * 20 + [1] * 20)))
    slope[30] /= 2
    assert np.flatnonzero(find_blurred(looks(slope, [0] * 60))).tolist() == [30]
    assert find_blurred([]) == []


@pytest.mark.parametrize("gain", [0.5, 1.4])
def test_change_of_exposure_is_no_motion(gain: float) -> None:
    gains = np.linspace(1, gain, 60)
    assert len(chosen([WALK.at(20, gain=g) for g in gains])) == 1
    moving = [WALK.at(k, gain=g) for k, g in enumerate(gains)]
    assert abs(len(chosen(moving)) - len(chosen_of_walk(1, 60))) <= 1


def test_flash_is_no_cut() -> None:
    pictures = [WALK.at(2 * k) for k in range(60)]
    pictures[20] = np.full_like(pictures[20], 255)
    pictures[21] = texture(160, 120, seed=9)
    found = chosen(pictures)
    assert {keyframe.look.segment for keyframe in found} == {0}
    assert not {20, 21} & set(numbers(found))


def test_film_that_begins_black_is_followed_from_where_it_is_light() -> None:
    black = [np.zeros((120, 160, 3), np.uint8)] * 10
    found = numbers(chosen([*black, *(WALK.at(k) for k in range(60))]))
    assert len([n for n in found if n >= 10]) >= 3


def test_cut_begins_a_new_segment() -> None:
    other = Walk(seed=50)
    pictures = [
        *(WALK.at(2 * k) for k in range(40)),
        *(other.at(2 * k) for k in range(40)),
    ]
    found = chosen(pictures)
    assert [keyframe.look.segment for keyframe in found] == sorted(
        [0] * sum(n < 40 for n in numbers(found))
        + [1] * sum(n >= 40 for n in numbers(found))
    )
    first = next(n for n in numbers(found) if n >= 40)
    assert first < 48


def test_parallax_tells_a_turn_from_a_walk() -> None:
    plain = texture(1200, 120)
    turn = [np.ascontiguousarray(plain[:, k : k + 160]) for k in range(160)]
    turned = [k.parallax for k in chosen(turn)][1:]
    walked = [k.parallax for k in chosen_of_walk(1, 160)][1:]
    assert max(turned) < 0.2 < min(walked)


def test_at_most_31_frames_a_second_are_looked_at() -> None:
    chooser = Chooser(0.9, FLOW)
    list(choose(as_frames([WALK.at(k / 4) for k in range(120)], rate=120), chooser))
    assert len(chooser.looks) == 30


@pytest.mark.parametrize("rate", [60, 120, 240])
def test_films_of_many_frames_a_second_are_read(rate: int, tmp_path: Path) -> None:
    """Frames that are passed over come without pixels, and none of these is taken."""
    walk = [WALK.at(48 / rate * k) for k in range(3 * rate)]
    path = write_film(tmp_path / "walk.mp4", walk, rate=rate)
    film = take_frames(
        *(path, "walk.mp4", tmp_path / "out", "walk"),
        flow=FLOW,
        max_overlap=0.9,
        most=None,
    )
    assert 6 <= len(film.frames) <= 14


def test_sharpness_is_of_detail_not_of_contrast() -> None:
    grey = cv2.cvtColor(WALK.at(0), cv2.COLOR_BGR2GRAY)
    half = (grey * 0.5).astype(np.uint8)
    assert sharpness(half) == pytest.approx(sharpness(grey), rel=0.1)
    assert sharpness(cv2.blur(grey, (5, 1))) < 0.6 * sharpness(grey)
    assert sharpness(np.full((20, 20), 7, np.uint8)) == 0


@pytest.mark.parametrize(
    ("moved", "sharp", "segments", "most", "kept"),
    [
        ([0, 1, 1, 1, 1], [1, 1, 1, 1, 1], [0] * 5, 9, [0, 1, 2, 3, 4]),
        ([0, 1, 1, 1, 1], [1, 1, 0.1, 1, 1], [0] * 5, 4, [0, 1, 3, 4]),
        ([0, 1, 9, 1, 1], [1, 1, 1, 1, 1], [0] * 5, 4, [0, 1, 2, 4]),
        ([0, 1, 1, 0, 1, 1], [1] * 6, [0, 0, 0, 1, 1, 1], 1, [0, 2, 3, 5]),
        ([0], [1], [0], 1, [0]),
    ],
)
def test_thinning_leaves_what_is_needed(
    moved: list[float],
    sharp: list[float],
    segments: list[int],
    most: int,
    kept: list[int],
) -> None:
    assert thin_out(moved, sharp, segments, most) == kept


# --------------------------------------------------------------------------- writing
def test_names_of_frames_sort_by_time() -> None:
    times = [0, 0.033, 1.5, 59.9994, 59.9996, 61, 3599.999, 3600, 36_000]
    names = [frame_name(seconds) for seconds in times]
    assert names == sorted(names)
    assert names[1] == "00h00m00s033.jpg"
    assert names[4] == "00h01m00s000.jpg"
    assert names[-1] == "10h00m00s000.jpg"


def test_film_becomes_photographs(tmp_path: Path) -> None:
    path = write_film(tmp_path / "walk.mp4", [WALK.at(2 * k) for k in range(60)])
    folder = tmp_path / "out"
    (folder / "in" / "walk").mkdir(parents=True)
    (folder / "in" / "walk" / "old.jpg").write_bytes(b"")
    film = take_frames(
        *(path, "in/walk.mp4", folder, "in/walk"), flow=FLOW, max_overlap=0.9, most=None
    )
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.jpg"))
    assert list(film.frames) == files
    assert all(name.startswith("in/walk/00h00m0") for name in files)
    assert (film.num_frames, film.num_cuts, film.num_thinned) == (60, 0, 0)
    assert film.seconds == pytest.approx(59 / 30)
    assert film.remarks() == []
    assert film.from_json(film.to_json()) == film
    for name, seconds in zip(film.frames, film.times, strict=True):
        pixels = cv2.imread(str(folder / name))
        expected = WALK.at(2 * round(seconds * 30))
        assert np.abs(pixels.astype(int) - expected).mean() < 12


def test_no_more_frames_than_asked_for(tmp_path: Path) -> None:
    path = write_film(tmp_path / "walk.mp4", [WALK.at(4 * k) for k in range(60)])
    film = take_frames(
        *(path, "walk.mp4", tmp_path, "walk"), flow=FLOW, max_overlap=0.9, most=5
    )
    assert len(film.frames) == 5 == len(list((tmp_path / "walk").iterdir()))
    whole = film.num_thinned + 5
    assert film.remarks() == []
    assert film.summary() == (
        f"walk.mp4: 5 of 60 frames are used, as film.frames limits the {whole} that are"
        f" worth it; up to {film.most_new:.0%} of the picture is new from one to the"
        " next"
    )


def test_few_frames_are_in_memory_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_film(tmp_path / "walk.mp4", [WALK.at(2 * k) for k in range(80)])
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def watched(film: Path, passes_over: Callable[[int], bool]) -> Iterator[Frame]:
        nonlocal most
        for frame in read_frames(film, passes_over):
            alive.append(weakref.ref(frame.pixels))
            gc.collect()
            most = max(most, sum(ref() is not None for ref in alive))
            yield frame

    monkeypatch.setattr(frames_module, "read_frames", watched)
    film = take_frames(
        *(path, "w", tmp_path, "w"), flow=FLOW, max_overlap=0.9, most=None
    )
    assert len(film.frames) > 5
    assert most <= 8


def test_frames_that_cannot_be_taken_get_no_pixels_where_little_moves(
    tmp_path: Path,
) -> None:
    pictures = [WALK.at(0.25 * k) for k in range(240)] + [WALK.at(60)] * 40
    path = write_film(tmp_path / "walk.mp4", pictures)
    chooser, looked = Chooser(0.9, FLOW), list[int]()

    def noted() -> Iterator[Frame]:
        for frame in read_frames(path, chooser.passes_over):
            if frame.pixels.size:
                looked.append(frame.number)
            yield frame

    found = list(choose(noted(), chooser))
    assert len(looked) < 0.7 * len(pictures)
    assert max(np.diff(looked)) == 4
    steps = np.diff(numbers(found))
    assert (steps > 20).all() and (steps < 70).all()  # a step is some 50
    # all pixels change nothing
    every = Chooser(0.9, FLOW)
    again = list(choose(read_frames(path), every))
    assert numbers(again) == numbers(found)
    assert [look.number for look in every.looks] == [
        look.number for look in chooser.looks
    ]
    film = take_frames(
        *(path, "w", tmp_path, "w"), flow=FLOW, max_overlap=0.9, most=None
    )
    assert film.num_frames == len(pictures)


@pytest.mark.parametrize("repeated", [1, 4])
def test_no_frame_is_passed_over_where_much_moves(repeated: int) -> None:
    """Nor where each frame is there again and again, as in a slow film made fast."""
    pictures = [WALK.at(3 * repeated * (k // repeated)) for k in range(40)]
    chooser = Chooser(0.9, FLOW)
    list(choose(as_frames(pictures), chooser))
    assert [look.number for look in chooser.looks] == list(range(40))


def test_film_that_breaks_off_is_used_until_then(tmp_path: Path) -> None:
    path = write_film(tmp_path / "walk.mp4", [WALK.at(2 * k) for k in range(150)])
    data = bytearray(path.read_bytes())
    start, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    data[start + (end - start) // 2 : end] = bytes(end - start - (end - start) // 2)
    path.write_bytes(data)
    film = take_frames(
        *(path, "walk.mp4", tmp_path, "w"), flow=FLOW, max_overlap=0.9, most=None
    )
    assert 0 < film.lost_seconds < 5
    assert film.remarks()[0] == (
        f"walk.mp4 cannot be decoded beyond {film.seconds:.1f} of 5.0 s; what comes"
        " before is used.",
        "Copy it from the camera again.",
    )


def test_film_in_which_nothing_moves_says_so(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mp4", [WALK.at(10)] * 31)
    film = take_frames(
        *(path, "a.mp4", tmp_path, "a"), flow=FLOW, max_overlap=0.9, most=None
    )
    assert len(film.frames) == 1
    assert film.remarks() == [
        (
            "In the 1.0 s of a.mp4 nothing moves, so one frame is all that it gives.",
            "Walk around what you film.",
        )
    ]


def test_camera_that_only_turns_is_named(tmp_path: Path) -> None:
    plain = texture(1200, 120)
    turn = [np.ascontiguousarray(plain[:, 4 * k : 4 * k + 160]) for k in range(60)]
    path = write_film(tmp_path / "a.mp4", turn)
    film = take_frames(
        *(path, "a.mp4", tmp_path, "a"), flow=FLOW, max_overlap=0.9, most=None
    )
    assert film.remarks() == [
        (
            "In 100% of a.mp4 the camera only turns, or what it shows is flat: that"
            " gives no depth.",
            "Walk while you film.",
        )
    ]


def tell_colours(path: Path, kind: bytes, transfer: int) -> None:
    """Adds a box of colours, of primaries of BT.2020, to the index of a film."""
    data = path.read_bytes()
    start = data.index(b"moov") - 4
    (size,) = struct.unpack(">I", data[start : start + 4])
    assert start + size == len(data)
    box = struct.pack(">I4s4s3HB", 19, b"colr", kind, 9, transfer, 9, 0)
    moov = struct.pack(">I", size + len(box)) + data[start + 4 :] + box
    path.write_bytes(data[:start] + moov)


@pytest.mark.parametrize(
    ("kind", "transfer", "expected"),
    [
        (b"nclx", 16, "PQ"),
        (b"nclc", 18, "HLG"),
        (b"nclx", 1, None),
    ],
)
def test_film_says_what_its_colours_are(
    kind: bytes, transfer: int, expected: str | None, tmp_path: Path
) -> None:
    path = write_film(tmp_path / "a.mp4", [WALK.at(10)] * 2)
    assert colours_of(path) is None
    tell_colours(path, kind, transfer)
    assert colours_of(path) == Colours(transfer=transfer, matrix=9)
    assert Colours(transfer=transfer, matrix=9).hdr == expected


def test_profile_tells_no_colours(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mp4", [WALK.at(10)] * 2)
    tell_colours(path, b"prof", 18)
    assert colours_of(path) is None


@pytest.mark.parametrize(("version", "is_left"), [("4.10.0", False), ("4.13.0", True)])
def test_opencv_that_takes_every_film_for_sd_is_corrected(
    version: str, is_left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2, "__version__", version)
    found = correction(Colours(transfer=1, matrix=1))
    assert (found is None) == is_left
    assert correction(Colours(transfer=6, matrix=6)) is None
    assert correction(None) is None
    if found is not None:
        # Measured: what OpenCV 4.10 and 4.12 make of an H.264 film that is tagged as
        # BT.709, of RGB 200 50 50, 50 200 50, 50 50 200 and grey 180.
        seen = np.array(
            [[[186, 32, 50], [61, 224, 54], [50, 38, 193], [180, 180, 180]]], np.uint8
        )
        true = np.array([[200, 50, 50], [50, 200, 50], [50, 50, 200], [180] * 3])
        mended = cv2.transform(seen[..., ::-1], found)[0, :, ::-1]
        assert np.abs(mended.astype(int) - true).max() <= 2


@pytest.mark.parametrize(
    ("version", "lost"),
    [
        (
            "5.0.0",
            "what is brighter than white paper, such as lamps and windows, is plain"
            " white in its frames",
        ),
        (
            "4.10.0",
            "its colours are taken without tone mapping, so what is trained looks flat",
        ),
    ],
)
def test_hdr_film_is_named_with_the_command_that_converts_it(
    version: str, lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2, "__version__", version)
    path = write_film(tmp_path / "a b.mov", [WALK.at(2 * k) for k in range(60)])
    tell_colours(path, b"nclx", 18)
    film = take_frames(
        *(path, "a b.mov", tmp_path, "w"), flow=FLOW, max_overlap=0.9, most=None
    )
    assert Film.from_json(film.to_json()) == film
    assert film.remarks() == [
        (
            f"a b.mov is HDR (HLG): {lost}; poses do not mind.",
            "For the colours of a player convert it first, for example: ffmpeg -i"
            " 'a b.mov' -vf zscale=t=linear:npl=203,format=gbrpf32le,zscale=p=bt709,"
            "tonemap=hable:desat=0,zscale=t=bt709:m=bt709:r=tv,format=yuv420p"
            " 'a b-sdr.mp4' (an FFmpeg with zscale), and give that film in place of"
            " this one.",
        )
    ]
