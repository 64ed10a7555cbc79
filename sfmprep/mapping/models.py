"""COLMAP models on disk: read with an error that helps, or several in one archive."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pycolmap

from sfmprep.errors import ReconstructionError, StoreError


def read_model(folder: Path) -> pycolmap.Reconstruction:
    """Reads the model in a folder.

    Raises:
        ReconstructionError: it is damaged, or there is none.
    """
    try:
        return pycolmap.Reconstruction(folder)
    except (ValueError, IndexError, RuntimeError, MemoryError) as error:
        raise ReconstructionError(
            f"{folder} holds a damaged COLMAP model ({error}). Make it again."
        ) from error


def write_packed(path: Path, models: Sequence[pycolmap.Reconstruction]) -> None:
    """Writes models into one archive, whole or not at all: folders 0, 1, ...

    Raises:
        StoreError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with tempfile.TemporaryDirectory(prefix=".pack-", dir=path.parent) as made:
            with zipfile.ZipFile(part, "w", allowZip64=True) as archive:
                for number, model in enumerate(models):
                    folder = Path(made) / str(number)
                    folder.mkdir()
                    model.write(folder)
                    for file in sorted(folder.iterdir()):
                        archive.write(file, f"{number}/{file.name}")
            part.replace(path)
    except (OSError, RuntimeError) as error:
        raise StoreError(
            f"{path} cannot be written ({error}). Free some disk space and run again."
        ) from error
    finally:
        part.unlink(missing_ok=True)


def read_packed(path: Path) -> list[pycolmap.Reconstruction]:
    """Reads the models that `write_packed` wrote, in its order.

    Raises:
        ReconstructionError: the archive or a model in it is damaged.
    """
    try:
        with (
            tempfile.TemporaryDirectory(prefix=".unpack-", dir=path.parent) as made,
            zipfile.ZipFile(path) as archive,
        ):
            archive.extractall(made)
            folders = sorted(Path(made).iterdir(), key=lambda folder: int(folder.name))
            return [read_model(folder) for folder in folders]
    except (zipfile.BadZipFile, EOFError) as error:
        raise ReconstructionError(
            f"{path} is damaged ({error}). Delete it; the next run makes it again."
        ) from error
