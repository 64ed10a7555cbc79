"""The tables of heads and losses, of figures that are given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.bench.training import CARD, PARTS, write_card


def figures(errors_deg: list[list[float]], **more: object) -> dict[str, Any]:
    return {
        "wide": {
            "pairs": len(errors_deg),
            "errors_deg": errors_deg,
            "matches": 120.4,
            "pair_s": 0.25,
        },
        "homographies": {
            "b": {
                "photographs": 2,
                "matches": 301,
                "within": {"1": 40.0, "3": 70.0, "5": 80.0},
            }
        },
        **more,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What was measured of losses: two pairs, two seeds of RANSAC."""
    trials = {
        "packaged": figures([[1, 1], [180, 180]]),
        "base": figures([[5, 5], [5, 5]], training_s=60.4),
        "base-reliability": figures([[2, 4], [5, 180]], training_s=70.0),
        "base-repeatability": figures([[5, 5], [0, 0]], training_s=61.0),
        "base-reliability-repeatability": figures([[5, 5], [5, 5]], training_s=71.0),
    }
    for name, told in trials.items():
        place = tmp_path / "losses" / name
        place.mkdir(parents=True)
        (place / "measured.json").write_text(json.dumps(told))
    return tmp_path / "losses"


def test_gains_are_over_the_first_trial_with_their_standard_error(
    folder: Path, tmp_path: Path
) -> None:
    card = tmp_path / "card.md"
    begin, end = "<!-- losses: begin -->\n", "<!-- losses: end -->\n"
    card.write_text(f"before\n{begin}old\n{end}after\n")
    write_card(card, "losses", folder, 300)
    text = card.read_text()
    assert text.startswith(f"before\n{begin}300 steps each") and "old" not in text
    assert text.endswith(f"\n{end}after\n")
    cells = {
        row.split(" | ")[0].removeprefix("| "): row.split(" | ")[1:]
        for row in text.splitlines()
        if row.startswith("| ")
    }
    assert cells["packaged, not trained further"][0] == "–"
    assert cells["its losses"][:3:2] == ["60", "–"]
    # the first pair 70 in place of 50, the second 25: the mean of +20 and -25
    assert cells["its losses + reliability"][2] == "-2.5 ± 22.5"
    assert cells["its losses + repeatability"][2] == "+25.0 ± 25.0"
    assert cells["its losses + reliability + repeatability"][2:] == [
        *("+0.0 ± 0.0", "120", "0.250", "40.0 / 70.0 / 80.0", "150", "– |")
    ]
    once = card.read_text()
    write_card(card, "losses", folder, 300)
    assert card.read_text() == once


def test_a_card_without_marks_is_left_alone(folder: Path, tmp_path: Path) -> None:
    card = tmp_path / "card.md"
    card.write_text("nothing\n")
    with pytest.raises(SystemExit) as caught:
        write_card(card, "losses", folder, 300)
    assert str(caught.value) == (
        f"{card} lacks the lines <!-- losses: begin --> and <!-- losses: end -->"
    )
    assert card.read_text() == "nothing\n"


@pytest.mark.parametrize("part", PARTS)
def test_the_model_card_has_the_marks(part: str) -> None:
    text = CARD.read_text("utf-8")
    begin, end = (text.index(f"<!-- {part}: {word} -->\n") for word in ("begin", "end"))
    assert begin < end
