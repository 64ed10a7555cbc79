"""How the mapper's adjustments end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pycolmap
import pytest

from sfmprep.mapping import runs
from sfmprep.mapping.runs import refine_globally


@pytest.mark.parametrize(("num_images", "tolerance"), [(1000, 0.0), (1001, 1e-7)])
def test_adjustments_of_many_images_end_where_they_gain_nothing(
    num_images: int, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "choose_solver", lambda *_: None)
    asked: list[float] = []

    def refine(_: int, __: float, ___: object, adjustment: Any, ____: object) -> None:
        asked.append(adjustment.ceres.solver_options.function_tolerance)

    mapper = SimpleNamespace(
        reconstruction=SimpleNamespace(num_reg_images=lambda: num_images),
        iterative_global_refinement=refine,
    )
    pipeline = pycolmap.IncrementalPipelineOptions()
    refine_globally(
        cast("pycolmap.IncrementalMapper", mapper),
        *(pipeline, pipeline.get_mapper(), pipeline.get_triangulation()),
    )
    assert asked == [tolerance]
