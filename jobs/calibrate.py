"""Measure the ranges of an extractor's neurons over images."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.shell import JsonOption, guarded, print_json, run_alone


@guarded
def calibrate(
    sources: Annotated[list[str], typer.Argument(help="Folders, globs, lists or urls of images.")],
    extractor: Annotated[str, typer.Option(help="The network.")] = "efficientnet_lite0",
    weights: Annotated[str | None, typer.Option(help="Url of other weights for it.")] = None,
    out: Annotated[str, typer.Option(help="Where the ranges go.")] = "ranges.parquet",
    as_json: JsonOption = False,
) -> None:
    """Measure each neuron's minimum and maximum, widen them by 1.2 about the centre, write them."""
    from pipeline import storage
    from pipeline.progress import Lines
    from pipeline.ranges import calibrate as measure

    data, digest, images, failed = measure(sources, extractor, weights, Lines())
    storage.replace(storage.canonical(out), data)
    if as_json:
        print_json({"digest": digest, "images": images, "failed": failed, "out": out})
    else:
        print(f"ranges {digest} of {images:,} images ({failed:,} could not be read) in {out}")


if __name__ == "__main__":
    run_alone(calibrate)
