"""`ns-train splatfacto sfmprep-data --data FOLDER`: the dataset, in nerfstudio.

nerfstudio finds `sfmprep_data` by the entry point `nerfstudio.dataparser_configs`; no
other module imports this one. FOLDER is an output of sfmprep, or a folder of
photographs, which is reconstructed first. Over nerfstudio's own reader of
transforms.json, this one reads dataset.json beside it and adds:

    split     train and test images as gsplat and 3DGS choose them
    metadata  original_names [n]: str
              image_weights [n]: 0..1, 1 where unknown
              pose_rotation_stddev_deg, pose_position_stddev [n]: NaN where unknown
              points3D_normals [N, 3], points3D_scales [N]: beside points3D_xyz and _rgb

Rows of the first three are those of the split's images, so `batch["image_idx"]` picks
one; keys that no image or point has are absent. Lengths are in the parser's frame.

The dataset's z axis is up, so poses are not turned. They are moved to their mean and
scaled into a box of +-1, as splatfacto's learning rates expect. `dataparser_transform`
(without the scale) and `dataparser_scale` undo that, as
`transform_poses_to_original_space` does.
"""

from __future__ import annotations

import json
import math
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.dataparsers.nerfstudio_dataparser import (
    Nerfstudio,
    NerfstudioDataParserConfig,
)
from nerfstudio.plugins.registry_dataparser import DataParserSpecification
from nerfstudio.utils.rich_utils import CONSOLE

from sfmprep.errors import ConfigError, StoreError

_TRANSFORMS = "transforms.json"


@dataclass
class SfmprepDataParserConfig(NerfstudioDataParserConfig):
    """Outputs of sfmprep, or photographs that it is to reconstruct first."""

    _target: type = field(default_factory=lambda: SfmprepDataParser)
    """The class to set up."""
    orientation_method: Literal["pca", "up", "vertical", "none"] = "none"
    """How to turn the poses. The dataset's z axis is up already."""
    eval_mode: Literal["dataset", "fraction", "filename", "interval", "all"] = "dataset"
    """How to choose the images to evaluate with; dataset: as dataset.json says."""
    load_3D_points: bool = True
    """Whether to start from the dataset's points."""
    out: Path | None = None
    """Where the result for photographs goes; by default PHOTOGRAPHS-sfmprep."""
    recipe: str = "splat"
    """How photographs are reconstructed: a recipe's name or file."""
    device: str = "auto"
    """Where the networks of the reconstruction run: auto, cpu or cuda."""


@dataclass
class SfmprepDataParser(Nerfstudio):
    """Reads transforms.json as nerfstudio does, and what dataset.json adds."""

    config: SfmprepDataParserConfig

    def _generate_dataparser_outputs(self, split: str = "train") -> DataparserOutputs:
        """Loads the images of one split, `train`, `val` or `test`.

        Raises:
            ConfigError: `data` does not exist, is an output without a complete dataset
                for nerfstudio, or the split is empty.
            StoreError: the files of the dataset are damaged or disagree.
            SfmprepError: the photographs could not be reconstructed.
        """
        config = copy(self.config)
        config.data = find_dataset(config)
        folder = config.data.parent if config.data.suffix == ".json" else config.data
        self._expect_downscaled(folder, config.downscale_factor)
        described = _read_description(folder)
        self.config = config
        if config.eval_mode != "dataset":
            outputs = super()._generate_dataparser_outputs(split)
        else:
            self.config = copy(config)
            self.config.eval_mode = "fraction"
            self.config.train_split_fraction = 1  # every image
            outputs = super()._generate_dataparser_outputs("train")
            self.config = config
            _keep_split(outputs, described, "train" if split == "train" else "test")
        outputs.metadata |= _image_metadata(outputs, described)
        return outputs

    @staticmethod
    def _expect_downscaled(folder: Path, factor: int | None) -> None:
        """Raises ConfigError where the wanted reduced copies were not exported."""
        if factor in (None, 1) or (folder / f"images_{factor}").is_dir():
            return
        there = sorted(entry.name for entry in folder.glob("images_?"))
        raise ConfigError(
            f"{folder} has no images_{factor} for --downscale-factor {factor}, only"
            f" {', '.join(there) or 'images'}. Choose one of these, or export again"
            f" with export.downscales=[{factor}]."
        )

    def _load_3D_points(
        self, ply_file_path: Path, transform_matrix: torch.Tensor, scale_factor: float
    ) -> dict[str, torch.Tensor] | None:
        """Adds normals and scales to nerfstudio's positions and colours."""
        points: dict[str, torch.Tensor] | None = super()._load_3D_points(
            ply_file_path, transform_matrix, scale_factor
        )
        if points is None:
            return None
        import open3d  # as nerfstudio does: it takes a second

        columns = open3d.t.io.read_point_cloud(str(ply_file_path)).point
        if "normals" in columns:
            normals = torch.from_numpy(columns["normals"].numpy()).float()
            if normals.any():
                points["points3D_normals"] = normals @ transform_matrix[:, :3].T
        if "scale" in columns:
            scales = torch.from_numpy(columns["scale"].numpy()).float().flatten()
            points["points3D_scales"] = scales * scale_factor
        return points


def find_dataset(config: SfmprepDataParserConfig) -> Path:
    """Where transforms.json lies: `data`, its target folder, or a new reconstruction.

    A result that photographs had before is used as it is: a model that was trained on
    it would no longer fit poses found anew.

    Raises:
        ConfigError: `data` does not exist, or is an output without a complete dataset
            for nerfstudio.
        SfmprepError: the photographs could not be reconstructed.
    """
    data: Path = config.data
    if data.suffix == ".json":
        return data
    if not data.is_dir():
        raise ConfigError(
            f"--data {data} is not a folder. Give an output of sfmprep, or a folder of"
            " photographs."
        )
    if found := _dataset_in(data):
        return found
    if (data / "recipe.yaml").is_file() or (data / _TRANSFORMS).is_file():
        raise ConfigError(
            f"{data} is an output of sfmprep without a complete dataset for nerfstudio."
            " Run `sfmprep export` with nerfstudio among its targets."
        )
    if data == Path():  # the default: nobody meant the current folder
        raise ConfigError(
            "the current folder holds no dataset for nerfstudio. Give --data FOLDER, an"
            " output of sfmprep or a folder of photographs."
        )
    out = config.out or Path(f"{data.resolve()}-sfmprep")
    if found := _dataset_in(out):
        CONSOLE.log(f"sfmprep: {out} holds an earlier result of {data}, used as it is")
        return found
    _reconstruct(config, out)
    found = _dataset_in(out)
    if found is None:
        raise ConfigError(
            f"recipe {config.recipe!r} wrote no dataset for nerfstudio to {out}. Use a"
            " recipe with nerfstudio among its export.targets."
        )
    return found


def _reconstruct(config: SfmprepDataParserConfig, out: Path) -> None:
    """Runs sfmprep on the photographs, or goes on where an earlier run stopped."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        raise ConfigError(
            f"{config.data} holds photographs, and several processes would reconstruct"
            f" them at once. Run `sfmprep reconstruct {config.data} {out}` first, then"
            f" train with --data {out}."
        )
    # Only now: every command of nerfstudio loads this module, and would take seconds
    # longer, or fail where COLMAP cannot be loaded.
    from sfmprep.config.load import load_recipe
    from sfmprep.devices import pick_device
    from sfmprep.pipelines.reconstruct import reconstruct
    from sfmprep.terminal import show_progress, start_logging

    CONSOLE.log(f"sfmprep: {config.data} has no dataset; reconstructing it to {out}")
    start_logging(verbose=False)
    report = reconstruct(
        config.data,
        out,
        load_recipe(config.recipe),
        device=pick_device(config.device),
        progress=show_progress,
    )
    CONSOLE.log(f"sfmprep: {report.verdict}")


def _dataset_in(folder: Path) -> Path | None:
    """The folder with a complete transforms.json: this one, or one of its targets."""
    for place in (folder, *sorted(folder.glob("targets/*"))):
        path = place / _TRANSFORMS
        # an export that was stopped leaves it without frames
        if path.is_file() and _read_json(path).get("frames"):
            return place
    return None


def _read_description(folder: Path) -> dict[str, dict[str, Any]]:
    """What dataset.json says of each exported image; empty where it is missing."""
    path = folder / "dataset.json"
    if not path.is_file():
        return {}
    images: dict[str, dict[str, Any]] = _read_json(path).get("images", {})
    return images


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise StoreError(
            f"{path} is damaged ({error}). Run `sfmprep export` again."
        ) from error
    if not isinstance(content, dict):
        raise StoreError(f"{path} holds no JSON object. Run `sfmprep export` again.")
    return content


def _keep_split(
    outputs: DataparserOutputs, described: dict[str, dict[str, Any]], split: str
) -> None:
    """Drops the images of other splits; those without a word on it are for training.

    Raises:
        ConfigError: there is no image in the split.
        StoreError: dataset.json does not know an image.
    """
    names = [path.name for path in outputs.image_filenames]
    if unknown := [name for name in names if name not in described]:
        raise StoreError(
            f"{outputs.image_filenames[0].parents[1]}/dataset.json is missing or does"
            f" not know {unknown[0]} ({len(unknown)} such images). Run `sfmprep export`"
            " again, or choose another --eval-mode."
        )
    rows = [
        row
        for row, name in enumerate(names)
        if described[name].get("split", "train") == split
    ]
    if not rows:
        raise ConfigError(
            f"dataset.json has no image for {split} among {len(names)}. Choose another"
            " --eval-mode, such as all."
        )
    outputs.image_filenames = [outputs.image_filenames[row] for row in rows]
    if outputs.mask_filenames:
        outputs.mask_filenames = [outputs.mask_filenames[row] for row in rows]
    if depths := outputs.metadata.get("depth_filenames"):
        outputs.metadata["depth_filenames"] = [depths[row] for row in rows]
    outputs.cameras = outputs.cameras[torch.tensor(rows)]


def _image_metadata(
    outputs: DataparserOutputs, described: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """The columns of dataset.json that at least one image of the split has."""
    images = [described.get(path.name, {}) for path in outputs.image_filenames]
    columns: dict[str, Any] = {}
    if all("original" in image for image in images):
        columns["original_names"] = [image["original"] for image in images]
    for key, column, unknown, factor in (
        ("weight", "image_weights", 1.0, 1.0),
        ("rotation_stddev_deg", "pose_rotation_stddev_deg", math.nan, 1.0),
        (
            "position_stddev",
            "pose_position_stddev",
            math.nan,
            outputs.dataparser_scale,
        ),
    ):
        if any(key in image for image in images):
            values = [image.get(key, unknown) for image in images]
            columns[column] = torch.tensor(values, dtype=torch.float32) * factor
    return columns


sfmprep_data = DataParserSpecification(
    config=SfmprepDataParserConfig(),
    description="Outputs of sfmprep, or photographs that it reconstructs first.",
)
