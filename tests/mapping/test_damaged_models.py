"""Models and archives that are cut or have other bits are told, whatever is wrong."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pycolmap
import pytest

from sfmprep.errors import ReconstructionError
from sfmprep.mapping.models import read_model, read_packed, write_packed


@pytest.fixture(scope="module")
def model() -> pycolmap.Reconstruction:
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig = 2, 2
    options.num_frames_per_rig, options.num_points3D = 3, 40
    return pycolmap.synthesize_dataset(options)


@pytest.fixture
def folder(model: pycolmap.Reconstruction, tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    model.write(path)
    return path


@pytest.mark.parametrize("name", ["rigs", "frames", "images", "points3D"])
def test_a_wrong_count_is_told_before_memory_is_gone(folder: Path, name: str) -> None:
    assert read_model(folder).num_points3D() == 40
    path = folder / f"{name}.bin"
    whole = path.read_bytes()
    (count,) = struct.unpack_from("<Q", whole)
    for content in (
        struct.pack("<Q", 1 << 60) + whole[8:],
        struct.pack("<Q", count - 1) + whole[8:],
        whole[:8] + b"\xff" * (len(whole) - 8),
        whole[:-1],
        whole + b"\0",
        b"",
    ):
        path.write_bytes(content)
        with pytest.raises(ReconstructionError) as caught:
            read_model(folder)
        assert str(caught.value) == (
            f"{folder} holds a damaged COLMAP model ({name}.bin does not hold what it"
            " counts). Make it again."
        )


def test_every_other_byte_of_an_archive_is_told_or_harmless(
    model: pycolmap.Reconstruction, tmp_path: Path
) -> None:
    path = tmp_path / "mapped.zip"
    write_packed(path, [model])
    whole = path.read_bytes()
    for place in (0, 4, 6, 8, 26, 30, len(whole) - 1, len(whole) - 40, len(whole) // 2):
        content = bytearray(whole)
        content[place] ^= 0xFF
        path.write_bytes(content)
        try:
            (found,) = read_packed(path)
        except ReconstructionError as error:
            assert str(error).startswith(f"{path} is damaged (")
        else:
            assert found.num_points3D() == model.num_points3D()
    assert [file.name for file in tmp_path.iterdir()] == ["mapped.zip"]
    shutil.rmtree(tmp_path)
