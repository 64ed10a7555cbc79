"""Views of photographs: known correspondence, and change of light."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from sfmprep.errors import ImageError, StoreError
from sfmprep.train import checkpoints
from sfmprep.train.loop import on_device
from sfmprep.train.pairs.photographs import Photographs, is_held_out
from sfmprep.train.pairs.views import (
    photometric,
    random_homography,
    sample_homography,
    transform,
    warp,
)
from tests.support.run_logs import read_log
from tests.support.textures import texture


@pytest.mark.parametrize("seed", range(4))
def test_a_point_there_and_back_is_the_same_point(seed: int) -> None:
    views = sample_homography(np.random.default_rng(seed), texture(), 128)
    rows, columns = np.nonzero(np.isfinite(views.to1[..., 0]))
    assert len(rows) > 1000  # they overlap
    there = views.to1[rows, columns]
    x, y = np.rint(there).astype(int).T
    back = views.to0[y, x]
    seen = np.isfinite(back[:, 0])
    assert seen.mean() > 0.9
    # the pixel's centre is up to 0.71 px from the point, magnified by the views' ratio
    away = np.linalg.norm(back - np.stack([columns, rows], 1), axis=1)[seen]
    assert np.median(away) < 1


def test_a_drawn_view_shows_what_its_homography_says() -> None:
    picture = np.zeros((200, 300, 3), np.uint8)
    cv2.circle(picture, (140, 90), 4, (255, 255, 255), -1)
    rng = np.random.default_rng(3)
    homography = random_homography(
        rng, (300, 200), 256, max_rotation_deg=0, max_scale=1.01, max_tilt=0.02
    )
    drawn = warp(picture, homography, 256)[..., 0].astype(float)
    y, x = np.indices(drawn.shape)
    found = np.array([(x * drawn).sum(), (y * drawn).sum()]) / drawn.sum()
    want = transform(homography, np.array([140.0, 90.0]))
    assert np.abs(found - want).max() < 0.2


def test_photometric_change_keeps_the_shape_and_is_the_seeds() -> None:
    picture = texture()
    changed = [photometric(np.random.default_rng(k), picture) for k in (1, 1, 2)]
    assert all(each.shape == picture.shape for each in changed)
    assert all(each.dtype == np.uint8 for each in changed)
    np.testing.assert_array_equal(changed[0], changed[1])
    assert (changed[0] != changed[2]).any()


def test_photographs_kept_aside_are_not_among_those_to_train_with(
    tmp_path: Path,
) -> None:
    names = [f"{k:03d}.png" for k in range(40)]
    for name in names:
        cv2.imwrite(str(tmp_path / name), texture(size=(16, 16)))
    kept = Photographs(tmp_path, held_out=True).names if _any_held_out(names) else ()
    used = Photographs(tmp_path).names
    assert sorted((*kept, *used)) == names
    assert not any(is_held_out(name) for name in used)


def _any_held_out(names: list[str]) -> bool:
    return any(map(is_held_out, names))


def test_a_folder_without_photographs_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="holds no photograph"):
        Photographs(tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"not a picture")
    with pytest.raises(ImageError, match=r"a\.jpg cannot be decoded"):
        Photographs(tmp_path, held_out=is_held_out("a.jpg"))


def test_a_damaged_checkpoint_is_explained(tmp_path: Path) -> None:
    assert checkpoints.load(tmp_path / "none.pt") is None
    path = tmp_path / "run.pt"
    checkpoints.save(path, {"step": 3})
    assert checkpoints.load(path) == {"step": 3}
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(StoreError, match=r"run\.pt is no checkpoint"):
        checkpoints.load(path)
    assert [each.name for each in tmp_path.iterdir()] == ["run.pt"]


def test_all_tensors_of_a_batch_go_to_the_device() -> None:
    @dataclasses.dataclass(frozen=True)
    class Inner:
        mask: torch.Tensor | None
        count: int

    @dataclasses.dataclass(frozen=True)
    class Outer:
        inner: Inner
        pairs: tuple[tuple[torch.Tensor, torch.Tensor], ...]
        none: torch.Tensor | None = None

    made = Outer(Inner(torch.ones(2), 5), ((torch.ones(3), torch.ones(4)),))
    moved = on_device(made, "meta")
    assert type(moved) is Outer
    assert moved.inner.mask is not None
    assert [each.shape for each in moved.pairs[0]] == [(3,), (4,)]
    tensors = (moved.inner.mask, *moved.pairs[0])
    assert all(each.device.type == "meta" for each in tensors)
    assert moved.inner.count == 5
    assert moved.none is None


def test_a_log_goes_on_after_a_cut_line(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    log = checkpoints.RunLog(path)
    log.write(1, {"loss": 2.0})
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    log.write(3, {"loss": 1.0})
    assert [row["step"] for row in read_log(path)] == [1, 3]
