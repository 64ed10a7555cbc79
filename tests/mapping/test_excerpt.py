"""Databases of some images of another."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from sfmprep.errors import StoreError
from sfmprep.mapping.carry_over import open_cache
from sfmprep.mapping.excerpt import write_excerpt


def whole(path: Path) -> None:
    """Rigs of two cameras, four frames each, all verified; frames 1..4 and 5..8."""
    options = pycolmap.SyntheticDatasetOptions(
        num_rigs=2,
        num_cameras_per_rig=2,
        num_frames_per_rig=4,
        num_points3D=40,
        camera_has_prior_focal_length=True,
        prior_position=True,
    )
    pycolmap.set_random_seed(1)
    with pycolmap.Database.open(path) as database:
        pycolmap.synthesize_dataset(options, database)


def test_an_excerpt_is_the_whole_without_the_other_images(tmp_path: Path) -> None:
    whole(tmp_path / "whole.db")
    with pycolmap.Database.open(tmp_path / "whole.db") as database:
        every = {image.image_id: image for image in database.read_all_images()}
        frames = sorted({image.frame_id for image in every.values()})
        kept = [key for key, i in every.items() if i.frame_id in (frames[1], frames[2])]
        names = [every[key].name for key in kept]
        write_excerpt(tmp_path / "whole.db", tmp_path / "part.db", names)
        with pycolmap.Database.open(tmp_path / "part.db") as part:
            found = {image.image_id: image.name for image in part.read_all_images()}
            assert found == {key: every[key].name for key in kept}
            for key in kept:
                xy = part.read_keypoints(key)
                np.testing.assert_array_equal(xy, database.read_keypoints(key))
            rig_ids = {f.rig_id for f in part.read_all_frames()}
            assert len(part.read_all_frames()) == 2
            assert {rig.rig_id for rig in part.read_all_rigs()} == rig_ids
            own = {image.camera_id for image in part.read_all_images()}
            assert {c.camera_id for c in part.read_all_cameras()} >= own
            assert len(part.read_all_pose_priors()) == len(kept)
            assert part.num_matches() == 0
            pairs = dict(zip(*part.read_two_view_geometries(), strict=True))
            expected = {
                pair: geometry
                for pair, geometry in zip(
                    *database.read_two_view_geometries(), strict=True
                )
                if set(pycolmap.pair_id_to_image_pair(pair)) <= set(kept)
            }
            assert pairs.keys() == expected.keys() and pairs
            for pair, geometry in pairs.items():
                np.testing.assert_array_equal(
                    geometry.inlier_matches, expected[pair].inlier_matches
                )
            cache = open_cache(part, 1)
            assert set(cache.images) == set(kept)


def test_images_of_one_frame_stay_together(tmp_path: Path) -> None:
    whole(tmp_path / "whole.db")
    with pycolmap.Database.open(tmp_path / "whole.db") as database:
        every = database.read_all_images()
        first = every[0]
        together = {i.name for i in every if i.frame_id == first.frame_id}
    write_excerpt(
        tmp_path / "whole.db", tmp_path / "part.db", [first.name, "not there.jpg"]
    )
    with pycolmap.Database.open(tmp_path / "part.db") as part:
        assert {i.name for i in part.read_all_images()} == together
        assert len(together) == 2


def test_columns_of_an_older_database_are_found_by_name(tmp_path: Path) -> None:
    whole(tmp_path / "whole.db")
    with sqlite3.connect(tmp_path / "whole.db") as old:
        old.execute("ALTER TABLE images ADD COLUMN prior_qw REAL")
    with pycolmap.Database.open(tmp_path / "whole.db") as database:
        names = [image.name for image in database.read_all_images()]
    write_excerpt(tmp_path / "whole.db", tmp_path / "part.db", names)
    with pycolmap.Database.open(tmp_path / "part.db") as part:
        assert [image.name for image in part.read_all_images()] == names


def test_where_it_cannot_be_written_the_message_says_so(tmp_path: Path) -> None:
    whole(tmp_path / "whole.db")
    target = tmp_path / "nowhere" / "part.db"
    with pytest.raises(StoreError, match="part.db cannot be written"):
        write_excerpt(tmp_path / "whole.db", target, ["x"])
