"""The steps of a refresh: build what changed, compare all pairs, judge the gate.

    >>> done = refresh("datasets.yaml")                              # doctest: +SKIP
    >>> [str(verdict) for verdict in done.verdicts], done.error

One dataset that cannot be built does not keep the others from being built, compared and judged. A
matrix that cannot be computed keeps no bound from being judged by the distances that it needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from pipeline import storage
from pipeline.building import Result, build_datasets
from pipeline.catalogue import Catalogue, Commit, remove
from pipeline.comparing import Effort, Matrix, compare, with_movements
from pipeline.engine import Engine, InProcess
from pipeline.errors import DeliveryError, UsageError, VdnaError, joined_errors, known_error
from pipeline.events import Listener
from pipeline.notebook import Cells, data_frame, html_table, polars_frame
from pipeline.refreshing.config import Config, load_config
from pipeline.refreshing.gate import judge, require_kept, require_known
from pipeline.refreshing.night_outcome import dataset_row, sum_up
from pipeline.refreshing.pruning import unlisted_datasets, unlisted_note
from pipeline.refreshing.verdict import AnyVerdict
from pipeline.refreshing.webhook import not_told, send_outcome
from pipeline.spec import Resources
from pipeline.wording import count_of

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl


@dataclass(frozen=True)
class Refreshed:
    """What a refresh did.

    Attributes:
        catalogue: The catalogue.
        datasets: What became of each dataset that could be built, in the order of the file.
        matrices: One matrix for each spec with two datasets or more.
        verdicts: What the gate says of each bound.
        error: What went wrong, in one error (see `joined_errors`); None if all is well. Broken
            bounds are in it only if nothing else went wrong; `verdicts` have them in any case.
        other_error: What of that is neither of a dataset in `failed` nor of a bound, in one error;
            None if there is nothing else.
        failed: Why a dataset could not be built, by its name.
        unlisted: The datasets that were in the catalogue, and that the configuration does not name.
        pruned: Number of the commit that took them out; None if they stay.
        unlisted_note: A sentence that says so; empty if there are none.
        config: The path or url of the configuration.
        requests: How many requests storage was sent, by this process and by workers. Those of tasks
            that decode for workers are left out.
        seconds: How long it took.
        undelivered: Why the webhook could not be told; None if it was, or if there is none.
        commit: Number of the commit that matrices and verdicts are of; None if it is not known.
    """

    catalogue: Catalogue
    datasets: tuple[Result, ...]
    matrices: tuple[Matrix, ...]
    verdicts: tuple[AnyVerdict, ...]
    error: VdnaError | None = None
    other_error: VdnaError | None = None
    failed: Mapping[str, VdnaError] = field(default_factory=dict)
    unlisted: tuple[str, ...] = ()
    pruned: int | None = None
    unlisted_note: str = ""
    config: str = ""
    requests: int = 0
    seconds: float = 0.0
    undelivered: DeliveryError | None = None
    commit: int | None = None

    def __repr__(self) -> str:
        changed = sum(result.changed for result in self.datasets)
        error = self.error or self.undelivered
        wrong = f"; {type(error).__name__}: {error}" if error else ", all is well"
        built = f"{count_of(len(self.datasets), 'dataset')} built"
        return f"<Refreshed: {built}, {changed} changed{wrong}>"

    def _repr_html_(self) -> str:
        rows = [("dataset", repr(result).strip("<>")) for result in self.datasets]
        rows += [("gate", str(verdict)) for verdict in self.verdicts]
        rows += [("not listed", self.unlisted_note)] if self.unlisted else []
        rows += [("error", str(error)) for error in (self.error, self.undelivered) if error]
        return html_table(repr(self).strip("<>"), ("", "what was found"), rows)

    def to_pandas(self, table: Literal["datasets", "gate"] = "datasets") -> pd.DataFrame:
        """Makes a table of what was done.

        Args:
            table: Which table: the datasets, or what the gate says of each bound.

        Returns:
            A row for each dataset, or for each bound.
        """
        return data_frame(*self._cells(table))

    def to_polars(self, table: Literal["datasets", "gate"] = "datasets") -> pl.DataFrame:
        """Makes the table of `to_pandas` in Polars.

        Args:
            table: Which table: the datasets, or what the gate says of each bound.

        Returns:
            A row for each dataset, or for each bound.
        """
        return polars_frame(*self._cells(table))

    def _cells(self, table: Literal["datasets", "gate"]) -> Cells:
        if table == "gate":
            rows = [verdict.row for verdict in self.verdicts]
            columns = list(dict.fromkeys(name for row in rows for name in row))
            return columns, ([row.get(name) for name in columns] for row in rows)
        columns = ["dataset", "images", "failed", "changed", "dna", "spec"]
        return columns, (
            (
                of.name,
                of.version.images,
                of.version.failed,
                of.changed,
                of.version.dna,
                of.version.spec,
            )
            for of in self.datasets
        )

    @property
    def outcome(self) -> dict[str, Any]:
        """What was found, for other programs: plain values, of which JSON is made."""
        rows = [dataset_row(result) for result in self.datasets]
        cost = {"requests": self.requests, "seconds": self.seconds}
        return {
            "config": self.config,
            "catalogue": self.catalogue.root,
            "commit": self.commit,
            "error": str(self.error) if self.error else None,
            "other_error": str(self.other_error) if self.other_error else None,
            "gate": [verdict.row for verdict in self.verdicts],
            "summary": sum_up(rows, self.failed, self.unlisted, cost),
            "datasets": rows,
            "failed": [
                {"name": name, "error": type(error).__name__, "message": str(error)}
                for name, error in self.failed.items()
            ],
            "unlisted": list(self.unlisted),
            "pruned": self.pruned,
            "undelivered": str(self.undelivered) if self.undelivered else None,
        }

    def require_ok(self) -> None:
        """Raises the first error of the refresh, if there was one.

        Raises:
            VdnaError: What kept a dataset from being built or a bound from being judged; a
                `GateError` if bounds are broken, and a `DeliveryError` if nothing else went wrong,
                but the webhook could not be told.
        """
        for error in (self.error, self.undelivered):
            if error is not None:
                raise error


def refresh(
    config: Config | str,
    catalogue: Catalogue | None = None,
    engine: AbstractContextManager[Engine] | None = None,
    *,
    resources: Resources | None = None,
    effort: Effort | None = None,
    progress: Listener | None = None,
    relist: bool = False,
) -> Refreshed:
    """Brings every dataset of a configuration up to date, then the matrix, then the gate.

    At the end the webhook of the configuration is told what was found.

    Args:
        config: The configuration, or the path or url of its file.
        catalogue: The catalogue; None for the one that the configuration names.
        engine: Opens the engine that builds, which is closed before the matrix is computed. None
            builds in this process.
        resources: How fast to build.
        effort: How to compare.
        progress: Told what is done.
        relist: Whether to list the sources anew, whatever an interrupted build has left.

    Returns:
        What was done. An error of one dataset, of the engine or of the gate is in its `error` and
        not raised, so that the rest is not lost and is told: see `Refreshed.require_ok`.

    Raises:
        UsageError: If the configuration is wrong; nothing was built then.
    """
    if isinstance(config, str):
        config = load_config(config)
    place = catalogue or Catalogue(config.catalogue_url())
    requests = config.requests()
    problems: list[VdnaError] = []
    since = 0
    try:
        if config.webhook is not None:
            config.webhook.secret()  # without one nothing begins
        require_known(config.gate, place, requests)
        since = place.head().number if config.gate else 0
    except UsageError as error:
        raise UsageError(f"{config.path}: {error}") from error
    except Exception as error:  # the catalogue cannot be read, which is told as a build tells it
        problems.append(known_error(error))
    began, sent = monotonic(), storage.requests_sent()
    found: dict[str, Result] = {}
    matrices: list[Matrix] = []
    verdicts: list[AnyVerdict] = []
    ended: list[VdnaError] = []
    others: list[VdnaError] = []
    failed: dict[str, VdnaError] = {}
    unlisted: tuple[str, ...] = ()
    pruned: int | None = None
    try:
        if not problems:
            with engine or InProcess() as builder:
                build_datasets(
                    place,
                    requests,
                    builder,
                    resources,
                    progress,
                    lambda result: found.update({result.name: result}),
                    failed.__setitem__,
                    relist=relist,
                )
    except Exception as error:  # also of the engine, as it opens or closes
        problems.append(known_error(error))
    names = [request.name for request in requests]
    if problems:
        # What ended the whole build kept each dataset that has no error of its own from being
        # built.
        own = list(failed.values())
        parts = problems[0].parts or (problems[0],)
        ended = [each for each in parts if not any(each is error for error in own)]
        unbuilt = [name for name in names if name in failed or name not in found]
        failed = {name: failed.get(name, (ended or problems)[0]) for name in unbuilt}
        if len(unbuilt) == len(own):
            others += ended
    built = [found[name] for name in names if name in found]
    results, moves = with_movements(place, built, effort, datetime.now(UTC))
    head: Commit | None = None  # all that follows is of this state, whatever others commit
    try:
        head = place.head()
        unlisted = tuple(unlisted_datasets(head, config))
        if unlisted and config.prune and not problems:
            head = remove(place, unlisted)
            pruned = head.number
    except Exception as error:
        others.append(known_error(error))
    if head is not None:
        # One matrix for each spec, as datasets of different specs cannot be compared.
        for spec in sorted({result.version.spec for result in results}):
            try:
                if len(place.names(head.number, spec)) > 1:
                    matrices.append(compare(place, at=head.number, spec=spec, effort=effort))
            except Exception as error:
                others.append(known_error(error))
        try:
            verdicts = judge(
                *(place, config.gate, requests, results, matrices, effort),
                moves=moves,
                since=since,
                head=head,
            )
        except Exception as error:
            others.append(known_error(error))
    problems += [each for each in others if each not in ended]  # which the build's error has
    if not problems:
        try:
            require_kept(verdicts, config.path)
        except Exception as error:
            problems.append(known_error(error))
    done = Refreshed(
        place,
        tuple(results),
        tuple(matrices),
        tuple(verdicts),
        joined_errors(problems),
        joined_errors(others),
        failed,
        unlisted,
        pruned,
        unlisted_note(config, unlisted, pruned, all_built=not failed),
        config.path,
        storage.requests_sent() - sent,
        monotonic() - began,
        commit=head.number if head else None,
    )
    if config.webhook is not None:
        try:
            send_outcome(config.webhook, done.outcome)
        except Exception as error:
            return replace(done, undelivered=not_told(known_error(error)))
    return done
