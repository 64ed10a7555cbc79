"""The README's pictures of report and viewer, from the demo scene: `make pictures`.

Needs Chromium, and `make demo` before it.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
_WIDTH = 800  # of a picture, pixels
_QUALITY = 80
_PORT = 8765
_NOTICE = 155  # rows that viser's notice of software rendering covers


def shoot(address: str, target: Path, height: int, above: int = 0) -> None:
    """Writes what a browser shows of a page, without its first rows, as a JPEG."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("no chromium on PATH: install it first")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        shot = Path(folder) / "shot.png"
        subprocess.run(
            [
                *(chromium, "--headless=new", "--no-sandbox", "--use-gl=angle"),
                *("--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
                *("--hide-scrollbars", "--virtual-time-budget=60000"),
                f"--user-data-dir={folder}/profile",
                f"--window-size=1100,{height}",
                f"--screenshot={shot}",
                address,
            ],
            check=True,
            capture_output=True,
        )
        with Image.open(shot) as image:
            kept = image.convert("RGB").crop((0, above, image.width, image.height))
    size = (_WIDTH, round(_WIDTH * kept.height / kept.width))
    target.parent.mkdir(exist_ok=True)
    small = kept.resize(size, Image.Resampling.LANCZOS)
    small.save(target, quality=_QUALITY, optimize=True)


def main(dataset: Path, folder: Path) -> None:
    """Makes both pictures of a result."""
    page = (dataset / "report.html").resolve()
    shoot(page.as_uri(), folder / "report.jpg", 1500)
    call = [sys.executable, "-m", "sfmprep", "view", str(dataset)]
    with subprocess.Popen([*call, "--port", str(_PORT)]) as viewer:
        try:
            _wait_for(_PORT)
            shoot(f"http://localhost:{_PORT}", folder / "view.jpg", 700, above=_NOTICE)
        finally:
            viewer.terminate()


def _wait_for(port: int) -> None:
    for _ in range(120):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    sys.exit(f"sfmprep view does not answer on port {port}")


if __name__ == "__main__":
    main(ROOT / "demo" / "dataset", ROOT / "docs")
