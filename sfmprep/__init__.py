"""Photographs in; camera poses and a sparse cloud for splat training out.

    import sfmprep as sp

    images = sp.scan("photos/")
    features = sp.extract(images, sp.Aliked(max_keypoints=4096), "work/features.h5")
    pairs = sp.retrieval_pairs(features, num_neighbours=20)
    matches = sp.match(features, pairs, sp.LightGlue("aliked"), "work/matches.h5")
    database = sp.verify(images, features, matches, "work/database.db")
    models = sp.map(database, images)
    sp.export(sp.refine(models[0], images), images, "dataset/", targets=["gsplat"])

Importing this package imports neither torch nor OpenCV nor COLMAP nor nerfstudio: what
a name stands for is imported when the name is first used.
`sfmprep.export` is the function; its folder's modules are `from sfmprep.export import`.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

import PIL.Image  # noqa: F401  # first: Pillow after pycolmap has been seen to abort

__version__ = "0.1.0"

__all__ = [
    "Aliked",
    "Compact",
    "ConfigError",
    "Database",
    "DatabaseConfig",
    "DenseConfig",
    "DenseMatches",
    "DenseStore",
    "DepthAnything",
    "DeviceError",
    "Dis",
    "Disk",
    "Droid",
    "ExportConfig",
    "Extractor",
    "FeatureStore",
    "Features",
    "FilmConfig",
    "FlowEstimator",
    "ImageBatch",
    "ImageError",
    "ImageSet",
    "LightGlue",
    "Loftr",
    "MappingConfig",
    "MatchLayers",
    "MatchStore",
    "Matcher",
    "Matches",
    "Nearest",
    "OutlierConfig",
    "Pairs",
    "Pointmap",
    "Raft",
    "Recipe",
    "ReconstructionError",
    "RefinementConfig",
    "S2ld",
    "SfmprepError",
    "Sift",
    "StoreError",
    "WeightsError",
    "XFeat",
    "XFeatStar",
    "__version__",
    "add_photographs",
    "drop_outliers",
    "evaluate",
    "exhaustive_pairs",
    "export",
    "extract",
    "join_dense",
    "load_recipe",
    "localise",
    "map",
    "map_from_poses",
    "mask_motion",
    "match",
    "match_dense",
    "match_images",
    "natural_order",
    "pairs_from_file",
    "pointmap_geometry",
    "read_model",
    "read_poses",
    "read_report",
    "reconstruct",
    "refine",
    "refine_poses",
    "retrieval_pairs",
    "scan",
    "sequential_pairs",
    "stored_from_network",
    "verify",
    "view_graph",
    "weak_pairs",
]

if TYPE_CHECKING:
    from sfmprep.api.dataset import export, read_report, reconstruct
    from sfmprep.api.finished import add_photographs, localise
    from sfmprep.api.known_poses import map_from_poses, read_poses, refine_poses
    from sfmprep.api.matching import (
        LightGlue,
        extract,
        match,
        match_images,
        retrieval_pairs,
        scan,
    )
    from sfmprep.api.pointmaps import pointmap_geometry
    from sfmprep.api.poses import (
        Database,
        drop_outliers,
        evaluate,
        map,
        mask_motion,
        read_model,
        refine,
        verify,
        view_graph,
    )
    from sfmprep.api.semidense import join_dense, match_dense, weak_pairs
    from sfmprep.capture.image_set import ImageSet
    from sfmprep.config import AlikedConfig as Aliked
    from sfmprep.config import CompactConfig as Compact
    from sfmprep.config import (
        DatabaseConfig,
        DenseConfig,
        ExportConfig,
        FilmConfig,
        MappingConfig,
        OutlierConfig,
        Recipe,
        RefinementConfig,
    )
    from sfmprep.config import DepthAnythingConfig as DepthAnything
    from sfmprep.config import DisConfig as Dis
    from sfmprep.config import DiskConfig as Disk
    from sfmprep.config import DroidConfig as Droid
    from sfmprep.config import LoftrConfig as Loftr
    from sfmprep.config import NearestConfig as Nearest
    from sfmprep.config import PointmapConfig as Pointmap
    from sfmprep.config import RaftConfig as Raft
    from sfmprep.config import S2ldConfig as S2ld
    from sfmprep.config import SiftConfig as Sift
    from sfmprep.config import XFeatConfig as XFeat
    from sfmprep.config import XFeatStarConfig as XFeatStar
    from sfmprep.config.load import load_recipe
    from sfmprep.coords import stored_from_network
    from sfmprep.errors import (
        ConfigError,
        DeviceError,
        ImageError,
        ReconstructionError,
        SfmprepError,
        StoreError,
        WeightsError,
    )
    from sfmprep.models.protocols import Extractor, FlowEstimator, Matcher
    from sfmprep.pairing.pairs import (
        Pairs,
        exhaustive_pairs,
        natural_order,
        pairs_from_file,
        sequential_pairs,
    )
    from sfmprep.stores.layers import MatchLayers
    from sfmprep.stores.tables import DenseStore, FeatureStore, MatchStore
    from sfmprep.types import DenseMatches, Features, ImageBatch, Matches
else:
    # The same, imported when a name is first used.
    _PLACES = {
        alias.asname or alias.name: (node.module, alias.name)
        for told in ast.parse(Path(__file__).read_text("utf-8")).body
        if isinstance(told, ast.If)
        for node in told.body
        for alias in node.names
    }

    # Imports put a folder into the place of the function `export`, but only the first
    # one does: it happens here.
    importlib.import_module("sfmprep.export")
    del export

    def __getattr__(name: str) -> object:
        """Imports what a public name stands for, once (PEP 562)."""
        if name not in _PLACES:
            raise AttributeError(f"module 'sfmprep' has no attribute {name!r}")
        module, attribute = _PLACES[name]
        found = getattr(importlib.import_module(module), attribute)
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        """The public names."""
        return __all__
