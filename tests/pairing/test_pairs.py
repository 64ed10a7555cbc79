"""Pairs: unique and ordered, from every maker, and through a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfmprep.errors import ConfigError
from sfmprep.pairing.pairs import (
    Pairs,
    exhaustive_pairs,
    natural_order,
    pairs_from_file,
    sequential_pairs,
)

NAMES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0\t\n\r"),
    min_size=1,
    max_size=12,
)
SETS_OF_NAMES = st.lists(NAMES, unique=True, max_size=8).map(sorted)


def error_of(path: Path, text: str | bytes, names: list[str]) -> str:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError) as caught:
        pairs_from_file(path, names)
    return str(caught.value)


def read(path: Path, text: str, names: list[str]) -> list[tuple[str, str]]:
    path.write_bytes(text.encode())
    return list(pairs_from_file(path, names))


@given(st.lists(st.tuples(NAMES, NAMES).filter(lambda p: p[0] != p[1])))
def test_pairs_are_unique_sorted_and_in_order(items: list[tuple[str, str]]) -> None:
    pairs = list(Pairs.of(items))
    assert pairs == sorted(set(pairs))
    assert all(a < b for a, b in pairs)
    assert {frozenset(p) for p in pairs} == {frozenset(p) for p in items}
    assert len(Pairs.of(items)) == len(pairs)


def test_an_image_is_not_paired_with_itself() -> None:
    with pytest.raises(ValueError, match="^'a' is paired with itself$"):
        Pairs.of([("a", "b"), ("a", "a")])


@given(SETS_OF_NAMES)
def test_exhaustive_is_every_pair_once(names: list[str]) -> None:
    assert len(exhaustive_pairs(names)) == len(names) * (len(names) - 1) // 2


@pytest.mark.parametrize(
    ("quadratic", "steps"),
    [(False, {1, 2, 3}), (True, {1, 2, 3, 4, 8})],
)
def test_sequential_pairs_have_the_steps_of_the_window(
    quadratic: bool, steps: set[int]
) -> None:
    names = [f"{k:02}" for k in range(20)]
    pairs = sequential_pairs(names, window=3, quadratic=quadratic)
    assert set(pairs) == {
        (a, b) for a in names for b in names if int(b) - int(a) in steps
    }


def test_sequential_pairs_follow_the_order_of_the_names_given() -> None:
    pairs = sequential_pairs(["9", "10", "11"], window=1, quadratic=False)
    assert list(pairs) == [("10", "11"), ("10", "9")]


@pytest.mark.parametrize("names", [[], ["a"]])
def test_fewer_than_two_images_make_no_pair(names: list[str]) -> None:
    assert len(exhaustive_pairs(names)) == len(sequential_pairs(names)) == 0


# ---------------------------------------------------------------------------- files
@given(SETS_OF_NAMES)
def test_a_written_file_reads_back(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    path = tmp_path_factory.mktemp("pairs") / "pairs.txt"
    pairs = exhaustive_pairs(names)
    pairs.write(path)
    assert pairs_from_file(path, names) == pairs


@pytest.mark.parametrize("name", ["a\tb.jpg", "a\nb.jpg", "a\rb.jpg"])
def test_a_name_that_no_line_can_hold_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Pairs.of([(name, "z.jpg")]).write(tmp_path / "pairs.txt")
    assert str(caught.value) == (
        f"image name {name!r} holds a tab or a line break. Rename the file."
    )
    assert not (tmp_path / "pairs.txt").exists()


def test_tabs_spaces_comments_and_line_ends_are_understood(tmp_path: Path) -> None:
    names = ["a.jpg", "b c.jpg", "d.jpg", "e f.jpg"]
    text = (
        "# a comment\r\n\n   \n  # another\n"
        "d.jpg a.jpg\n"
        "b c.jpg e f.jpg\n"
        "a.jpg   b c.jpg\n"
        " d.jpg \t e f.jpg \n"
        "a.jpg\td.jpg"
    )
    assert read(tmp_path / "p.txt", text, names) == [
        ("a.jpg", "b c.jpg"),
        ("a.jpg", "d.jpg"),
        ("b c.jpg", "e f.jpg"),
        ("d.jpg", "e f.jpg"),
    ]


def test_a_name_that_begins_like_a_comment_is_a_name(tmp_path: Path) -> None:
    names = ["#1.jpg", "2.jpg"]
    assert read(tmp_path / "p.txt", "#1.jpg\t2.jpg\n", names) == [("#1.jpg", "2.jpg")]
    assert read(tmp_path / "p.txt", "#1.jpg 2.jpg\n# 2\n", names) == [
        ("#1.jpg", "2.jpg")
    ]


def test_an_empty_file_has_no_pair(tmp_path: Path) -> None:
    assert read(tmp_path / "p.txt", "", ["a", "b"]) == []


def test_what_names_no_pair_is_refused_with_its_line(tmp_path: Path) -> None:
    path, names = tmp_path / "p.txt", ["a", "b", "a b", "b c", "c"]
    unknown = (
        "does not name two images of this capture. Expected two paths relative to the"
        " image folder, separated by a tab."
    )
    assert error_of(path, "a b\na x\n", names) == f"{path}, line 2: 'a x' {unknown}"
    assert error_of(path, "a", names) == f"{path}, line 1: 'a' {unknown}"
    assert error_of(path, "a\tb\tc", names) == (
        f"{path}, line 1: 'a\\tb\\tc' {unknown}"
    )
    assert error_of(path, "\n\na a", names) == (
        f"{path}, line 3: 'a' is paired with itself."
    )
    assert error_of(path, "a b c", names) == (
        f"{path}, line 1: 'a b c' can be read as two names in 2 ways. Separate them"
        " by a tab."
    )


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    with pytest.raises(ConfigError) as caught:
        pairs_from_file(path, [])
    assert str(caught.value) == (
        f"pairs file {path} cannot be read: [Errno 2] No such file or directory:"
        f" {str(path)!r}"
    )
    assert error_of(path, b"\xff\xfe", []).startswith(
        f"pairs file {path} cannot be read: 'utf-8' codec can't decode"
    )


def test_natural_order_sorts_numbers_by_size() -> None:
    names = ["b/1.jpg", "a10.jpg", "a2.jpg", "a02b.jpg", "a.jpg", "10", "9"]

    assert natural_order(names) == [
        *("9", "10", "a2.jpg", "a02b.jpg", "a10.jpg", "a.jpg", "b/1.jpg")
    ]
