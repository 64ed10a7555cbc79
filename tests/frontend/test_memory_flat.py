"""What a stage holds in memory does not grow with the content of the stores."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# The features of 6,000 images here are 216 MB. What may grow is what names them.
BYTES_AN_IMAGE = 1_000
BYTES_A_PAIR = {
    "match": 1_000,
    "read": 800,
    "database": 3_500,  # SQLite goes through the whole file when it is closed
}
BLOCKS = 48e6  # two blocks of a store, and what malloc does not give back

SCRIPT = """
import os
import sys
from pathlib import Path
import numpy as np
from sfmprep.config import DatabaseConfig
from sfmprep.mapping.database import update_database
from sfmprep.capture.image_file import ImageInfo
from sfmprep.capture.image_set import ImageSet
from sfmprep.frontend.match import match_features
from sfmprep.pairing.pairs import sequential_pairs
from sfmprep.stores.tables import FeatureStore, MatchStore
from sfmprep.types import Features, Matches

folder, num_images, stages = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
names = [f"capture/frame_{k:06d}.jpg" for k in range(num_images)]
random = np.random.default_rng(0)
image = Features(
    xy=random.uniform(0, 600, (256, 2)).astype(np.float32),
    scores=random.random(256, np.float32),
    descriptors=random.random((256, 64)).astype(np.float16),
    image_size=(640, 480),
)
rows = np.arange(100, dtype=np.int32)
matches = Matches(index=np.stack([rows, rows], 1), scores=np.ones(100, np.float32))

class Prepared:
    def __init__(self, features):
        self.features = features
        self.num_bytes = features.descriptors.nbytes

class FreeMatcher:
    def prepare(self, features):
        return Prepared(features)

    def match(self, pairs):
        return [matches] * len(pairs)

def peak_kib():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])

def run(stage):
    if stage == "make":
        with FeatureStore(folder / "f.h5", {}) as store:
            for start in range(0, num_images, 100):
                store.append([(name, image) for name in names[start : start + 100]])
        return
    pairs = sequential_pairs(names, window=5, quadratic=False)
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_kib()
    with FeatureStore(folder / "f.h5") as features:
        if stage == "match":
            with MatchStore(folder / "m.h5", {}) as store:
                match_features(
                    pairs, features, FreeMatcher(), store, cache_bytes=8_000_000
                )
                assert len(store) == len(pairs)
        elif stage == "read":
            with MatchStore(folder / "m.h5") as store:
                assert sum(len(one) for _, one in store.items()) == 100 * len(pairs)
            assert sum(len(one) for _, one in features.items()) == 256 * num_images
        elif stage == "database":
            info = ImageInfo(size=(640, 480), orientation=1, num_bytes=1)
            images = ImageSet(folder, tuple(names), dict.fromkeys(names, info), {})
            with MatchStore(folder / "m.h5") as store:
                config = DatabaseConfig()
                update_database(folder / "d.db", images, features, store, pairs, config)
    print(len(pairs), 1024 * (peak_kib() - before), flush=True)


for stage in stages:  # each begins with what was imported, and no more
    if os.fork() == 0:
        run(stage)
        os._exit(0)
    assert os.wait()[1] == 0, stage
"""


def run(folder: Path, num_images: int) -> dict[str, tuple[int, int]]:
    """Runs each stage in a process of its own; returns its pairs and peak, bytes."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, folder, str(num_images), "make", *BYTES_A_PAIR],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.returncode == 0, done.stderr
    words = [int(word) for word in done.stdout.split()]
    return dict(
        zip(BYTES_A_PAIR, zip(words[::2], words[1::2], strict=True), strict=True)
    )


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc"
)
def test_memory_is_flat_from_100_to_6_000_images(tmp_path: Path) -> None:
    few, many = tmp_path / "few", tmp_path / "many"
    peaks = []
    for folder, num_images in ((few, 100), (many, 6_000)):
        folder.mkdir()
        peaks.append(run(folder, num_images))
    assert (many / "f.h5").stat().st_size > 210e6
    for stage, bytes_a_pair in BYTES_A_PAIR.items():
        (_, small), (num_pairs, large) = (each[stage] for each in peaks)
        print(stage, num_pairs, small, large, (large - small) / num_pairs)
        allowed = BLOCKS + 6_000 * BYTES_AN_IMAGE + num_pairs * bytes_a_pair
        assert large - small < allowed < 210e6, stage
