"""Few photographs, models that are too small, starts from named pairs, thresholds."""

from __future__ import annotations

from pathlib import Path

import pycolmap
import pytest

from sfmprep.capture.batches import reduction_scales
from sfmprep.capture.image_file import ImageInfo
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DatabaseConfig, MappingConfig
from sfmprep.errors import ReconstructionError
from sfmprep.mapping.initial_pairs import initial_pairs
from sfmprep.mapping.mapper import map_images
from sfmprep.mapping.verify import count_inliers, verify_matches
from sfmprep.pairing.pairs import exhaustive_pairs
from tests.support.orbit import lens, orbit

LENS = lens("SIMPLE_RADIAL", 650)


def verified_orbit(path: Path, num_images: int, turn: float, noise_px: float) -> None:
    truth = orbit(
        path,
        LENS,
        guess_px=650,
        is_prior=True,
        num_images=num_images,
        turn=turn,
        noise_px=noise_px,
    )
    verify_matches(path, exhaustive_pairs(sorted(truth)), DatabaseConfig())


def images_of(path: Path) -> ImageSet:
    with pycolmap.Database.open(path) as database:
        names = tuple(sorted(image.name for image in database.read_all_images()))
    return ImageSet(path.parent, names, {}, {})


@pytest.mark.parametrize("kind", ["incremental", "global"])
def test_two_photographs_give_two_poses(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    verified_orbit(path, 2, 0.5, 0.3)
    config = MappingConfig.model_validate({"type": kind})
    (model,) = map_images(path, images_of(path), tmp_path / "models", config)
    assert model.num_reg_images() == 2
    assert model.num_points3D() > 100


def test_model_that_is_too_small_is_no_success(tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    verified_orbit(path, 4, 0.8, 0.3)
    config = MappingConfig(min_model_size=5)
    four = images_of(path)
    six = ImageSet(four.root, (*four.names, "x.jpg", "y.jpg"), {}, {})
    with pytest.raises(ReconstructionError) as caught:
        map_images(path, six, tmp_path / "models", config)
    assert str(caught.value) == (
        f"the largest model holds 4 of the 6 images in {tmp_path}, fewer than"
        " mapping.min_model_size: 5. Take more photographs between the others, or --set"
        " mapping.min_model_size=4."
    )


def test_next_starts_share_no_image_with_earlier_ones(tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    verified_orbit(path, 8, 1.5, 0.3)
    first, second = initial_pairs(path, [(1, 2)], max_error_px=4.0, limit=2)
    assert len({1, 2, *first, *second}) == 6
    assert initial_pairs(path, [tuple(range(1, 9))], max_error_px=4.0, limit=2) == []


# ------------------------------------------------------------------------- thresholds
def test_scale_is_that_of_the_reduction() -> None:
    infos = {
        name: ImageInfo(size=size, orientation=1, num_bytes=0)
        for name, size in {
            "a": (4000, 3000),
            "b": (1200, 1600),
            "c": (640, 480),
        }.items()
    }
    images = ImageSet(Path("photos"), tuple(infos), infos, {})
    assert reduction_scales(images, 1600) == {"a": 2.5, "b": 1.0, "c": 1.0}
    assert reduction_scales(images, None) == {"a": 1.0, "b": 1.0, "c": 1.0}


def test_verification_counts_in_pixels_that_the_features_saw(tmp_path: Path) -> None:
    """Noise of 2.5 px in the file is of 1 px where the features saw it reduced."""
    path = tmp_path / "database.db"
    names = sorted(
        orbit(path, LENS, guess_px=650, is_prior=True, num_images=3, noise_px=2.5)
    )
    pairs, counts = exhaustive_pairs(names), {}
    for scale in (1.0, 2.5):
        with pycolmap.Database.open(path) as database:
            database.clear_two_view_geometries()
        config = DatabaseConfig(max_error_px=2.0)
        verify_matches(path, pairs, config, scales=dict.fromkeys(names, scale))
        counts[scale] = sum(count_inliers(path).values())
    with pycolmap.Database.open(path) as database:
        num_matches = sum(database.read_num_matches()[1])
    assert counts[1.0] < 0.8 * num_matches
    assert counts[2.5] > 0.95 * num_matches


def test_mapper_filters_in_pixels_that_the_features_saw(tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    names = sorted(
        orbit(path, LENS, guess_px=650, is_prior=True, num_images=6, noise_px=2.5)
    )
    scales = dict.fromkeys(names, 2.5)
    verify_matches(path, exhaustive_pairs(names), DatabaseConfig(), scales=scales)
    found = {}
    for scale in (1.0, 2.5):
        (model,) = map_images(
            path,
            images_of(path),
            tmp_path / str(scale),
            MappingConfig(),
            scales=dict.fromkeys(names, scale),
        )
        found[scale] = model.compute_num_observations()
    assert found[2.5] > 1.05 * found[1.0]
