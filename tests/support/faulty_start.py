"""An actor that cannot start on some nodes, as the environment of their processes says.

Ray imports it on each node. There, `START` is `fails` or `waits`, or is not set.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from pipeline.engine.shard_actor import ShardActor

FAILS = {"START": "fails"}
WAITS = {"START": "waits"}
LACKS_A_MODULE = {"LACKS": ShardActor.__module__}
"""Python then finds no such module, if a test has set that up."""


class StartsElsewhere(ShardActor):
    """Starts where nothing else is said."""

    def __init__(self, *given: Any, **how: Any) -> None:
        start = os.environ.get("START")
        if start == "fails":
            raise ModuleNotFoundError("No module named 'fisheye'")
        if start == "waits":
            Path(os.environ["ELASTIC"], "starts").touch()
            time.sleep(600)  # until the node is lost
        super().__init__(*given, **how)
