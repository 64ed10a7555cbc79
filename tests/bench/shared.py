"""What the benches on real scenes share: where those are, and how poses are shown."""

from __future__ import annotations

import os
from pathlib import Path

from sfmprep.evaluation.poses import Evaluation

SHARED = Path(
    os.environ.get("SFMPREP_SHARED") or Path(__file__).resolve().parents[3] / "shared"
)


def scene_folder(name: str) -> Path:
    """The folder of a scene with a reference."""
    return SHARED / "data" / "scenes" / name


def use_shared_weights() -> None:
    """Reads weights from `SHARED`, unless SFMPREP_WEIGHTS names another place."""
    os.environ.setdefault("SFMPREP_WEIGHTS", str(SHARED / "weights"))


def auc_cell(found: Evaluation) -> str:
    """AUC at 1, 3 and 5 degrees, per cent."""
    return " / ".join(f"{found.auc[limit]:.1f}" for limit in (1, 3, 5))
