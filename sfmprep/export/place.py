"""georeference.json: where on the earth a metric dataset lies.

    {"unit": "metre", "axes": "x east, y north, z up",
     "origin": {"latitude_deg": 52.5, "longitude_deg": 13.4, "altitude_m": 99.0},
     "ecef_from_dataset": [[...]],        4x4; earth-centred, earth-fixed: EPSG:4978
     "images": {"IMG_1.jpg": [52.5, 13.4, 101.2]}}   cameras, as the origin: EPSG:4979

It is a file of its own so that it can be deleted before a dataset is given away: no
other file of the dataset tells the place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pycolmap

GEOREFERENCE = "georeference.json"


def georeference_json(
    origin: tuple[float, float, float], model: pycolmap.Reconstruction
) -> dict[str, Any]:
    """The content of georeference.json.

    Args:
        origin: Latitude and longitude in degrees and altitude in metres, by WGS84, of
            the point (0, 0, 0) of the dataset, whose axes are east, north and up.
        model: Of the dataset, in its frame and with the names of its images.
    """
    earth = pycolmap.GPSTransform()
    base = np.asarray(earth.enu_to_ecef(np.vstack([np.zeros(3), np.eye(3)]), *origin))
    ecef_from_dataset = np.eye(4)
    ecef_from_dataset[:3] = np.column_stack([(base[1:] - base[0]).T, base[0]])
    images = sorted(
        (model.images[i] for i in model.reg_image_ids()), key=lambda image: image.name
    )
    centres = np.array([image.projection_center() for image in images])
    places = np.asarray(earth.enu_to_ellipsoid(centres, *origin)).tolist()
    latitude, longitude, altitude = origin
    return {
        "unit": "metre",
        "axes": "x east, y north, z up",
        "origin": {
            "latitude_deg": latitude,
            "longitude_deg": longitude,
            "altitude_m": altitude,
        },
        "ecef_from_dataset": ecef_from_dataset.tolist(),
        "images": dict(zip((i.name for i in images), places, strict=True)),
    }
