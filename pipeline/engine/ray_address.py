"""Names the Ray cluster that is used.

>>> cluster_address("10.0.0.1:6379")
'10.0.0.1:6379'
"""

from __future__ import annotations

import os

from pipeline.errors import UsageError


def cluster_address(given: str | None) -> str | None:
    """Returns the address of a Ray cluster.

    Args:
        given: The address that the user gives. None takes `RAY_ADDRESS`.

    Returns:
        The address; None for a Ray on this machine.

    Raises:
        UsageError: It is that of a server for Ray's client, through which Ray Data does not work
            (2.60: it asks for the core of Ray, which such a process does not have).
    """
    address = given or os.environ.get("RAY_ADDRESS")
    if address and address.startswith("ray://"):
        raise UsageError(
            f"ray-address is {address!r}, and Ray Data does not work through Ray's client; run "
            "the command on a machine of the cluster with its address HOST:6379, or with auto, or "
            "let the cluster run it: vdna submit --ray-address http://HEAD:8265"
        )
    return address
