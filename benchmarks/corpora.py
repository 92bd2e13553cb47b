"""Fetches real images out of Debian packages, as plain folders. Root is not needed.

    python -m benchmarks.corpora                         every corpus
    python -m benchmarks.corpora photos stamps           these
    python -m benchmarks.corpora jpegs --count 400       crops of the photos, for tests of speed

A corpus is `<cache>/<name>/`, with the images as they lie in the package, not encoded again. What
is there already is left alone. Nothing is installed. The script needs `apt-get` with package lists
(`apt-get update`) and `dpkg-deb`. Each package's copyright file is copied to `<cache>/licences/`.
None of the images belongs in git.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

DEFAULT_CACHE = Path("~/.cache/vdna-corpora").expanduser()

Members = Iterator[tuple[str, bytes]]


class CorpusError(Exception):
    """A corpus cannot be had; the message names the Debian package and what to do."""


@dataclass(frozen=True)
class Pick:
    """What a corpus takes from a package.

    `path` must match a file's whole path in the package; its group becomes the path in the corpus.
    `unpack` opens an inner archive: (path in the corpus, bytes) -> images.
    """

    package: str
    path: str
    unpack: Callable[[str, bytes], Members] | None = None


@dataclass(frozen=True)
class Corpus:
    """`licence` is a summary; the package's own copyright file says it file by file."""

    kind: str
    licence: str
    picks: tuple[Pick, ...]


def _webp_inside(path: str, data: bytes) -> Members:
    """WebP images at least 200 pixels wide and high and without transparency, in a Qt .rcc."""
    at = number = 0
    while (at := data.find(b"RIFF", at)) >= 0:
        (size,) = struct.unpack_from("<I", data, at + 4)
        if data[at + 8 : at + 12] != b"WEBP":
            at += 4
            continue
        found = data[at : at + 8 + size]
        at += 8 + size
        with Image.open(io.BytesIO(found)) as image:
            opaque = "A" not in image.mode or image.getchannel("A").getextrema()[0] == 255
            if opaque and min(image.size) >= 200:
                yield f"{PurePosixPath(path).with_suffix('')}/{number:03d}.webp", found
        number += 1


def _zip_inside(suffix: str) -> Callable[[str, bytes], Members]:
    def unpack(path: str, data: bytes) -> Members:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                if name.lower().endswith(suffix):
                    yield f"{PurePosixPath(path).stem}/{name}", archive.read(name)

    return unpack


_WESNOTH = "usr/share/games/wesnoth/1.18/data"
_OPENCV_PHOTOS = (
    r"alphamat/input_images/plant\.jpg|dnn_superres/butterfly\.png|hfs/data/\d+\.jpg|"
    r"reg/home\.png|text/scenetext\d+\.jpg|data/(?:aero1|aero3|aloeL|apple|baboon|board|building|"
    r"butterfly|chicky_512|ela_original|fruits|graf1|home|leuvenA|licenseplate_motion|messi5|"
    r"orange|rubberwhale1|squirrel_cls|stuff)\.(?:jpg|png)"
)

CORPORA: dict[str, Corpus] = {
    "photos": Corpus(
        "full-frame photographs",
        "GPL-2+ and, in gcompris, CC-BY, CC-BY-SA, CC0, public domain; opencv: BSD-3, Apache-2.0",
        (
            Pick(
                "gcompris-qt-data",
                r"usr/share/gcompris-qt/rcc/((?:categorization|erase|explore_\w+)\.rcc)",
                _webp_inside,
            ),
            Pick("mate-backgrounds", r"usr/share/backgrounds/mate/(nature/.+\.jpg)"),
            Pick("opencv-doc", rf"usr/share/doc/opencv-doc/examples/({_OPENCV_PHOTOS})"),
        ),
    ),
    "wallpapers": Corpus(
        "large rendered and painted pictures, 2 to 15 megapixels",
        "GPL-2+, CC-BY-SA-4.0",
        (
            Pick(
                "plasma-workspace-wallpapers",
                r"usr/share/wallpapers/(\w+/contents/images(?:_dark)?/\d+x\d+\.(?:jpg|png))",
            ),
            Pick("mate-backgrounds", r"usr/share/backgrounds/mate/((?:abstract|desktop)/.+g)"),
        ),
    ),
    "stamps": Corpus(
        "cut-out photographs and cartoons, transparent",
        "GPL-2",
        (Pick("tuxpaint-stamps-default", r"usr/share/tuxpaint/stamps/(.+\.png)"),),
    ),
    "renders": Corpus(
        "3D renders of furniture, transparent, mostly 128 x 128",
        "CC0, CC-BY-3.0",
        (
            Pick(
                "sweethome3d-furniture",
                r"usr/share/sweethome3d/furniture/(.+\.sh3f)",
                _zip_inside(".png"),
            ),
        ),
    ),
    "textures": Corpus(
        "textures of a game",
        "GPL-2+",
        (
            Pick(
                "openarena-081-textures",
                r"usr/share/games/openarena/baseoa/(.+\.pk3)",
                _zip_inside(".jpg"),
            ),
        ),
    ),
    "portraits": Corpus(
        "painted portraits",
        "GPL-2+, CC-BY-SA-4.0",
        (Pick("wesnoth-1.18-data", rf"{_WESNOTH}/(.*portraits/.+\.(?:webp|png))"),),
    ),
    "sprites": Corpus(
        "units of a game, transparent, mostly 72 x 72",
        "GPL-2+, CC-BY-SA-4.0",
        (Pick("wesnoth-1.18-data", rf"{_WESNOTH}/core/images/units/(.+\.png)"),),
    ),
    "terrain": Corpus(
        "tiles of a game's map, transparent",
        "GPL-2+, CC-BY-SA-4.0",
        (Pick("wesnoth-1.18-data", rf"{_WESNOTH}/core/images/terrain/(.+\.png)"),),
    ),
}


def _run(command: list[str], package: str, cwd: Path) -> None:
    try:
        subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise CorpusError(f"{package}: {command[0]} is not here; this needs Debian") from None
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise CorpusError(
            f"{package}: {' '.join(command)} failed: {reason} "
            "(run `apt-get update` as root first; the names are those of Debian 13)"
        ) from None


def _deb(package: str, cache: Path) -> Path:
    """The package's file, downloaded unless it is in the cache."""
    debs = cache / "debs"
    debs.mkdir(parents=True, exist_ok=True)
    if not list(debs.glob(f"{package}_*.deb")):
        with tempfile.TemporaryDirectory(dir=debs) as scratch:
            _run(["apt-get", "download", package], package, Path(scratch))
            for file in Path(scratch).glob("*.deb"):
                file.rename(debs / file.name)
    return max(debs.glob(f"{package}_*.deb"))


def _members(package: str, cache: Path) -> Members:
    """Every regular file in a package: (path, bytes)."""
    deb = _deb(package, cache)
    with tempfile.NamedTemporaryFile(suffix=".tar") as tar:
        with open(tar.name, "wb") as sink:
            subprocess.run(["dpkg-deb", "--fsys-tarfile", str(deb)], check=True, stdout=sink)
        with tarfile.open(tar.name) as archive:
            for member in archive:
                if member.isfile() and (file := archive.extractfile(member)):
                    yield member.name.removeprefix("./"), file.read()


def _picked(pick: Pick, cache: Path) -> Members:
    licence = cache / "licences" / f"{pick.package}.txt"
    licence.parent.mkdir(parents=True, exist_ok=True)
    for path, data in _members(pick.package, cache):
        if path == f"usr/share/doc/{pick.package}/copyright":
            licence.write_bytes(data)
        elif match := re.fullmatch(pick.path, path):
            yield from pick.unpack(match[1], data) if pick.unpack else [(match[1], data)]


def _publish(folder: Path, images: Members) -> Path:
    """Writes all the images or nothing: a folder that has its final name is complete."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    for path, data in images:
        file = part / path
        if not file.resolve().is_relative_to(part.resolve()):
            raise CorpusError(f"{folder.name}: an archive names {path!r}, outside its folder")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    if not part.exists():
        raise CorpusError(f"{folder.name}: no image found; has the package's layout changed?")
    part.rename(folder)
    return folder


def corpus(name: str, cache: Path = DEFAULT_CACHE) -> Path:
    """The folder of a corpus, fetched first unless it is there."""
    folder = cache / name
    if folder.exists():
        return folder
    picks = CORPORA[name].picks
    images = (
        (f"{pick.package}/{path}" if len(picks) > 1 else path, data)
        for pick in picks
        for path, data in _picked(pick, cache)
    )
    return _publish(folder, images)


def files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _crop(photo: Path, seed: int) -> bytes:
    """A JPEG of about 500 x 400: a region of a photo, scaled down where the photo is large."""
    chance = random.Random(seed)
    width, height = chance.randint(440, 560), chance.randint(350, 450)
    with Image.open(photo) as image:
        scale = chance.uniform(1.0, min(image.width / width, image.height / height))
        w, h = int(width * scale), int(height * scale)
        x, y = chance.randint(0, image.width - w), chance.randint(0, image.height - h)
        region = image.convert("RGB").crop((x, y, x + w, y + h))
    sink = io.BytesIO()
    region.resize((width, height), Image.Resampling.LANCZOS).save(sink, "JPEG", quality=90)
    return sink.getvalue()


def jpegs(count: int, cache: Path = DEFAULT_CACHE) -> Path:
    """A folder of `count` JPEG crops of the photos; image i is the same whatever the count."""
    folder = cache / f"jpegs-{count}"
    if folder.exists():
        return folder
    large = []
    for file in files(corpus("photos", cache)):
        with Image.open(file) as image:
            if image.width >= 600 and image.height >= 480:
                large.append(file)
    random.Random(0).shuffle(large)
    return _publish(
        folder, ((f"{i:05d}.jpg", _crop(large[i % len(large)], i)) for i in range(count))
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="real images out of Debian packages, as folders")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join([*CORPORA, "jpegs"]))
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--count", type=int, default=400, help="how many jpegs")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - {*CORPORA, "jpegs"}:
        parser.error(f"no corpus named {', '.join(sorted(unknown))}")
    cache = arguments.cache.expanduser().resolve()
    failed = False
    result = []
    for name in arguments.names or CORPORA:
        try:
            folder = jpegs(arguments.count, cache) if name == "jpegs" else corpus(name, cache)
        except CorpusError as error:
            print(error, file=sys.stderr)
            failed = True
            continue
        source = CORPORA["photos" if name == "jpegs" else name]
        images = files(folder)
        row = {
            "name": name,
            "folder": str(folder),
            "images": len(images),
            "megabytes": round(sum(file.stat().st_size for file in images) / 1e6, 1),
            "licence": source.licence,
            "packages": [pick.package for pick in source.picks],
        }
        result.append(row)
        print("{name}: {images} images, {megabytes} MB, {licence}".format(**row), file=sys.stderr)
    print(json.dumps(result, indent=1))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
