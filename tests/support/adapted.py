"""What a teacher might say of a picture."""

from __future__ import annotations

import numpy as np

from sfmprep.train.extractor.data import Adapted


def adapted(seed: int, photograph: np.ndarray, count: int = 80) -> Adapted:
    rng = np.random.default_rng(seed)
    height, width = photograph.shape[:2]
    descriptors = rng.normal(size=(count, 64)).astype(np.float32)
    return Adapted(
        xy=rng.uniform(0, (width - 1, height - 1), (count, 2)).astype(np.float32),
        repeatability=rng.uniform(0.3, 1, count).astype(np.float32),
        descriptors=descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True),
    )
