"""SIFT exactly as COLMAP extracts it on the CPU, with RootSIFT descriptors.

Paper: Lowe, "Distinctive Image Features from Scale-Invariant Keypoints", IJCV 2004;
normalisation: Arandjelovic and Zisserman, "Three things everyone should know to
improve object retrieval", CVPR 2012. The operator is COLMAP's, through pycolmap (BSD).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pycolmap

from sfmprep.config import SiftConfig
from sfmprep.coords import Placed
from sfmprep.devices import num_cores
from sfmprep.errors import StoreError
from sfmprep.models.identity import identity
from sfmprep.models.shared.precision import Precision
from sfmprep.types import Bytes, Features, Float32, ImageBatch

_ANY_SIZE = 1 << 20  # the batch loader has reduced the images already
_MAX_BATCH = 16

# Rec. 709 luma, with which COLMAP reads photographs as grey.
_RED, _GREEN, _BLUE = np.array([0.2126, 0.7152, 0.0722], np.float32)


class Sift:
    """Extracts SIFT keypoints, the largest ones first; the score is the scale.

    Args:
        config: The settings.
        device: Without effect: COLMAP's GPU version finds other keypoints.
        precision: Without effect.

    Raises:
        ConfigError: half precision without a CUDA device.
    """

    def __init__(
        self, config: SiftConfig, *, device: str = "cpu", precision: Precision = "auto"
    ) -> None:
        self.identity = identity(config, device=device, precision=precision)
        self._max_keypoints = config.max_keypoints
        self.batch_size = min(num_cores(), _MAX_BATCH)
        self._options = pycolmap.FeatureExtractionOptions(
            use_gpu=False,
            max_image_size=_ANY_SIZE,
            sift=pycolmap.SiftExtractionOptions(
                max_num_features=config.max_keypoints,
                normalization=pycolmap.Normalization.L1_ROOT,
            ),
        )

    def extract(self, batch: ImageBatch) -> list[Features]:
        """Extracts features with uint8 [N, 128] descriptors as COLMAP stores them.

        Their rows have a length of about 512. A keypoint with two orientations is two
        rows. Descriptors of images that EXIF declares mirrored are those of the
        upright image, as for all others.

        COLMAP extracts the images of a batch in parallel. It does so only from files
        into a database, so both are made in a temporary folder; calling its extractor
        from Python instead holds the interpreter's lock and uses one core.

        Returns:
            Per image what `Extractor.extract` promises, with `scale` in pixels and
            `angle` in radians of the file on disk; scores are the scale in pixels of
            the network's input.

        Raises:
            StoreError: the temporary folder cannot be written to.
        """
        with tempfile.TemporaryDirectory(prefix="sfmprep-sift-") as folder:
            images = Path(folder) / "images"
            images.mkdir()
            for item, pixels in enumerate(batch.pixels):
                _write_pgm(images / f"{item:04d}.pgm", _grey(pixels))
            path = Path(folder) / "database.db"
            pycolmap.extract_features(path, images, extraction_options=self._options)
            with pycolmap.Database.open(path) as database:
                found = sorted(database.read_all_images(), key=lambda image: image.name)
                return [
                    self._features(
                        database.read_keypoints(image.image_id),
                        database.read_descriptors(image.image_id).data,
                        batch,
                        item,
                    )
                    for item, image in zip(range(len(batch)), found, strict=True)
                ]

    def _features(
        self, keypoints: Float32, descriptors: Bytes, batch: ImageBatch, item: int
    ) -> Features:
        # COLMAP's rows are x, y and the 2x2 matrix of the keypoint's shape
        shape = keypoints[:, 2:].reshape(-1, 2, 2)
        scale = np.hypot(shape[:, 0], shape[:, 1]).mean(axis=1)
        angle = np.arctan2(shape[:, 1, 0], shape[:, 0, 0])
        # COLMAP keeps whole levels of the scale space and so exceeds its limit.
        best = np.argsort(-scale, kind="stable")[: self._max_keypoints]
        placed = Placed.of(batch, item)
        stored_scale, stored_angle = placed.stored_shape(scale[best], angle[best])
        return Features(
            xy=placed.stored(keypoints[best, :2]),
            scores=scale[best],
            descriptors=descriptors[best],
            image_size=placed.size,
            orientation=placed.orientation,
            scale=stored_scale,
            angle=stored_angle,
        )


def _grey(pixels: Float32) -> Bytes:
    """Turns [3, H, W] in 0..1 into the grey bytes that COLMAP reads from the file."""
    red, green, blue = np.rint(pixels * 255)
    luma: Float32 = red * _RED + green * _GREEN + blue * _BLUE
    # Halves go up as in COLMAP; `rint` would take their even neighbour.
    grey: Bytes = np.floor(luma + np.float32(0.5)).astype(np.uint8)
    return grey


def _write_pgm(path: Path, grey: Bytes) -> None:
    height, width = grey.shape
    try:
        path.write_bytes(b"P5 %d %d 255\n" % (width, height) + grey.tobytes())
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written ({error.strerror}), but COLMAP extracts SIFT"
            " from files. Make room there, or set TMPDIR to another folder."
        ) from error
