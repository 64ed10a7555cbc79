"""What sensors tell of poses, written where COLMAP's own import puts it.

Nothing here reads it: it is for those who go on with COLMAP, whose `spatial_matcher`
and `pose_prior_mapper` take positions, and whose global mapper takes gravity.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pycolmap

from sfmprep.capture.image_set import ImageSet


def write_pose_priors(
    database: pycolmap.Database, images: ImageSet, ids: Iterable[int]
) -> None:
    """Writes GPS positions and gravity of images that are in a database, once each.

    Positions are latitude, longitude and altitude (WGS84), as COLMAP reads them from
    EXIF: only those with an altitude. Gravity is in the axes of the camera. What one
    does not carry stays NaN.

    Args:
        database: Open for writing.
        images: The capture; holds the headers of these images.
        ids: Of images in the database.
    """
    for image_id in ids:
        image = database.read_image(image_id)
        info = images.infos[image.name]
        has_position = info.gps is not None and info.gps[2] is not None
        if not has_position and info.gravity is None:
            continue
        prior = pycolmap.PosePrior(corr_data_id=image.data_id)
        if has_position:
            prior.position = np.array(info.gps, np.float64)
            prior.coordinate_system = pycolmap.PosePriorCoordinateSystem.WGS84
        if info.gravity is not None:
            prior.gravity = np.array(info.gravity, np.float64)
        database.write_pose_prior(prior)
