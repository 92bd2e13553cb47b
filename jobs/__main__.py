"""`vdna`, and `python -m jobs`: all commands. Ctrl-C ends them well while they are imported."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command that the command line names, and ends the process."""
    try:
        from jobs.app import app

        app()
    except KeyboardInterrupt:  # before a command began, which ends by itself in the same words
        sys.stderr.write("interrupted; the same command goes on from here\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
