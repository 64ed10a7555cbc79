"""The output folder: what lies where, and whether a run may begin or go on in it.

out/
    recipe.yaml                the recipe; from the first feature on one choice is made
    report.html report.json    what was found (see `report`)
    images/ sparse/0/ ...      the dataset (see `export.dataset`)
    database.db                only with `mapping.type: none`
    work/                      what is needed to go on; may be deleted afterwards
        images.json    size, time and checksum of the photographs and masks
        features.h5 pairs.txt matches.h5 database.db
        verified.db pairs_beside.txt features_beside.h5     other features beside (see
        matches_beside.h5 keypoints_beside.h5               `ladder`)
        verified_beside.db weak_pairs.txt stronger_matches.h5    a stronger matcher
        verified_again.db pairs_left.txt dense.h5           semi-dense
        joined_features.h5 joined_matches.h5      features and semi-dense matches
        mapped.zip     the mapper's models; a tool that scans a folder finds none in it
        second_pairs.txt second.db mapped_on.zip        the second round
        lost_pairs.txt     of its pairs those of images without a pose
        consistency.json   how far pairs and largest model agree, and pairs left out
        refined.zip    models with refined keypoints
        models/0 ...   those without what is not supported
        poses.json     uncertainties of the poses, and images set aside
        stages.json    which stages are done, with their keys (see `stage_table`)
        earlier/       what was made with other settings, until they come back
        developed/     photographs that films and RAW files became; developed.json
        lock           held by the run that is going on
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sfmprep.errors import ConfigError, StoreError
from sfmprep.files import not_written

logger = logging.getLogger(__name__)

_EARLY = {"lock", "developed", "developed.json", "stages.json"}


class Workspace:
    """The paths of one output folder, as the module says."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.work = work = out / "work"
        self.recipe = out / "recipe.yaml"
        self.manifest = work / "images.json"
        self.earlier = work / "earlier"
        self.earlier_dataset = self.earlier / "dataset"
        self.developed = work / "developed"
        self.developed_table = work / "developed.json"
        self.features = work / "features.h5"
        self.pairs = work / "pairs.txt"
        self.matches = work / "matches.h5"
        self.features_beside = work / "features_beside.h5"
        self.matches_beside = work / "matches_beside.h5"
        self.keypoints_beside = work / "keypoints_beside.h5"
        self.dense = work / "dense.h5"
        self.stronger_matches = work / "stronger_matches.h5"
        self.pairs_left = work / "pairs_left.txt"
        self.joined_features = work / "joined_features.h5"
        self.joined_matches = work / "joined_matches.h5"
        self.mapped = work / "mapped.zip"
        self.second_pairs = work / "second_pairs.txt"
        self.lost_pairs = work / "lost_pairs.txt"
        self.second_database = work / "second.db"
        self.mapped_on = work / "mapped_on.zip"
        self.consistency = work / "consistency.json"
        self.refined = work / "refined.zip"
        self.models = work / "models"
        self.poses = work / "poses.json"
        self.report = out / "report.json"
        self.report_page = out / "report.html"
