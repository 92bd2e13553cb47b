"""Says first what a matrix shows, in sentences that its intervals and tests support.

>>> print(headline(matrix))                                  # doctest: +SKIP
retina is the outlier: 27.7 bins or more from all others, which are at most 19.1 bins from each
other. original and other-crops cannot be told apart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.comparing import (
    ALL,
    FALSE_DISCOVERY_RATE,
    Matrix,
    lone_datasets,
    widest_split,
)
from pipeline.dna import UNIFORM, Floats
from pipeline.reporting.conclusions import (
    ALIKE,
    DIFFERENT,
    UNTESTED,
    decimals_of,
    format_number,
    numbers_alike,
    verdicts,
)
from pipeline.wording import some_of

ALIKE_SENTENCES = 3
"""The most sentences about what cannot be told apart."""

NAMED_ALONE = 8
"""If more datasets stand alone, only some are named."""

_LOWER_END = re.compile(r"bins or more\b")

_UPPER_END = re.compile(r"\bat most [\d.]+ bins")


def headline(matrix: Matrix, layer: str = ALL, rate: float = FALSE_DISCOVERY_RATE) -> str:
    """Says in a few sentences what stands out in a matrix.

    Outliers and groups are named if the 95% intervals within a group all lie below those between
    groups; otherwise datasets that are far from all others, if each other one has a near one. A
    dataset is called nearest to another if the upper end of their interval lies below the lower
    ends of all others that are told apart from both. Two datasets cannot be told apart if their
    test says so. The test of all neurons together may miss what a few layers show, so pairs that
    single layers tell apart are named then. Each interval is of one pair, and holds by itself.

    Args:
        matrix: The matrix.
        layer: The layer that is looked at, or `ALL`.
        rate: The false discovery rate that is accepted.

    Returns:
        The sentences. The text is empty if no distance is defined.
    """
    values, verdict = matrix.corrected(layer), verdicts(matrix, layer, rate)
    upper = np.triu_indices(len(matrix.names), 1)
    if not np.isfinite(values[upper]).any():
        return ""
    but = _by_layers(matrix, verdict, rate) if layer == ALL else ""
    if len(matrix.names) == 2:
        return _of_two(matrix, layer, verdict) + but
    if (verdict[upper] == UNTESTED).all():
        return _untested(matrix.names, values)
    low, high = matrix.of(layer, "low"), matrix.of(layer, "high")
    if (verdict[upper] == ALIKE).all():
        most = f" They are at most {_most(float(high[upper].max()))} bins apart."
        none = f"None of the {len(matrix.names):,} datasets can be told from another."
        return none + (most if np.isfinite(high[upper]).all() else "") + but
    sentences = [
        *_groups(matrix.names, values, low, high),
        *_alike(matrix.names, verdict),
        *_nearest(matrix.names, values, low, high, verdict),
    ]
    return " ".join(sentences or _extremes(matrix.names, values, verdict)) + but


def bounds_note(said: str) -> str:
    """Says why a headline names one end of a distance only.

    Args:
        said: What `headline` returned.

    Returns:
        A sentence; an empty text if the headline names no such end.
    """
    upper = '"at most"' if _UPPER_END.search(said) else ""
    if _LOWER_END.search(said):
        more = f", and {upper} the upper end" if upper else ""
        return f'Here "or more" is the lower end of a 95% interval{more}.'
    return f"Here {upper} is the upper end of a 95% interval." if upper else ""


def _by_layers(matrix: Matrix, verdict: NDArray[np.int8], rate: float) -> str:
    """Says which pairs are not told apart by all neurons together, but by single layers.

    There is one test for each layer, so each must be as much clearer (Bonferroni's correction).

    Returns:
        A sentence that follows others, or an empty text.
    """
    layers = [plane for plane in matrix.planes if plane != ALL]
    if not layers or not (verdict == ALIKE).any():
        return ""
    clear = [verdicts(matrix, layer, rate / len(layers)) == DIFFERENT for layer in layers]
    pairs = np.argwhere(np.triu(np.any(clear, axis=0) & (verdict == ALIKE), 1))
    if not len(pairs):
        return ""
    named = [f"{matrix.names[i]} and {matrix.names[j]}" for i, j in pairs.tolist()]
    which = f"{len(named):,} pairs" if len(named) > 1 else named[0]
    return f" Single layers tell {which} apart, which all neurons together do not."


def _of_two(matrix: Matrix, layer: str, verdict: NDArray[np.int8]) -> str:
    a, b = matrix.names
    value = float(matrix.corrected(layer)[0, 1])
    low, high = (float(matrix.of(layer, column)[0, 1]) for column in ("low", "high"))
    known = np.isfinite(low) and np.isfinite(high)
    if verdict[0, 1] == UNTESTED:
        return (
            f"{a} and {b} are {format_number(value)} bins apart. Whether they differ is not tested."
        )
    if verdict[0, 1] == ALIKE:
        most = f": they are at most {_most(high)} bins apart" if known else ""
        same = ""
        if matrix.of(layer, "emd")[0, 1] == 0:
            which = "" if matrix.lens == UNIFORM else " that the lens weighs"
            same = f"Each neuron{which} has the same distribution in {a} and {b}. "
        return f"{same}{a} and {b} cannot be told apart{most}."
    distance, interval = format_number(value), ""
    if known:
        distance, least, most = numbers_alike(value, low, high)
        interval = f", with a 95% interval of {least} to {most}"
    return f"{a} and {b} differ: they are {distance} bins apart{interval}."


def _untested(names: Sequence[str], values: Floats) -> str:
    return "No pair is tested, so it is not known which distances are more than chance. " + _ends(
        names, values, np.isfinite(values) & ~np.eye(len(values), dtype=bool), ""
    )


def _extremes(names: Sequence[str], values: Floats, verdict: NDArray[np.int8]) -> list[str]:
    """Says what the smallest and largest distances are, if nothing stands out."""
    apart = verdict == DIFFERENT
    if not apart.any():
        return []
    return [
        "No dataset and no group stands out from the others beyond the error bars. "
        + _ends(names, values, apart, " of those that differ")
    ]


def _ends(names: Sequence[str], values: Floats, pairs: NDArray[np.bool_], which: str) -> str:
    i, j = np.triu_indices(len(values), 1)
    among = np.where(pairs[i, j] & np.isfinite(values[i, j]), values[i, j], np.nan)
    near, far = int(np.nanargmin(among)), int(np.nanargmax(among))

    def pair(at: int) -> str:
        return f"{names[i[at]]} and {names[j[at]]} ({format_number(float(among[at]))} bins)"

    if near == far:
        return f"The only distance{which} is that of {pair(near)}."
    return f"The smallest distance{which} is that of {pair(near)}, the largest {pair(far)}."


def _groups(names: Sequence[str], values: Floats, low: Floats, high: Floats) -> list[str]:
    split = widest_split(values, low, high)
    if not split.groups:
        return _alone(names, values, low, high)
    within, between = _most(split.within), _least(split.between)
    main, *others = split.groups
    named = [some_of([names[i] for i in group]) for group in split.groups]
    single = [names[group[0]] for group in others if len(group) == 1]
    rest = f"which are at most {within} bins from each other"
    if len(single) == len(others) == 1:
        return [f"{single[0]} is the outlier: {between} bins or more from all others, {rest}."]
    if len(single) == len(others) < len(main):
        return [
            f"{some_of(single)} are outliers: {between} bins or more from each other and from all "
            f"others, {rest}."
        ]
    return [
        f"There are {len(named)} groups, {between} bins or more apart, and at most {within} "
        f"bins within: {'; '.join(named)}."
    ]


def _alone(names: Sequence[str], values: Floats, low: Floats, high: Floats) -> list[str]:
    found = lone_datasets(values, low, high)
    if not found.groups:
        return []
    named = [names[i] for (i,) in found.groups]
    alone = some_of(named)
    if 1 < len(named) <= NAMED_ALONE:
        alone = f"{', '.join(named[:-1])} and {named[-1]}"
    stand = "stands alone:" if len(found.groups) == 1 else "stand alone: each is"
    return [
        f"{alone} {stand} {_least(found.between)} bins or more from every other dataset, while "
        f"each other one has another that is at most {_most(found.within)} bins away."
    ]


def _alike(names: Sequence[str], verdict: NDArray[np.int8]) -> list[str]:
    """Says which datasets cannot be told apart, those that are alike to most others first."""
    left = verdict == ALIKE
    sentences: list[str] = []
    while left.any() and len(sentences) < ALIKE_SENTENCES:
        first = int(left.sum(axis=1).argmax())
        others = np.flatnonzero(left[first]).tolist()
        everyone = sorted([first, *others])
        if left[np.ix_(everyone, everyone)].sum() == len(everyone) * len(others):
            text = some_of([names[i] for i in everyone])
            each = "apart" if len(others) == 1 else "from each other"
            sentences.append(f"{text} cannot be told {each}.")
            left[np.ix_(everyone, everyone)] = False
        else:
            text = some_of([names[i] for i in others])
            sentences.append(f"{names[first]} cannot be told from {text}.")
            left[first] = left[:, first] = False
    if not left.any():
        return sentences
    alike = verdict == ALIKE
    first = int(alike.sum(axis=1).argmax())
    return [
        f"{int(alike.sum()) // 2:,} pairs cannot be told apart, of which {names[first]} is in "
        f"{int(alike[first].sum()):,}."
    ]


def _nearest(
    names: Sequence[str], values: Floats, low: Floats, high: Floats, verdict: NDArray[np.int8]
) -> list[str]:
    """Names the dataset that most others are nearest to."""
    around: dict[int, list[int]] = {}
    for i in range(len(names)):
        for hub in _hubs(i, low, high, verdict):
            around.setdefault(hub, []).append(i)
    if not around:
        return []
    hub = min(around, key=lambda h: (-len(around[h]), values[h, around[h]].sum(), h))
    near = sorted(around[hub], key=lambda i: (values[i, hub], i))
    if len(near) == 1:  # then as the nearest pair, if there is one
        hub, near = _nearest_pair(around, values)
    ends = [format_number(float(values[i, hub])) for i in (near[0], near[-1])]
    bins = f"{ends[0]} to {ends[1]}" if ends[0] != ends[1] else ends[0]
    alike = [names[i] for i in np.flatnonzero(verdict[hub] == ALIKE).tolist()]
    away = f"{bins} bins" + (f" from {names[hub]}" if alike else "")
    are = "is nearest" if len(near) == 1 else "are each nearest"
    return [
        f"{some_of([names[i] for i in near])} {are} to {some_of([names[hub], *alike])} ({away})."
    ]


def _nearest_pair(around: dict[int, list[int]], values: Floats) -> tuple[int, list[int]]:
    hub, (one,) = min(around.items(), key=lambda item: (values[item[0], item[1][0]], item[0]))
    return hub, [one]


def _hubs(i: int, low: Floats, high: Floats, verdict: NDArray[np.int8]) -> list[int]:
    """Finds the datasets that one is nearest to, beyond the error bars.

    Those that cannot be told from such a dataset are no rivals of it.

    Returns:
        Their numbers. There are none if a pair of the dataset has no interval or no test, or if the
        dataset cannot be told from another.
    """
    others = np.delete(np.arange(len(verdict)), i)
    known = np.isfinite(low[i, others]) & np.isfinite(high[i, others])
    if not known.all() or (verdict[i, others] != DIFFERENT).any():
        return []
    first = others[low[i, others].argmin()]
    found = []
    for hub in [first, *others[verdict[first, others] == ALIKE]]:
        rivals = others[(others != hub) & (verdict[hub, others] != ALIKE)]
        if len(rivals) and high[i, hub] < low[i, rivals].min():
            found.append(int(hub))
    return found


def _least(value: float) -> str:
    """Formats a lower bound: it is rounded down."""
    scale = 10 ** decimals_of(value)
    return format_number(np.floor(value * scale) / scale)


def _most(value: float) -> str:
    """Formats an upper bound: it is rounded up."""
    scale = 10 ** decimals_of(value)
    return format_number(np.ceil(value * scale) / scale)
