"""Runs benchmarks of all parts, and says what moved since the ratios are kept.

    python -m benchmarks.suite [--folder JPEGS] [--only NAME...] [--keep]           # make bench

The images are 1,200 JPEG crops of the photographs in a Debian package (`benchmarks.corpora`), or
those of `--folder`; a ViT-B/16 takes the first 384 of them. Ratios are written to `bench.json`, and
compared with `benchmarks/ratios.json`; `--keep` writes them there. `--only` runs some of the
benchmarks, and leaves the others' ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import corpora, measure

KEPT = Path(__file__).with_name("ratios.json")
MOVED = 0.15
"""By what part a ratio must differ from the one that is kept to be called moved."""


FEW = 384
"""Images for the network that takes a second for three."""


def runs(folder: str, few: str) -> dict[str, list[str]]:
    """Each benchmark's name, with its module and arguments; `few` is a folder of fewer images."""
    vit = ["--extractor", "timm:vit_base_patch16_224"]
    return {
        "end_to_end": ["end_to_end", folder, "--rounds", "2"],
        "end_to_end_vit": ["end_to_end", few, "--rounds", "1", *vit],
        "emd_reference": ["emd_reference"],
        "all_pairs": ["all_pairs", "kernel"],
        "ranking": ["ranking", folder],
        "one_pass": ["one_pass", folder],
        "start_up": ["start_up", folder, "--rounds", "1"],
        "memory": ["memory", "--images", "1000", "100000", "--planned", "100000", "1000000"],
        "backends": ["backends", folder, "--networks", "efficientnet_lite0", "--limit", "128"],
    }


def first_of(folder: Path, scratch: str) -> str:
    """A folder of links to the first images of another."""
    for path in sorted(folder.iterdir())[:FEW]:
        Path(scratch, path.name).symlink_to(path)
    return scratch


def ratios(name: str, result: Any) -> Iterator[tuple[str, float]]:
    """Every number under `ratio` or `share_of_floor`, with the names that lead to it."""
    if isinstance(result, list):
        items = (item for item in result if isinstance(item, dict))
        result = {str(item.get("dnas", at)): item for at, item in enumerate(items)}
    for key, value in result.items() if isinstance(result, dict) else ():
        if key not in ("ratio", "share_of_floor"):
            yield from ratios(f"{name} {key}", value)
        elif isinstance(value, dict):
            yield from ((f"{name} {what}", ratio) for what, ratio in value.items())
        else:
            yield name, value


def compared(found: dict[str, float], kept: dict[str, float]) -> list[str]:
    """A line for each ratio that moved, is new, or is gone."""
    lines = []
    for name in sorted(found | kept):
        if name not in kept:
            lines.append(f"new    {name}: {found[name]}")
        elif name not in found:
            lines.append(f"gone   {name}: was {kept[name]}")
        elif abs(found[name] - kept[name]) > MOVED * abs(kept[name]):
            lines.append(f"moved  {name}: {kept[name]} -> {found[name]}")
    return lines


def not_of(names: Iterable[str], kept: dict[str, float]) -> dict[str, float]:
    """The ratios of other benchmarks than these."""
    ran = set(names)
    return {what: ratio for what, ratio in kept.items() if what.partition(" ")[0] not in ran}


def main() -> None:
    parser = argparse.ArgumentParser(description="all ratios, beside those that are kept")
    parser.add_argument("--folder", type=Path, help="JPEG files; fetched where it is not given")
    parser.add_argument("--only", nargs="+", choices=runs("", ""), help="benchmarks to run")
    parser.add_argument("--keep", action="store_true", help="write the ratios to ratios.json")
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    chosen = parser.parse_args()
    folder = (chosen.folder or corpora.jpegs(1200)).resolve(strict=True)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        benchmarks = runs(str(folder), first_of(folder, scratch))
        for name in chosen.only or benchmarks:
            module, *arguments = benchmarks[name]
            print(f"running {name}", file=sys.stderr, flush=True)
            command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
            done = subprocess.run(command, cwd=measure.ROOT, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                sys.exit(f"benchmarks.{module} exited with {done.returncode}")
            new = ratios(name, json.loads(done.stdout))
            found |= {what: round(ratio, 2) for what, ratio in new}
    machine = f"{os.cpu_count()} cores, {platform.machine()}"
    kept = json.loads(KEPT.read_text())
    left = not_of(chosen.only or benchmarks, kept["ratios"])
    lines = compared(left | found, kept["ratios"]) or ["nothing moved"]
    if chosen.keep:
        measure.keep(KEPT, {"machine": machine, "ratios": left | found})
    else:
        measure.keep(chosen.out, {"machine": machine, "ratios": found})
    heading = f"{machine}, beside {KEPT.name} of {kept['machine']}:"
    measure.emit(found, "\n".join([heading, *lines]))


if __name__ == "__main__":
    main()
