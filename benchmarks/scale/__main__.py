"""How long a build takes, and what it costs, for 1e6 to 1e9 images on 1 to 512 GPUs: a model.

    python -m benchmarks.scale --gpu-images-per-second 2000          # a table, of kept parts
    python -m benchmarks.scale --measure [--folder JPEGS]            # measures the parts here
    python -m benchmarks.scale --check                               # predicts, and runs
    python -m benchmarks.scale --images 3e8 --gpus 32 --gpu-images-per-second 2000 --megapixels 2

The parts (rates and sizes) are measured by `--measure` and kept in `benchmarks/scale/parts.json`.
What one GPU takes in a second cannot be measured without a GPU, so it has no default. All other
options are assumptions, too; those that were made are printed above the table. Standard error has
tables in Markdown, and standard output the same in JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from benchmarks import measure
from benchmarks.scale.case import Case, Parts, Prediction, Prices
from benchmarks.scale.model import predict

KEPT = Path(__file__).with_name("parts.json")
IMAGES = (10**6, 10**7, 10**8, 10**9)
GPUS = (1, 8, 64, 512)


def kept_parts(path: Path = KEPT) -> Parts:
    """The parts that were measured last; raises ValueError if the file lacks some."""
    return Parts.of(json.loads(path.read_text())["parts"])


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def amount(number: float, units: Sequence[str] = ("", "k", "M", "G", "T", "P")) -> str:
    """A number with three digits, in thousands of thousands."""
    power = 0
    while abs(number) >= 999.5 and power < len(units) - 1:
        number, power = number / 1000, power + 1
    return f"{number:.3g} {units[power]}".strip()


def row_of(found: Prediction) -> list[str]:
    """A prediction as the cells of a table."""
    build, took = found.requests["build"], found.seconds
    return [
        f"{found.case.images:.0e}".replace("e+0", "e"),
        str(found.case.gpus),
        duration(found.total_seconds),
        duration(took["listing"]),
        duration(took["planning"]),
        duration(took["counting"]),
        duration(took["summing"]),
        found.limit,
        f"{found.shards:,}",
        amount(max(found.driver_bytes.values())) + "B",
        amount(sum(build.values())),
        amount(found.read_bytes) + "B",
        amount(found.kept_bytes) + "B",
        f"{found.dollars:,.0f}",
        f"{found.dollars_held:,.0f}",
    ]


HEADINGS = (
    *("images", "GPUs", "whole", "listing", "planning", "counting", "summing", "limit", "shards"),
    *("driver", "requests", "read", "kept", "$", "$ held"),
)


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def assumptions(case: Case, prices: Prices) -> str:
    """What was stated, and not measured."""
    stated = {
        k: v for k, v in asdict(case).items() if k not in ("images", "gpus") and v is not None
    }
    told = ", ".join(f"{name} {value:g}" for name, value in stated.items())
    dollars = ", ".join(f"{name} {value:g}" for name, value in asdict(prices).items())
    return f"Assumed: {told}. Dollars, assumed in November 2026: {dollars}."


def as_json(found: Prediction) -> dict[str, Any]:
    """A prediction with its sums."""
    return asdict(found) | {"total_seconds": found.total_seconds}


def add_options(parser: argparse.ArgumentParser, kind: type, leave: Sequence[str] = ()) -> None:
    """Adds an option for each field of a dataclass of numbers."""
    for name, hint in get_type_hints(kind).items():
        if name in leave:
            continue
        option = f"--{name.replace('_', '-')}"
        if hint is bool:
            parser.add_argument(option, action="store_true")
        else:
            number = int if int in (hint, *get_args(hint)) else float
            parser.add_argument(option, type=number, help="an assumption")


def given(kind: type, chosen: argparse.Namespace) -> dict[str, Any]:
    """The fields that the command line states."""
    stated = {each.name: getattr(chosen, each.name, None) for each in fields(kind)}
    return {
        name: value for name, value in stated.items() if value is not None and value is not False
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", action="store_true", help="measure the parts on this machine")
    parser.add_argument("--check", action="store_true", help="predict small builds, and run them")
    parser.add_argument("--folder", default="", help="your images, for --measure")
    parser.add_argument("--parts", type=Path, default=KEPT, help="the file of the parts")
    parser.add_argument("--images", type=lambda text: int(float(text)), nargs="+", default=IMAGES)
    parser.add_argument("--gpus", type=int, nargs="+", default=GPUS)
    add_options(parser, Case, leave=("images", "gpus"))
    add_options(parser, Prices)
    chosen = parser.parse_args(arguments)
    machine = f"{os.cpu_count()} cores, {platform.machine()}"
    if chosen.measure:
        from benchmarks.scale.measuring import measure_parts

        parts = Parts.of(measure_parts(chosen.folder))
        measure.keep(chosen.parts, {"machine": machine, "parts": asdict(parts)})
        return measure.emit(asdict(parts), f"measured on {machine}: {chosen.parts}")
    try:
        stated, parts = given(Case, chosen), kept_parts(chosen.parts)
        if chosen.check:
            from benchmarks.scale.checking import check

            rows = check(parts)
            result = {"machine": machine, "checks": rows, "errors": largest_errors(rows)}
            return measure.emit(result, told(rows))
        cases = [
            Case(**stated | {"images": images, "gpus": gpus})
            for images in chosen.images
            for gpus in chosen.gpus
        ]
        prices = replace(Prices(), **given(Prices, chosen))
        found = [predict(parts, case, prices) for case in cases]
    except (ValueError, OSError) as error:
        parser.error(str(error))
    table = markdown(HEADINGS, [row_of(one) for one in found])
    result = {
        "parts": asdict(parts),
        "prices": asdict(prices),
        "predictions": [as_json(one) for one in found],
    }
    measure.emit(result, f"{assumptions(cases[0], prices)}\n\n{table}")


def error_of(row: dict[str, Any]) -> float | None:
    """By how much a prediction is too large, as a share of what was measured; None of nothing."""
    return row["predicted"] / row["measured"] - 1 if row["measured"] else None


KINDS = {
    "requests": lambda what: ": " in what,
    "bytes": lambda what: "bytes" in what,
    "CPU time": lambda what: what == "seconds of CPU",
    "seconds of whole builds": lambda what: what == "seconds",
    "shards and files": lambda what: True,
}
"""What is predicted, by the name of a row."""


def largest_errors(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The error of each kind that is farthest from zero."""
    found: dict[str, float] = {}
    for row in rows:
        kind = next(kind for kind, holds in KINDS.items() if holds(row["what"]))
        if (error := error_of(row)) is not None:
            found[kind] = max(found.get(kind, 0.0), error, key=abs)
    return found


def told(rows: Sequence[dict[str, Any]]) -> str:
    """What was predicted and measured, as a table, and how far off that is."""
    cells = [
        [
            row["run"],
            row["what"],
            amount(row["predicted"]),
            amount(row["measured"]),
            "" if (error := error_of(row)) is None else f"{error:+.1%}",
        ]
        for row in rows
    ]
    table = markdown(("run", "what", "predicted", "measured", "error"), cells)
    errors = ", ".join(f"{kind} {error:+.1%}" for kind, error in largest_errors(rows).items())
    return f"{table}\n\nLargest errors: {errors}"


if __name__ == "__main__":
    main()
