"""COLMAP models on disk: read with an error that helps, or several in one archive."""

from __future__ import annotations

import mmap
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import pycolmap

from sfmprep.errors import ReconstructionError, StoreError

_COUNT = struct.Struct("<Q")
_Bytes = bytes | mmap.mmap


def read_model(folder: Path) -> pycolmap.Reconstruction:
    """Reads the model in a folder.

    Raises:
        ReconstructionError: it is damaged, or there is none.
    """
    try:
        _expect_whole(folder)
        return pycolmap.Reconstruction(folder)
    except (ValueError, IndexError, RuntimeError, MemoryError) as error:
        raise ReconstructionError(
            f"{folder} holds a damaged COLMAP model ({error}). Make it again."
        ) from error


def _expect_whole(folder: Path) -> None:
    """Raises ValueError unless counts in binary files fit the sizes of the files.

    COLMAP believes them, and a wrong one takes all memory before it is an error.
    """
    for name, skip in (
        *(("rigs.bin", _skip_rig), ("frames.bin", _skip_frame)),
        *(("images.bin", _skip_image), ("points3D.bin", _skip_point)),
    ):
        path = folder / name
        if not path.is_file():
            continue
        if path.stat().st_size == 0:  # of which there is no map
            raise ValueError(f"{name} does not hold what it counts")
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            at, size = _COUNT.size, len(data)
            try:
                for _ in range(_COUNT.unpack_from(data)[0]):
                    at = skip(data, at)
            except (struct.error, ValueError, IndexError, OverflowError):
                at = -1
        if at != size:
            raise ValueError(f"{name} does not hold what it counts")


def _skip_rig(data: _Bytes, at: int) -> int:
    """Where the next rig begins: ids, and poses of some sensors but the first."""
    (num_sensors,) = struct.unpack_from("<I", data, at + 4)
    at += 8 + 8 * (num_sensors > 0)
    for _ in range(num_sensors - 1):
        at += 9 + 56 * (data[at + 8] > 0)
    return at


def _skip_frame(data: _Bytes, at: int) -> int:
    """Where the next frame begins: ids and pose, 16 bytes an image."""
    at += 64
    return at + 4 + 16 * int(struct.unpack_from("<I", data, at)[0])


def _skip_image(data: _Bytes, at: int) -> int:
    """Where the next image begins: ids and pose, name, 24 bytes a keypoint."""
    end = data.find(b"\0", at + 64)
    if end < 0:
        raise ValueError("a name without an end")
    at = end + 1
    return at + _COUNT.size + 24 * int(_COUNT.unpack_from(data, at)[0])


def _skip_point(data: _Bytes, at: int) -> int:
    """Where the next point begins: id, place, colour, error, 8 bytes an observation."""
    at += 43
    return at + _COUNT.size + 8 * int(_COUNT.unpack_from(data, at)[0])


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
                        # without its time: equal models make equal archives
                        inside = zipfile.ZipInfo(f"{number}/{file.name}")
                        inside.file_size = file.stat().st_size
                        with file.open("rb") as old, archive.open(inside, "w") as new:
                            shutil.copyfileobj(old, new, 1 << 20)
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
    except FileNotFoundError as error:
        raise StoreError(f"{path} is missing ({error}). Run again.") from error
    except OSError as error:
        if error.errno is None:  # of what the archive says, not of the system
            raise _damaged(path, error) from error
        raise StoreError(
            f"{path} cannot be unpacked beside it ({error.strerror}). Free some disk"
            " space and run again."
        ) from error
    except _OF_CONTENT as error:
        raise _damaged(path, error) from error


# what zipfile and its readers raise at archives with other bits
_OF_CONTENT = (
    *(zipfile.BadZipFile, EOFError, ValueError, KeyError, IndexError, TypeError),
    *(RuntimeError, AttributeError, struct.error, zlib.error),
)


def _damaged(path: Path, error: Exception) -> ReconstructionError:
    return ReconstructionError(
        f"{path} is damaged ({error}). Delete it; the next run makes it again."
    )
