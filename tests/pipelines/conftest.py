"""Whole runs: what they have in common is computed once."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _remembered(remembered: None) -> None:
    """Before all else, so that what a test puts in the place of SIFT is asked."""
