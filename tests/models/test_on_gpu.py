"""Every network on a GPU: float32 gives what a CPU gives, half precision works.

`SFMPREP_TEST_DEVICE` names another device than cuda; with cpu, what is tested is that
these tests would run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kornia.feature import DISK

from sfmprep.config import (
    AlikedConfig,
    CompactConfig,
    D2NetConfig,
    DiskConfig,
    DroidConfig,
    EigenPlacesConfig,
    LightGlueConfig,
    LoftrConfig,
    MegaLocConfig,
    NearestConfig,
    NetVladConfig,
    PointmapConfig,
    R2d2Config,
    RaftConfig,
    S2ldConfig,
    SuperGlueConfig,
    SuperPointConfig,
    XFeatConfig,
    XFeatStarConfig,
)
from sfmprep.config.base import ModelConfig
from sfmprep.models.build import (
    build_dense_matcher,
    build_extractor,
    build_flow_estimator,
    build_matcher,
    build_retriever,
)
from sfmprep.models.extractors.d2net import D2NetNetwork
from sfmprep.models.extractors.r2d2 import R2d2Network
from sfmprep.models.extractors.superpoint import SuperPointNetwork
from sfmprep.models.flow.droid_network import DroidNetwork
from sfmprep.models.flow.raft_network import RaftNetwork
from sfmprep.models.retrieval.eigenplaces import EigenPlacesNetwork
from sfmprep.models.retrieval.netvlad import NetVladNetwork
from sfmprep.models.semidense.loftr import loftr_network
from sfmprep.models.semidense.s2ld_network import S2ldNetwork
from sfmprep.types import Features, ImageBatch
from tests.support.batches import batch_of
from tests.support.pointmaps import pointmap_tensors
from tests.support.retrieval import megaloc_tensors
from tests.support.superglue import random_superglue
from tests.support.textures import texture

DEVICE = os.environ.get("SFMPREP_TEST_DEVICE", "cuda")
IS_CUDA = DEVICE.startswith("cuda")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        IS_CUDA and not torch.cuda.is_available(), reason="no CUDA device"
    ),
]
both = pytest.mark.parametrize(
    "precision",
    [
        "float32",
        pytest.param(
            "half", marks=pytest.mark.skipif(not IS_CUDA, reason="float32 on a CPU")
        ),
    ],
)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[Any], Path]:
    def save(tensors: Any) -> Path:
        torch.save(tensors, path := tmp_path / "random.pth")
        return path

    torch.manual_seed(0)
    return save


@pytest.fixture
def images() -> ImageBatch:
    """Two photographs, the second looking 16 pixels further right and down."""
    scene = texture(3, (240, 200))
    return batch_of(scene[:160, :192], scene[16:176, 16:208])


def config_of(
    name: str, request: pytest.FixtureRequest, saved: Callable[[Any], Path]
) -> ModelConfig:
    """The configuration, with random weights where there are no genuine ones."""
    match name:
        case "compact":
            return CompactConfig()
        case "compact-lightglue":
            return LightGlueConfig(model="compact-lightglue", width_confidence=0.9)
        case "nearest":
            return NearestConfig(ratio=0.95)
        case "disk":
            return DiskConfig(weights=saved(DISK().state_dict()))
        case "d2net":
            return D2NetConfig(weights=saved(D2NetNetwork().state_dict()))
        case "superpoint":
            tensors = SuperPointNetwork(has_norms=True).state_dict()
            return SuperPointConfig(weights=saved(tensors))
        case "r2d2":
            return R2d2Config(
                weights=saved(R2d2Network(32).state_dict()),
                **{"min_repeatability": 0.1, "min_reliability": 0.1, "min_size": 130},
            )
        case "superglue":
            return SuperGlueConfig(weights=saved(random_superglue()[1]))
        case "loftr":
            network = loftr_network("loftr-outdoor")
            with torch.no_grad():
                network.backbone.layer3_outconv.weight.mul_(3)
            tensors = {"state_dict": network.state_dict()}
            return LoftrConfig(weights=saved(tensors), min_score=0.01)
        case "s2ld":
            return S2ldConfig(weights=saved(S2ldNetwork().state_dict()), min_score=0.01)
        case "mast3r" | "dust3r-linear" | "dust3r-dpt":
            tensors = {"model": pointmap_tensors(name)}
            return PointmapConfig(model=name, weights=saved(tensors), min_score=0.01)
        case "eigenplaces":
            tensors = EigenPlacesNetwork(18, 256).state_dict()
            return EigenPlacesConfig(
                model="eigenplaces-r18-256", weights=saved(tensors)
            )
        case "megaloc":
            return MegaLocConfig(weights=saved(megaloc_tensors()))
        case "netvlad":
            return NetVladConfig(weights=saved(NetVladNetwork(8).state_dict()))
        case "raft-small" | "raft-basic":
            network = RaftNetwork(is_small=name == "raft-small")
            path = saved(network.state_dict())
            return RaftConfig(model=name, weights=path, num_iterations=2)
        case "droid":
            path = saved(DroidNetwork().state_dict())
            return DroidConfig(weights=path, num_iterations=2)
    request.getfixturevalue("real_weights")
    return {
        "aliked-n16": AlikedConfig(model="aliked-n16"),
        "xfeat": XFeatConfig(),
        "xfeat-star": XFeatStarConfig(min_similarity=0.5),
    }[name]


def needs_weights(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.shared)


@both
@pytest.mark.parametrize(
    "name",
    [
        *("compact", "disk", "d2net", "superpoint", "r2d2"),
        *map(needs_weights, ("aliked-n16", "xfeat")),
    ],
)
def test_extractors(name: str, precision: str, images, request, saved) -> None:
    config = config_of(name, request, saved)
    expected = build_extractor(config).extract(images)
    found = build_extractor(config, device=DEVICE, precision=precision).extract(images)
    for ours, theirs in zip(found, expected, strict=True):
        apart = np.linalg.norm(theirs.xy[:, None] - ours.xy[None], axis=2)
        same = apart.min(1) < 0.1
        assert same.mean() > (0.95 if precision == "float32" else 0.6)
        cosines = (theirs.descriptors * ours.descriptors[apart.argmin(1)]).sum(1)
        assert np.median(cosines[same]) > 0.99


def keypoints(seed: int, count: int, dim: int) -> Features:
    """Some of the same points, each time another and disturbed selection of them."""
    rng = np.random.default_rng(0)
    xy, rows = rng.uniform(0, 400, (300, 2)), rng.normal(size=(300, dim))
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(300)[:count]
    rows = rows[chosen] + rng.normal(scale=0.1, size=(count, dim))
    return Features(
        xy=xy[chosen].astype(np.float32),
        scores=rng.uniform(0.1, 1, count).astype(np.float32),
        descriptors=(rows / np.linalg.norm(rows, axis=1)[:, None]).astype(np.float32),
        image_size=(400, 400),
    )


@both
@pytest.mark.parametrize("name", ["nearest", "compact-lightglue", "superglue"])
def test_matchers(name: str, precision: str, request, saved) -> None:
    config = config_of(name, request, saved)
    dim = 256 if name == "superglue" else 64
    counts = [(200, 250), (250, 250), (1, 90), (0, 40), (100, 30)]
    pairs = [
        (keypoints(2 * k + 1, m, dim), keypoints(2 * k + 2, n, dim))
        for k, (m, n) in enumerate(counts)
    ]
    expected = build_matcher(config).match(pairs)
    found = build_matcher(config, device=DEVICE, precision=precision).match(pairs)
    for ours, theirs in zip(found, expected, strict=True):
        a, b = (set(map(tuple, m.index.tolist())) for m in (ours, theirs))
        assert len(a & b) >= 0.95 * max(len(a), len(b)) - 1
    assert len(expected[0]) > 20


@both
@pytest.mark.parametrize(
    "name",
    [
        *("loftr", "s2ld", "mast3r", "dust3r-linear", "dust3r-dpt"),
        needs_weights("xfeat-star"),
    ],
)
def test_matchers_without_a_detector(
    name: str, precision: str, images, request, saved
) -> None:
    config = config_of(name, request, saved)
    results = []
    for where in ({}, {"device": DEVICE, "precision": precision}):
        matcher = build_dense_matcher(config, **where)
        sides = matcher.prepare(images)
        results.append(matcher.match([tuple(sides), tuple(sides[::-1])]))
    for theirs, ours in zip(*results, strict=True):
        assert len(ours) == pytest.approx(len(theirs), rel=0.1, abs=5)
        assert np.isfinite(ours.xy0).all() and np.isfinite(ours.xy1).all()
        assert ((ours.scores >= 0) & (ours.scores <= 1)).all()
        if precision == "float32":
            places = {tuple(xy.round(1)): k for k, xy in enumerate(ours.xy0)}
            rows = [
                (k, places[place])
                for k, xy in enumerate(theirs.xy0)
                if (place := tuple(xy.round(1))) in places
            ]
            assert len(rows) >= 0.9 * len(theirs) - 1
            if rows:
                first, second = np.array(rows).T
                apart = np.abs(theirs.xy1[first] - ours.xy1[second]).max(1)
                assert np.median(apart) < 0.05


@both
@pytest.mark.parametrize("name", ["eigenplaces", "megaloc", "netvlad"])
def test_retrievers(name: str, precision: str, images, request, saved) -> None:
    config = config_of(name, request, saved)
    expected = build_retriever(config).embed(images)
    found = build_retriever(config, device=DEVICE, precision=precision).embed(images)
    atol = 1e-4 if precision == "float32" else 0.02
    np.testing.assert_allclose(found, expected, atol=atol)


@both
@pytest.mark.parametrize("name", ["raft-small", "raft-basic", "droid"])
def test_flow(name: str, precision: str, images, request, saved) -> None:
    config = config_of(name, request, saved)
    flows = []
    for where in ({}, {"device": DEVICE, "precision": precision}):
        estimator = build_flow_estimator(config, **where)
        flows += estimator.flow([tuple(estimator.prepare(images))])
    atol = 0.01 if precision == "float32" else 1.0
    assert np.isfinite(flows[1]).all()
    assert np.median(np.abs(flows[1] - flows[0])) < atol
