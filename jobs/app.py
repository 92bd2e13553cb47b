"""`vdna`: the commands together."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated

import typer

from jobs.build import build
from jobs.calibrate import calibrate
from jobs.cancel import cancel
from jobs.compare import compare
from jobs.demo import demo
from jobs.diff import diff
from jobs.drift import drift
from jobs.erase import erase
from jobs.explain import explain
from jobs.export import export
from jobs.export_tables import export_tables
from jobs.gc import gc
from jobs.jobs import jobs
from jobs.lens import lens
from jobs.log import log
from jobs.logs import logs
from jobs.ls import ls
from jobs.output import say
from jobs.plan import plan
from jobs.rank import rank
from jobs.refresh import refresh
from jobs.rename import rename
from jobs.report import report
from jobs.rm import rm
from jobs.rollback import rollback
from jobs.serve import serve
from jobs.shell import Application
from jobs.show import show
from jobs.submit import SETTINGS, submit
from jobs.suggest import suggest
from jobs.tag import tag
from jobs.verify import verify
from jobs.weights import weights

app = Application(
    name="vdna",
    help="Visual DNA of image datasets: build, catalogue, compare.",
    no_args_is_help=True,
    invoke_without_command=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Visual DNA of image datasets: build, catalogue, compare."""
    if version:
        from pipeline.catalogue import software

        say(software())
        raise typer.Exit


for command in (
    *(demo, plan, build, refresh, calibrate),
    *(compare, explain, diff, drift, rank, suggest, report, serve),
    *(ls, show, log, tag, rename, rm, rollback, verify, gc, erase),
):
    app.command()(command)
app.command(context_settings=SETTINGS)(submit)
for command in (jobs, logs, cancel):
    app.command()(command)
app.command("import")(import_module("jobs.import").import_)  # its name is a keyword
app.command()(export)
app.command()(export_tables)
app.add_typer(lens, name="lens")
app.add_typer(weights, name="weights")

if __name__ == "__main__":
    app()
