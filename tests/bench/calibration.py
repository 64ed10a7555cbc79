"""What the calibration of focal lengths costs, by cameras and by pairs.

    python -m tests.bench.calibration

Synthetic captures: a walk around a cube of points, each image matched with the next
ten, a third of a pixel of noise, one match in ten wrong; EXIF tells nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pycolmap

from sfmprep.config import DatabaseConfig
from sfmprep.mapping.calibrate import calibrate_database, calibrate_pairs
from sfmprep.mapping.verify import count_inliers, verify_matches
from sfmprep.pairing.pairs import Pairs
from tests.support.orbit import lens, looking

_GUESS = 1.2


def write_walk(
    path: Path,
    *,
    num_images: int,
    num_cameras: int,
    window: int = 10,
    num_points: int = 800,
    size: tuple[int, int] = (1024, 768),
    zoom: tuple[float, float] = (0.65, 0.65),
    seed: int = 0,
) -> dict[int, float]:
    """Writes a database with verified pairs; returns the true focal length by camera.

    Focal lengths are spread evenly over `zoom`, longer sides.
    """
    rng = np.random.default_rng(seed)
    points = rng.uniform(-1, 1, (num_points, 3))
    side = max(size)
    focal = {}
    names = [f"{k:05}.jpg" for k in range(num_images)]
    with pycolmap.Database.open(path) as database:
        ids, rigs = [], []
        for share in np.linspace(*zoom, num_cameras):
            camera = pycolmap.Camera.create_from_model_name(
                0, "SIMPLE_RADIAL", _GUESS * side, *size
            )
            camera.camera_id = database.write_camera(camera)
            rig = pycolmap.Rig()
            rig.add_ref_sensor(camera.sensor_id)
            rigs.append(database.write_rig(rig))
            ids.append(camera.camera_id)
            focal[camera.camera_id] = share * side
        seen, images = [], []
        turns = np.linspace(0, 2 * np.pi * max(num_images / 100, 1), num_images)
        for k, angle in enumerate(turns):
            key = ids[k % num_cameras]
            true = lens("SIMPLE_RADIAL", focal[key], -0.03)
            true.width, true.height = size
            true.params = [focal[key], size[0] / 2, size[1] / 2, -0.03]
            image = pycolmap.Image(name=names[k], camera_id=key)
            image.image_id = database.write_image(image)
            frame = pycolmap.Frame()
            frame.rig_id = rigs[k % num_cameras]
            frame.add_data_id(image.data_id)
            database.write_frame(frame)
            centre = 2.2 * np.array([np.cos(angle), 0, np.sin(angle)])
            centre += rng.uniform(-0.3, 0.3, 3)
            rotation = looking(rng.uniform(-0.3, 0.3, 3) - centre)
            xy = np.asarray(true.img_from_cam((points - centre) @ rotation.T))
            xy = xy + rng.normal(0, 0.3, xy.shape)
            wrong = rng.random(num_points) < 0.05
            xy[wrong] = rng.uniform((0, 0), size, (wrong.sum(), 2))
            seen.append(((xy > 0) & (xy < size)).all(axis=1))
            images.append(image.image_id)
            database.write_keypoints(image.image_id, xy.astype(np.float32))
        pairs = []
        for a in range(num_images):
            for b in range(a + 1, min(a + 1 + window, num_images)):
                both = np.flatnonzero(seen[a] & seen[b]).astype(np.uint32)
                database.write_matches(images[a], images[b], np.stack([both, both], 1))
                pairs.append((names[a], names[b]))
    verify_matches(path, Pairs.of(pairs), DatabaseConfig())
    return focal


def main() -> None:
    """Prints a line a capture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", nargs="*", type=int, default=(50, 200))
    parser.add_argument("--pairs", type=int, default=2000, help="of one camera")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for count in options.images:
            for zoom in ((0.65, 0.65), (0.6, 1.8)):
                path = Path(folder) / f"{count}-{zoom[1]}.db"
                true = write_walk(path, num_images=count, num_cameras=count, zoom=zoom)
                cpu, wall = time.process_time(), time.monotonic()
                calibrate_database(path, max_error_px=4.0)
                cpu, wall = time.process_time() - cpu, time.monotonic() - wall
                with pycolmap.Database.open(path) as database:
                    found = {c.camera_id: c for c in database.read_all_cameras()}
                known = [k for k, c in found.items() if c.has_prior_focal_length]
                off = [abs(found[k].mean_focal_length() / true[k] - 1) for k in known]
                print(
                    f"{count} cameras, {zoom[0]:g} to {zoom[1]:g} sides:"
                    f" {cpu:.1f} CPU-s, {wall:.1f} s; {len(known)} known, off by"
                    f" {100 * np.median(off):.2f} % (median),"
                    f" {100 * np.max(off):.2f} % (most)",
                    flush=True,
                )
        path = Path(folder) / "pairs.db"
        write_walk(
            path,
            num_images=options.pairs // 40 + 40,
            num_cameras=1,
            window=40,
            num_points=4000,
        )
        for name, step in (
            ("calibrate_database", calibrate_database),
            ("calibrate_pairs", calibrate_pairs),
        ):
            cpu, wall = time.process_time(), time.monotonic()
            step(path, max_error_px=4.0)
            cpu, wall = time.process_time() - cpu, time.monotonic() - wall
            counts = count_inliers(path)
            print(
                f"{name}: {len(counts)} pairs with"
                f" {np.median(list(counts.values())):.0f} inliers: {cpu:.1f} CPU-s,"
                f" {wall:.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
