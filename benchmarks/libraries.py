"""Whether two installations of the libraries count the same, in bf16 and in fp32.

    .venv/bin/python -m benchmarks.libraries count FOLDER here.parquet --precision bf16
    other/bin/python -m benchmarks.libraries count FOLDER there.parquet --precision bf16
    .venv/bin/python -m benchmarks.libraries compare here.parquet there.parquet

`count` makes the DNA of a folder's images by the libraries of the Python that runs it, and keeps
it. `compare` says of each file after the first what is different from the first one: the numerics;
the share of activations that fall into another bin; and the mean EMD, in bins. A spec of bf16 may
leave a library out only if another version of it moves no count.

oneDNN computes by the instructions that the CPU has. `ONEDNN_MAX_CPU_ISA=AVX512_CORE` before
`count` has it compute as on an older CPU.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure


def count(chosen: argparse.Namespace) -> None:
    """Makes a DNA and keeps it, as the partial of one shard."""
    from pipeline import make_dna
    from pipeline.dna import Partial

    dna = make_dna(
        chosen.folder,
        extractor=chosen.extractor,
        weights=chosen.weights,
        ranges=chosen.ranges,
        precision=chosen.precision,
        backend="torch",
        limit=chosen.images,
        threads=1,
    )
    chosen.out.write_bytes(Partial(dna, ("all",), ()).encode())


def compare(files: list[Path]) -> list[dict[str, Any]]:
    """What is different of each file from the first."""
    from pipeline.dna import DNA, Partial
    from pipeline.spec import flat_numerics

    def loaded(file: Path) -> DNA:
        return Partial.decode(file.read_bytes(), str(file)).dna

    def whole(dna: DNA) -> Any:
        ends = dna.underflow[:, None], dna.counts, dna.overflow[:, None]
        return np.concatenate(ends, axis=1)

    first, *others = (loaded(file) for file in files)
    results = []
    for file, dna in zip(files[1:], others, strict=True):
        mine, theirs = (flat_numerics(each.numerics[0][0].to_json()) for each in (first, dna))
        a, b = whole(first), whole(dna)
        moved = np.abs(np.cumsum(a - b, axis=1))
        results.append(
            {
                "file": str(file),
                "precision": dna.spec.precision,
                "images": [first.images, dna.images],
                "differing": {
                    name: [mine.get(name), theirs.get(name)]
                    for name in sorted(mine.keys() | theirs.keys())
                    if mine.get(name) != theirs.get(name)
                },
                "equal": bool((a == b).all()),
                "another_bin": float(np.abs(a - b).sum() / 2 / a.sum()),
                "emd_bins": float(np.mean(moved.sum(axis=1) / a.sum(axis=1))),
            }
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description="whether other library versions count the same")
    actions = parser.add_subparsers(dest="action", required=True)
    counting = actions.add_parser("count", help="make a DNA by the libraries of this Python")
    counting.add_argument("folder")
    counting.add_argument("out", type=Path)
    counting.add_argument("--precision", default="bf16", choices=("bf16", "fp32"))
    counting.add_argument("--extractor", default="efficientnet_lite0")
    counting.add_argument("--weights", help="its weights, if not its own")
    counting.add_argument("--ranges", help="its ranges, if none come with it")
    counting.add_argument("--images", type=int, default=None, help="of the folder (default: all)")
    comparing = actions.add_parser("compare", help="compare such DNAs with the first")
    comparing.add_argument("files", type=Path, nargs="+")
    chosen = parser.parse_args()
    if chosen.action == "count":
        count(chosen)
        return
    results = compare(chosen.files)
    lines = ["| against the first | precision | differs | in another bin | EMD, bins |"]
    lines.append("|---|---|---|---|---|")
    for row in results:
        differing = itertools.starmap(
            lambda name, pair: f"{name} {pair[0]}, {pair[1]}", row["differing"].items()
        )
        lines.append(
            f"| {row['file']} | {row['precision']} | {'; '.join(differing) or 'nothing'} | "
            f"{row['another_bin']:.2e} | {row['emd_bins']:.2e} |"
        )
    measure.emit(results, "\n".join(lines))


if __name__ == "__main__":
    main()
