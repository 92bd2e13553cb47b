"""Derives the functions whose sums lie above or below the true distance on average.

    python -m experiments.bounds

The difference of two datasets at one point is t + z, in units of its standard error: t is the true
difference, and z is normal. A function of x = t + z is sought whose mean is at least |t| for every
t, or at most |t|, and that is |x| for large |x|. It is |x|, plus a constant, plus a sum of |x|
clipped at the knots. No function has the mean |t| for all t, so a linear program makes the mean of
what is missing as small as it can be. How far the function may be from |x| is limited, which limits
its noise. The errors of folds are estimates themselves: the limits hold for errors that have 10,
15, 30 and 1,000 degrees of freedom. Up to t = 2, 0.01 is kept in reserve for noise that is not
normal.

Prints the factors that `pipeline.comparing.intervals` holds, and what is missing at some t.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.stats import chi2

from benchmarks import measure
from pipeline.comparing.intervals import ABOVE, BELOW, KNOTS

Array = NDArray[Any]

SHIFTS = np.concatenate([np.arange(0, 5, 0.1), np.arange(5, 9.1, 0.5)])
FREEDOMS = (10, 15, 30, 1000)
RESERVE = 0.01 * np.clip(3 - SHIFTS, 0, 1) - 5e-4
SHOWN = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0)


@dataclass(frozen=True)
class Program:
    """`sign` is 1 for a function above and -1 for one below. `most` is how far it may be from |x|.
    What is missing is averaged over t from `first` to `last`.
    """

    sign: int
    most: float
    first: float
    last: float


PROGRAMS = (
    Program(1, 0.6, 0.5, 2.0),
    Program(1, 1.5, 0.0, 3.0),
    Program(1, 1.0, 0.0, 1.0),
    Program(-1, 1.0, 0.0, 3.0),
    Program(-1, 1.5, 0.0, 3.0),
)
"""One that is good where t is middling, one wherever t is, one where it is small; two below."""


def means(freedom: int) -> Array:
    """(shifts, knots + 2): means of |x| clipped at each knot and of |x|, and of the error."""
    z = np.linspace(-6, 6, 1201)
    weight = np.exp(-(z**2) / 2)
    weight /= weight.sum()
    error = np.sqrt(chi2.ppf((np.arange(80) + 0.5) / 80, freedom) / freedom)
    x = np.abs(SHIFTS[:, None] + z)
    clipped = [np.minimum(x[..., None], knot * error).mean(axis=-1) @ weight for knot in KNOTS]
    return np.column_stack([*clipped, x @ weight, np.full(len(SHIFTS), error.mean())])


def solved(program: Program) -> Array:
    """(knots,) factors of the clipped |x|; the constant follows from them."""
    knots = len(KNOTS)
    free = [*range(knots), knots + 1]
    tables = [means(freedom) for freedom in FREEDOMS]
    chosen = (program.first <= SHIFTS) & (program.last >= SHIFTS)
    aim = program.sign * tables[FREEDOMS.index(30)][chosen][:, free].mean(axis=0)
    limits, at_most = [], []
    for table in tables:
        limits.append(-program.sign * table[:, free])
        at_most.append(program.sign * (table[:, knots] - SHIFTS) - RESERVE)
    x = np.linspace(0, max(KNOTS), 81)
    from_plain = np.column_stack([np.minimum(x[:, None], KNOTS), np.ones(len(x))])
    limits += [from_plain, -from_plain]
    at_most += [np.full(len(x), program.most)] * 2
    found = linprog(
        aim,
        A_ub=np.vstack(limits),
        b_ub=np.concatenate(at_most),
        A_eq=np.array([[*KNOTS, 1.0]]),
        b_eq=[0],
        bounds=[(None, None)] * (knots + 1),
        method="highs",
    )
    if found.status:
        raise RuntimeError(f"no such function: {found.message}")
    return np.asarray(found.x[:knots])


def missing(factors: Array, sign: int) -> Array:
    """By how much the mean of a function is above or below |t|, for each of `SHOWN`."""
    table = means(30)
    constant = -factors @ np.array(KNOTS)
    mean = table @ np.array([*factors, 1.0, constant])
    return np.interp(SHOWN, SHIFTS, sign * (mean - SHIFTS))


def main() -> None:
    rows = []
    held = np.concatenate([ABOVE, BELOW])
    for program, known in zip(PROGRAMS, held, strict=True):
        factors = solved(program)
        rows.append(
            {
                "kind": "above" if program.sign > 0 else "below",
                "factors": factors.round(3).tolist(),
                "held": known.tolist(),
                "missing": dict(zip(SHOWN, missing(known, program.sign).round(3), strict=True)),
            }
        )
        print(rows[-1], file=sys.stderr)
    same = all(np.allclose(row["factors"], row["held"], atol=0.02) for row in rows)
    measure.emit({"functions": rows}, f"the factors are {'' if same else 'not '}those held")


if __name__ == "__main__":
    main()
