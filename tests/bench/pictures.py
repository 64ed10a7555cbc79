"""The README's picture of the report, from the demo scene: `make pictures`.

Needs Chromium, and `make demo` before it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
_WINDOW = (1100, 1500)
_WIDTH = 800  # of the picture, pixels
_QUALITY = 80


def main(page: Path, target: Path) -> None:
    """Photographs the top of a report page as a browser shows it."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("no chromium on PATH: install it first")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        subprocess.run(
            [
                *(chromium, "--headless=new", "--no-sandbox", "--use-gl=angle"),
                *("--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
                *("--hide-scrollbars", "--virtual-time-budget=10000"),
                f"--user-data-dir={folder}/profile",
                f"--window-size={_WINDOW[0]},{_WINDOW[1]}",
                f"--screenshot={shot}",
                page.resolve().as_uri(),
            ],
            check=True,
            capture_output=True,
        )
        with Image.open(shot) as image:
            size = (_WIDTH, round(_WIDTH * image.height / image.width))
            small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    target.parent.mkdir(exist_ok=True)
    small.save(target, quality=_QUALITY, optimize=True)


if __name__ == "__main__":
    main(ROOT / "demo" / "dataset" / "report.html", ROOT / "docs" / "report.jpg")
