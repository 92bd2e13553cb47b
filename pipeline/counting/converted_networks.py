"""Keeps networks that were converted for OpenVINO in the user's cache folder.

A file's name says of what weights, taps and versions a network is, and its first bytes are the
digest of the others. Nothing here imports torch or OpenVINO.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from importlib.metadata import version
from pathlib import Path

from pipeline.networks import Network

Kept = tuple[bytes, bytes]
"""OpenVINO's two files of a network: the graph, and the weights."""

LAYOUT = 1
"""Version of how a network is converted and kept."""

logger = logging.getLogger(__name__)


def converted_path(network: Network, batch: int) -> Path:
    """Returns where a network is kept that takes a number of images at a time."""
    return _cache_folder() / _name(network, batch)


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "vdna" / "openvino"


def _name(network: Network, batch: int) -> str:
    """Returns the name of a converted network's file: a digest of all that it depends on."""
    what = {
        "layout": LAYOUT,
        "network": [network.name, network.built_by, network.weights_sha256, network.folded],
        "input": [batch, network.height, network.width],
        "taps": network.observed,
        "versions": {name: version(name) for name in ("openvino", "timm", "torch", "torchvision")},
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]


def keep_converted(model: Kept, path: Path) -> None:
    """Writes one file, whole or not at all; several processes may do so at once."""
    graph, weights = model
    body = len(graph).to_bytes(8, "big") + graph + weights
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
            scratch = Path(folder, "whole")
            scratch.write_bytes(hashlib.sha256(body).digest() + body)
            scratch.replace(path)
    except OSError as error:
        logger.info("the converted network is not kept, and is converted each time: %s", error)


def read_converted(path: Path) -> Kept | None:
    """Reads what `keep_converted` wrote; None if there is no such file, or if it is damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    digest, body = data[:32], data[32:]
    if hashlib.sha256(body).digest() != digest:
        logger.info("%s is damaged; the network is converted again", path)
        return None
    end = 8 + int.from_bytes(body[:8], "big")
    return body[8:end], body[end:]
