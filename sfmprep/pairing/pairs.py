"""Which images are matched with which, before anything is known of their content."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sfmprep.errors import ConfigError
from sfmprep.files import write_text
from sfmprep.types import Pair

# of images those that each asks to be paired with, most wanted first, each once
Partners = Mapping[str, Sequence[str]]
_T = TypeVar("_T")
_SEPARATORS = frozenset("\t\n\r")


@dataclass(frozen=True)
class Pairs:
    """Unordered pairs of image names, each once: name0 < name1, sorted."""

    items: tuple[Pair, ...]

    @classmethod
    def of(cls, pairs: Iterable[Pair]) -> Pairs:
        """Brings pairs into order; repeated and reversed ones are merged.

        Raises:
            ValueError: an image is paired with itself.
        """
        unique = {(a, b) if a < b else (b, a) for a, b in pairs}
        if same := next((a for a, b in unique if a == b), None):
            raise ValueError(f"{same!r} is paired with itself")
        return cls(tuple(sorted(unique)))

    @classmethod
    def of_partners(cls, partners: Partners) -> Pairs:
        """The pairs that at least one of their images asks for."""
        return cls.of((name, o) for name, others in partners.items() for o in others)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.items)

    def write(self, path: str | Path) -> None:
        """Writes one pair a line, separated by a tab, for `pairs_from_file`.

        Raises:
            ConfigError: a name holds a tab or a line break, which this file and
                COLMAP's text files have no way to write.
        """
        for name in itertools.chain.from_iterable(self.items):
            if not _SEPARATORS.isdisjoint(name):
                raise ConfigError(
                    f"image name {name!r} holds a tab or a line break. Rename the file."
                )
        text = "".join(f"{name0}\t{name1}\n" for name0, name1 in self.items)
        write_text(Path(path), text)


def exhaustive_pairs(names: Sequence[str]) -> Pairs:
    """Every image with every other; none for fewer than two images."""
    return Pairs.of(itertools.combinations(names, 2))


def in_turn(wanted: Iterable[Sequence[_T]]) -> list[_T]:
    """The first item of each list, then the second of each, and so on, each once."""
    turns = itertools.zip_longest(*wanted)
    return list(dict.fromkeys(item for turn in turns for item in turn if item))


def natural_order(names: Iterable[str]) -> list[str]:
    """Names with their numbers in order of size: `2.jpg` comes before `10.jpg`."""

    def key(name: str) -> list[tuple[int, str]]:
        parts = re.split(r"([0-9]+)", name)
        return [(int(p), "") if p.isdecimal() else (0, p) for p in parts]

    return sorted(names, key=key)


def sequential_pairs(
    names: Sequence[str], *, window: int = 10, quadratic: bool = True
) -> Pairs:
    """Each image with those that follow it in the order of `names`.

    Args:
        names: Frames in the order of time.
        window: With the next 1, 2, ... `window` images.
        quadratic: Also with those 2, 4, 8, ... up to 2 ** `window` images later, which
            closes small loops.
    """
    return Pairs.of_partners(later_partners(names, window=window, quadratic=quadratic))


def later_partners(names: Sequence[str], *, window: int, quadratic: bool) -> Partners:
    """Of each image those that follow it, as `sequential_pairs`, the next ones first.

    Each pair is asked for once, by the earlier image.
    """
    steps = set(range(1, window + 1))
    if quadratic:
        steps |= {2**k for k in range(window + 1)}
    reach = sorted(steps)
    return {
        name: [names[k + step] for step in reach if k + step < len(names)]
        for k, name in enumerate(names)
    }


def pairs_from_file(path: str | Path, names: Sequence[str]) -> Pairs:
    """Reads pairs of names, one pair a line; empty lines and `#` comments are skipped.

    Names are separated by a tab, or by spaces where that leaves one way to read the
    line as two known names. Of a line that is a comment and a pair, the pair counts.

    Raises:
        ConfigError: the file cannot be read, or a line does not name two images.
    """
    try:
        lines = Path(path).read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"pairs file {path} cannot be read: {error}") from error
    known = set(names)
    pairs = []
    for number, line in enumerate(lines, 1):
        if pair := _parse_line(line, known, f"{path}, line {number}"):
            pairs.append(pair)
    return Pairs.of(pairs)


def _parse_line(line: str, known: set[str], where: str) -> Pair | None:
    """The pair that a line names; None for an empty line or a comment."""
    if "\t" in line:
        cuts = [line.split("\t")]
    else:
        words = line.split(" ")
        cuts = [
            [" ".join(words[:k]), " ".join(words[k:])] for k in range(1, len(words))
        ]
    fitting = _known_pairs(cuts, known)
    if not fitting:  # spaces around a name do not count, unless they are part of it
        fitting = _known_pairs([[n.strip() for n in cut] for cut in cuts], known)
    if not fitting and line.strip()[:1] in ("", "#"):
        return None
    if len(fitting) > 1:
        raise ConfigError(
            f"{where}: {line!r} can be read as two names in {len(fitting)} ways."
            " Separate them by a tab."
        )
    if not fitting:
        raise ConfigError(
            f"{where}: {line!r} does not name two images of this capture. Expected two"
            " paths relative to the image folder, separated by a tab."
        )
    name0, name1 = fitting.pop()
    if name0 == name1:
        raise ConfigError(f"{where}: {name0!r} is paired with itself.")
    return name0, name1


def _known_pairs(cuts: Iterable[list[str]], known: set[str]) -> set[Pair]:
    return {(cut[0], cut[1]) for cut in cuts if len(cut) == 2 and known.issuperset(cut)}
