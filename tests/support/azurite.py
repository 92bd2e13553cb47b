"""Starts Azurite, Microsoft's emulator of Azure's object store, from its npm package, in memory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from azure.storage.blob import BlobServiceClient

CHOICE = "VDNA_TEST_AZURE"
PROGRAM = "azurite-blob"
INSTALL = "npm install --global azurite"
FLAGS = (
    "--inMemoryPersistence",
    "--disableTelemetry",
    "--silent",
    "--skipApiVersionCheck",  # Azure's client is often newer
    *("--blobPort", "0"),
)
SETTINGS = "AZURE_STORAGE_CONNECTION_STRING"
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Every Azurite has this account and this key; they are public."""


def chosen() -> bool:
    """Tells whether there is an Azurite.

    Raises `pytest.UsageError` if `VDNA_TEST_AZURE` requires one that is missing.
    """
    wanted = os.environ.get(CHOICE)
    if wanted not in (None, "none", "azurite"):
        raise pytest.UsageError(f"{CHOICE}={wanted}: give azurite or none")
    is_there = shutil.which(PROGRAM) is not None
    if wanted == "azurite" and not is_there:
        raise pytest.UsageError(f"{CHOICE}=azurite, but {PROGRAM} is not installed: {INSTALL}")
    return is_there and wanted != "none"


def described() -> str:
    if chosen():
        return "Azure server: Azurite"
    why = f"{CHOICE}=none" if CHOICE in os.environ else INSTALL
    return f"Azure server: none, abfs:// is not tried ({why})"


@contextmanager
def started() -> Iterator[dict[str, str]]:
    """Starts a server on a free port, and yields the variable that clients need."""
    with subprocess.Popen([PROGRAM, *FLAGS], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if found := re.search(r"listens on (http://\S+)", line):
                    break
            else:
                raise RuntimeError(f"{PROGRAM} ended before it was ready; it says above why")
            yield {
                SETTINGS: f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};"
                f"BlobEndpoint={found[1]}/{ACCOUNT};"
            }
        finally:
            process.terminate()


def client() -> BlobServiceClient:
    """Opens Azure's own client, to look at what ours writes."""
    return BlobServiceClient.from_connection_string(os.environ[SETTINGS])


def put(uri: str, data: bytes) -> None:
    container, _, name = uri.removeprefix("abfs://").partition("/")
    with client() as azure:
        azure.get_blob_client(container, name).upload_blob(data, overwrite=True)


def contents(prefix: str) -> dict[str, bytes]:
    """Reads every object below."""
    container, _, head = prefix.removeprefix("abfs://").partition("/")
    with client() as azure, azure.get_container_client(container) as there:
        names = [blob.name for blob in there.list_blobs(name_starts_with=f"{head}/")]
        return {name: there.download_blob(name).readall() for name in names}
