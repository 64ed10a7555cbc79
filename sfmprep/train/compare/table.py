"""The table of `evaluate` as text: what the model card shows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sfmprep.train.compare import homographies as evaluate_homographies
from sfmprep.train.compare.pairs import AUC_DEG, BINS_DEG, two_view_auc

Cells = Mapping[str, Mapping[str, dict[str, Any]]]  # row -> column -> figures

_NONE = "–"


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """What `evaluate` measured; rows are named as its cells."""

    columns: tuple[str, ...]
    cells: Cells
    max_keypoints: int
    weights_sha256: Mapping[str, tuple[str, ...]]  # by column; none for a classical one

    def to_json(self) -> str:
        """The figures as a JSON object: columns, cells, keypoints, weights."""
        return json.dumps(asdict(self), indent=1)

    def to_markdown(self) -> str:
        """One Markdown table of each kind of row, and what was compared how."""
        kinds = (_scene_lines, _two_view_lines, _homography_lines, _speed_lines)
        parts = [
            self._section(title, note, rows)
            for title, note, rows in (kind(self) for kind in kinds)
            if rows
        ]
        return "\n".join([*parts, *self._footer()])

    def rows_of(self, kind: str) -> dict[str, Mapping[str, dict[str, Any]]]:
        """The cells of the rows `kind` and `kind/...`, by what follows the slash."""
        return {
            row.partition("/")[2]: cells
            for row, cells in self.cells.items()
            if row.partition("/")[0] == kind
        }

    def _section(self, title: str, note: str, rows: list[list[str]]) -> str:
        head = ["", *self.columns]
        lines = [head, ["---"] * len(head), *rows]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"### {title}\n\n{note}\n\n{body}\n"

    def _footer(self) -> Iterator[str]:
        yield (
            f"At most {self.max_keypoints} keypoints a photograph"
            f" ({evaluate_homographies.NUM_KEYPOINTS} for homographies), the same"
            " photographs, verification and mapper for every column. Weights by sha256:"
        )
        yield ""
        for column in self.columns:
            weights = ", ".join(f"`{w[:12]}`" for w in self.weights_sha256[column])
            yield f"- {column}: {weights or 'none'}"
        yield ""


_Section = tuple[str, str, list[list[str]]]


def _scene_lines(table: Table) -> _Section:
    lines = []
    found = [
        (f"{scene}{suffix}", by_column)
        for kind, suffix in (("scenes", ""), ("thinned", ", every third image"))
        for scene, by_column in table.rows_of(kind).items()
    ]
    for name, by_column in found:
        figures = [by_column[column] for column in table.columns]
        lines += [
            [
                f"{name}: registered of {figures[0]['images']}",
                *(str(f["registered"]) for f in figures),
            ],
            [f"{name}: AUC@1 / 3 / 5", *(_slashed(f["auc"]) for f in figures)],
            [f"{name}: points", *(str(f["points"]) for f in figures)],
            [f"{name}: track length", *(_number(f["track_length"]) for f in figures)],
            [f"{name}: seconds", *(_number(f["seconds"], 0) for f in figures)],
        ]
    note = (
        "Pairs: all of up to 30 images, else each with the next 10 and those 16, 32,"
        " ... later. Points and track length of the largest model; seconds of"
        " extraction, matching, verification and mapping, on whatever else the machine"
        " had to do."
    )
    return "Scenes", note, lines


def _two_view_lines(table: Table) -> _Section:
    scenes = table.rows_of("two-view")
    lines = []
    for low, high in BINS_DEG:
        bin_name = f"{low}-{high}"
        pooled = {
            column: [
                error
                for cells in scenes.values()
                for error in cells[column][bin_name]["errors_deg"]
            ]
            for column in table.columns
        }
        by_name = {"all": pooled} | {
            scene: {
                column: cells[column][bin_name]["errors_deg"]
                for column in table.columns
            }
            for scene, cells in scenes.items()
        }
        lines += [
            [
                f"{low}–{high}°, {name} ({len(errors[table.columns[0]])} pairs)",
                *(_slashed(two_view_auc(errors[column])) for column in table.columns),
            ]
            for name, errors in by_name.items()
        ]
    thresholds = " / ".join(map(str, AUC_DEG))
    note = (
        f"AUC@{thresholds} of the relative pose by an essential matrix with the"
        " reference intrinsics, by the angle between the optical axes; `all` is over"
        " the pairs of all scenes."
    )
    return "Two-view poses", note, lines if scenes else []


def _homography_lines(table: Table) -> _Section:
    lines = []
    for by_column in table.rows_of("homographies").values():
        for name, warps in evaluate_homographies.SETS.items():
            figures = [by_column[column][name] for column in table.columns]
            label = (
                f"{name}: rotation ≤ {warps.rotation_deg:g}°, scale ≤ {warps.scale:g}"
            )
            lines += [
                [f"{label}: share", *(_slashed(f["within"]) for f in figures)],
                [
                    f"{label}: matches",
                    *(f"{f['matches'] / f['photographs']:.0f}" for f in figures),
                ],
            ]
    thresholds = " / ".join(map(str, evaluate_homographies.THRESHOLDS_PX))
    note = (
        f"Matches within {thresholds} px, per cent of the matches of points that both"
        " images show, and how many those are a photograph. Nearest neighbours are"
        " mutual ones here, also of SIFT, without a ratio test. The photographs are"
        " those that no training saw."
    )
    return "Homographies", note, lines


def _speed_lines(table: Table) -> _Section:
    lines = []
    for by_column in table.rows_of("seconds").values():
        figures = [by_column[column] for column in table.columns]
        width, height = figures[0]["size"]
        for what, label in (
            ("photograph_s", f"a photograph of {width} × {height}"),
            ("pair_s", "a pair"),
        ):
            lines += [
                [label, *(f"{f[what]:.3f}" for f in figures)],
                [
                    f"{label}, SIFT = 1",
                    *(f"{f[what] / f[f'sift_{what}']:.2f}" for f in figures),
                ],
            ]
    note = (
        "Medians. Ratios are to SIFT timed in turns with the column, so they hold where"
        " the machine was busy."
    )
    return "Seconds", note, lines


def _slashed(values: Mapping[Any, float] | None) -> str:
    if values is None:
        return _NONE
    return " / ".join(f"{value:.1f}" for value in values.values())


def _number(value: float | None, digits: int = 2) -> str:
    return _NONE if value is None else f"{value:.{digits}f}"
