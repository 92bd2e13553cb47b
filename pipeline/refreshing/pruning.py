"""Finds the datasets of a catalogue that a file of datasets does not name any more.

>>> unlisted_datasets(catalogue.head(), config)                          # doctest: +SKIP
['city/dusk']
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.catalogue import Commit, dataset_of
from pipeline.refreshing.config import Config
from pipeline.wording import some_of


def unlisted_datasets(head: Commit, config: Config) -> list[str]:
    """Finds the datasets that a configuration names neither as a dataset nor in its gate.

    A dataset of which a part is named counts as named, and a part goes with its dataset.

    Args:
        head: The newest commit.
        config: The configuration.

    Returns:
        Their names, sorted.
    """
    named = {dataset.name for dataset in config.datasets}
    named |= {dataset_of(name) for bound in config.gate for name in bound.names}
    wholes = {v.part_of for name in named for v in head.datasets.get(name, {}).values()}
    return sorted(
        name
        for name, versions in head.datasets.items()
        if name not in named | wholes and not any(v.part_of for v in versions.values())
    )


def unlisted_note(
    config: Config, names: Sequence[str], commit: int | None, *, all_built: bool
) -> str:
    """Says which datasets a configuration does not name, and what became of them.

    Args:
        config: The configuration.
        names: The datasets.
        commit: Number of the commit that took them out; None if they stay.
        all_built: Whether all datasets that it names could be built.

    Returns:
        The sentence; empty if there are none.
    """
    if not names:
        return ""
    if commit is not None:
        return (
            f"taken out of the catalogue by commit {commit}, as {config.path} does not name them: "
            f"{some_of(names)}; `vdna rollback NAME --to {commit - 1}` brings one back"
        )
    why = "`vdna rm` takes them out, or `prune: true` in that file"
    if config.prune:
        why = "they stay, because "
        why += "of the error that is told" if all_built else "not all datasets could be built"
    return f"in the catalogue, and not in {config.path}: {some_of(names)}; {why}"
