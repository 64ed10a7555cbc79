"""The results of `make gpu`, into the README and examples/gpu.md.

    python -m tests.bench.gpu.table [gpu-results]        (or: make gpu-table)

Every number is one of `gpu.json`. Without that file, or with one that was made on a
CPU, the page says that nothing was run on a GPU yet.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
BEGIN, END = "<!-- gpu: begin -->", "<!-- gpu: end -->"
NOT_YET = "Not run on a GPU yet: `make gpu-wheels` and `make gpu` do it ([how](%s))."

_HOW = """\
    make gpu-wheels                     # here, with a network and ../shared
    python3 -m tests.bench.gpu --minutes 9  # there; or make gpu GPU="--minutes 9"
    make gpu-table                      # here, with gpu-results/ brought back

The first line puts what a bare machine lacks into `wheels-gpu/`, at most 60 MB that
travel with the checkout: packages for CPython 3.12 without those that come with a
PyTorch of its own (numpy, h5py, scipy, OpenCV, Pillow), three files of weights, a few
photographs. The second needs no network and no pip. It runs the tests that need a GPU,
the benchmark, and with what is left of the minutes a training of the compact matcher;
each part is a process with a limit, and what it found is in `gpu-results/gpu.json` (or
in the folder that `OUT` names) at once. `--parts lightglue train` runs some of them,
and `--device cpu` everything in tiny sizes."""


def main() -> None:
    """Writes both."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "gpu-results"
    write(read(folder / "gpu.json"), ROOT / "README.md", ROOT / "examples" / "gpu.md")


def read(path: Path) -> dict[str, Any]:
    """The results; none where they are not of a GPU.

    Raises:
        ValueError: the file is damaged.
    """
    if not path.is_file():
        return {}
    told: dict[str, Any] = json.loads(path.read_text("utf-8"))
    is_gpu = "gpu" in found(told, "machine")
    return told if is_gpu else {}


def write(told: Mapping[str, Any], readme: Path, page: Path) -> None:
    """Puts the short table between the marks of the README, and writes the page.

    Raises:
        ValueError: the README lacks the marks.
    """
    before, begin, rest = readme.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{readme} lacks the lines {BEGIN} and {END}")
    link = page.relative_to(readme.parent).as_posix()
    inside = short(told, link) if told else NOT_YET % link
    readme.write_text(f"{before}{BEGIN}\n\n{inside}\n\n{END}{after}", "utf-8")
    page.write_text(whole(told), "utf-8")


def found(told: Mapping[str, Any], part: str) -> dict[str, Any]:
    """What a part found; nothing where it was not run."""
    result: dict[str, Any] = told.get("parts", {}).get(part, {}).get("result", {})
    return result


# ------------------------------------------------------------------------------- README
def short(told: Mapping[str, Any], link: str) -> str:
    """The few numbers that matter."""
    machine = found(told, "machine")
    rows = [("on one " + machine["gpu"], ""), ("---", "---"), *_few(told)]
    return "\n".join(map(line, rows)) + f"\n\n[All figures, and how]({link})."


def _few(told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    matching = found(told, "lightglue")
    for model in ("aliked-lightglue", "lighterglue"):
        if batched := matching.get(model, {}).get("batched"):
            size, best = max(batched.items(), key=lambda item: item[1]["pairs_per_s"])
            yield (
                f"{model}, {matching['keypoints']} keypoints, {size} pairs at once",
                f"{best['pairs_per_s']:.0f} pairs/s",
            )
    if batched := found(told, "aliked").get("half", {}).get("batched"):
        best = max(each["images_per_s"] for each in batched.values())
        yield "ALIKED-n16, 1600 pixels", f"{best:.0f} images/s"
    capture = found(told, "capture")
    for name in ("splat", "fast", "compact"):
        if "registered" in capture.get(name, {}):
            yield (
                f"{capture['images']} photographs to poses, `{name}`",
                f"{capture[name]['seconds']:.0f} s",
            )


# --------------------------------------------------------------------------------- page
def whole(told: Mapping[str, Any]) -> str:
    """The page of examples/."""
    parts = ["# On a GPU", _HOW]
    if not told:
        parts.append("It was not run on a GPU yet.")
    else:
        parts += [text for section in _SECTIONS if (text := section(told))]
    return "\n\n".join(parts) + "\n"


def _machine(told: Mapping[str, Any]) -> str:
    machine = found(told, "machine")
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items() if v)
    rates = ", ".join(
        f"{value / 1e12:.0f} in {name}"
        for name, value in machine.get("matmul_flops", {}).items()
    )
    errors = machine.get("float32_errors", {})
    lines = [
        "## The machine",
        f"{machine['gpu']}, {machine['gpu_bytes'] / 2**30:.0f} GiB,"
        f" {machine['cores']} cores; commit {(told.get('commit') or 'unknown')[:10]};"
        f" {versions}.",
        f"A large product of matrices runs at {rates} (10^12 operations a second), a"
        f" copy at {machine.get('copy_bytes_per_s', 0) / 1e12:.2f} TB/s."
        if rates
        else "",
        _table(
            ("float32", "relative error"),
            ((name, f"{value:.1e}") for name, value in errors.items()),
        )
        if errors
        else "",
    ]
    tests = found(told, "tests")
    if tests:
        failed = "; ".join(tests["failed"]) or "none"
        lines.append(
            f"Tests that need a GPU: {tests['passed']} passed, {tests['skipped']}"
            f" skipped, failed: {failed}."
        )
    statuses = ", ".join(
        f"{name} {part['status']} in {part['seconds']:.0f} s"
        for name, part in told["parts"].items()
    )
    lines.append(f"Parts: {statuses}.")
    return "\n\n".join(filter(None, lines))


def _lightglue(told: Mapping[str, Any]) -> str:
    matching = found(told, "lightglue")
    half = found(told, "machine").get("matmul_flops", {}).get("float16")
    rows = []
    for model, result in matching.items():
        if not isinstance(result, dict):
            continue
        one = result.get("batched", {}).get("1", {}).get("pairs_per_s")
        plain = result.get("plain_one_by_one")
        if plain:
            rows.append((model, "kornia, float32, one by one", _n(plain), "", "", ""))
        if "float32" in result:
            rows.append((model, "float32", _n(result["float32"]), "", "", ""))
        for size, each in result.get("batched", {}).items():
            rate = each["pairs_per_s"]
            share = rate * result["flops_per_pair"] / half if half else None
            rows.append(
                (
                    *(model, size, _n(rate), f"{rate / one:.1f}" if one else ""),
                    f"{100 * share:.0f} %" if share else "",
                    f"{each['peak_bytes'] / 1e9:.2f}",
                )
            )
        if "default" in result:
            rows.append((model, "as sfmprep batches", _n(result["default"]), *[""] * 3))
    if not rows:
        return ""
    head = (
        "network",
        "pairs at once",
        "pairs/s",
        "times one",
        "of the half rate",
        "GB",
    )
    return (
        f"## LightGlue, {matching['keypoints']} keypoints, no early stopping\n\n"
        "aliked-lightglue has random weights, which cost the same.\n\n"
        + _table(head, rows)
        + _hottest(matching)
    )


def _aliked(told: Mapping[str, Any]) -> str:
    aliked = found(told, "aliked")
    rows = [
        (kind, size, _n(each["images_per_s"]), f"{each['peak_bytes'] / 1e9:.2f}")
        for kind in ("half", "float32")
        for size, each in aliked.get(kind, {}).get("batched", {}).items()
    ]
    rows += [
        (kind, "with decoding", _n(aliked[kind]["with_decoding_images_per_s"]), "")
        for kind in ("half", "float32")
        if "with_decoding_images_per_s" in aliked.get(kind, {})
    ]
    if not rows:
        return ""
    size = " x ".join(map(str, aliked["size"]))
    return (
        f"## ALIKED-n16, {size}\n\n"
        + _table(("precision", "images at once", "images/s", "GB"), rows)
        + _hottest(aliked)
    )


def _hottest(result: Mapping[str, Any]) -> str:
    """Where the time goes, of what was profiled."""
    text = ""
    for name, each in result.items():
        if isinstance(each, dict) and "hottest" in each:
            rows = (
                (f"`{op}`", f"{ms:.2f}", count) for op, ms, count in each["hottest"]
            )
            text += f"\n\n{name}: where its time goes\n\n"
            text += _table(("operation", "ms", "times"), rows)
    return text


def _dense(told: Mapping[str, Any]) -> str:
    rows = [
        (
            name,
            *(_n(each["images_per_s"]), _n(each["pairs_per_s"])),
            *(_n(each["matches"]), f"{each['peak_bytes'] / 1e9:.2f}"),
        )
        for name, each in found(told, "dense").items()
        if isinstance(each, dict)
    ]
    if not rows:
        return ""
    head = ("network and size", "images/s prepared", "pairs/s", "matches", "GB")
    return (
        "## Without a detector\n\nLoFTR and S2LD with random weights, in half"
        " precision.\n\n" + _table(head, rows)
    )


def _precision(told: Mapping[str, Any]) -> str:
    rows = [
        (
            *(name, where, f"{100 * each['same_keypoints']:.1f} %"),
            *(each["matches"], f"{100 * each['same_matches']:.1f} %"),
            f"{each['max_score_difference']:.4f}",
            f"{100 * each['inlier_share']:.1f} %",
        )
        for name, cases in found(told, "precision").items()
        if isinstance(cases, dict)
        for where, each in cases.items()
    ]
    if not rows:
        return ""
    head = (
        "what",
        "where",
        "keypoints within 0.1 px",
        "matches",
        "the same as the CPU's",
    )
    head += ("largest difference of scores", "within 3 px of the true line")
    return (
        "## What half precision changes\n\nOf two photographs of fountain-P11; matches"
        " are of the CPU's features.\n\n" + _table(head, rows)
    )


def _capture(told: Mapping[str, Any]) -> str:
    capture = found(told, "capture")
    texts = []
    for name, each in capture.items():
        if not isinstance(each, dict):
            continue
        stages = each.get("stages") or each.get("ledger", {})
        seconds = ", ".join(f"{stage} {took:.1f}" for stage, took in stages.items())
        done = "was cut"
        if "registered" in each:
            auc = " / ".join(f"{each['auc'][k]:.1f}" for k in ("1", "3", "5"))
            done = f"{each['registered']} registered, AUC at 1/3/5 degrees {auc}"
        memory = f", {each.get('peak_gpu_bytes', 0) / 1e9:.2f} GB of GPU memory"
        texts.append(f"`{name}`: {each['seconds']:.0f} s, {done}{memory}. {seconds}.")
    if not texts:
        return ""
    return f"## {capture['images']} photographs to poses\n\n" + "\n\n".join(texts)


def _memory(told: Mapping[str, Any]) -> str:
    memory = found(told, "memory")
    rows = [
        (
            name,
            str(each.get("same_matches", each.get("same_keypoints"))),
            str(each["remembered"]),
            "; ".join(each["said"]),
        )
        for name, each in memory.items()
        if isinstance(each, dict)
    ]
    if not rows:
        return ""
    head = ("under a cap on its memory", "same as before", "remembered cost", "said")
    return "## Where memory ends\n\n" + _table(head, rows)


def _train(told: Mapping[str, Any]) -> str:
    log = found(told, "train").get("log", {})
    if "steps" not in log:
        return ""
    rows = []
    if log.get("measured"):
        first, last = log["measured"]
        rows = [
            (name, f"{first[name]:.4f}", f"{last[name]:.4f}")
            for name in first
            if name not in ("step", "time") and name in last
        ]
    table = "\n\n" + _table(("measured", "before", "after"), rows) if rows else ""
    return (
        f"## Training of the compact matcher\n\n{log['steps']} steps,"
        f" {log['pairs_per_s']:.1f} pairs/s." + table
    )


_SECTIONS = (
    *(_machine, _lightglue, _aliked, _dense, _capture, _precision, _memory, _train),
)


# --------------------------------------------------------------------------------- text
def _n(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    head = list(head)
    return "\n".join(map(line, (head, ["---"] * len(head), *rows)))


def line(cells: Iterable[object]) -> str:
    """A line of a table."""
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
