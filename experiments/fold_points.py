"""How far estimates move if folds are counted at few points of each neuron, and not at every bin.

    python -m experiments.fold_points CATALOGUE [--steps 8,16,32]

Compares all pairs of a catalogue as `vdna compare` does, and with points at every bin, which takes
longer. Says, for the mean over all neurons and for single layers, how far each
estimate moves at most, in bins and in standard errors, and in the median. With `--steps` it also
tries the same step in all layers.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.catalogue import Catalogue
from pipeline.comparing import Effort, Matrix, compare, comparison_job
from pipeline.comparing.fold_statistics import METHOD

COLUMNS = ("emd_corrected", "low", "high", "se", "p")


def compared(catalogue: Catalogue, step: int | None) -> Matrix:
    """The matrix with points so many bins apart in all layers; None for the product's own."""
    own = comparison_job.Job.step
    if step is not None:
        comparison_job.Job.step = lambda *_: step  # type: ignore[method-assign]  # in its place
        vars(comparison_job)["METHOD"] = f"every {step} bins"  # else a kept matrix is taken
    try:
        return compare(catalogue, effort=Effort(keep=False))
    finally:
        comparison_job.Job.step = own  # type: ignore[method-assign]  # put back
        vars(comparison_job)["METHOD"] = METHOD


def moved(matrix: Matrix, exact: Matrix) -> None:
    pairs = np.triu_indices(len(exact.names), 1)

    def of(which: Matrix, column: str) -> NDArray[Any]:
        return which.stacked(column)[:, *pairs]  # type: ignore[arg-type]  # any column

    se = of(exact, "se")
    for column in COLUMNS:
        apart = np.abs(of(matrix, column) - of(exact, column))
        share = apart / se
        for name, planes in (("all neurons", slice(-1, None)), ("layers", slice(0, -1))):
            print(
                f"{column:14} {name:12} at most {apart[planes].max():.4f}, "
                f"{share[planes].max():.3f} of se; median {np.median(share[planes]):.4f} of se"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("catalogue", help="a catalogue, such as vdna-demo/catalogue")
    parser.add_argument("--steps", default="", help="bins between points to try in all layers")
    arguments = parser.parse_args()
    catalogue = Catalogue(arguments.catalogue)
    exact = compared(catalogue, 1)
    for step in (None, *(int(word) for word in arguments.steps.split(",") if word)):
        print("as the product does" if step is None else f"every {step} bins in all layers")
        moved(compared(catalogue, step), exact)


if __name__ == "__main__":
    main()
