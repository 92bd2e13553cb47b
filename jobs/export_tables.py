"""Export a catalogue as Delta or Iceberg tables."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal

import typer

from jobs.output import print_json, say
from jobs.shell import CatalogueOption, JsonOption, effort_for, guarded, run_alone
from pipeline.catalogue import SnapshotOptions
from pipeline.comparing import MemoryLimit
from pipeline.events import Listener
from pipeline.wording import count_of


@guarded
def export_tables(
    snapshot: SnapshotOptions,
    memory: MemoryLimit,
    progress: Listener,
    catalogue: CatalogueOption,
    folder: Annotated[
        str, typer.Argument(help="Folder of the tables; for Delta also a url (s3://bucket/lake).")
    ],
    to: Annotated[
        Literal["delta", "iceberg"], typer.Option(help="Format of the tables.")
    ] = "delta",
    drift: Annotated[
        bool,
        typer.Option(
            "--drift", help="Write the path of each dataset over its versions, too; takes longer."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Export the datasets' versions and the matrix as Delta or Iceberg tables.

    A later export overwrites them. Their own history has the earlier ones.
    """
    from pipeline.catalogue import Catalogue
    from pipeline.interop import export_tables as exported

    effort = effort_for(catalogue, None, None, memory, progress)
    done = exported(Catalogue(catalogue), folder, to, drift=drift, effort=effort, **vars(snapshot))
    if as_json:
        print_json({"format": to, **asdict(done)})
        return
    say(f"commit {done.commit} as {to} tables:")
    for table in done.tables:
        say(f"  {table.name}: {count_of(table.rows, 'row')} in {table.uri}")


if __name__ == "__main__":
    run_alone(export_tables)
