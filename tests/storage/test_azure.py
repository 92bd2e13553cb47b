"""Tests builds with images and catalogue in one container of Azure's, over HTTP."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.building import Request, Result, build_datasets, make_dna
from pipeline.catalogue import Catalogue, verify
from pipeline.comparing import compare
from pipeline.engine import InProcess
from pipeline.errors import SourceError, VdnaError
from pipeline.spec import Resources
from tests.support import azurite
from tests.support import tiny_network as tiny
from tests.support.azurite import contents, put
from tests.support.builders import jpeg, same_counts, same_counts_and_failures, write_photos

ENGINE = InProcess()
RESOURCES = Resources(workers=0, threads=2)
IMAGES = 6
REPOSITORY = Path(__file__).parents[2]
ODD = "more/ä b::c%20#?.jpg"
"""A name that many url parsers read wrongly."""

COUNTING: dict[str, Any] = {}
"""Fields of a request for tests whose counts do not matter; the fixture `small` fills it."""


@pytest.fixture(scope="module", autouse=True)
def small(tmp_path_factory: pytest.TempPathFactory) -> None:
    COUNTING.update(tiny.install(tmp_path_factory.mktemp("tiny")).options)


@pytest.fixture
def root(container: str) -> str:
    return f"{container}/{uuid.uuid4().hex}"


@pytest.fixture
def images(root: str) -> str:
    for seed in range(IMAGES):
        put(f"{root}/images/photo-{seed:04d}.jpg", jpeg(seed))
    put(f"{root}/images/{ODD}", jpeg(80))
    put(f"{root}/images/README.md", b"of another kind")
    return f"{root}/images"


@pytest.fixture
def place(root: str) -> Catalogue:
    return Catalogue(f"{root}/catalogue")


def run(place: Catalogue, source: str) -> Result:
    (result,) = build_datasets(
        place, [Request("photos", source, max_failures=1, **COUNTING)], ENGINE, RESOURCES
    )
    return result


def test_the_counts_are_those_of_the_same_files_on_disk(
    place: Catalogue, images: str, tmp_path: Path
) -> None:
    result = run(place, images)
    write_photos(tmp_path, IMAGES)
    (tmp_path / "odd.jpg").write_bytes(jpeg(80))
    assert same_counts_and_failures(place.load("photos"), make_dna(tmp_path, threads=2, **COUNTING))
    assert (result.version.images, result.version.failed) == (IMAGES + 1, 0)
    assert result.ignored == {".md": 1}
    assert [finding for finding in verify(place) if not finding.ok] == []


def test_a_second_build_counts_only_what_changed(place: Catalogue, images: str) -> None:
    run(place, images)
    before = contents(place.root)
    again = run(place, images)
    assert (again.changed, again.counted_shards) == (False, 0)
    assert contents(place.root) == before
    put(f"{images}/photo-0002.jpg", jpeg(99))  # it has the same name, and other pixels
    put(f"{images}/photo-0100.jpg", jpeg(100)[:-200])
    second = run(place, images)
    assert (second.version.images, second.version.failed) == (IMAGES + 1, 1)
    (failure,) = place.failures("photos", second.version)
    assert failure.uri == f"{images}/photo-0100.jpg"
    put(f"{images}/photo-0002.jpg", jpeg(2))
    with azurite.client() as client:
        container, _, name = f"{images}/photo-0100.jpg".removeprefix("abfs://").partition("/")
        client.get_blob_client(container, name).delete_blob()
    third = run(place, images)
    assert (third.changed, third.counted_shards) == (True, 1)  # each write makes another ETag
    assert third.version.failed == 0
    assert same_counts(place.load("photos"), place.load("photos@1"))
    assert compare(place, ("photos", "photos@2")).of()[0, 1] > 0


def test_one_of_many_clients_creates_an_object(root: str) -> None:
    clients = 16
    for number in range(5):
        uri, barrier = f"{root}/{number}", threading.Barrier(clients)

        def write(i: int, uri: str = uri, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            return storage.create(uri, str(i).encode())

        with ThreadPoolExecutor(clients) as pool:
            won = list(pool.map(write, range(clients)))
        assert won.count(True) == 1
        (data,) = [data for name, data in contents(root).items() if name.endswith(f"/{number}")]
        assert data == str(won.index(True)).encode()


def test_missing_objects_and_containers_are_named(place: Catalogue, root: str) -> None:
    with pytest.raises(SourceError, match=f"{root}/nothing does not exist"):
        run(place, f"{root}/nothing")
    with pytest.raises(SourceError, match="abfs://no-such-container/images"):
        run(place, "abfs://no-such-container/images")
    assert place.head().number == 0


@pytest.mark.parametrize(("name", "taken"), [("a?b#c.jpg", "a#c.jpg?b"), ("a\nb.jpg", "ab.jpg")])
def test_a_name_that_the_client_misreads_is_an_error(
    place: Catalogue, images: str, name: str, taken: str
) -> None:
    put(f"{images}/{name}", jpeg(81))
    put(f"{images}/{taken}", jpeg(82))
    with pytest.raises(VdnaError) as caught:
        run(place, images)
    assert f"looks for {images.removeprefix('abfs://')}/{taken} instead" in str(caught.value)
    assert place.head().number == 0


def test_a_wrong_key_is_an_error_without_the_key(container: str, root: str, tmp_path: Path) -> None:
    secret = base64.b64encode(b"planted secret of this test").decode()
    environment = os.environ | {
        azurite.SETTINGS: os.environ[azurite.SETTINGS].replace(azurite.KEY, secret)
    }
    words = ("build", "photos", f"{root}/images", "-c", str(tmp_path / "c"), "--workers", "0")
    done = subprocess.run(
        [sys.executable, "-m", "jobs.app", *words],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=REPOSITORY,
        env=environment,
    )
    assert done.returncode == 1
    assert "access denied" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert secret not in done.stdout + done.stderr
