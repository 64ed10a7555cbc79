"""What the plugin decides by itself; nerfstudio's part is replaced where it is absent.

test_export_consumers.py runs it in nerfstudio.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from sfmprep.errors import ConfigError, ImageError, StoreError
from sfmprep.pipelines.reconstruct import reconstruct

NAMES = [f"{k:04}.jpg" for k in range(5)]


@dataclass
class Outputs:
    image_filenames: list[Path]
    cameras: torch.Tensor
    mask_filenames: list[Path] | None
    metadata: dict[str, Any]
    dataparser_scale: float = 0.5


@dataclass
class ParserConfig:
    _target: type | None = None
    data: Path = Path()
    downscale_factor: int | None = None
    orientation_method: str = "up"
    eval_mode: str = "fraction"
    train_split_fraction: float = 0.9
    load_3D_points: bool = False

    def setup(self) -> Any:
        assert self._target is not None
        return self._target(self)


@dataclass
class Parser:
    """As nerfstudio's, as far as the plugin relies on it."""

    config: ParserConfig
    calls: list[tuple[str, str, float]] = field(default_factory=list)

    def _generate_dataparser_outputs(self, split: str = "train") -> Outputs:
        config = self.config
        self.calls.append((split, config.eval_mode, config.train_split_fraction))
        return Outputs(
            image_filenames=[config.data / "images" / name for name in NAMES],
            cameras=torch.arange(len(NAMES)),
            mask_filenames=[config.data / "masks" / name for name in NAMES],
            metadata={"depth_filenames": None},
        )


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The plugin, on a stand-in for nerfstudio."""
    parts = {
        "data.dataparsers.base_dataparser": {"DataparserOutputs": Outputs},
        "data.dataparsers.nerfstudio_dataparser": {
            "Nerfstudio": Parser,
            "NerfstudioDataParserConfig": ParserConfig,
        },
        "plugins.registry_dataparser": {"DataParserSpecification": SimpleNamespace},
        "utils.rich_utils": {"CONSOLE": SimpleNamespace(log=lambda text: None)},
    }
    for name, members in parts.items():
        packages = ("nerfstudio." + name).split(".")
        for depth in range(1, len(packages)):
            package = ".".join(packages[:depth])
            monkeypatch.setitem(sys.modules, package, ModuleType(package))
        module = ModuleType(f"nerfstudio.{name}")
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, f"nerfstudio.{name}", module)
    monkeypatch.delitem(sys.modules, "sfmprep.plugins.nerfstudio", raising=False)
    module = importlib.import_module("sfmprep.plugins.nerfstudio")
    monkeypatch.setattr("sfmprep.pipelines.reconstruct.reconstruct", refused)
    yield module
    sys.modules.pop("sfmprep.plugins.nerfstudio", None)


def refused(*args: Any, **options: Any) -> Any:
    raise AssertionError("nothing is to be reconstructed")


def write_dataset(folder: Path, images: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "transforms.json").write_text('{"frames": [{}]}')
    if images is not None:
        (folder / "dataset.json").write_text(json.dumps({"images": images}))
    return folder


def described(**of_first: Any) -> dict[str, Any]:
    splits = ["test", "train", "train", "train", "test"]
    images: dict[str, Any] = {
        name: {"original": f"a/{name}", "split": split}
        for name, split in zip(NAMES, splits, strict=True)
    }
    images[NAMES[1]] |= of_first
    return images


# ------------------------------------------------------------------ what --data names
def test_output_is_read_where_its_transforms_json_lies(
    plugin: Any, tmp_path: Path
) -> None:
    config = plugin.SfmprepDataParserConfig
    first = write_dataset(tmp_path / "first")
    assert plugin.find_dataset(config(data=first)) == first
    second = write_dataset(tmp_path / "out" / "targets" / "gsplat")
    (tmp_path / "out" / "targets" / "3dgs").mkdir()
    assert plugin.find_dataset(config(data=tmp_path / "out")) == second
    path = first / "transforms.json"
    assert plugin.find_dataset(config(data=path)) == path


@pytest.mark.parametrize("name", ["recipe.yaml", "transforms.json"])
def test_output_without_a_complete_dataset_is_not_taken_for_photographs(
    name: str, plugin: Any, tmp_path: Path
) -> None:
    (tmp_path / name).write_text('{"frames": []}')
    with pytest.raises(ConfigError, match="sfmprep export"):
        plugin.find_dataset(plugin.SfmprepDataParserConfig(data=tmp_path))


def test_missing_folder_is_refused(plugin: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        plugin.find_dataset(plugin.SfmprepDataParserConfig(data=tmp_path / "none"))


def test_forgotten_data_does_not_reconstruct_the_current_folder(
    plugin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="Give --data"):
        plugin.find_dataset(plugin.SfmprepDataParserConfig())


@pytest.mark.parametrize("out", [None, "elsewhere"])
def test_photographs_are_reconstructed_once(
    out: str | None, plugin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def pretend(images: Path, out: Path, recipe: Any, **options: Any) -> Any:
        calls.append((images, out, recipe.name, options["device"]))
        write_dataset(out)
        return SimpleNamespace(verdict="All is well.")

    monkeypatch.setattr("sfmprep.pipelines.reconstruct.reconstruct", pretend)
    photos = tmp_path / "photos"
    photos.mkdir()
    place = tmp_path / (out or "photos-sfmprep")
    config = plugin.SfmprepDataParserConfig(
        data=photos, out=place if out else None, device="cpu"
    )
    assert plugin.find_dataset(config) == place
    assert plugin.find_dataset(config) == place
    assert calls == [(photos, place, "splat", "cpu")]


def test_what_is_wrong_with_photographs_comes_through(
    plugin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfmprep.pipelines.reconstruct.reconstruct", reconstruct)
    (tmp_path / "photos").mkdir()
    config = plugin.SfmprepDataParserConfig(data=tmp_path / "photos", device="cpu")
    with pytest.raises(ImageError, match="photos"):
        config.setup()._generate_dataparser_outputs()


def test_several_processes_do_not_reconstruct_at_once(
    plugin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    config = plugin.SfmprepDataParserConfig(data=tmp_path)
    with pytest.raises(ConfigError, match="sfmprep reconstruct"):
        plugin.find_dataset(config)


# ------------------------------------------------------------------- splits, metadata
@pytest.mark.parametrize(
    ("split", "rows"), [("train", [1, 2, 3]), ("val", [0, 4]), ("test", [0, 4])]
)
def test_split_is_that_of_the_dataset(
    split: str, rows: list[int], plugin: Any, tmp_path: Path
) -> None:
    write_dataset(tmp_path, described())
    parser = plugin.SfmprepDataParserConfig(data=tmp_path).setup()
    outputs = parser._generate_dataparser_outputs(split)
    assert [path.name for path in outputs.image_filenames] == [NAMES[r] for r in rows]
    assert [path.name for path in outputs.mask_filenames] == [NAMES[r] for r in rows]
    assert outputs.cameras.tolist() == rows
    assert outputs.metadata["original_names"] == [f"a/{NAMES[r]}" for r in rows]
    assert parser.calls == [("train", "fraction", 1)]
    assert parser.config.eval_mode == "dataset"


def test_other_splits_are_nerfstudios(plugin: Any, tmp_path: Path) -> None:
    write_dataset(tmp_path, described())
    config = plugin.SfmprepDataParserConfig(data=tmp_path, eval_mode="interval")
    parser = config.setup()
    assert len(parser._generate_dataparser_outputs("val").image_filenames) == len(NAMES)
    assert parser.calls == [("val", "interval", 0.9)]


def test_unknown_weights_are_one_and_unknown_sigmas_nan(
    plugin: Any, tmp_path: Path
) -> None:
    write_dataset(tmp_path, described(weight=0.25, position_stddev=3.0))
    config = plugin.SfmprepDataParserConfig(data=tmp_path)
    known = config.setup()._generate_dataparser_outputs("train").metadata
    assert known["image_weights"].tolist() == [0.25, 1, 1]
    first, *others = known["pose_position_stddev"].tolist()
    assert first == 1.5  # in the parser's frame, which is half as large
    assert all(math.isnan(value) for value in others)
    assert "pose_rotation_stddev_deg" not in known


def test_split_that_the_dataset_does_not_know_is_refused(
    plugin: Any, tmp_path: Path
) -> None:
    write_dataset(tmp_path)
    parser = plugin.SfmprepDataParserConfig(data=tmp_path).setup()
    with pytest.raises(StoreError, match=r"dataset.json .* 0000.jpg"):
        parser._generate_dataparser_outputs()
    images = {name: {"split": "train"} for name in NAMES}
    write_dataset(tmp_path, images)
    with pytest.raises(ConfigError, match="no image for test"):
        parser._generate_dataparser_outputs("val")


def test_damaged_dataset_json_is_named(plugin: Any, tmp_path: Path) -> None:
    write_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    parser = plugin.SfmprepDataParserConfig(data=tmp_path).setup()
    with pytest.raises(StoreError, match=r"dataset.json is damaged"):
        parser._generate_dataparser_outputs()


def test_reduced_copies_that_are_not_there_are_refused(
    plugin: Any, tmp_path: Path
) -> None:
    write_dataset(tmp_path, described())
    (tmp_path / "images_2").mkdir()
    for factor, fails in ((None, False), (1, False), (2, False), (4, True)):
        config = plugin.SfmprepDataParserConfig(data=tmp_path, downscale_factor=factor)
        if fails:
            with pytest.raises(ConfigError, match="only images_2"):
                config.setup()._generate_dataparser_outputs()
        else:
            config.setup()._generate_dataparser_outputs()


def test_defaults_suit_splatfacto(plugin: Any) -> None:
    config = plugin.sfmprep_data.config
    assert config.load_3D_points
    assert config.orientation_method == "none"
    assert config._target is plugin.SfmprepDataParser
