"""Loads a dataset with nerfstudio's own code and prints what it saw, as JSON.

Run by the Python that has nerfstudio and sfmprep (test_export_consumers.py):

    python nerfstudio_probe.py DATASET
"""

import json
import sys
from pathlib import Path

import torch
import tyro
from nerfstudio.configs.method_configs import AnnotatedBaseConfigUnion
from nerfstudio.data.datamanagers.full_images_datamanager import (
    FullImageDatamanagerConfig,
)
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import (
    NerfstudioDataParserConfig,
)

from sfmprep.plugins.nerfstudio import SfmprepDataParserConfig


def theirs(parser: str, data: Path, orientation: str) -> FullImageDatamanagerConfig:
    """splatfacto's datamanager with a parser of nerfstudio's own, all images."""
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
        config = NerfstudioDataParserConfig(**options)
    else:
        masks = Path("masks") if (data / "masks").is_dir() else None
        config = ColmapDataParserConfig(
            colmap_path=Path("sparse/0"), masks_path=masks, **options
        )
    return FullImageDatamanagerConfig(dataparser=config, cache_images_type="uint8")


def ours(data: Path) -> FullImageDatamanagerConfig:
    """What `ns-train splatfacto sfmprep-data --data DATA` trains with."""
    args = ["splatfacto", "sfmprep-data", "--data", str(data)]
    config = tyro.cli(AnnotatedBaseConfigUnion, args=args).pipeline.datamanager
    assert isinstance(config.dataparser, SfmprepDataParserConfig)
    return config


def look(config: FullImageDatamanagerConfig, split: str) -> dict:
    # "gpu" means the device below; "cpu" needs one to pin memory for.
    config.cache_images = "gpu"
    manager = config.setup(device="cpu", test_mode="val", world_size=1, local_rank=0)
    if split == "train":
        outputs = manager.train_dataparser_outputs
        camera, batch = manager.next_train(0)
    else:
        outputs = manager.eval_dataset._dataparser_outputs
        camera, batch = manager.next_eval(0)
    cameras = outputs.cameras
    known = {
        key: value.tolist() if isinstance(value, torch.Tensor) else value
        for key, value in outputs.metadata.items()
    }
    undone = outputs.transform_poses_to_original_space(
        cameras.camera_to_worlds, camera_convention="opencv"
    )
    return {
        "filenames": [str(name) for name in outputs.image_filenames],
        "masks": [str(name) for name in outputs.mask_filenames or ()],
        "camera_to_worlds": cameras.camera_to_worlds.tolist(),
        "undone": undone.tolist(),
        "intrinsics": torch.cat(
            [cameras.fx, cameras.fy, cameras.cx, cameras.cy], dim=-1
        ).tolist(),
        "sizes": torch.cat([cameras.width, cameras.height], dim=-1).tolist(),
        "distortion": float(cameras.distortion_params.abs().max()),
        "transform": outputs.dataparser_transform.tolist(),
        "scale": outputs.dataparser_scale,
        "metadata": known,
        "batch_index": int(batch["image_idx"]),
        "batch_image_shape": list(batch["image"].shape),
        "batch_image_mean": float(batch["image"].float().mean()),
        "batch_mask": (
            [*batch["mask"].shape, float(batch["mask"].float().mean())]
            if "mask" in batch
            else None
        ),
        "batch_camera_size": [int(camera.width), int(camera.height)],
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    seen = {
        f"{parser} {orientation}": look(theirs(parser, folder, orientation), "train")
        for parser in ("json", "colmap")
        for orientation in ("none", "up")
    }
    seen |= {
        f"sfmprep {split}": look(ours(folder), split) for split in ("train", "val")
    }
    print("SEEN" + json.dumps(seen))
