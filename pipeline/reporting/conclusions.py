"""Says in sentences what a matrix or an explanation shows.

>>> print(summary_sentence(matrix))                          # doctest: +SKIP
54 of 55 pairs differ at a false discovery rate of 5%; 1 is not told apart.
"""

from __future__ import annotations

from collections.abc import Callable
from math import copysign

import numpy as np
from numpy.typing import NDArray

from pipeline.comparing import (
    ALL,
    FALSE_DISCOVERY_RATE,
    LEAST_FOLDS,
    Matrix,
    Measure,
    Neighbours,
    is_wide,
    neighbours,
)
from pipeline.dna import UNIFORM
from pipeline.explaining import Explanation
from pipeline.wording import count_of, some_of

DIFFERENT, ALIKE, UNTESTED = 1, 0, -1
"""Verdicts on a pair. Alike means not told apart, which is no proof that they are the same."""

ALIKE_MARK, UNTESTED_MARK = "~", "?"

ALIKE_TEXT = f"not told apart at a false discovery rate of {FALSE_DISCOVERY_RATE:.0%}"

UNDEFINED_WHY = (
    "one of the datasets has no histograms, or a neuron has no finite activation in one of them"
)

_TOO_FEW_FOLDS = (
    f"a test needs {LEAST_FOLDS} folds of each dataset, so at least {LEAST_FOLDS} images, or "
    f"{LEAST_FOLDS} groups of them, with a finite activation of every neuron in each fold. "
    "Imported DNAs have no folds"
)

_UNDEFINED = f"no distance is defined, because {UNDEFINED_WHY}"

MOST_DECIMALS = 4
"""The most decimals that a distance in bins is printed with. Rounding alone moves a distance by
0.0002 bins between kinds of devices."""

WHY_PLAIN = "too few images, or imported"

FROM_ZERO_TEXT = (
    "An interval from 0 and a difference can both be true: the test asks whether there is any "
    "difference, and the interval how large it is, which needs more images"
)
"""Why an interval may begin at 0 beside what differs."""

SIGNED_LENS_TEXT = (
    "Some weights are below 0: what neurons add cancels, so that a layer's number may be negative, "
    "or not defined where its weights sum to no more than 0"
)

WEIGHTLESS = "The lens gives this layer no weight in sum: through it there are no distances."


def verdicts(
    matrix: Matrix, layer: str = ALL, rate: float = FALSE_DISCOVERY_RATE
) -> NDArray[np.int8]:
    """Decides for each pair whether it differs.

    Args:
        matrix: The matrix.
        layer: The layer that is looked at, or `ALL`.
        rate: The false discovery rate that is accepted.

    Returns:
        (D, D): `DIFFERENT` where q < rate, `ALIKE` where q is known and not below it, `UNTESTED`
        where q is unknown, and on the diagonal.
    """
    q = matrix.of(layer, "q")
    found = np.where(np.isnan(q), UNTESTED, np.where(q < rate, DIFFERENT, ALIKE)).astype(np.int8)
    np.fill_diagonal(found, UNTESTED)
    return found


def any_corrected(matrix: Matrix, layer: str = ALL) -> bool:
    """Tells whether `Matrix.corrected` corrects any distance of the layer."""
    return bool(matrix.is_corrected(layer).any())


def correction(matrix: Matrix, layer: str = ALL) -> str:
    """Says whether distances are corrected, and names the datasets whose distances are not."""
    if not any_corrected(matrix, layer):
        return "not corrected for the sizes of the samples"
    plain = uncorrected(matrix, layer)
    but = f", but for {plain} ({WHY_PLAIN})" if plain else ""
    return f"corrected for the sizes of the samples{but}"


def plain_note(matrix: Matrix, layer: str = ALL) -> str:
    """Returns a note for a page on which some distances are not corrected, or an empty text."""
    plain = uncorrected(matrix, layer)
    if not plain:
        return ""
    return (
        f"Distances of {plain} are not corrected for the size of the sample, and large for that "
        f"({WHY_PLAIN})."
    )


def wide_note(matrix: Matrix, layer: str = ALL) -> str:
    """Returns a note on how many pairs have a wide interval, or an empty text if none has.

    An interval that begins at 0 is an upper bound anyway, and is not counted.
    """
    low, high, se = (matrix.of(layer, column) for column in ("low", "high", "se"))
    pairs = np.triu_indices(len(low), 1)
    known = np.isfinite(low[pairs])
    wide = (is_wide(low, high, se) & (low > 0))[pairs]
    if not wide.any():
        return ""
    count = int(wide.sum())
    return (
        f"{count:,} of {count_of(int(known.sum()), 'interval')} {'is' if count == 1 else 'are'} "
        "wide, because it is not clear whether a few neurons differ much or many differ a little. "
        "A wide interval is a bound: it holds the true distance more often than 95% of the time."
    )


def from_zero_note(matrix: Matrix, layer: str = ALL) -> str:
    """Says how many pairs differ and have an interval from 0, or returns an empty text."""
    low, verdict = matrix.of(layer, "low"), verdicts(matrix, layer)
    count = int(np.triu((verdict == DIFFERENT) & (low <= 0), 1).sum())
    if not count:
        return ""
    which = "1 pair that differs has" if count == 1 else f"{count:,} pairs that differ have"
    return f"{which} an interval that begins at 0. {FROM_ZERO_TEXT}."


def uncorrected(matrix: Matrix, layer: str = ALL) -> str:
    """Names the datasets whose distances are plain while those of others are corrected.

    Returns:
        The names, of datasets with one fold or none. The text is empty if there are none, or if no
        distance is corrected.
    """
    corrected = matrix.is_corrected(layer)
    lacking = np.isfinite(matrix.of(layer)) & ~corrected & ~np.eye(len(corrected), dtype=bool)
    never = np.logical_not(corrected.any(axis=1))
    causes = never[:, None] | ~never  # not who is compared to one that never is
    whose = np.any(lacking & causes, axis=1)
    names = [name for name, its in zip(matrix.names, whose, strict=True) if its]
    return some_of(names) if names and not never.all() else ""


def no_test(matrix: Matrix, layer: str = ALL) -> str:
    """Says why no pair of the matrix is tested in a layer."""
    if not matrix.estimates:
        if through(matrix):
            return (
                "there are no error bars. Either they were left out of the comparison, or the lens "
                "has negative weights"
            )
        return "there are no error bars, as they were left out of the comparison"
    apart = ~np.eye(len(matrix.names), dtype=bool)
    defined = np.isfinite(matrix.of(layer)) & apart
    return _TOO_FEW_FOLDS if defined.any() else _UNDEFINED


def through(matrix: Matrix | Neighbours) -> str:
    """Names the lens of what was compared. The text is empty if all neurons count alike."""
    return f"through lens {matrix.lens}" if matrix.lens_digest or matrix.lens != UNIFORM else ""


def seen(matrix: Matrix | Neighbours, layer: str = ALL) -> str:
    """Says what the distances are of: a layer, all neurons, or what a lens weighs."""
    if not through(matrix):
        return "all neurons" if layer == ALL else layer
    return through(matrix) if layer == ALL else f"{layer} {through(matrix)}"


def format_number(value: float, distance: Measure = "emd") -> str:
    """Formats a distance: an EMD as `numbers_alike` does, a Fréchet distance with three digits."""
    return numbers_alike(value)[0] if distance == "emd" else f"{value:.3g}"


def with_interval(value: float, low: float, high: float) -> str:
    """Formats a distance in bins with its 95% interval.

    >>> with_interval(0, 0, 0.0374), with_interval(6.73, 0.0004, 9)
    ('0.00 [0.00, 0.04]', '6.7300 [0.0004, 9.0000]')

    Args:
        value: The distance.
        low: The lower end of its interval.
        high: The upper end.

    Returns:
        The text.
    """
    distance, *ends = numbers_alike(value, low, high)
    return f"{distance} [{', '.join(ends)}]"


def numbers_alike(value: float, *ends: float) -> tuple[str, ...]:
    """Formats a distance in bins and the ends of its interval with the same number of decimals.

    Args:
        value: The distance.
        ends: Numbers that stand beside it.

    Returns:
        A text for each. No number but zero is written as zero: one that is too small for
        `MOST_DECIMALS` is written as the least that these can say.
    """
    decimals = decimals_of(value, *ends)
    least = 10**-decimals
    given = (x if x == 0 else copysign(max(abs(x), least), x) for x in (value, *ends))
    return tuple(f"{x:.{decimals}f}" for x in given)


def decimals_of(value: float, *ends: float) -> int:
    """Returns how many decimals a distance in bins is printed with, and numbers beside it.

    Args:
        value: The distance. It has one or two decimals, unless a number needs more.
        ends: The numbers beside it.

    Returns:
        The fewest decimals that show a digit of every number but zero; `MOST_DECIMALS` at most.
    """
    decimals = 1 if abs(value) >= 1 or value == 0 else 2
    while decimals < MOST_DECIMALS and any(0 < abs(x) < 10**-decimals for x in (value, *ends)):
        decimals += 1
    return decimals


def sentences_heading(matrix: Matrix, layer: str = ALL, near: str | None = None) -> str:
    """Returns the heading of `nearest_sentences`, or of `neighbour_lines` if `near` is given."""
    what = "Distance" if len(matrix.names) == 2 else "Nearest and farthest"
    what = f"From {near}, the nearest first" if near else what
    barred = " [95% interval]" if any_corrected(matrix, layer) else ""
    return f"{what}, in bins, {correction(matrix, layer)}{barred}:"


def nearest_sentences(matrix: Matrix, layer: str = ALL) -> list[str]:
    """Says for each dataset which one is nearest, which is farthest, and which look the same.

    Distances are corrected, with their 95% interval, where that is known. What is not told apart is
    named first, and the nearest and the farthest are those of the rest. If there is no rest, the
    nearest of all is named. Two datasets have one distance, and one line.

    Args:
        matrix: The matrix.
        layer: The layer that is looked at, or `ALL`.

    Returns:
        One line per dataset.
    """
    values, verdict = matrix.corrected(layer), verdicts(matrix, layer)
    q, distance = matrix.of(layer, "q"), distances_told(matrix, layer)
    width = max(len(name) for name in matrix.names)

    def told(i: int, j: int) -> str:
        return f"{matrix.names[j]} {distance(i, j)}"

    lines = []
    if len(matrix.names) == 2:
        if not neighbours(values, 0):
            return [f"{' and '.join(matrix.names)} are at no distance that is defined"]
        alike_too = f"; not told apart (q {q[0, 1]:.2f})" if verdict[0, 1] == ALIKE else ""
        return [f"{matrix.names[0]} to {told(0, 1)}{alike_too}"]
    for i, name in enumerate(matrix.names):
        others = neighbours(values, i)
        if not others:
            lines.append(f"{name:{width}}  at no distance that is defined")
            continue
        alike = [j for j in others if verdict[i, j] == ALIKE]
        named = some_of([f"{matrix.names[j]} (q {q[i, j]:.2f})" for j in alike])
        apart = [j for j in others if verdict[i, j] != ALIKE]
        if not apart:
            first = f"{told(i, others[0])}, q {q[i, others[0]]:.2f}"
            lines.append(f"{name:{width}}  not told apart from any other; the nearest is {first}")
            continue
        near, far = told(i, apart[0]), told(i, apart[-1])
        both = f"nearest {near}, farthest {far}"
        if near == far:
            both = f"the other one is {far}" if alike else f"nearest and farthest {far}"
        elif alike:
            both = f"of the others {both}"
        before = f"not told apart from {named}; " if alike else ""
        lines.append(f"{name:{width}}  {before}{both}")
    return lines


def neighbour_lines(matrix: Matrix, name: str, layer: str = ALL) -> list[str]:
    """Lists all other datasets, the nearest first, with q.

    Args:
        matrix: The matrix.
        name: The dataset whose neighbours are listed.
        layer: The layer that is looked at, or `ALL`.

    Returns:
        One line per neighbour. Those that are not told apart are marked.
    """
    i, values, verdict = matrix.names.index(name), matrix.corrected(layer), verdicts(matrix, layer)
    q, told = matrix.of(layer, "q")[i], distances_told(matrix, layer)
    others = neighbours(values, i)
    wide = max((len(matrix.names[j]) for j in others), default=0)
    lines = [
        f"{ALIKE_MARK if verdict[i, j] == ALIKE else ' '} {matrix.names[j]:{wide}}  {told(i, j)}"
        + (f"  q {q[j]:.2g}" if np.isfinite(q[j]) else "")
        for j in others
    ]
    if lost := len(matrix.names) - 1 - len(others):
        lines.append(f"  {lost:,} at no distance that is defined")
    if ALIKE in verdict[i]:
        lines.append(f"{ALIKE_MARK} {ALIKE_TEXT}")
    if ((verdict[i] == DIFFERENT) & (matrix.of(layer, "low")[i] <= 0)).any():
        lines.append(FROM_ZERO_TEXT)
    return lines


def distances_told(matrix: Matrix, layer: str) -> Callable[[int, int], str]:
    """Returns a function that formats the distance of two datasets, with its 95% interval if known.

    Args:
        matrix: The matrix.
        layer: The layer that is looked at, or `ALL`.

    Returns:
        A function of the two datasets' numbers.
    """
    values, corrected = matrix.corrected(layer), matrix.is_corrected(layer)
    low, high = (matrix.of(layer, column) for column in ("low", "high"))
    known = np.isfinite(low) & np.isfinite(high) & corrected

    def told(i: int, j: int) -> str:
        value = values[i, j]
        if not known[i, j]:
            plain = corrected.any() and not corrected[i, j]
            return format_number(value) + (" (not corrected)" if plain else "")
        return with_interval(value, low[i, j], high[i, j])

    return told


def matrix_sentences(matrix: Matrix, layer: str = ALL) -> list[str]:
    """Returns the heading, the nearest and farthest of each dataset, and how many pairs differ.

    Notes on intervals come last: on those from 0, and on wide ones, if there are some.
    """
    notes = from_zero_note(matrix, layer), wide_note(matrix, layer)
    return [
        sentences_heading(matrix, layer),
        *nearest_sentences(matrix, layer),
        summary_sentence(matrix, layer),
        *filter(None, notes),
    ]


def summary_sentence(matrix: Matrix, layer: str = ALL, rate: float = FALSE_DISCOVERY_RATE) -> str:
    """Says how many pairs differ, or that none could be tested.

    Args:
        matrix: The matrix.
        layer: The layer that is looked at, or `ALL`.
        rate: The false discovery rate that is accepted.

    Returns:
        One sentence.
    """
    upper = verdicts(matrix, layer, rate)[np.triu_indices(len(matrix.names), 1)]
    pairs = count_of(len(upper), "pair")
    untested = int((upper == UNTESTED).sum())
    if untested == len(upper):
        none = "The pair is not" if len(upper) == 1 else f"None of {pairs} is"
        return f"{none} tested: {no_test(matrix, layer)}."
    alike = int((upper == ALIKE).sum())
    different = int((upper == DIFFERENT).sum())
    differ = "differs" if 1 in (different, len(upper)) else "differ"
    line = f"{different:,} of {pairs} {differ} at a false discovery rate of "
    line += f"{rate:.0%}; {alike:,} {'is' if alike == 1 else 'are'} not told apart"
    if untested:
        line += f"; {untested:,} {'is' if untested == 1 else 'are'} not tested"
    return f"{line}."


def explanation_sentence(found: Explanation) -> str:
    """Says how many neurons differ, and how many make up half of the distance."""
    neurons = found.neurons.num_rows
    if not neurons:
        return "The lens gives these layers no weight: through it there is no distance."
    of = count_of(neurons, "neuron")
    make = "makes" if 1 in (found.half, neurons) else "make"
    distance = "all that is added and taken away" if found.signed else "the distance"
    most = f"{found.half:,} of {of} {make} up half of {distance}"
    if found.neurons["q"].null_count == neurons:
        why = _UNDEFINED if found.neurons["emd"].null_count == neurons else _TOO_FEW_FOLDS
        return f"No neuron is tested: {why}. {most}."
    differ = "differs" if 1 in (found.differing, neurons) else "differ"
    return (
        f"{found.differing:,} of {of} {differ} at a false discovery rate of "
        f"{FALSE_DISCOVERY_RATE:.0%}; {most}."
    )
