"""Images that would come out the same are not made again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sfmprep.config import ExportConfig
from sfmprep.errors import ImageError
from sfmprep.executors.protocol import Shards
from sfmprep.export import pixels
from sfmprep.export.dataset import export_dataset
from sfmprep.export.install import set_dataset_aside
from sfmprep.export.taken_over import EarlierExport
from tests.support.export_scene import synthesize, write_images
from tests.support.shards_here import ShardsHere


class Exports:
    """Exports of one scene, each in the place of the one before."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.out, self.away = folder / "out", folder / "away"
        self.model = synthesize("OPENCV")
        self.images = write_images(self.model, folder / "photos")
        self.contents = dict.fromkeys(self.images.names, "1")
        self.decoded: list[str] = []
        self.shards: Shards | None = None
        decode = pixels.decode

        def noted(path: Path, **options: Any) -> Any:
            self.decoded.append(path.relative_to(self.images.root).as_posix())
            return decode(path, **options)

        monkeypatch.setattr(pixels, "decode", noted)

    def export(self, **settings: Any) -> list[str]:
        """Exports and returns which photographs were decoded."""
        self.decoded.clear()
        set_dataset_aside(self.out, self.away)
        config = {"targets": ["nerfstudio", "colmap"], "downscales": [2], **settings}
        export_dataset(
            *(self.model, self.images, self.out, ExportConfig.model_validate(config)),
            earlier=EarlierExport(folder=self.away, contents=self.contents),
            shards=self.shards,
        )
        return sorted(self.decoded)

    def pictures(self) -> dict[str, bytes]:
        found = sorted(p for p in self.out.rglob("*.*") if p.suffix in (".jpg", ".png"))
        return {p.relative_to(self.out).as_posix(): p.read_bytes() for p in found}


@pytest.fixture
def exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Exports:
    return Exports(tmp_path, monkeypatch)


def test_nothing_is_made_twice(exports: Exports) -> None:
    assert exports.export() == list(exports.images.names)
    first = exports.pictures()
    assert len(first) == 4 * 3
    assert exports.export() == []
    assert exports.pictures() == first
    assert exports.export() == []  # nor the third time


def test_only_what_is_new_is_made(exports: Exports) -> None:
    held = exports.images.names[2]
    frame = next(i.frame_id for i in exports.model.images.values() if i.name == held)
    whole = exports.model
    exports.model = type(whole)(whole)
    exports.model.deregister_frame(frame)
    assert len(exports.export()) == 3
    exports.model = whole
    assert exports.export() == [held]
    assert len(exports.pictures()) == 4 * 3


@pytest.mark.parametrize("settings", [{"jpeg_quality": 90}, {"downscales": [4]}])
def test_other_settings_make_all_anew(
    exports: Exports, settings: dict[str, Any]
) -> None:
    exports.export()
    assert len(exports.export(**settings)) == 4


def test_other_lenses_and_photographs_are_made_anew(exports: Exports) -> None:
    exports.export()
    exports.contents[exports.images.names[1]] = "2"
    assert exports.export() == [exports.images.names[1]]
    exports.model.cameras[1].params = [480, 470, 190.3, 146.8, 0.1, -0.05, 0.001, 0]
    assert len(exports.export()) == 4


def test_what_somebody_changed_is_made_anew(exports: Exports) -> None:
    exports.export()
    before = exports.pictures()
    file, other = sorted((exports.out / "images").iterdir())[:2]
    Image.new("RGB", (9, 9)).save(file)
    late = (exports.out / "dataset.json").stat().st_mtime + 60
    os.utime(file, (late, late))
    other.unlink()
    assert exports.export() == list(exports.images.names[:2])
    assert exports.pictures() == before


def test_shards_write_the_same_and_go_on_where_they_were_stopped(
    exports: Exports, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = list(exports.images.names)
    assert exports.export() == names
    whole, parts = exports.pictures(), exports.out.with_name("parts")
    shutil.rmtree(exports.out)
    monkeypatch.setattr("sfmprep.executors.protocol._SMALLEST_CHUNK", 1)
    exports.shards = Shards(ShardsHere(stop_after=3), parts)
    with pytest.raises(KeyboardInterrupt):
        exports.export()
    assert not exports.out.exists() or not exports.pictures()
    first, second, third = (
        part.rename(parts / f"of {part.name}") for part in sorted(parts.iterdir())
    )
    second.write_bytes(second.read_bytes()[:-40])
    exports.contents[names[2]] = "2"  # another photograph than that of the third
    exports.shards = Shards(ShardsHere(), parts)
    assert exports.export() == names[1:]
    assert exports.pictures() == whole
    assert first.exists() and not second.exists() and third.exists()
    assert f"{second} is damaged (" in caplog.text
    # an earlier dataset comes before shards
    shutil.rmtree(parts)
    assert exports.export() == [] and exports.pictures() == whole


def test_an_error_of_a_shard_names_the_photograph(exports: Exports) -> None:
    exports.shards = Shards(ShardsHere(), exports.out.with_name("parts"))
    path = exports.images.path(exports.images.names[1])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ImageError) as raised:
        exports.export()
    assert str(raised.value).startswith(f"shard 0: {path}: ")


def test_without_an_earlier_one_nothing_is_told(exports: Exports) -> None:
    export_dataset(exports.model, exports.images, exports.out, ExportConfig())
    listed = json.loads((exports.out / "dataset.json").read_text())["images"]
    assert all("made_from" not in entry for entry in listed.values())
    assert len(exports.export()) == 4
    assert len(exports.pictures()) == 4 * 3
