"""Tests against a real S3 server: denials, odd keys, races, versions, and whole commands."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import multiprocessing
import os
import queue
import random
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import boto3
import duckdb
import fsspec
import pandas
import pytest
from boto3.s3.transfer import TransferConfig
from typer.testing import CliRunner

from jobs.app import app
from pipeline import storage
from pipeline.building import Request, Result, build_datasets
from pipeline.catalogue import Catalogue, verify
from pipeline.engine import InProcess
from pipeline.errors import SourceError, StorageError, VdnaError
from pipeline.sources import list_source, plan
from pipeline.spec import Resources
from tests.support import ceph, s3
from tests.support import tiny_network as tiny
from tests.support.builders import jpeg
from tests.support.s3 import contents, fill, only_ceph, put, race, remove

RESOURCES = Resources(workers=0, threads=2)
REPOSITORY = Path(__file__).parents[2]
DENIED = "moto takes every key for any other's"

pytestmark = pytest.mark.usefixtures("s3_server")


def new_bucket(name: str) -> str:
    bucket = f"vdna-{name}-{uuid.uuid4().hex[:8]}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}"


COUNTING: dict[str, Any] = {}
"""Fields of a request that name the small network; the fixture `small` fills it."""


@pytest.fixture(scope="module", autouse=True)
def small(tmp_path_factory: pytest.TempPathFactory) -> None:
    COUNTING.update(tiny.install(tmp_path_factory.mktemp("tiny")).options)


def build(place: Catalogue, name: str, source: str, **options: Any) -> Result:
    request = Request(name, source, **(COUNTING | options))
    (result,) = build_datasets(place, [request], InProcess(), RESOURCES)
    return result


# The server


STARTER = """
from tests.support import ceph
with ceph.started() as settings:
    print(settings["CEPH_CONF"], flush=True)
    input()
"""


@pytest.mark.soak
@only_ceph("it is the server that is started")
def test_a_server_whose_starter_is_killed_leaves_nothing() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTER],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as starter:
        assert starter.stdout is not None
        folder = Path(starter.stdout.readline().strip()).parent
        assert (folder / "ceph.conf").exists()
        assert len(running_in(folder)) == 3
        starter.kill()
    end = time.monotonic() + 30
    while (folder.exists() or running_in(folder)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not folder.exists()
    assert running_in(folder) == []


def running_in(folder: Path) -> list[str]:
    """Gives the process ids of daemons that hold a file open there."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(fd).startswith(f"{folder}/") for fd in (process / "fd").iterdir()):
                found.append(process.name)
        except OSError:
            continue
    return found


def test_the_server_of_the_tests_is_chosen_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(s3.CHOICE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert s3.chosen() == "moto"
    assert ceph.INSTALL in s3.described()
    monkeypatch.setenv(s3.CHOICE, "ceph")
    with pytest.raises(pytest.UsageError, match=r"radosgw.* are not installed: apt-get install"):
        s3.chosen()
    for name in ceph.PROGRAMS:
        (tmp_path / name).touch(mode=0o755)
    assert s3.chosen() == "ceph"
    monkeypatch.delenv(s3.CHOICE)
    assert s3.chosen() == "ceph"
    monkeypatch.setenv(s3.CHOICE, "moto")
    assert s3.chosen() == "moto"
    monkeypatch.setenv(s3.CHOICE, "minio")
    with pytest.raises(pytest.UsageError, match="VDNA_TEST_S3=minio"):
        s3.chosen()


# Mistakes

MISTAKES = {
    "another's secret": (
        ("ls", "-c", "{dnas}"),
        {"AWS_SECRET_ACCESS_KEY": "a+secret/of+another/key"},
        "{dnas}/_log/_latest: access denied (SignatureDoesNotMatch): the secret key is not the one "
        "of this access key; check AWS_SECRET_ACCESS_KEY",
    ),
    "another's secret, to write": (
        ("build", "a", "{images}", "-c", "{dnas}", "--workers", "0"),
        {"AWS_SECRET_ACCESS_KEY": "a+secret/of+another/key"},
        "access denied (SignatureDoesNotMatch)",
    ),
    "an unknown key": (
        ("verify", "-c", "{dnas}"),
        {"AWS_ACCESS_KEY_ID": "NOTHEREATALL"},
        "{dnas}/_log/_latest: access denied (InvalidAccessKeyId): the store does not know this "
        "access key; check AWS_ACCESS_KEY_ID",
    ),
    "no key": (
        ("compare", "-c", "{dnas}"),
        {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"},
        "{dnas}/_log/_latest: no credentials were found; set AWS_ACCESS_KEY_ID",
    ),
    "images of another": (
        ("build", "a", "{foreign}/images", "-c", "{dnas}", "--workers", "0"),
        {},
        "a: {foreign}/images: access denied (AccessDenied): these credentials may not do this "
        "there; images need s3:ListBucket",
    ),
    "catalogue of another": (
        ("build", "a", "{images}", "-c", "{foreign}/dnas", "--workers", "0"),
        {},
        "access denied (AccessDenied): these credentials may not do this there",
    ),
    "no bucket of images": (
        ("build", "a", "s3://no-such-bucket/images", "-c", "{dnas}", "--workers", "0"),
        {},
        "a: s3://no-such-bucket/images: there is no bucket no-such-bucket; check its name and "
        "AWS_ENDPOINT_URL, or create it",
    ),
    "no bucket for the catalogue": (
        ("build", "a", "{images}", "-c", "s3://no-such-bucket/dnas", "--workers", "0"),
        {},
        "there is no bucket no-such-bucket",
    ),
    "no bucket of the catalogue": (
        ("ls", "-c", "s3://no-such-bucket/dnas"),
        {},
        "s3://no-such-bucket/dnas/_log/_latest: there is no bucket no-such-bucket",
    ),
    "nothing to remove": (
        ("gc", "-c", "s3://no-such-bucket/dnas"),
        {},
        "s3://no-such-bucket/dnas/_log/_latest: there is no bucket no-such-bucket",
    ),
    "no such prefix": (
        ("build", "a", "{images}/nothing", "-c", "{dnas}", "--workers", "0"),
        {},
        "a: {images}/nothing does not exist",
    ),
}
BY_COMMAND = ("another's secret", "an unknown key", "no key", "images of another")
BY_COMMAND += ("nothing to remove",)
"""Each of these is another command. All others have the same way to their error."""

SEEN_BY_MOTO = ("no key", "no bucket of images", "no bucket for the catalogue")
SEEN_BY_MOTO += ("no bucket of the catalogue", "nothing to remove", "no such prefix")


def server_of(mistake: str) -> list[pytest.MarkDecorator]:
    return [] if mistake in SEEN_BY_MOTO else [only_ceph(DENIED)]


@pytest.fixture(scope="module")
def places(s3_server: str) -> dict[str, str]:
    images, dnas = new_bucket("images"), new_bucket("dnas")
    fill(f"{images}/photos", 2)
    foreign = "s3://another"
    if s3.chosen() == "ceph":
        access, secret = ceph.new_user(f"other-{uuid.uuid4().hex}")
        foreign = f"s3://vdna-foreign-{uuid.uuid4().hex[:8]}"
        boto3.client("s3", aws_access_key_id=access, aws_secret_access_key=secret).create_bucket(
            Bucket=foreign.removeprefix("s3://")
        )
    return {"images": f"{images}/photos", "dnas": f"{dnas}/dnas", "foreign": foreign}


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Changes S3's settings for our client, whose instances would outlive them."""

    def change(settings: dict[str, str]) -> None:
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()

    yield change
    monkeypatch.undo()
    change({})


def commanded(words: tuple[str, ...]) -> tuple[int, str, str]:
    """Builds in this process."""
    done = CliRunner().invoke(app, words)
    return done.exit_code, done.stdout, done.stderr


def run(words: tuple[str, ...]) -> tuple[int, str, str]:
    """Builds by the command, as a user does."""
    command = [sys.executable, "-m", "jobs.app", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=REPOSITORY)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("mistake", "by"),
    [
        *(pytest.param(m, commanded, marks=server_of(m)) for m in MISTAKES),
        *(pytest.param(m, run, marks=[*server_of(m), pytest.mark.soak]) for m in BY_COMMAND),
    ],
)
def test_the_error_of_a_mistake_comes_at_once_and_says_what_to_do(
    mistake: str,
    by: Callable[[tuple[str, ...]], tuple[int, str, str]],
    places: dict[str, str],
    use: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words, settings, message = MISTAKES[mistake]
    secrets = {os.environ[n] for n in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    use(settings)
    if by is commanded:  # an error that is tried again would not come at once
        monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: pytest.fail("it waits"))
    began = time.monotonic()
    exits, out, err = by(tuple(word.format(**places) for word in words))
    assert time.monotonic() - began < 30
    assert (exits, out) == (1, "")
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message.format(**places) in last
    assert "Traceback" not in err
    for secret in secrets | set(settings.values()) - {"", "true"}:
        assert secret not in err


def policy_of(role: str, user: str, images: str, dnas: str) -> list[dict[str, Any]]:
    """Returns the statements of a file of infra/policies, for a user and two buckets of a test."""
    text = (REPOSITORY / "infra" / "policies" / f"{role}.json").read_text()
    for bucket, name in (("my-data", images), ("my-bucket", dnas)):
        text = text.replace(bucket, name.removeprefix("s3://"))
    principal = {"AWS": [f"arn:aws:iam:::user/{user}"]}
    return [s | {"Principal": principal} for s in json.loads(text)["Statement"]]


def grant(statements: list[dict[str, Any]], *buckets: str) -> None:
    """Makes them the policies of the buckets, as the server's own user, and nothing else."""
    client = boto3.client("s3")
    for bucket in buckets:
        name = bucket.removeprefix("s3://")
        mine = [s for s in statements if s["Resource"][0].split(":::")[1].split("/")[0] == name]
        policy = {"Version": "2012-10-17", "Statement": mine}
        if mine:
            client.put_bucket_policy(Bucket=name, Policy=json.dumps(policy))
        else:
            client.delete_bucket_policy(Bucket=name)


def images_are_built_and_compared(images: str, dnas: str) -> None:
    result = build(Catalogue(f"{dnas}/vdna"), "a", f"{images}/a")
    assert (result.version.images, result.version.failed) == (2, 0)
    assert all(finding.ok for finding in verify(Catalogue(f"{dnas}/vdna")))
    every_command_succeeds(dnas, ("compare", "--json"))


def results_are_read(_: str, dnas: str) -> None:
    every_command_succeeds(dnas, ("ls",), ("verify", "--all"), ("compare", "--json"))


def garbage_is_removed(_: str, dnas: str) -> None:
    every_command_succeeds(dnas, ("gc", "--keep", "1", "--grace-days", "0"))


def every_command_succeeds(dnas: str, *commands: tuple[str, ...]) -> None:
    for words in commands:
        code, _, err = commanded((*words, "-c", f"{dnas}/vdna"))
        if code:
            raise StorageError(err)


ROLES = {
    "build": images_are_built_and_compared,
    "read": results_are_read,
    "collect": garbage_is_removed,
}


def prepared(role: str) -> tuple[str, str]:
    """Returns buckets with images and with versions of another user."""
    images, dnas = new_bucket("images"), new_bucket("dnas")
    fill(f"{images}/a", 2)
    for seed in (2, 3) if role == "collect" else (2,):
        fill(f"{images}/b", 1, first_seed=seed)
        if seed > 2:  # an image that is gone leaves a list of images that nothing needs
            remove(f"{images}/b/photo-{seed - 1:04d}.jpg")
        kept = {"layer_gaussian": True, "exemplars": 1, "image_hashes": True}
        build(Catalogue(f"{dnas}/vdna"), "b", f"{images}/b", **kept)
        if role != "build":
            images_are_built_and_compared(images, dnas)
    return images, dnas


def copied(bucket: str) -> str:
    """Returns a new bucket with the same objects."""
    new, client = new_bucket("dnas"), boto3.client("s3")
    names = [b.removeprefix("s3://") for b in (bucket, new)]
    listed = client.list_objects_v2(Bucket=names[0])
    assert not listed["IsTruncated"]
    for item in listed["Contents"]:
        source = {"Bucket": names[0], "Key": item["Key"]}
        client.copy_object(Bucket=names[1], Key=item["Key"], CopySource=source)
    return new


@only_ceph(DENIED)
@pytest.mark.soak
@pytest.mark.parametrize("role", ROLES)
def test_a_policys_permissions_are_enough_and_each_is_needed(
    role: str, use: Callable[..., None]
) -> None:
    """With its file of infra/policies a role does its work; with a line less it does not.

    What the role reads was written by another user: Ceph lets everyone read their own objects.
    """
    user = f"{role}-{uuid.uuid4().hex}"
    access, secret = ceph.new_user(user)
    images, before = prepared(role)
    use({"AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret})

    def works(without: str = "") -> str:
        """Does the work, maybe without a statement; returns the catalogue's bucket."""
        dnas = copied(before)
        statements = policy_of(role, user, images, dnas)
        if role == "collect":  # Ceph asks for it when many objects are removed, and AWS does not
            removal = next(s for s in statements if s["Sid"] == "Remove")
            removal["Resource"].append(f"arn:aws:s3:::{dnas.removeprefix('s3://')}")
            time.sleep(1.1)  # what is removed is older than the second in which gc begins
        grant([s for s in statements if s["Sid"] != without], images, dnas)
        with pytest.raises(VdnaError, match="AccessDenied") if without else nullcontext() as caught:
            ROLES[role](images, dnas)
            if without:
                pytest.fail(f"{without} is not needed")
        if without == "ReadImages":  # that does not count as a failure of the images
            assert "2 of 2 shards" in str(caught and caught.value)
            grant(policy_of(role, user, images, dnas), dnas)
            assert list(Catalogue(f"{dnas}/vdna").head().datasets) == ["b"]
        return dnas

    after = works()
    statements = policy_of(role, user, images, before)
    for statement in statements:
        works(without=statement["Sid"])
    if role == "collect":
        gone = [set(contents(f"{bucket}/vdna")) for bucket in (before, after)]
        folders = {f"{key.split('/')[1]}/*" for key in gone[0] - gone[1]}
        named = {resource.partition("/vdna/")[2] for resource in statements[-1]["Resource"]}
        assert folders | {"_work/*"} == named  # where its probe was, as seen above


# Keys

ODD_KEYS = (
    *("a b.jpg", " lead.jpg", "trail .jpg", "a::b.jpg", "a%20b.jpg", "a%2Fb.jpg", "a+b.jpg"),
    *("a?b.jpg", "a#b.jpg", "&amp;<x>.jpg", "q?versionId=1.jpg", "q", "s3://b/x.jpg"),
    *("ä日本😀.jpg", "e\u0301.jpg", "\u00e9.jpg", "x\u2028y.jpg", "tab\tx.jpg", "new\nline.jpg"),
    *("quote'\".jpg", "back\\slash.jpg", "~tilde.jpg", "{a}.jpg", "[x].jpg", "*.jpg"),
    *("case.jpg", "CASE.jpg", "Case.JPG", "dir.jpg/inner.jpg", "/lead.jpg", "two//slashes.jpg"),
    *("./dot.jpg", "x/../up.jpg", "marked/photo.jpg", ("long/" * 200)[:950] + ".jpg"),
)


def test_every_key_that_s3_allows_is_listed_and_counted(root: str) -> None:
    source = f"{root}/odd"
    keys = [key for key in ODD_KEYS if s3.chosen() == "ceph" or "\n" not in key]  # moto: 404
    for seed, key in enumerate(keys):
        put(f"{source}/{key}", jpeg(seed))
    listing = list_source(source)
    found = {entry.uri: entry for entry in listing.entries}
    assert set(found) == {f"{source}/{key}" for key in keys}
    for seed, key in enumerate(keys):
        entry = found[f"{source}/{key}"]
        assert storage.read(entry.uri, entry.identity) == jpeg(seed), key
    result = build(Catalogue(f"{root}/dnas"), "odd", source, shard_images=64)
    assert (result.version.images, result.version.failed) == (len(keys), 0)


def test_markers_of_folders_are_not_counted_as_images(root: str) -> None:
    """Consoles make one for each folder, often more than the limit of failures allows."""
    for key in ("images/", "images/a/", "images/a/b/", "images/empty/"):
        put(f"{root}/{key}", b"")
    put(f"{root}/images/a/photo.jpg", jpeg(1))
    put(f"{root}/images/a/empty.jpg", b"")
    expected = [f"{root}/images/a/empty.jpg", f"{root}/images/a/photo.jpg"]
    assert [item.uri for item in storage.walk(f"{root}/images")] == expected
    assert [item.uri for item in storage.glob(f"{root}/images/**")] == expected


@only_ceph("moto is too slow for so many")
@pytest.mark.optional
@pytest.mark.soak
def test_thirty_thousand_keys_are_listed(s3_server: str) -> None:
    count, threads = 30_000, 32
    bucket = f"vdna-many-{uuid.uuid4().hex[:8]}"
    boto3.client("s3").create_bucket(Bucket=bucket, ACL="public-read-write")
    keys = [f"p/{number % 97:02d}/{number:06d}.jpg" for number in range(count)]

    def put_some(first: int) -> None:
        """Puts objects unsigned, since signing would take ten times as long as storing."""
        connection = http.client.HTTPConnection(s3_server.removeprefix("http://"))
        for key in keys[first::threads]:
            connection.request("PUT", f"/{bucket}/{key}", body=b"x")
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200, key
        connection.close()

    began = time.monotonic()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(put_some, range(threads)))
    middle = time.monotonic()
    listing = list_source(f"s3://{bucket}/p")
    took = time.monotonic() - middle
    print(f"{count} keys put in {middle - began:.0f} s, listed in {took:.0f} s")
    found = sorted(entry.uri for entry in listing.entries)
    assert found == sorted(f"s3://{bucket}/{k}" for k in keys)
    manifest = plan(listing)
    assert (manifest.candidates, manifest.duplicates) == (count, 0)


# Exclusive creation

ROUNDS = 20


def test_one_of_sixteen_threads_creates_an_object(root: str) -> None:
    barrier, told = threading.Barrier(16), queue.SimpleQueue[tuple[str, list[int]]]()
    with ThreadPoolExecutor(16) as pool:
        for mine in range(16):
            pool.submit(race, root, str(mine), ROUNDS, barrier, told)
    assert_one_winner_each(root, [told.get(timeout=60) for _ in range(16)])


@pytest.mark.soak
def test_one_of_four_processes_creates_an_object(root: str) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, told = context.Barrier(4), context.SimpleQueue()
    processes = [
        context.Process(target=race, args=(root, str(mine), ROUNDS, barrier, told))
        for mine in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
        assert process.exitcode == 0
        process.close()
    assert_one_winner_each(root, [told.get() for _ in range(4)])


def assert_one_winner_each(root: str, wins: list[tuple[str, list[int]]]) -> None:
    assert sorted(number for _, won in wins for number in won) == list(range(ROUNDS))
    expected = {f"{root}/{number}": mine.encode() for mine, won in wins for number in won}
    bucket, _, _ = root.removeprefix("s3://").partition("/")
    assert {f"s3://{bucket}/{key}": data for key, data in contents(root).items()} == expected


@pytest.mark.soak
def test_a_large_object_is_created_exclusively_too(root: str) -> None:
    """One PUT writes it, because Ceph ignores the condition of an upload in parts."""
    first, second = b"1" * 105_000_000, b"2" * 105_000_000  # s3fs cuts them, left alone
    assert storage.create(f"{root}/large", first)
    assert not storage.create(f"{root}/large", second)
    assert storage.info(f"{root}/large").identity == hashlib.md5(first).hexdigest()


# Versions, and uploads in parts


def test_an_upload_in_parts_is_known_by_the_etag_that_is_listed(root: str) -> None:
    """That ETag comes from the digests of the parts: other parts make another ETag."""
    data = random.Random(1).randbytes(11 * 2**20)
    for size, parts in ((5 * 2**20, 3), (8 * 2**20, 2)):
        upload(f"{root}/large", data, size)
        (item,) = storage.walk(root)
        assert item.identity.endswith(f"-{parts}")
        assert storage.info(item.uri).identity == item.identity
        assert storage.read(item.uri, item.identity) == data
        assert storage.read_range(item.uri, 6 * 2**20, 10, item.identity) == data[6 * 2**20 :][:10]
    replaced = storage.info(f"{root}/large").identity
    put(f"{root}/large", data)
    with pytest.raises(SourceError, match="changed between listing and reading"):
        storage.read(f"{root}/large", replaced)


def upload(uri: str, data: bytes, part: int) -> None:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    parts = TransferConfig(multipart_threshold=part, multipart_chunksize=part)
    boto3.client("s3").upload_fileobj(io.BytesIO(data), bucket, key, Config=parts)


def test_the_newest_version_of_an_object_counts() -> None:
    bucket = new_bucket("versions")
    boto3.client("s3").put_bucket_versioning(
        Bucket=bucket.removeprefix("s3://"), VersioningConfiguration={"Status": "Enabled"}
    )
    fill(f"{bucket}/images", 3)
    put(f"{bucket}/images/photo-0001.jpg", jpeg(99))
    remove(f"{bucket}/images/photo-0002.jpg")
    found = {item.uri: item.identity for item in storage.walk(f"{bucket}/images")}
    assert found == {
        f"{bucket}/images/photo-0000.jpg": hashlib.md5(jpeg(0)).hexdigest(),
        f"{bucket}/images/photo-0001.jpg": hashlib.md5(jpeg(99)).hexdigest(),
    }
    for uri, identity in found.items():
        storage.read(uri, identity)
    with pytest.raises(SourceError, match="changed between listing and reading"):
        storage.read(f"{bucket}/images/photo-0001.jpg", hashlib.md5(jpeg(1)).hexdigest())
    with pytest.raises(SourceError, match="does not exist"):
        storage.read(f"{bucket}/images/photo-0002.jpg")


@only_ceph("moto keeps the condition there, as AWS does")
def test_a_bucket_that_drops_the_condition_is_refused() -> None:
    """Ceph drops it in a bucket with versioning: every PUT makes a version there."""
    bucket = new_bucket("versions")
    fill(f"{bucket}/images", 1)
    place = Catalogue(f"{bucket}/dnas")
    name, client = bucket.removeprefix("s3://"), boto3.client("s3")
    client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    with pytest.raises(StorageError, match=r"overwrites an object.*buckets without versioning"):
        build(place, "a", f"{bucket}/images")
    assert contents(place.root) == {}
    client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Suspended"})
    result = build(place, "a", f"{bucket}/images")
    assert result.version.images == 1


# The whole job


@pytest.mark.soak
def test_a_whole_job_runs_by_commands() -> None:
    """One dataset is built on Ray and one without. Images and catalogue have a bucket each."""
    images, dnas = new_bucket("images"), new_bucket("dnas")
    fill(f"{images}/day", 5)
    put(f"{images}/day/cut.jpg", jpeg(50)[:-200])
    fill(f"{images}/night", 4, first_seed=60)
    secrets = {os.environ[n] for n in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    root = f"{dnas}/dnas"

    def vdna(*words: str, exits: int = 0) -> str:
        code, out, err = run((*words, "-c", root))
        assert code == exits, err
        assert "Traceback" not in err
        assert not [secret for secret in secrets if secret in out + err]
        return out

    day = ("build", "day", f"{images}/day", "--json", "--workers", "2")
    night = ("build", "night", f"{images}/night", "--json", "--workers", "0")
    assert json.loads(vdna(*day, exits=3))["error"] == "GateError"
    built = json.loads(vdna(*day, "--max-failures", "1"))
    assert (built["images"], built["failed"], built["counted_shards"]) == (5, 1, 0)
    assert json.loads(vdna(*night))["images"] == 4
    before = contents(root)
    assert json.loads(vdna(*night))["changed"] is False
    assert contents(root) == before
    assert [row["name"] for row in json.loads(vdna("ls", "--json"))] == ["day", "night"]
    assert "cut.jpg" in vdna("show", "day")
    vdna("compare", "--out", f"{dnas}/matrix.parquet")
    assert all(finding["ok"] for finding in json.loads(vdna("verify", "--json"))["findings"])
    vdna("gc", "--grace-days", "0")
    assert all(finding["ok"] for finding in json.loads(vdna("verify", "--json"))["findings"])
    table = pandas.read_parquet(f"{dnas}/matrix.parquet")
    apart = table.query("layer == 'all' and a == 'day' and b == 'night'")["emd"].item()
    assert apart > 0
    with duckdb.connect() as connection:
        connection.register_filesystem(fsspec.filesystem("s3"))
        query = f"select emd from '{dnas}/matrix.parquet' where layer = 'all' and a < b"
        assert connection.sql(query).fetchall() == [(apart,)]
        dna = f"select count(*), count(distinct layer) from '{root}/dna/*/day/*.parquet'"
        assert connection.sql(dna).fetchall() == [(3120, 18)]
