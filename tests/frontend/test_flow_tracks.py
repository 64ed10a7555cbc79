"""Points followed by optical flow in films whose motion is known."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DisConfig, TracksConfig
from sfmprep.frontend.flow_tracks import Followed, follow_points, write_tracks
from sfmprep.models.build import build_flow_estimator
from sfmprep.models.flow.dis import Dis
from sfmprep.pairing.pairs import sequential_pairs
from sfmprep.stores.tables import FeatureStore, MatchStore
from tests.support.films import Walk, texture

STEP = 3.4  # pixels of the wall from frame to frame; columns go twice as far
SIZE = (240, 180)
CONFIG = TracksConfig(max_points=300)


def write(folder: Path, pictures: list[np.ndarray]) -> ImageSet:
    folder.mkdir(parents=True, exist_ok=True)
    for k, pixels in enumerate(pictures):
        cv2.imwrite(str(folder / f"{k:04d}.png"), pixels)
    return ImageSet.scan(folder)


def walk(folder: Path, count: int = 6) -> ImageSet:
    seen = Walk(size=SIZE)
    return write(folder, [seen.at(STEP * k) for k in range(count)])


def follow(images: ImageSet, config: TracksConfig = CONFIG) -> list[Followed]:
    estimator = build_flow_estimator(DisConfig())
    return list(follow_points(images, images.names, estimator, config))


def moved(first: Followed, second: Followed) -> np.ndarray:
    """How far the points that both frames have are apart, [M, 2]."""
    _, row0, row1 = np.intersect1d(first.track, second.track, return_indices=True)
    return second.features.xy[row1] - first.features.xy[row0]


def test_points_go_where_wall_and_columns_go(tmp_path: Path) -> None:
    frames = follow(walk(tmp_path))
    for first, second in zip(frames, frames[1:], strict=False):
        shift = moved(first, second)
        assert len(shift) > 100
        assert np.abs(shift[:, 1]).max() < 0.7
        errors = np.abs(shift[:, :1] + STEP * np.array([1, 2])).min(axis=1)
        assert np.median(errors) < 0.06
        # what an edge drags along is the rest
        assert (errors > 0.7).mean() < 0.1
    far = moved(frames[0], frames[5])
    assert len(far) > 40
    errors = np.abs(far[:, :1] + 5 * STEP * np.array([1, 2])).min(axis=1)
    assert np.median(errors) < 0.2


def test_a_point_is_one_keypoint_of_a_frame_and_seen_in_two(tmp_path: Path) -> None:
    frames = follow(walk(tmp_path))
    seen = np.concatenate([frame.track for frame in frames])
    for frame in frames:
        assert (np.diff(frame.track) > 0).all()
        assert len(frame.track) == len(frame.features) <= CONFIG.max_points
        assert frame.features.descriptors.shape[1] == 0
        assert (frame.features.scores <= 1).all() and (frame.features.scores > 0).all()
    assert np.unique(seen, return_counts=True)[1].min() == 2


def test_scores_are_how_sure_the_flow_is_where_it_tells(tmp_path: Path) -> None:
    class Sure(Dis):
        """Of the left half of each picture less than of the right one."""

        def confident_flow(self, pairs, starts=None):
            found = self.flow(pairs, starts)
            sure = np.full(found[0].shape[:2], 0.75, np.float32)
            sure[:, : SIZE[0] // 2] = 0.25
            return [(flow, sure) for flow in found]

    told = []

    def judge(track, before, now, sure):
        told.append((before, sure))
        return np.ones(len(track), bool)

    images = walk(tmp_path)
    followed = follow_points(
        *(images, images.names, Sure(DisConfig()), CONFIG), judge=judge
    )
    plain = follow(images)
    for frame, other in zip(followed, plain, strict=True):
        assert np.array_equal(frame.features.xy, other.features.xy)
        share = frame.features.scores / other.features.scores
        assert (np.isin(share.round(3), (0.25, 0.75, 1)) | (share < 0.75)).all()
    assert len(told) == 5
    for before, sure in told:
        assert np.allclose(sure[before[:, 0] > SIZE[0] / 2 + 2], 0.75)
        assert np.allclose(sure[before[:, 0] < SIZE[0] / 2 - 2], 0.25)


def test_places_are_pixels_of_the_file(tmp_path: Path) -> None:
    """A white square of a frame that is reduced to half its size."""
    pictures = []
    for k in range(2):
        pixels = np.zeros((200, 320, 3), np.uint8)
        pixels[80:120, 100 + 4 * k : 160 + 4 * k] = 255
        pictures.append(pixels)
    first, second = follow(
        write(tmp_path, pictures), TracksConfig(max_size=160, max_points=20)
    )
    corners = np.array([[100, 80], [160, 80], [100, 120], [160, 120]])
    for frame, shift in ((first, 0), (second, 4)):
        gaps = np.linalg.norm(frame.features.xy[:, None] - corners - (shift, 0), axis=2)
        assert (gaps.min(axis=0) < 2.5).all()
        assert (gaps.min(axis=0) > 0).all()
        assert frame.features.image_size == (320, 200)


def test_nothing_goes_on_behind_what_covers_it(tmp_path: Path) -> None:
    """A plate slides over a still wall; points of the wall end, none go with it."""
    wall, plate = texture(*SIZE, 1), texture(60, 120, 2)
    pictures = []
    for k in range(8):
        pixels = wall.copy()
        pixels[30:150, 20 + 12 * k : 80 + 12 * k] = plate
        pictures.append(pixels)
    frames = follow(write(tmp_path, pictures))
    for k in range(1, 7):
        xy = frames[k].features.xy
        inside = (xy[:, 1] > 34) & (xy[:, 1] < 146)
        inside &= (xy[:, 0] > 24 + 12 * k) & (xy[:, 0] < 76 + 12 * k)
        _, before, now = np.intersect1d(
            frames[k - 1].track, frames[k].track, return_indices=True
        )
        shift = xy[now, 0] - frames[k - 1].features.xy[before, 0]
        on_plate = inside[now]
        assert on_plate.sum() > 10
        assert (np.abs(shift[on_plate] - 12) < 0.5).mean() > 0.9


def test_nothing_is_followed_across_a_cut_or_another_size(tmp_path: Path) -> None:
    one, other, small = Walk(size=SIZE), Walk(9, size=SIZE), Walk(9, size=(200, 150))
    images = write(
        tmp_path,
        [
            *(one.at(STEP * k) for k in range(3)),
            *(other.at(900 + STEP * k) for k in range(3)),
            *(small.at(900 + STEP * k) for k in range(2)),
        ],
    )
    frames = follow(images)
    assert [len(frame.track) > 100 for frame in frames] == [True] * 8
    for shot, rest in (((0, 1, 2), range(3, 8)), ((3, 4, 5), (6, 7))):
        for frame in shot:
            for after in rest:
                assert not np.isin(frames[frame].track, frames[after].track).any()


def test_masks_end_points(tmp_path: Path) -> None:
    images = walk(tmp_path / "images", 4)
    mask = np.full(SIZE[::-1], 255, np.uint8)
    mask[:90] = 0
    (tmp_path / "masks").mkdir()
    for name in images.names:
        cv2.imwrite(str(tmp_path / "masks" / f"{name}.png"), mask)
    masked = ImageSet.scan(tmp_path / "images", mask_root=tmp_path / "masks")
    for frame in follow(masked):
        assert len(frame.track) > 30
        assert (frame.features.xy[:, 1] > 89).all()


@pytest.mark.parametrize("level", [0, 255])
def test_plain_frames_have_no_points(tmp_path: Path, level: int) -> None:
    plain = np.full((90, 120, 3), level, np.uint8)
    frames = follow(write(tmp_path, [plain] * 3))
    assert [len(frame.track) for frame in frames] == [0, 0, 0]


def test_one_frame_has_no_points_and_still_ones_have_the_same(tmp_path: Path) -> None:
    picture = texture(*SIZE)
    assert [len(f.track) for f in follow(write(tmp_path / "one", [picture]))] == [0]
    first, second = follow(write(tmp_path / "still", [picture] * 2))
    assert len(first.track) > 100
    np.testing.assert_allclose(first.features.xy, second.features.xy, atol=1e-3)


def test_pairs_that_are_asked_for_get_matches(tmp_path: Path) -> None:
    images = walk(tmp_path / "images")
    names = images.names
    pairs = [*sequential_pairs(names, window=2, quadratic=False), (names[0], names[5])]
    with FeatureStore() as features, MatchStore() as matches:
        write_tracks(
            *(images, [names[:3], names[3:]], pairs, build_flow_estimator(DisConfig())),
            *(CONFIG, features, matches),
        )
        # two films: nothing goes from one to the other
        assert matches.pairs() == [
            (names[a], names[b])
            for a, b in ((0, 1), (0, 2), (1, 2), (3, 4), (3, 5), (4, 5))
        ]
        for pair, found in matches.items():
            xy0, xy1 = (
                features.get(name).xy[rows]
                for name, rows in zip(pair, found.index.T, strict=True)
            )
            steps = names.index(pair[1]) - names.index(pair[0])
            errors = np.abs((xy1 - xy0)[:, :1] + steps * STEP * np.array([1, 2]))
            assert np.median(errors.min(axis=1)) < 0.1
            assert (np.diff(found.scores) <= 0).all()
            assert all(len(np.unique(rows)) == len(rows) for rows in found.index.T)
