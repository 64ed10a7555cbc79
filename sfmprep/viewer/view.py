"""`sfmprep view OUT`: cameras and points of a result in the browser, with viser.

`load_scene` (view_scene.py) reads the result, `build_scene` puts it on a server, and
`view_result` does both and waits. The browser loads everything from that server, which
listens to this machine only unless another `host` is given.
(The page of viser 0.2.7, the newest beside nerfstudio 1.1.5, also tries to load Google
Analytics, and does without.)
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import cKDTree

from sfmprep.errors import ConfigError
from sfmprep.geometry.uncertainty import point_uncertainties
from sfmprep.geometry.views import ModelArrays
from sfmprep.threads import thread_pool
from sfmprep.types import Float32
from sfmprep.viewer.scene import (
    DISTANCE,
    CameraView,
    Scene,
    load_scene,
    strongest_pairs,
)

if TYPE_CHECKING:
    import viser

logger = logging.getLogger(__name__)

_MAX_THUMBNAILS = 1000  # about 5 MB of JPEG; more cameras stay without
_MAX_LISTED = 200
_NUM_LINKS = 10
_VIRIDIS = np.array(
    [(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)]
)
_GREY, _GREEN, _ORANGE = (110, 110, 110), (60, 160, 80), (230, 120, 20)


def view_result(
    out: Path,
    *,
    images: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
) -> None:
    """Serves a result to the browser until it is interrupted.

    Args:
        out: An output folder of sfmprep, or a COLMAP model.
        images: The photographs, for thumbnails where `out` has no dataset.
        host: The address to listen on; `0.0.0.0` is every one of this machine.
        port: The port to listen on, or the first free one after it.

    Raises:
        ConfigError: viser is not installed.
        ReconstructionError: `out` holds no model, or a damaged one.
    """
    try:
        import viser
    except ImportError as error:
        raise ConfigError(
            "viser, which shows the result, is not installed. Run"
            ' `pip install "viser>=0.2.7"`.'
        ) from error
    scene = load_scene(out, images=images)
    server = viser.ViserServer(
        host=host, port=port, label=f"sfmprep {out.resolve().name}", verbose=False
    )
    try:
        logger.info(
            "%s: http://%s:%d, Ctrl-C ends it",
            out,
            "localhost" if host == "127.0.0.1" else host,
            server.get_port(),
        )
        build_scene(server, scene)
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        return
    finally:
        server.stop()


def build_scene(server: viser.ViserServer, scene: Scene) -> SceneView:
    """Puts the controls, the points and the cameras on a server, in this order."""
    view = SceneView(server, scene)
    view.show_points()
    view.show_cameras()
    return view


class SceneView:
    """The nodes `/points`, `/cameras/ID` and `/links/ID-ID`, and the controls."""

    def __init__(self, server: viser.ViserServer, scene: Scene) -> None:
        self._server = server
        self._scene = scene
        self._lock = threading.Lock()  # callbacks come from several threads
        self._links: list[Any] = []
        self._frusta: dict[int, Any] = {}  # by image id
        self._selected: CameraView | None = None
        self._colours = {
            "photographs": lambda: None,
            "reprojection error": lambda: (scene.errors, "px"),
            "track length": lambda: (scene.track_lengths, "keypoints"),
            "uncertainty": self._uncertainties,
        }
        self._uncertainty: Float32 | None = None
        self._frame = server.scene.add_frame("/cameras", show_axes=False)
        server.scene.set_up_direction(scene.up)
        # show_share_button=False leaves the page of viser 0.2.7 blank
        server.gui.configure_theme(show_logo=False)
        server.on_client_connect(self._place)
        self._add_controls()

    # ------------------------------------------------------------------- controls
    def _add_controls(self) -> None:
        gui, scene = self._server.gui, self._scene
        gui.add_markdown(
            f"**{len(scene.cameras)} cameras, {len(scene.point_ids)} points.** Click a"
            " camera to see what it saw."
        )
        with gui.add_folder("Points"):
            self.colour = gui.add_dropdown("Colour", list(self._colours))
            self.legend = gui.add_markdown("")
            self.size = gui.add_slider("Size", 0.005, 0.1, 0.005, 0.02)
            shortest = int(scene.track_lengths.min(initial=2))
            longest = int(scene.track_lengths.max(initial=3))
            self.min_length = gui.add_slider(
                "Track length from", shortest, longest, 1, shortest
            )
            largest = max(round(float(scene.errors.max(initial=0)) + 0.05, 1), 0.1)
            self.max_error = gui.add_slider("Error up to, px", 0, largest, 0.1, largest)
        for control in (self.colour, self.size, self.min_length, self.max_error):
            control.on_update(lambda _: self.show_points())
        with gui.add_folder("Cameras"):
            show = gui.add_checkbox("Show", True)
            show.on_update(lambda _: self._set_visible(show.value))
            names = [camera.name for camera in scene.cameras]
            self.choice = gui.add_dropdown("Look from", ["-", *names])
            self.choice.on_update(self._on_choice)
            self.covers = gui.add_checkbox("Its photograph in front", False)
            self.covers.on_update(lambda _: self._show_selected())
            self.about = gui.add_markdown("")
        if scene.left_out:
            title = f"Left out: {len(scene.left_out)}"
            with gui.add_folder(title, expand_by_default=len(scene.left_out) < 6):
                gui.add_markdown(_listed(scene.left_out))

    def _on_choice(self, event: Any) -> None:
        chosen = self.choice.value
        for camera in self._scene.cameras:
            if camera.name == chosen:
                self.select(camera, event.client)

    def _set_visible(self, visible: bool) -> None:
        self._frame.visible = visible

    def _show_selected(self) -> None:
        """Hides the selected camera, whose photograph would fill the view."""
        self._set_frustum_visible(self.covers.value)

    def _set_frustum_visible(self, visible: bool) -> None:
        if self._selected is not None and self._selected.image_id in self._frusta:
            self._frusta[self._selected.image_id].visible = visible

    # --------------------------------------------------------------------- points
    def show_points(self) -> None:
        """Draws the points that the filters leave, in the chosen colours."""
        scene = self._scene
        column = self._colours[self.colour.value]()
        colours, self.legend.content = scene.rgb, ""
        if column is not None:
            colours, self.legend.content = _coloured(*column)
        kept = (scene.track_lengths >= self.min_length.value) & (
            scene.errors <= self.max_error.value
        )
        with self._lock:
            self._server.scene.add_point_cloud(
                "/points", scene.xyz[kept], colours[kept], point_size=self.size.value
            )

    def _uncertainties(self) -> tuple[Float32, str]:
        if self._uncertainty is None:  # takes seconds, so only when it is asked for
            found = point_uncertainties(ModelArrays.of(self._scene.model))
            values = [found.get(i, np.nan) for i in self._scene.point_ids]
            self._uncertainty = 100 * np.array(values, np.float32)
        return self._uncertainty, "% of the distance"

    # -------------------------------------------------------------------- cameras
    def show_cameras(self) -> None:
        """Draws the cameras with thumbnails, the thumbnails as they are read."""
        cameras = self._scene.cameras
        scale = _frustum_scale([camera.position for camera in cameras])
        with thread_pool(8) as pool:
            thumbnails = pool.map(_thumbnail, _with_pictures(cameras))
            for camera, thumbnail in zip(cameras, thumbnails, strict=True):
                handle = self._server.scene.add_camera_frustum(
                    f"/cameras/{camera.image_id}",
                    fov=min(camera.fov, 2.4),  # beyond, a frustum is a wall
                    aspect=camera.aspect,
                    scale=scale,
                    color=_GREEN if camera.is_test else _GREY,
                    image=thumbnail,
                    wxyz=camera.wxyz,
                    position=camera.position,
                )
                handle.on_click(self._selector(camera))
                self._frusta[camera.image_id] = handle

    def _selector(self, camera: CameraView) -> Callable[[Any], None]:
        return lambda event: self.select(camera, event.client)

    def select(self, camera: CameraView, client: viser.ClientHandle | None) -> None:
        """Looks from a camera, says what is known of it, and draws its best pairs."""
        pairs = strongest_pairs(self._scene, camera, _NUM_LINKS)
        lines = [f"**{_escaped(camera.name)}**", "", _escaped(camera.status), ""]
        if pairs:
            lines += ["Shares most points with:", ""]
        lines += [f"- {_escaped(other.name)}: {count}" for other, count in pairs]
        with self._lock:
            self._set_frustum_visible(True)
            self._selected = camera
            self._show_selected()
            self.about.content = "\n".join(lines)
            for link in self._links:
                link.remove()
            self._links = [
                self._server.scene.add_spline_catmull_rom(
                    f"/links/{camera.image_id}-{other.image_id}",
                    np.array([camera.position, other.position]),
                    color=_ORANGE,
                )
                for other, _ in pairs
            ]
        if client is not None:
            with client.atomic():
                client.camera.wxyz = camera.wxyz
                client.camera.position = camera.position
                client.camera.fov = min(camera.fov, 2.4)

    def _place(self, client: viser.ClientHandle) -> None:
        """Lets a new browser look over the cameras to the middle of the points."""
        up = np.array(self._scene.up) / np.linalg.norm(self._scene.up)
        mean = np.mean([camera.position for camera in self._scene.cameras], axis=0)
        if np.linalg.norm(mean) < 0.3 * DISTANCE:  # they stand around the middle
            mean = np.cross(up, np.eye(3)[np.abs(up).argmin()])
        position = DISTANCE * (1.8 * mean / np.linalg.norm(mean) + 0.4 * up)
        with client.atomic():
            client.camera.up_direction = tuple(up)
            client.camera.position = tuple(position)
            client.camera.look_at = (0.0, 0.0, 0.0)


def _coloured(values: NDArray[np.generic], unit: str) -> tuple[NDArray[np.uint8], str]:
    """Colours [N, 3] from the 5th to the 95th percentile, and what they mean."""
    known = np.isfinite(values)
    if not known.any():
        return np.full((len(values), 3), 128, np.uint8), "Not known for this result."
    low, high = np.percentile(values[known], (5, 95))
    place = np.clip((values - low) / (high - low or 1.0), 0, 1) * (len(_VIRIDIS) - 1)
    stops = np.arange(len(_VIRIDIS))
    place = np.where(known, place, 0)
    colours = np.stack([np.interp(place, stops, c) for c in _VIRIDIS.T], axis=1)
    colours[~known] = 128
    legend = f"violet: {low:.3g} or less; yellow: {high:.3g} {unit} or more"
    return colours.astype(np.uint8), legend


def _frustum_scale(positions: Sequence[tuple[float, float, float]]) -> float:
    """Small enough that most cameras do not reach their neighbours."""
    if len(positions) < 2:
        return 0.5
    distances, _ = cKDTree(positions).query(positions, k=2)
    return float(np.clip(0.3 * np.median(distances[:, 1]), 0.04, 0.5))


def _with_pictures(cameras: Sequence[CameraView]) -> Iterable[Path | None]:
    """The pictures to load: evenly spread where there are too many."""
    step = -(-len(cameras) // _MAX_THUMBNAILS)
    return [c.picture if k % step == 0 else None for k, c in enumerate(cameras)]


def _thumbnail(path: Path | None) -> NDArray[np.uint8] | None:
    """At most 240 pixels wide or high, of the pixels as stored."""
    if path is None:
        return None
    try:
        with Image.open(path) as image:
            image.draft("RGB", (240, 240))
            image.thumbnail((240, 240))
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        logger.warning("%s has no thumbnail: %s", path, error)
        return None


def _listed(reasons: dict[str, str]) -> str:
    lines = [f"- {_escaped(n)}: {_escaped(why)}" for n, why in reasons.items()]
    if len(lines) > _MAX_LISTED:
        lines[_MAX_LISTED:] = [f"- and {len(lines) - _MAX_LISTED} more"]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is; file names hold anything."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~$-])", r"\\\1", " ".join(text.split()))
