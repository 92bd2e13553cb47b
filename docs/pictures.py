"""Takes the pictures of the README from the result of `make demo`, with a browser without a window.

    make pictures

It needs `chromium`. Three pages are written to the demo's folder by the commands that the pictures
are named for, and what a reader sees first of each becomes a PNG in `docs/`.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

COLOURS = 128
"""How many colours a picture keeps, so that it is small."""

BROWSERS = ("chromium", "chromium-browser", "google-chrome")

WAIT_MILLISECONDS = 5000
"""How long a page may draw itself, in the browser's own time."""

PAGES: dict[str, tuple[tuple[int, int], tuple[str, ...]]] = {
    "report": ((1280, 1000), ("report", "--out", "{page}")),
    "explanation": (
        (1280, 1000),
        ("explain", "photos/original", "photos/blurred", "--html", "{page}"),
    ),
    "ranking": (
        (1280, 760),
        (
            *("rank", "{demo}/images/photos/blurred", "--to", "photos/original"),
            *("--workers", "0", "--html", "{page}"),
        ),
    ),
}
"""The window of each picture, in pixels, and the command that writes its page."""


def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise SystemExit(f"no browser: install one of {', '.join(BROWSERS)}")
    return found


def write_page(name: str, demo: Path) -> Path:
    """Writes a page by its command."""
    page = demo / f"{name}.html"
    words = [word.format(page=page, demo=demo) for word in PAGES[name][1]]
    command = [sys.executable, "-m", "jobs.app", *words, "--catalogue", str(demo / "catalogue")]
    subprocess.run(command, check=True)
    return page


def photograph(page: Path, size: tuple[int, int], picture: Path) -> None:
    """Saves what a window of that size shows of a page."""
    with tempfile.TemporaryDirectory() as profile:
        shot = Path(profile, "shot.png")
        command = [
            *(browser(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--disable-background-networking", f"--user-data-dir={profile}"),
            *(f"--window-size={size[0]},{size[1]}", f"--virtual-time-budget={WAIT_MILLISECONDS}"),
            *(f"--screenshot={shot}", page.resolve().as_uri()),
        ]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        with Image.open(shot) as image:
            small = image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(picture, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--demo", type=Path, default=Path("vdna-demo"), help="folder of make demo")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of PNGs")
    parser.add_argument("names", nargs="*", default=list(PAGES), help="pictures (default: all)")
    asked = parser.parse_args()
    for name in asked.names:
        photograph(write_page(name, asked.demo), PAGES[name][0], asked.out / f"{name}.png")


if __name__ == "__main__":
    main()
