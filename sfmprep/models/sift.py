"""SIFT exactly as COLMAP extracts it on the CPU, with RootSIFT descriptors.

Paper: Lowe, "Distinctive Image Features from Scale-Invariant Keypoints", IJCV 2004;
normalisation: Arandjelovic and Zisserman, "Three things everyone should know to
improve object retrieval", CVPR 2012. The operator is COLMAP's, through pycolmap (BSD).
"""

from __future__ import annotations

import numpy as np
import pycolmap
from numpy.typing import NDArray

from sfmprep import coords
from sfmprep.config import SiftConfig
from sfmprep.types import Features, Float32, ImageBatch

# Rec. 709 luma, with which COLMAP reads photographs as grey.
_RED, _GREEN, _BLUE = np.array([0.2126, 0.7152, 0.0722], np.float32)


class Sift:
    """Extracts SIFT keypoints, the largest ones first; the score is the scale.

    COLMAP extracts one image on one core and holds the interpreter's lock meanwhile.

    Args:
        config: The settings.
        device: Without effect: COLMAP's GPU version finds other keypoints.
    """

    def __init__(self, config: SiftConfig, *, device: str = "cpu") -> None:
        del device
        self._config = config
        options = pycolmap.FeatureExtractionOptions(
            use_gpu=False,
            num_threads=1,
            sift=pycolmap.SiftExtractionOptions(
                max_num_features=config.max_keypoints,
                normalization=pycolmap.Normalization.L1_ROOT,
            ),
        )
        self._extractor = pycolmap.FeatureExtractor.create(options, pycolmap.Device.cpu)

    @property
    def weights_sha256(self) -> None:
        """None: there are no weights."""
        return None

    def extract(self, batch: ImageBatch) -> list[Features]:
        """Extracts features with uint8 [N, 128] descriptors as COLMAP stores them.

        Their rows have a length of about 512. A keypoint with two orientations is two
        rows. Descriptors of images that EXIF declares mirrored are those of the
        upright image, as for all others.

        Returns:
            Per image what `Extractor.extract` promises, with `scale` in pixels and
            `angle` in radians of the file on disk; scores are the scale in pixels of
            the network's input.
        """
        return [self._extract_one(batch, item) for item in range(len(batch))]

    def _extract_one(self, batch: ImageBatch, item: int) -> Features:
        keypoints, descriptors = self._extractor.extract_from_uint8_array(
            _grey(batch.pixels[item])
        )
        table = np.array(
            [(k.x, k.y, k.compute_scale(), k.compute_orientation()) for k in keypoints],
            np.float32,
        ).reshape(-1, 4)
        # COLMAP keeps whole levels of the scale space and so exceeds its limit.
        best = np.argsort(-table[:, 2], kind="stable")[: self._config.max_keypoints]
        xy, scale, angle = table[best, :2], table[best, 2], table[best, 3]
        stored_scale, stored_angle = coords.stored_shape_from_network(
            scale, angle, batch, item
        )
        return Features(
            xy=coords.stored_from_network(xy, batch, item),
            scores=scale,
            descriptors=descriptors.data[best],
            image_size=(int(batch.sizes[item, 0]), int(batch.sizes[item, 1])),
            orientation=int(batch.orientations[item]),
            scale=stored_scale,
            angle=stored_angle,
        )


def _grey(pixels: Float32) -> NDArray[np.uint8]:
    """Turns [3, H, W] in 0..1 into the grey bytes that COLMAP reads from the file."""
    red, green, blue = np.rint(pixels * 255)
    luma: Float32 = red * _RED + green * _GREEN + blue * _BLUE
    # Halves go up as in COLMAP; `rint` would take their even neighbour.
    grey: NDArray[np.uint8] = np.floor(luma + np.float32(0.5)).astype(np.uint8)
    return grey
