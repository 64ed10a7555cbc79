"""How the mapper's adjustments end."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DatabaseConfig, MappingConfig
from sfmprep.mapping import solver
from sfmprep.mapping.runs import Run, incremental_options
from sfmprep.progress import silent


def test_adjustments_on_the_way_end_early_and_use_all_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solver, "num_cores", lambda: 3)
    run = Run(
        database=tmp_path / "database.db",
        images=ImageSet(tmp_path, ("a.jpg", "b.jpg"), {}, {}),
        folder=tmp_path,
        config=MappingConfig(),
        cameras=DatabaseConfig(),
        scales=None,
        seed=0,
        progress=silent,
    )
    pipeline = incremental_options(run)
    for adjustment, tolerance in (
        (pipeline.get_local_bundle_adjustment(), 1e-4),
        (pipeline.get_global_bundle_adjustment(), 1e-6),
    ):
        assert adjustment.ceres.solver_options.function_tolerance == tolerance
        assert adjustment.ceres.min_num_residuals_for_cpu_multi_threading == 15_000
