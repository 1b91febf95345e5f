"""The storage drivers on one machine: each on the file systems that it is used on, in images on
loop devices, so that all have the same disk below. Writes a table and pictures for the docs."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tiffin.linux import syscalls
from tiffin.storage import drivers
from tiffin.storage.benchmark import FIGURES, SETTINGS, Figures, measure

PLACES = (
    ("overlay2", "ext4"),
    ("overlay2", "xfs"),
    ("overlay", "ext4"),
    ("fuse-overlayfs", "ext4"),
    ("btrfs", "btrfs"),
    ("vfs", "ext4"),
    ("vfs", "xfs"),
    ("devicemapper", "ext4"),
    ("zfs", "ext4"),
)
"""Driver, and the file system that its folder lies on."""

_BAR, _GAP, _LEFT, _WIDTH = 18, 6, 190, 420


@contextmanager
def file_system(kind: str, work: Path, size: str) -> Iterator[Path]:
    """A file system of that kind in an image."""
    image, point = work / f"{kind}.image", work / kind
    with image.open("wb") as file:
        file.truncate(int(size) << 30)
    point.mkdir()
    subprocess.run([f"mkfs.{kind}", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, point], check=True)
    try:
        yield point
    finally:
        syscalls.umount(str(point), syscalls.MNT_DETACH)
        point.rmdir()
        image.unlink()


def run(
    work: Path, size: str, short: bool, only: set[str], settings: Mapping[str, Mapping[str, str]]
) -> dict[str, Figures]:
    """The figures by driver and file system (``vfs on xfs``); ``only`` names either."""
    found: dict[str, Figures] = {}
    for name, kind in PLACES:
        if only and not only & {name, f"{name} on {kind}"}:
            continue
        if shutil.which(f"mkfs.{kind}") is None:
            print(f"{name} on {kind}: mkfs.{kind} is missing", file=sys.stderr)
            continue
        with file_system(kind, work, size) as place:
            driver = drivers.find(name)
            home = drivers.home(place, name)
            support = driver.probe(home, settings.get(name))
            if not support.works:
                print(f"{name} on {kind}: {support.reason}", file=sys.stderr)
                continue
            print(f"{name} on {kind}…", file=sys.stderr)
            found[f"{name} on {kind}"] = measure(driver, home, settings.get(name), short=short)
    return found


def text(value: float) -> str:
    """A figure as the table shows it."""
    if 0 < value < 0.1:
        return f"{value:.1g}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def markdown(found: Mapping[str, Figures]) -> str:
    """The table of the docs: a row a figure."""
    lines = [
        "| | " + " | ".join(found) + " |",
        "|---|" + "---:|" * len(found),
    ]
    for figure, unit, what, _ in FIGURES:
        label = f"{what} ({unit})" if unit else what
        cells = " | ".join(text(figures[figure]) for figures in found.values())
        lines.append(f"| {label} | {cells} |")
    return "\n".join(lines) + "\n"


def ratios(found: Mapping[str, Figures]) -> dict[str, Figures]:
    """The same as multiples of those of the first, which has 1; what is nothing there stays."""
    first = next(iter(found.values()), {})
    return {
        name: {
            figure: value / first[figure] if first[figure] else value
            for figure, value in figures.items()
        }
        for name, figures in found.items()
    }


def picture(figure: str, unit: str, what: str, more: bool, found: Mapping[str, Figures]) -> str:
    """One figure of all drivers as bars."""
    values = {name: figures[figure] for name, figures in found.items()}
    most = max(values.values()) or 1.0
    height = 44 + len(values) * (_BAR + _GAP)
    better = "more is better" if more else "less is better"
    size = f'width="{_LEFT + _WIDTH + 80}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        f'<text x="4" y="16" font-size="13">{what}{f", {unit}" if unit else ""} ({better})</text>',
    ]
    for number, (name, value) in enumerate(values.items()):
        top = 30 + number * (_BAR + _GAP)
        width = max(1, round(_WIDTH * value / most))
        parts += [
            f'<text x="{_LEFT - 8}" y="{top + 13}" text-anchor="end">{name}</text>',
            f'<rect x="{_LEFT}" y="{top}" width="{width}" height="{_BAR}" fill="#3b7a9e"/>',
            f'<text x="{_LEFT + width + 6}" y="{top + 13}">{text(value)}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> int:
    """Measure, and write what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, help="where the images are made (a temporary folder)")
    parser.add_argument("--size", default="24", help="gigabytes of each image; they are sparse")
    parser.add_argument("--short", action="store_true", help="a sixteenth as much")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        help="this driver alone, or DRIVER on FILESYSTEM (repeat)",
    )
    parser.add_argument("--zfs", metavar="DATASET", help="the pool or dataset for the zfs driver")
    parser.add_argument("--ratios", action="store_true", help="show multiples of the first driver")
    parser.add_argument("--from", dest="known", type=Path, help="figures of before, not measured")
    parser.add_argument("--json", type=Path, help="write the figures")
    parser.add_argument("--pictures", type=Path, help="write a picture of each figure (SVG)")
    options = parser.parse_args()
    if options.known:
        found: dict[str, Figures] = json.loads(options.known.read_text())
    else:
        if os.geteuid() != 0:
            parser.error("needs root")
        settings = {**SETTINGS, **({"zfs": {"zfs.fsname": options.zfs}} if options.zfs else {})}
        work = Path(tempfile.mkdtemp(prefix="storage", dir=options.work))
        try:
            found = run(work, options.size, options.short, set(options.only), settings)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    print(f"Linux {platform.release()}, {os.cpu_count()} cores\n")
    print(markdown(ratios(found) if options.ratios else found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
        for figure, unit, what, more in FIGURES:
            place = options.pictures / f"{figure.replace(' ', '-')}.svg"
            place.write_text(picture(figure, unit, what, more, found))
    return 0
