"""Tests builds and comparisons with images and catalogue in one bucket, over HTTP."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
import numpy as np
import pytest
from s3fs import S3FileSystem
from typer.testing import CliRunner

from jobs.app import app
from pipeline import storage
from pipeline.building import Request, Result, build_datasets, make_dna, runner
from pipeline.building.planner import DatasetPlan
from pipeline.catalogue import Catalogue, verify
from pipeline.comparing import compare
from pipeline.counting import Counter
from pipeline.engine import InProcess
from pipeline.errors import SourceError, StorageError, TransientError
from pipeline.events import Event, Said
from pipeline.spec import Resources
from pipeline.storage import retry
from tests.support import tiny_network as tiny
from tests.support.builders import jpeg, same_counts_and_failures, write_photos
from tests.support.chaos import Chaos
from tests.support.s3 import contents, fill, put, remove

ENGINE = InProcess()
RESOURCES = Resources(workers=0, threads=2)
IMAGES = 6
REPOSITORY = Path(__file__).parents[2]
ODD = "more/ä b::c%20?#.jpg"
"""A key that many url parsers read wrongly."""


COUNTING: dict[str, Any] = {}
"""Fields of a request for tests whose counts do not matter; the fixture `small` fills it."""


@pytest.fixture(scope="module", autouse=True)
def small(tmp_path_factory: pytest.TempPathFactory) -> None:
    COUNTING.update(tiny.install(tmp_path_factory.mktemp("tiny")).options)


def small_request(name: str, source: str, **options: Any) -> Request:
    return Request(name, source, **(COUNTING | options))


def run(place: Catalogue, *requests: Request) -> list[Result]:
    return build_datasets(place, requests, ENGINE, RESOURCES)


@pytest.fixture
def place(root: str) -> Catalogue:
    return Catalogue(f"{root}/catalogue")


@pytest.fixture(scope="module")
def images(bucket: str) -> str:
    images = fill(f"{bucket}/{uuid.uuid4().hex}/images", IMAGES)
    put(f"{images}/{ODD}", jpeg(80))
    put(f"{images}/README.md", b"of another kind")
    return images


@pytest.fixture(scope="module")
def built(bucket: str, images: str) -> tuple[Catalogue, Result]:
    place = Catalogue(f"{bucket}/{uuid.uuid4().hex}/catalogue")
    (result,) = run(place, small_request("photos", images))
    return place, result


def test_the_requests_that_are_told_are_those_that_were_sent(
    s3_server: str, images: str, place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = small_request("photos", images, shard_images=64)
    with Chaos(s3_server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        S3FileSystem.clear_instance_cache()
        (first,) = run(place, request)
        assert first.requests == proxy.requests > IMAGES
        proxy.requests = 0
        (again,) = run(place, request)
        assert not again.changed
        assert again.requests == proxy.requests
    S3FileSystem.clear_instance_cache()


def test_the_requests_of_an_estimate_are_those_that_shards_and_images_take(
    bucket: str, images: str
) -> None:
    """What a build asks beside them does not depend on how many there are."""
    told = []
    for source in (images, fill(f"{bucket}/{uuid.uuid4().hex}/images", 4 * IMAGES)):
        said: list[Event] = []
        place = Catalogue(f"{bucket}/{uuid.uuid4().hex}/catalogue")
        request = small_request("photos", source, shard_images=1)
        (result,) = build_datasets(place, [request], ENGINE, RESOURCES, said.append)
        (line,) = (of.message for of in said if isinstance(of, Said) and "to read" in of.message)
        (asked,) = re.findall(r"about (\d+) requests", line)
        told.append((int(asked), result.requests))
    (fewer, sent_for_fewer), (more, sent_for_more) = told
    assert more - fewer == pytest.approx(sent_for_more - sent_for_fewer, rel=0.1)


def test_the_counts_are_those_of_the_same_files_on_disk(
    built: tuple[Catalogue, Result], images: str, tmp_path: Path
) -> None:
    place, result = built
    write_photos(tmp_path, IMAGES)
    (tmp_path / "odd.jpg").write_bytes(jpeg(80))
    assert same_counts_and_failures(place.load("photos"), make_dna(tmp_path, threads=2, **COUNTING))
    assert (result.version.images, result.version.failed) == (IMAGES + 1, 0)
    assert result.ignored == {".md": 1}
    assert result.version.source == images
    assert [finding for finding in verify(place) if not finding.ok] == []


def test_the_manifest_holds_plain_uris_and_etags(
    built: tuple[Catalogue, Result], images: str
) -> None:
    place, result = built
    manifest = place.manifest("photos", result.version)
    members = {m.uri: m.identity for shard in manifest.shards for m in shard.members}
    assert f"{images}/{ODD}" in members
    bucket, _, key = images.removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    for uri, identity in members.items():
        name = uri.removeprefix(images)
        assert identity == client.head_object(Bucket=bucket, Key=key + name)["ETag"].strip('"')


def test_a_second_build_has_nothing_to_do(
    built: tuple[Catalogue, Result], images: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, first = built
    before = contents(place.root)
    monkeypatch.setattr(Counter, "make", lambda *_, **__: pytest.fail("counted again"))
    (again,) = run(place, small_request("photos", images))
    assert (again.changed, again.counted_shards) == (False, 0)
    assert again.version == first.version
    assert contents(place.root) == before


@pytest.mark.optional
@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")  # Ray's own warning
def test_ray_in_its_own_processes_makes_the_same_dna(
    place: Catalogue, images: str, root: str
) -> None:
    """Workers use the settings that the driver was started with."""
    from pipeline.engine import RayEngine

    (alone,) = run(Catalogue(f"{root}/alone"), Request("photos", images))
    resources = Resources(workers=1, threads=1)
    with RayEngine(resources) as engine:
        (spread,) = build_datasets(place, [Request("photos", images)], engine, resources)
    assert spread.counted_shards == alone.counted_shards
    assert spread.version.dna == alone.version.dna
    assert spread.version.sha256 == alone.version.sha256
    assert [finding for finding in verify(place) if not finding.ok] == []


def test_compare_reads_and_keeps_its_matrix_in_the_bucket(
    built: tuple[Catalogue, Result], root: str
) -> None:
    place, _ = built
    run(place, small_request("other", fill(f"{root}/other", 3, first_seed=300)))
    matrix = compare(place)
    assert matrix.names == ("other", "photos")
    assert matrix.of()[0, 1] > 0
    (kept,) = [key for key in contents(place.root) if "/matrix/" in key]
    again = compare(place)
    assert np.array_equal(again.of(), matrix.of())
    assert [key for key in contents(place.root) if "/matrix/" in key] == [kept]


def test_an_overwritten_key_recomputes_its_shard_only(place: Catalogue, root: str) -> None:
    source = fill(f"{root}/images", 5)
    (first,) = run(place, small_request("photos", source))
    assert first.counted_shards == 5
    put(f"{source}/photo-0002.jpg", jpeg(99))
    (second,) = run(place, small_request("photos", source))
    assert (second.changed, second.counted_shards) == (True, 1)
    assert second.version.dna != first.version.dna
    put(f"{source}/photo-0002.jpg", jpeg(2))
    (third,) = run(place, small_request("photos", source))
    assert (third.changed, third.counted_shards) == (True, 0)
    assert third.version.dna == first.version.dna
    assert place.head().number == 3


def test_an_added_key_does_not_change_existing_shards(place: Catalogue, root: str) -> None:
    """It is listed first, so every shard would change if the shards were planned again."""
    video = fill(f"{root}/images/video", 4, first_seed=10)
    request = small_request("photos", f"{root}/images", group_by="1", shard_images=2)
    (first,) = run(place, request)
    assert first.counted_shards == 2
    put(f"{video}/photo-0000.jpg", jpeg(0))
    (second,) = run(place, request)
    assert (second.version.images, second.counted_shards) == (5, 1)


@pytest.mark.parametrize("change", ["deleted", "overwritten"])
def test_a_build_whose_object_disappears_after_planning_names_it(
    place: Catalogue, root: str, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    source = fill(f"{root}/images", 4)
    missing = runner._missing

    def then_change(p: DatasetPlan) -> tuple[set[int], bool]:
        if change == "deleted":
            remove(f"{source}/photo-0001.jpg")
        else:
            put(f"{source}/photo-0001.jpg", jpeg(99))
        return missing(p)

    monkeypatch.setattr(runner, "_missing", then_change)
    with pytest.raises(TransientError, match=r"photos: 1 of 4 shards .*photo-0001\.jpg"):
        run(place, small_request("photos", source))
    assert place.head().number == 0
    assert not [key for key in contents(place.root) if "/dna/" in key]
    monkeypatch.undo()
    (result,) = run(place, small_request("photos", source))
    assert result.counted_shards == (0 if change == "deleted" else 1)
    assert result.version.images == (3 if change == "deleted" else 4)


def test_missing_objects_and_buckets_are_named(place: Catalogue, root: str, images: str) -> None:
    with pytest.raises(
        SourceError, match="s3://no-such-bucket/images: there is no bucket no-such-bucket"
    ):
        run(place, small_request("photos", "s3://no-such-bucket/images"))
    with pytest.raises(SourceError, match=f"{root}/nothing does not exist"):
        run(place, small_request("photos", f"{root}/nothing"))
    assert place.head().number == 0
    with pytest.raises(SourceError, match="s3://no-such-bucket"):
        run(Catalogue("s3://no-such-bucket/catalogue"), small_request("photos", images))


def test_globs_and_lists_of_keys_are_sources(place: Catalogue, root: str, images: str) -> None:
    put(f"{root}/list.txt", f"{images}/photo-0001.jpg\n{images}/photo-0002.jpg\n".encode())
    globbed, listed = run(
        place,
        small_request("globbed", f"{images}/photo-000[12].jpg"),
        small_request("listed", f"{root}/list.txt"),
    )
    assert (globbed.version.images, listed.version.images) == (2, 2)
    assert same_counts_and_failures(place.load("globbed"), place.load("listed"))


# The secret


def vdna(*words: object, exits: int) -> tuple[str, str]:
    """Runs a command in this process, and gives what it prints on stdout and stderr."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == exits, done.output
    return done.stdout, done.stderr


@pytest.mark.soak
def test_the_secret_is_nowhere_in_the_catalogue_nor_in_what_is_printed(
    place: Catalogue, root: str
) -> None:
    """Builds end well and badly in the bucket that the secret opens."""
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    assert len(secret) > 10
    spoilt = fill(f"{root}/spoilt", 2, first_seed=400)
    put(f"{spoilt}/cut.jpg", jpeg(1)[:-200])
    alone = ("-c", place.root, "--workers", 0, "--json")
    gate = vdna("build", "spoilt", spoilt, *alone, exits=3)
    good = vdna("build", "spoilt", spoilt, *alone, "--max-failures", 1, exits=0)
    lost = vdna("build", "lost", "s3://no-such-bucket/x", *alone, exits=1)
    shown = vdna("show", "spoilt", "-c", place.root, "--json", exits=0)
    assert json.loads(good[0])["images"] == 2
    assert json.loads(gate[0])["error"] == "GateError"
    assert "no-such-bucket" in json.loads(lost[0])["message"]
    assert_without(secret, *good, *gate, *lost, *shown)
    kept = contents(place.root)
    assert len(kept) > 10
    for key, data in kept.items():
        assert_without(secret, key)
        assert secret.encode() not in data, key
        assert quote(secret, safe="").encode() not in data, key


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://nowhere.invalid"])
def test_an_unreachable_store_is_an_error_without_the_secret(
    images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    """An error of the connection holds its request, which we print without the secret."""
    secret = "planted/secret+of=this-test"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("VDNA_STORAGE_ATTEMPTS", "1")  # otherwise it takes half a minute to give up
    words = ("build", "photos", images, "-c", str(tmp_path / "c"), "--workers", "0", "--json")
    done = subprocess.run(
        [sys.executable, "-m", "jobs.app", *words],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=REPOSITORY,
    )
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["error"] == "TransientError"
    assert f"error: photos: {images}: no answer after 1 try" in done.stderr
    assert "Traceback" not in done.stderr
    assert_without(secret, done.stdout, done.stderr)
    assert Catalogue(str(tmp_path / "c")).head().number == 0


def assert_without(secret: str, *texts: str) -> None:
    for text in texts:
        assert secret not in text
        assert quote(secret, safe="") not in text


def test_the_settings_that_workers_are_given_are_no_secrets() -> None:
    from pipeline.engine.ray_engine import FORWARDED, WORKER_ENVIRONMENT

    named = {*FORWARDED, *WORKER_ENVIRONMENT}
    assert not [name for name in named if "SECRET" in name or "TOKEN" in name or "KEY" in name]
    assert set(retry.VARIABLES) < named


def test_create_is_exclusive_on_the_test_server(root: str) -> None:
    storage.require_exclusive(root)
    assert contents(root) == {}


def test_credentials_that_are_set_after_an_error_are_used(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        S3FileSystem.clear_instance_cache()
        with pytest.raises(StorageError, match="no credentials were found"):
            storage.read(f"{bucket}/late")
    storage.create(f"{bucket}/late", b"seen")
    assert storage.read(f"{bucket}/late") == b"seen"
