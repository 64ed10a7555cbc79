"""Headers of photographs, changed by atheris so that ever more of their readers runs.

`python -m tests.torture.headers FOLDER RUNS SEED`; the folder holds whole photographs.
atheris is not among what `make` installs: `pip install atheris` adds this kind.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

from sfmprep.errors import ImageError

with atheris.instrument_imports(include=["sfmprep.capture", "PIL"]):
    from sfmprep.capture.image_file import read_info


def main() -> None:
    """Ends with 0 where every header was read or refused."""
    folder, runs, seed = sys.argv[1:]
    path = Path(folder) / "fuzzed"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        try:
            read_info(path)
        except ImageError:
            return

    limits = ("-max_len=4096", "-timeout=20", "-rss_limit_mb=3000")
    given = (folder, f"-runs={runs}", f"-seed={seed}", f"-artifact_prefix={folder}/")
    atheris.Setup([sys.argv[0], *given, *limits], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
