"""Loads a dataset with nerfstudio's own code and prints what it saw, as JSON.

Run by the Python that has nerfstudio (test_export_consumers.py), which need not have
sfmprep:

    python nerfstudio_probe.py DATASET
"""

import json
import sys
from pathlib import Path

import torch
from nerfstudio.data.datamanagers.full_images_datamanager import (
    FullImageDatamanagerConfig,
)
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import (
    NerfstudioDataParserConfig,
)


def parser_config(parser: str, data: Path, orientation: str):
    plain = orientation == "none"
    options = {
        "data": data,
        "orientation_method": orientation,
        "center_method": "none" if plain else "poses",
        "auto_scale_poses": not plain,
        "load_3D_points": True,
        "eval_mode": "all",
    }
    if parser == "json":
        return NerfstudioDataParserConfig(**options)
    return ColmapDataParserConfig(colmap_path=Path("sparse/0"), **options)


def look(parser: str, folder: str, orientation: str) -> dict:
    config = parser_config(parser, Path(folder), orientation)
    outputs = config.setup().get_dataparser_outputs(split="train")
    cameras = outputs.cameras
    # "gpu" means the device below; "cpu" needs one to pin memory for.
    manager = FullImageDatamanagerConfig(
        dataparser=config, cache_images="gpu", cache_images_type="uint8"
    ).setup(device="cpu", test_mode="val", world_size=1, local_rank=0)
    camera, batch = manager.next_train(0)
    return {
        "filenames": [str(name) for name in outputs.image_filenames],
        "camera_to_worlds": cameras.camera_to_worlds.tolist(),
        "intrinsics": torch.cat(
            [cameras.fx, cameras.fy, cameras.cx, cameras.cy], dim=-1
        ).tolist(),
        "sizes": torch.cat([cameras.width, cameras.height], dim=-1).tolist(),
        "distortion": float(cameras.distortion_params.abs().max()),
        "transform": outputs.dataparser_transform.tolist(),
        "scale": outputs.dataparser_scale,
        "points": outputs.metadata["points3D_xyz"].tolist(),
        "colors": outputs.metadata["points3D_rgb"].tolist(),
        "batch_index": int(batch["image_idx"]),
        "batch_image_shape": list(batch["image"].shape),
        "batch_image_mean": float(batch["image"].float().mean()),
        "batch_camera_size": [int(camera.width), int(camera.height)],
    }


if __name__ == "__main__":
    seen = {
        f"{parser} {orientation}": look(parser, sys.argv[1], orientation)
        for parser in ("json", "colmap")
        for orientation in ("none", "up")
    }
    print("SEEN" + json.dumps(seen))
