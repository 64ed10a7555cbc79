"""What `sfmprep view` shows, on a real server, and in a browser where there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sfmprep.errors import ConfigError, ReconstructionError, StoreError
from sfmprep.viewer.scene import CameraView, Scene, load_scene, strongest_pairs
from sfmprep.viewer.view import _escaped, build_scene, view_result

NUM_IMAGES, NUM_POINTS = 6, 60
EVIL = "<script>_{a}*[b](c).jpg"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with thumbnails, and what is known of its images."""
    folder = tmp_path_factory.mktemp("view") / "out"
    options = pycolmap.SyntheticDatasetOptions(
        num_rigs=1,
        num_frames_per_rig=NUM_IMAGES,
        num_points3D=NUM_POINTS,
        camera_width=640,
        camera_height=480,
    )
    model = pycolmap.synthesize_dataset(options)
    rng = np.random.default_rng(0)
    described = {}
    (folder / "images_8").mkdir(parents=True)
    (folder / "sparse" / "0").mkdir(parents=True)
    (folder / "work").mkdir()
    for image_id, image in model.images.items():
        image.name = f"{image_id:04}.jpg"
        noise = rng.integers(0, 256, (60, 80, 3), np.uint8)
        Image.fromarray(noise).save(folder / "images_8" / image.name)
        described[image.name] = {"original": f"a/{image_id}.jpg", "split": "train"}
    first = f"{min(model.images):04}.jpg"
    described[first] = {
        "original": EVIL,
        "split": "test",
        "rotation_stddev_deg": 0.0123,
        "position_stddev": 0.5,
    }
    for point in model.points3D.values():
        point.color = rng.integers(0, 256, 3, np.uint8)
        point.error = float(rng.uniform(0, 2))
    model.write_binary(folder / "sparse" / "0")
    (folder / "dataset.json").write_text(json.dumps({"images": described}))
    (folder / "world_from_sfm.json").write_text("{}")
    left_out = {
        "name": f"bad {EVIL}",
        "status": "not_registered",
        "reason": "no other image matches it",
    }
    (folder / "report.json").write_text(json.dumps({"images": [left_out]}))
    return folder


@pytest.fixture(scope="module")
def scene(out: Path) -> Scene:
    return load_scene(out)


# --------------------------------------------------------------------------- reading
def rotation(camera: CameraView) -> np.ndarray:
    w, x, y, z = camera.wxyz
    return pycolmap.Rotation3d(np.array([x, y, z, w])).matrix()


def test_points_lie_before_the_shown_cameras_as_before_the_real_ones(
    scene: Scene,
) -> None:
    model = scene.model
    real = np.array([model.points3D[i].xyz for i in scene.point_ids])
    for camera in scene.cameras:
        pose = model.images[camera.image_id].cam_from_world()
        before = real @ pose.rotation.matrix().T + pose.translation
        shown = (scene.xyz - camera.position) @ rotation(camera)
        factors = shown[:, 2] / before[:, 2]
        np.testing.assert_allclose(shown, before * factors.mean(), atol=1e-4)
        assert factors.mean() > 0


def test_half_of_the_cameras_are_within_six_units(scene: Scene) -> None:
    distances = [np.linalg.norm(camera.position) for camera in scene.cameras]
    assert np.median(distances) == pytest.approx(6)


def test_field_of_view_spans_the_height(scene: Scene) -> None:
    focal = next(iter(scene.model.cameras.values())).mean_focal_length()
    assert np.tan(scene.cameras[0].fov / 2) == pytest.approx(240 / focal)
    assert scene.cameras[0].aspect == pytest.approx(640 / 480)


def test_images_have_the_names_of_the_photographs_and_what_is_known(
    scene: Scene,
) -> None:
    first, second = scene.cameras[:2]
    assert (first.name, first.is_test) == (EVIL, True)
    assert "rotation ± 0.012°" in first.status
    assert "position ± 0.5" in first.status
    assert (second.name, second.is_test) == (f"a/{second.image_id}.jpg", False)
    assert "±" not in second.status
    assert f"{scene.model.images[second.image_id].num_points3D} points" in second.status
    assert scene.left_out == {f"bad {EVIL}": "no other image matches it"}


def test_z_is_up_in_the_world_frame_and_else_the_cameras_say(
    out: Path, scene: Scene, tmp_path: Path
) -> None:
    assert scene.up == (0, 0, 1)
    shutil.copytree(out / "sparse", tmp_path / "sparse")
    ups = [-rotation(camera)[:, 1] for camera in scene.cameras]
    np.testing.assert_allclose(load_scene(tmp_path).up, np.mean(ups, 0), atol=1e-6)


def test_mappers_model_is_shown_where_there_is_no_dataset(
    out: Path, scene: Scene, tmp_path: Path
) -> None:
    shutil.copytree(out / "sparse" / "0", tmp_path / "work" / "models" / "0")
    found = load_scene(tmp_path, images=out / "images_8")
    assert len(found.cameras) == NUM_IMAGES
    assert found.cameras[0].name == f"{found.cameras[0].image_id:04}.jpg"
    assert found.cameras[0].picture == out / "images_8" / found.cameras[0].name
    assert load_scene(tmp_path).cameras[0].picture is None
    np.testing.assert_array_equal(found.xyz, scene.xyz)


def test_reasons_are_those_of_the_report_where_there_is_one(
    out: Path, tmp_path: Path
) -> None:
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    images = [
        {"name": "good.jpg", "status": "registered", "reason": ""},
        {"name": "far.jpg", "status": "outlier", "reason": "it lies far outside"},
    ]
    (tmp_path / "report.json").write_text(json.dumps({"images": images}))
    assert load_scene(tmp_path).left_out == {"far.jpg": "it lies far outside"}


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReconstructionError, match=r"no\s+cameras.bin"):
        load_scene(tmp_path)


def test_damaged_model_is_refused(tmp_path: Path, out: Path) -> None:
    shutil.copytree(out / "sparse", tmp_path / "sparse")
    path = tmp_path / "sparse" / "0" / "images.bin"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ReconstructionError, match="damaged"):
        load_scene(tmp_path)


def test_file_that_is_not_what_was_written_is_named(tmp_path: Path, out: Path) -> None:
    folder = tmp_path / "work" / "models" / "0"
    shutil.copytree(out / "sparse" / "0", folder)
    sums = {
        path.relative_to(tmp_path).as_posix(): sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
    }
    notes = {"outliers": {"sums": {**sums, "work/gone.zip": "0"}}}
    (tmp_path / "work" / "stages.json").write_text(json.dumps(notes))
    assert load_scene(tmp_path).cameras
    path = folder / "points3D.bin"
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError) as caught:
        load_scene(tmp_path)
    assert str(caught.value) == (
        f"{path} is not what was written there: it was changed, or its disk loses what"
        " it holds. Run the same `sfmprep reconstruct` again, which makes it anew; have"
        " the disk looked at if nobody changed it."
    )
    path.unlink()
    with pytest.raises(StoreError) as caught:
        load_scene(tmp_path)
    assert str(caught.value) == (
        f"{path} is gone. Run the same `sfmprep reconstruct` again, which makes it"
        " anew."
    )


def test_strongest_pairs_are_those_that_share_most_points(scene: Scene) -> None:
    seen = {
        image_id: {p.point3D_id for p in image.points2D if p.has_point3D()}
        for image_id, image in scene.model.images.items()
    }
    camera = scene.cameras[2]
    others = [c for c in scene.cameras if c is not camera]
    counts = {c.name: len(seen[camera.image_id] & seen[c.image_id]) for c in others}
    found = strongest_pairs(scene, camera, 3)
    assert [n for _, n in found] == sorted(counts.values(), reverse=True)[:3]
    assert all(counts[other.name] == n for other, n in found)


@given(st.text())
def test_markdown_shows_any_name_as_it_is(name: str) -> None:
    escaped = _escaped(name)
    assert re.sub(r"\\(.)", r"\1", escaped) == " ".join(name.split())
    assert not re.search(r"[`*_{}\[\]<>#]", re.sub(r"\\.", "", escaped))


# --------------------------------------------------------------------------- showing
@pytest.fixture
def server() -> Iterator[Any]:
    viser = pytest.importorskip("viser")
    server = viser.ViserServer(host="127.0.0.1", port=18080, verbose=False)
    yield server
    server.stop()


@pytest.fixture
def clouds(server: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """Positions and colours of every cloud that is put on the server."""
    clouds: list[tuple[Any, Any]] = []
    original = server.scene.add_point_cloud

    def record(name: str, points: Any, colors: Any, **options: Any) -> Any:
        clouds.append((points, colors))
        return original(name, points, colors, **options)

    monkeypatch.setattr(server.scene, "add_point_cloud", record)
    return clouds


def nodes(server: Any) -> set[str]:
    return set(server.scene._handle_from_node_name)


def wait_until(is_true: Callable[[], bool]) -> None:
    """Callbacks of controls run in other threads."""
    for _ in range(6000):
        if is_true():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen within five minutes")


def test_every_camera_and_the_points_are_on_the_server(
    server: Any, scene: Scene, clouds: list[tuple[Any, Any]]
) -> None:
    build_scene(server, scene)
    frusta = {f"/cameras/{camera.image_id}" for camera in scene.cameras}
    assert nodes(server) >= frusta | {"/points", "/cameras"}
    np.testing.assert_array_equal(clouds[-1][0], scene.xyz)
    np.testing.assert_array_equal(clouds[-1][1], scene.rgb)


@pytest.mark.parametrize(
    ("colour", "words"),
    [
        ("reprojection error", "px or more"),
        ("track length", "keypoints or more"),
        ("uncertainty", "% of the distance or more"),
    ],
)
def test_points_are_coloured_by_what_was_chosen(
    colour: str,
    words: str,
    server: Any,
    scene: Scene,
    clouds: list[tuple[Any, Any]],
) -> None:
    view = build_scene(server, scene)
    view.colour.value = colour
    wait_until(lambda: len(clouds) == 2)
    assert words in view.legend.content
    if colour == "reprojection error":
        best, worst = scene.errors.argmin(), scene.errors.argmax()
        assert tuple(clouds[-1][1][best]) == (68, 1, 84)
        assert tuple(clouds[-1][1][worst]) == (253, 231, 37)
    view.colour.value = "photographs"
    wait_until(lambda: len(clouds) == 3)
    assert view.legend.content == ""


def test_filters_leave_long_tracks_with_small_errors(
    server: Any, scene: Scene, clouds: list[tuple[Any, Any]]
) -> None:
    view = build_scene(server, scene)
    view.min_length.value = 4
    view.max_error.value = 1.0
    wait_until(lambda: len(clouds) == 3)
    kept = (scene.track_lengths >= 4) & (scene.errors <= 1)
    assert 0 < kept.sum() < NUM_POINTS
    np.testing.assert_array_equal(clouds[-1][0], scene.xyz[kept])


def test_chosen_camera_is_hidden_described_and_linked_to_its_best_pairs(
    server: Any, scene: Scene
) -> None:
    view = build_scene(server, scene)
    first, second = scene.cameras[:2]

    def links(camera: CameraView) -> set[str]:
        return {f"/links/{camera.image_id}-{o.image_id}" for o in scene.cameras} - {
            f"/links/{camera.image_id}-{camera.image_id}"
        }

    view.choice.value = first.name
    wait_until(lambda: links(first) <= nodes(server))
    assert r"\<script\>" in view.about.content
    assert f"a/{second.image_id}.jpg: " in view.about.content
    frusta = server.scene._handle_from_node_name
    assert not frusta[f"/cameras/{first.image_id}"].visible
    view.covers.value = True
    wait_until(lambda: frusta[f"/cameras/{first.image_id}"].visible)
    view.select(second, None)
    assert links(second) <= nodes(server)
    assert not links(first) & nodes(server)


def test_missing_viser_is_named_with_the_remedy(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(ConfigError, match=r'pip install "viser>=0\.2\.7"'):
        view_result(out)


@pytest.mark.slow
def test_browser_draws_the_scene_and_asks_nobody_else(
    server: Any, scene: Scene, tmp_path: Path
) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium")
    build_scene(server, scene).size.value = 0.1
    browser = subprocess.Popen(
        [
            *(chromium, "--headless=new", "--no-sandbox", "--use-angle=swiftshader"),
            *("--enable-unsafe-swiftshader", "--remote-debugging-port=0"),
            *("--disable-background-networking", "--window-size=800,600"),
            *(f"--user-data-dir={tmp_path}", "about:blank"),
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        events = open_page(tmp_path, f"http://localhost:{server.get_port()}")
    finally:
        browser.terminate()
        browser.wait()
    urls = [e["request"]["url"] for m, e in events if m == "Network.requestWillBeSent"]
    ours = f"localhost:{server.get_port()}"
    outside = [u for u in urls if not u.startswith(("data:", "blob:"))]
    assert outside and all(ours in url for url in outside)
    errors = [e for m, e in events if m == "Runtime.exceptionThrown"]
    errors += [e for m, e in events if e.get("type") == "error"]
    assert not errors


def is_drawn(png: bytes) -> bool:
    """Whether there are colours beside the controls and the browser's notice."""
    with Image.open(BytesIO(png)) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    return int((np.ptp(pixels[170:, :480], axis=2) > 60).sum()) > 100


def open_page(profile: Path, url: str) -> list[tuple[str, Any]]:
    """Opens a page until its 3D view is drawn; the events until then."""
    from base64 import b64decode

    from websockets.sync.client import connect

    port_file = profile / "DevToolsActivePort"
    wait_until(lambda: port_file.is_file() and len(port_file.read_text().split()) > 1)
    port = port_file.read_text().split()[0]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
        pages = [page for page in json.load(answer) if page["type"] == "page"]
    events: list[tuple[str, Any]] = []
    with connect(pages[0]["webSocketDebuggerUrl"], max_size=None) as socket:

        def call(method: str, **params: Any) -> dict[str, Any]:
            socket.send(json.dumps({"id": 1, "method": method, "params": params}))
            while "id" not in (message := json.loads(socket.recv(timeout=300))):
                events.append((message["method"], message["params"]))
            return message.get("result", {})

        for domain in ("Network", "Runtime", "Page"):
            call(f"{domain}.enable")
        call("Page.navigate", url=url)

        def shows_something() -> bool:
            # a browser that is still busy with the page may take no picture yet
            picture = call("Page.captureScreenshot").get("data")
            return picture is not None and is_drawn(b64decode(picture))

        wait_until(shows_something)
    return events
