"""Writes a catalogue as tables of a data lake: Delta or Iceberg.

    >>> export_tables(Catalogue("dnas"), "lake", "delta")          # doctest: +SKIP

The tables are `datasets`, `matrix` and, if it is asked for, `drift`. An export overwrites each
table in one transaction, so the table's own history has the earlier exports.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, Unpack

import pyarrow as pa

from pipeline import storage
from pipeline.catalogue import (
    Catalogue,
    Commit,
    PastVersion,
    SnapshotKeywords,
    SnapshotOptions,
    version_histories,
)
from pipeline.comparing import MATRIX_SCHEMA, Effort, compare
from pipeline.errors import Conflict, StorageError, UsageError
from pipeline.explaining import drift_paths, drift_table

NAMESPACE = "vdna"
"""The namespace of the Iceberg tables."""

DATASETS_SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("name", pa.string()),
        ("commit", pa.int64()),
        ("last_commit", pa.int64()),
        ("time", pa.string()),
        ("current", pa.bool_()),
        ("spec", pa.string()),
        ("dna", pa.string()),
        ("manifest", pa.string()),
        ("images", pa.int64()),
        ("failed", pa.int64()),
        ("transparent", pa.int64()),
        ("single_colour", pa.int64()),
        ("products", pa.list_(pa.string())),
        ("source", pa.string()),
        ("built", pa.string()),
        ("software", pa.string()),
        ("imported", pa.bool_()),
        ("by", pa.string()),
        ("part_of", pa.string()),
        ("value", pa.string()),
    ]
)

_TABLES = ("datasets", "matrix")
_DRIFT = "drift"
_PROPERTY = "vdna.table"
_COMMIT = "vdna.commit"
_UNSAFE = re.compile("[%?#]")


TableFormat = Literal["delta", "iceberg"]
"""A format of tables; the extra of this package that writes it has the same name."""

_PACKAGES: dict[TableFormat, tuple[str, ...]] = {
    "delta": ("deltalake",),
    "iceberg": ("pyiceberg", "sqlalchemy"),
}


@dataclass(frozen=True)
class WrittenTable:
    """A table that was written.

    Attributes:
        name: Its name.
        uri: Where it is: a folder.
        rows: The number of its rows.
    """

    name: str
    uri: str
    rows: int


@dataclass(frozen=True)
class ExportedTables:
    """The tables of a commit.

    Attributes:
        commit: The number of the commit. The tables' own histories have it as `vdna.commit`.
        tables: The tables.
    """

    commit: int
    tables: tuple[WrittenTable, ...]


def export_tables(
    catalogue: Catalogue,
    folder: str,
    form: TableFormat,
    *,
    drift: bool = False,
    effort: Effort | None = None,
    **options: Unpack[SnapshotKeywords],
) -> ExportedTables:
    """Writes the datasets, the matrix and, if asked for, the drift of a catalogue as tables.

    All are computed before the first is written. Each is then overwritten in one transaction.

    Args:
        catalogue: The catalogue.
        folder: Folder or url of the tables. Iceberg's are in a local folder, with an SQLite catalog
            beside them.
        form: The format.
        drift: Whether to follow each dataset over its versions, too.
        effort: How to compare; None for this process with all its cores.
        **options: The options of `SnapshotOptions`. All tables are of one spec.

    Returns:
        What was written.

    Raises:
        Conflict: Another job wrote a table meanwhile.
        NotFound: There is no such commit or spec.
        StorageError: The folder cannot be written.
        UsageError: The format's package is not installed, the folder is not allowed, or it has a
            table of one of these names that is not from here.
    """
    asked = SnapshotOptions(**options)
    _require_extra(form)
    place = _checked_place(catalogue, folder, form, (*_TABLES, *([_DRIFT] if drift else [])))
    commit = catalogue.at(asked.at)
    tables = _tables_of(catalogue, commit, asked.spec, effort or Effort(), drift=drift)
    write = _write_delta if form == "delta" else _write_iceberg
    return ExportedTables(commit.number, write(place, tables, str(commit.number)))


def _require_extra(form: TableFormat) -> None:
    """Checks that the packages of a format are installed.

    Raises:
        UsageError: One is not.
    """
    for package in _PACKAGES[form]:
        if find_spec(package) is None:
            raise UsageError(
                f"{form} tables need the package {package}, which is not installed: "
                f'pip install "vdna-pipeline[{form}]"'
            )


def _uri_of(place: str, name: str, form: TableFormat) -> str:
    return storage.join(place, *([name] if form == "delta" else [NAMESPACE, name]))


def _checked_place(
    catalogue: Catalogue, folder: str, form: TableFormat, names: Iterable[str]
) -> str:
    """Returns the canonical uri of the folder.

    Raises:
        UsageError: The libraries cannot write there, or a table of these names would be in the
            catalogue, or around it.
    """
    place = storage.canonical(folder)
    if form == "iceberg" and storage.protocol_of(place) != "file":
        raise UsageError(
            f"the folder is {folder}; Iceberg tables need a local folder, where an SQLite file is "
            "their catalog. Choose one, or --to delta, which object stores can hold"
        )
    if storage.protocol_of(place) in storage.WEB_PROTOCOLS:
        raise UsageError(
            f"the folder is {folder}, a url of a web server, which takes no files; name a folder, "
            "or a url of an object store"
        )
    if wrong := _UNSAFE.search(storage.readable(place)):
        raise UsageError(
            f"the folder is {folder}; libraries of tables misread the {wrong[0]} in it, so choose "
            "one without %, ? and #"
        )
    root = catalogue.root
    if storage.lies_in(place, root):
        raise UsageError(
            f"the folder is {folder}, which lies in the catalogue {root}; choose one outside it"
        )
    for uri in (_uri_of(place, name, form) for name in names):
        if storage.lies_in(uri, root) or storage.lies_in(root, uri):
            raise UsageError(
                f"the folder is {folder}, of which {storage.readable(uri)} would be a table, and "
                f"be mixed up with the catalogue {storage.readable(root)}; choose another folder"
            )
    return place


def _tables_of(
    catalogue: Catalogue, commit: Commit, spec: str | None, effort: Effort, *, drift: bool
) -> dict[str, pa.Table]:
    digest = catalogue.spec_digest(commit, spec)
    names = catalogue.names(commit.number, digest)
    tables = {
        "datasets": _datasets_table(catalogue, commit, digest),
        "matrix": MATRIX_SCHEMA.empty_table(),
    }
    if len(names) > 1:
        tables["matrix"] = compare(catalogue, effort=effort, at=commit.number, spec=digest).table
    if drift:
        ends = [f"{name}@{commit.number}" for name in names]
        tables[_DRIFT] = drift_table(drift_paths(catalogue, ends, digest, effort))
    return tables


def _datasets_table(catalogue: Catalogue, commit: Commit, spec: str) -> pa.Table:
    """Makes a row for each version that a dataset has or had; one that came back has a row more."""
    histories = version_histories(catalogue.log(commit), spec)
    rows = [
        _version_row(dataset, past, commit.number)
        for dataset, versions in sorted(histories.items())
        for past in reversed(versions)
    ]
    return pa.Table.from_pylist(rows, DATASETS_SCHEMA)


def _version_row(dataset: str, past: PastVersion, newest: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "dataset": dataset,
        "name": f"{dataset}@{past.commit}",
        "commit": past.commit,
        "last_commit": past.last,
        "time": past.time,
        "current": past.last == newest,
    }
    others = [column for column in DATASETS_SCHEMA.names if column not in row]
    return row | {column: getattr(past.version, column) for column in others}


def _require_own(found: str | None, name: str, uri: str) -> None:
    """Checks that a table that is there already is from an earlier export.

    Raises:
        UsageError: It is not.
    """
    if found != name:
        raise UsageError(
            f"{uri} is a table that vdna did not write, and would be overwritten; choose another "
            "folder"
        )


def _raced(place: str) -> Conflict:
    return Conflict(f"another job wrote a table of {place} meanwhile; export again")


def _failed(place: str, error: BaseException) -> StorageError:
    return StorageError(
        f"the tables of {place} could not be written: {error}. If another job exports to there, "
        "wait for it and export again"
    )


def _delta_settings() -> dict[str, str]:
    """Returns the settings by which deltalake writes to the endpoint that `storage` writes to."""
    own, of_all = "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"
    endpoint = os.environ.get(own) or os.environ.get(of_all)
    if not endpoint:
        return {}
    plain = {"allow_http": "true"} if endpoint.startswith("http://") else {}
    return {of_all: endpoint, **plain}


def _write_delta(
    place: str, tables: Mapping[str, pa.Table], commit: str
) -> tuple[WrittenTable, ...]:
    from deltalake import CommitProperties, DeltaTable, write_deltalake
    from deltalake.exceptions import CommitFailedError, DeltaError

    settings = _delta_settings()
    uris = {name: _uri_of(place, name, "delta") for name in tables}
    try:
        found = {
            name: DeltaTable(uri, storage_options=settings)
            for name, uri in uris.items()
            if DeltaTable.is_deltatable(uri, settings)
        }
        for name, there in found.items():
            _require_own(there.metadata().name, f"{NAMESPACE}.{name}", uris[name])
        # Without retries, a commit follows the state that was read, or fails. deltalake would retry
        # two first exports at once, and keep the rows of both.
        properties = CommitProperties(custom_metadata={_COMMIT: commit}, max_commit_retries=0)
        for name, table in tables.items():
            write_deltalake(
                found.get(name, uris[name]),
                table,
                mode="overwrite" if name in found else "error",
                schema_mode="overwrite" if name in found else None,
                name=f"{NAMESPACE}.{name}",
                storage_options=settings,
                commit_properties=properties,
            )
    except CommitFailedError as error:
        raise _raced(place) from error
    except (DeltaError, OSError) as error:
        raise _failed(place, error) from error
    return tuple(WrittenTable(name, uris[name], table.num_rows) for name, table in tables.items())


def _write_iceberg(
    place: str, tables: Mapping[str, pa.Table], commit: str
) -> tuple[WrittenTable, ...]:
    from pyiceberg.catalog.sql import SqlCatalog
    from pyiceberg.exceptions import CommitFailedException, ValidationException
    from sqlalchemy.exc import SQLAlchemyError

    path = storage.local_path(place)
    written = []
    try:
        os.makedirs(path, exist_ok=True)
        settings = {"uri": f"sqlite:///{path}/catalog.db", "warehouse": f"file://{path}"}
        with closing(SqlCatalog(NAMESPACE, **settings)) as catalog:
            catalog.create_namespace_if_not_exists(NAMESPACE)
            targets = {
                name: catalog.create_table_if_not_exists(
                    (NAMESPACE, name), table.schema, properties={_PROPERTY: name}
                )
                for name, table in tables.items()
            }
            for name, target in targets.items():
                _require_own(target.properties.get(_PROPERTY), name, target.location())
            for name, target in targets.items():
                with warnings.catch_warnings(), target.transaction() as change:
                    # The first export finds nothing to take out.
                    warnings.filterwarnings("ignore", "Delete operation did not match")
                    with change.update_schema() as schema:
                        schema.union_by_name(tables[name].schema)
                    change.overwrite(tables[name], snapshot_properties={_COMMIT: commit})
                written.append(WrittenTable(name, target.location(), tables[name].num_rows))
    except (CommitFailedException, ValidationException) as error:
        raise _raced(place) from error
    except (OSError, SQLAlchemyError) as error:
        raise _failed(place, getattr(error, "orig", None) or error) from error
    return tuple(written)
