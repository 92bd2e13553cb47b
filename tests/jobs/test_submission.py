"""Tests `submit`, `jobs`, `logs` and `cancel` with a job server in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from jobs import submission
from jobs.app import app
from jobs.submission import COMMANDS, INPUTS, OUTPUTS
from pipeline import storage
from pipeline.catalogue import Catalogue
from pipeline.engine import SubmittedJob, job_server
from pipeline.engine.job_server import Submission
from pipeline.errors import TransientError, UsageError, VdnaError
from pipeline.networks import decode_ranges
from pipeline.reporting import job_lines
from tests.refreshing.test_config import one
from tests.support import tiny_network as tiny
from tests.support.memory_jobs import MemoryJobs
from tests.support.tiny_network import Picture

RUNNER = CliRunner()
AT = ("--ray-address", "http://head:8265")
BUILD = ("build", "a", "s3://images", "-c", "s3://dnas")
NO_PLACES = (
    *("name", "names", "near", "spec", "to", "at", "layers", "neurons", "taps", "exemplar_taps"),
    *("extractor", "decoder", "device", "sample", "include", "exclude", "image_column"),
    *("allow_query", "group_by", "by", "pair_by", "ray_address", "pushgateway", "metrics_port"),
    "against",
)
"""Words that name no file: a name in the catalogue, a pattern, a server."""
SECRET_NAMES = (
    "DB_PASS",
    "GITHUB_PAT",
    "MY_CREDENTIALS",
    "SLACK_WEBHOOK",
    "WEBHOOK_URL",
    "SSH_KEY",
)
SECRETS = (
    f"ghp_{'planted' * 4}",
    f"github_pat_{'planted' * 4}",
    f"glpat-{'planted' * 4}",
    f"AKIA{'PLANTED' * 2}00",
    f"xoxb-{'planted' * 4}",
    "https://hooks.slack.com/services/planted/planted",
    "eyJplantedplanted.eyJplanted.planted",
    "-----BEGIN PRIVATE KEY-----planted",
)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> MemoryJobs:
    server = MemoryJobs()
    monkeypatch.setattr("pipeline.engine.RayJobServer", lambda address: server)
    monkeypatch.setattr(job_server, "POLL_SECONDS", 0.0)
    monkeypatch.delenv("VDNA_CATALOGUE", raising=False)
    return server


def vdna(*words: object, exits: int = 0) -> Any:
    done = RUNNER.invoke(app, [str(word) for word in words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    assert done.exit_code == exits, done.output
    return done


def submitted(server: MemoryJobs, *words: object) -> Submission:
    vdna("submit", *words)
    return list(server.submitted.values())[-1]


# What is submitted


def test_the_words_after_the_command_s_name_are_its_own(server: MemoryJobs) -> None:
    words = (*BUILD, "--include", "*.png", "--json")
    assert submitted(server, *AT, *words) == Submission(words)
    [job] = server.known.values()
    assert job.command.endswith("--include '*.png' --json")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("build", "a", "s3://b", "-c", "s3://c", "--wrokers", "4"), "No such option"),
        (("build", "a"), "Missing argument"),
        (("build", "a", "s3://b"), "Missing option"),
        (("build", "a", "s3://b", "-c", "s3://c", "--bins", "1"), "bins is 1; it must be at least"),
        (("build", "a", "s3://b", "-c", "s3://c", "--workers", "-1"), "workers is -1"),
        (("biuld", "a"), "'biuld' cannot be submitted; these can: build, refresh"),
        (("serve", "-c", "s3://c"), "'serve' cannot be submitted"),
        ((*BUILD, "--ray-address", "auto"), "give --ray-address before build"),
        (("build", "a", "s3://b", "-c", "dnas"), "catalogue is 'dnas', which the cluster would"),
        (("build", "a", "photos", "-c", "s3://c"), "source is 'photos', a path of this machine"),
        (("build", "a", "file://photos", "-c", "s3://c"), "source is 'file://photos', a path of"),
        (("build", "a", "s3://b", "-c", "file://dnas"), "catalogue is 'file://dnas', which the"),
        ((*BUILD, "--weights", "w.pt"), "weights is 'w.pt', a path of this machine"),
        ((*BUILD, "--ranges", "r.parquet"), "ranges is 'r.parquet', a path of this machine"),
        (("compare", "-c", "s3://c", "--lens", "l.parquet"), "lens is 'l.parquet', a path of"),
        (("refresh",), "config is 'datasets.yaml', a path of this machine"),
        (("calibrate", "s3://b", "photos", "--out", "/mnt/r.parquet"), "sources is 'photos'"),
        (("compare", "-c", "s3://c", "--device", "cuda"), "device is 'cuda', but the command"),
        (("compare", "-c", "s3://c", "--html", "a.html"), "html is 'a.html', which the cluster"),
        (("build", "a", "s3://u:planted@h/b", "-c", "s3://c"), "carries a user name"),
        (("build", "a", "https://h/x?sig=planted", "-c", "s3://c"), "has a query"),
        (("build", "a", "s3://b", "--catalogue=https://h/x?sig=planted"), "has a query"),
        ((*BUILD, "--include", "token=planted"), "looks like a secret"),
        (("--env", "NOT_SET", *BUILD), "--env NOT_SET names no variable"),
        (("--env", "A=B", *BUILD), "give its name only"),
        (("--env", "AWS_SECRET_ACCESS_KEY", *BUILD), "looks like a secret"),
        (("--env", "VDNA_QUERY_KEY", *BUILD), "looks like a secret"),
        (("--env", "PLACE", *BUILD), "looks like a secret"),
        *((("--env", name, *BUILD), f"--env {name} looks like a secret") for name in SECRET_NAMES),
        *((("--env", "NOTE", *BUILD, "--include", text), "a secret") for text in SECRETS),
        (("--working-dir", "https://me:planted@h/a.zip", *BUILD), "carries a user name"),
        (("--working-dir", "https://h/a.zip?sig=planted", *BUILD), "has a query"),
    ],
)
def test_what_the_cluster_would_refuse_or_must_not_know_is_refused_here(
    server: MemoryJobs, words: tuple[str, ...], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted")
    monkeypatch.setenv("VDNA_QUERY_KEY", "planted")
    monkeypatch.setenv("NOTE", "as you like")
    for name in SECRET_NAMES:
        monkeypatch.setenv(name, "planted")
    monkeypatch.setenv("PLACE", "https://me:planted@host")
    done = vdna("submit", *AT, *words, exits=2)
    assert told in " ".join(done.stderr.replace("│", " ").split())
    assert "planted" not in done.output.lower()
    assert server.submitted == {}


@pytest.mark.parametrize("text", SECRETS)
def test_a_variable_with_a_token_of_a_known_service_is_refused(
    server: MemoryJobs, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTE", f"with {text}")
    assert (
        "--env NOTE looks like a secret" in vdna("submit", "--env", "NOTE", *BUILD, exits=2).stderr
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_REGION", "eu-central-1"),
        ("OMP_NUM_THREADS", "4"),
        ("RAY_AUTH_TOKEN_PATH", "/etc/ray/token"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/etc/aws/credentials"),
        ("MONKEY", "a"),
        ("DATASET_PATH", "s3://task-images/AKIA/eyJ"),
    ],
)
def test_a_variable_that_is_no_secret_goes_along(
    server: MemoryJobs, name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert submitted(server, "--env", name, *BUILD).environment == {name: value}


def test_a_query_that_the_command_allows_is_submitted(server: MemoryJobs) -> None:
    url = "https://h/list.txt?id=${VDNA_QUERY_ID}"
    words = ("build", "a", url, "-c", "s3://c", "--allow-query", "id")
    assert submitted(server, *words).words == words


def test_what_the_environment_gives_here_is_given_to_the_job(
    server: MemoryJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VDNA_CATALOGUE", "s3://dnas")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setenv("VDNA_METRICS_PORT", "9464")  # of this machine, and no cluster's
    job = submitted(server, "--env", "AWS_REGION", "build", "a", "s3://b")
    assert job.words == ("build", "--catalogue", "s3://dnas", "a", "s3://b")
    assert job.environment == {"AWS_REGION": "eu-central-1"}
    monkeypatch.setenv("VDNA_CATALOGUE", "dnas")
    vdna("submit", "build", "a", "s3://b", exits=2)
    monkeypatch.setenv("VDNA_CATALOGUE", "s3://me:planted@host/dnas")
    done = vdna("submit", "build", "a", "s3://b", exits=2)
    assert "carries a user name" in done.stderr
    assert "planted" not in done.output
    assert len(server.submitted) == 1
    monkeypatch.setenv("VDNA_CATALOGUE", "s3://dnas")
    words = ("refresh", "--config", "s3://b/night.yaml")
    done = vdna("submit", *words, exits=2)
    assert "s3://b/night.yaml may name another catalogue" in done.stderr
    assert submitted(server, *words, "-c", "s3://dnas").words == (*words, "-c", "s3://dnas")


def test_a_working_folder_lets_sources_be_relative(server: MemoryJobs, tmp_path: Path) -> None:
    (tmp_path / "night.yaml").write_text(one())
    folder = str(tmp_path)
    words = ("refresh", "--config", "night.yaml", "-c", "s3://dnas")
    assert submitted(server, "--working-dir", folder, *words) == Submission(
        words, working_dir=folder
    )
    vdna("submit", "--working-dir", folder, "refresh", "-c", "dnas", exits=2)


@pytest.mark.parametrize("command", ["refresh", "gc"])
@pytest.mark.parametrize("sees_folder", [True, False])
def test_the_catalogue_of_a_configuration_is_checked_as_an_option_is(
    server: MemoryJobs, tmp_path: Path, command: str, sees_folder: bool
) -> None:
    file = tmp_path / "night.yaml"
    folder = ("--working-dir", tmp_path) if sees_folder else ()
    words = (*folder, command, "--config", "night.yaml" if sees_folder else file)
    told = "catalogue is 'dnas', which the cluster would write to a folder of its own"
    file.write_text(f"catalogue: dnas\n{one()}")
    assert told in vdna("submit", *AT, *words, exits=2).stderr
    assert submitted(server, *AT, *words, "-c", "s3://dnas")
    file.write_text(f"catalogue: s3://dnas\n{one()}")
    assert submitted(server, *AT, *words)
    file.write_text("datasets: []")
    assert "night.yaml: datasets is []" in vdna("submit", *AT, *words, exits=2).stderr
    file.unlink()
    if sees_folder:
        told = f"config is 'night.yaml', and {tmp_path} has no such file"
        assert told in vdna("submit", *AT, *words, exits=2).stderr
    else:  # the cluster may have it
        assert submitted(server, *AT, *words)


@pytest.mark.parametrize(
    "words",
    [
        (*BUILD, "--ranges", "0123456789abcdef" * 2, "--weights", "file:///mnt/w.pt"),
        ("compare", "-c", "s3://c", "--lens", "pedestrians"),
    ],
)
def test_what_is_in_the_catalogue_or_shared_is_no_file_of_this_machine(
    server: MemoryJobs, words: tuple[str, ...]
) -> None:
    assert submitted(server, *words).words == words


def test_every_command_that_can_be_submitted_takes_a_cluster_and_its_places_are_known() -> None:
    group: Any = get_command(app)
    options = {p.name: p for name in COMMANDS for p in group.commands[name].params}
    words = {n for n, p in options.items() if p.type_descriptor.annotation in (str, list[str])}
    assert words == {*OUTPUTS, *INPUTS, *NO_PLACES}
    for name in COMMANDS:
        assert "ray_address" in {p.name for p in group.commands[name].params}


def test_the_help_of_a_command_is_shown_and_nothing_submitted(server: MemoryJobs) -> None:
    assert "--shard-images" in vdna("submit", "build", "--help").stdout
    assert server.submitted == {}


# How it goes on


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4])
def test_a_job_is_followed_to_its_end_and_its_exit_code_is_ours(
    server: MemoryJobs, code: int
) -> None:
    server.ends = ("failed" if code else "succeeded", code)
    done = vdna("submit", *AT, *BUILD, exits=code)
    [id] = server.known
    assert done.stdout.splitlines()[1:] == ["12 images", "nearly done"]
    ending = f"failed with exit code {code} after 0:01:02" if code else "succeeded after 0:01:02"
    assert done.stderr.splitlines() == [f"{id}: submitted to {server.address}", f"{id}: {ending}"]
    waited = vdna("submit", "--wait", *AT, *BUILD, exits=code)
    assert waited.stdout == ""
    hint = f"`vdna logs {id[:-1]}2{server.flags}` shows what it printed"
    assert (hint in waited.stderr) == bool(code)
    told = json.loads(vdna("submit", "--json", *AT, *BUILD, exits=code).stdout)
    assert (told["id"], told["exit_code"]) == (f"{id[:-1]}3", code)


@pytest.mark.parametrize("code", [0, 1])
def test_a_log_in_json_tells_a_job_that_succeeds_from_one_that_fails(
    server: MemoryJobs, code: int
) -> None:
    server.ends = ("failed" if code else "succeeded", code)
    done = vdna("submit", "--log-format", "json", "--wait", *AT, *BUILD, exits=code)
    told = [json.loads(line) for line in done.stderr.splitlines()]
    levels = [line["level"] for line in told if line["logger"] == "jobs.output"]
    assert levels == (["INFO", "ERROR", "INFO"] if code else ["INFO", "INFO"])


def test_wrong_options_of_a_command_that_is_submitted_are_an_error_of_submit(
    server: MemoryJobs,
) -> None:
    """It is printed in the format that submit was asked for."""
    words = ("submit", "--json", "--log-format", "json", *BUILD, "--bins", 0)
    done = vdna(*words, exits=2)
    told = json.loads(done.stdout)
    assert told["error"] == "UsageError"
    assert "bins is 0" in told["message"]
    *_, last = [json.loads(line) for line in done.stderr.splitlines()]
    assert (last["level"], last["message"]) == ("ERROR", f"error: {told['message']}")
    assert server.submitted == {}


def test_a_job_that_is_only_submitted_prints_its_id(server: MemoryJobs) -> None:
    server.ends = None
    printed = vdna("submit", "--no-follow", *AT, *BUILD).stdout
    [id] = server.known
    assert printed == f"{id}\n"
    done = vdna("submit", "--no-follow", *AT, *BUILD, exits=1)
    assert f"error: {id} is running and does just this" in done.stderr
    assert len(server.known) == 1


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[object, ...]:
    """Returns the words of a build of thirty images that the machines of a cluster could read."""
    for seed in range(30):
        storage.replace(f"memory://budget/{seed}.png", Picture("good", seed).data)
    (tmp_path / "prices.yaml").write_text("{worker_hour: 0, thousand_requests: 1000}")
    options = [word for k, v in tiny.install(tmp_path).options.items() for word in (f"--{k}", v)]
    return ("build", "a", "memory://budget", "-c", "memory://dnas", *options)


def test_a_build_that_may_cost_more_than_its_budget_is_not_submitted(
    server: MemoryJobs,
    pictures: tuple[object, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(submission, "_require_seen", lambda *_, **__: None)
    price = ("--price", tmp_path / "prices.yaml")
    cost = 30 + 6 * 16  # a request costs 1 USD; each image is one, and each shard six
    done = vdna("submit", *AT, *price, "--budget", cost - 1, *pictures, exits=2)
    said = f"would cost about {cost:.2f} USD ({cost:.2f} to {cost:.2f}), and --budget is {cost - 1}"
    assert said in done.stderr
    assert not server.known
    done = vdna("submit", "--no-follow", *AT, *price, "--budget", cost, *pictures)
    assert f"will cost about {cost:.2f} USD" in done.stderr
    assert len(server.known) == 1
    for words, says in (
        ((*AT, "--budget", 1, *pictures), "--budget needs the prices"),
        ((*AT, *price, "--budget", 1, "compare", "-c", "s3://c"), "--budget goes with build, and"),
    ):
        assert says in vdna("submit", *words, exits=2).stderr
    assert len(server.known) == 1
    done = vdna("submit", *AT, "--price", "p.yaml", *pictures, exits=2)
    assert "--budget says what a build may cost; without it p.yaml is not read" in done.stderr


def test_a_budget_is_for_the_build_that_the_cluster_would_run(
    server: MemoryJobs,
    pictures: tuple[object, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its catalogue may be in the template, its ranges there, and its source in a folder."""
    monkeypatch.setattr("pipeline.engine.KubeRayJobServer", lambda name, template: server)
    monkeypatch.chdir(tmp_path)
    budget = ("--price", "prices.yaml", "--budget", 1e6, "--no-follow")
    words, weights = list(pictures[:3]), pictures[pictures.index("--extractor") :]
    template = Path(__file__).parents[2] / "infra" / "kuberay" / "rayjob-build.yaml"
    at = ("--kubernetes", "vdna", "--template", template)
    vdna("submit", *at, *budget, *words, *weights)

    file = str(pictures[pictures.index("--ranges") + 1])
    data = Path(file).read_bytes()
    ranges, _ = decode_ranges(data, file)
    storage.create(Catalogue("memory://dnas").ranges_uri(ranges.digest), data)
    vdna("submit", *AT, *budget, *[ranges.digest if word == file else word for word in pictures])

    (tmp_path / "there" / "photos").mkdir(parents=True)
    for seed in range(5):
        path = tmp_path / "there" / "photos" / f"{seed}.png"
        path.write_bytes(Picture("good", seed).data)
    relative = ["photos" if word == "memory://budget" else word for word in pictures]
    done = vdna("submit", *AT, "--working-dir", "there", *budget, *relative)
    assert "photos will cost about" in done.stderr
    assert len(server.known) == 3
    assert Path.cwd() == tmp_path


@pytest.mark.parametrize("options", [(), ("--wait",)])
def test_ctrl_c_leaves_the_job_alone_and_says_how_to_come_back(
    server: MemoryJobs, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(_: object) -> None:
        raise KeyboardInterrupt  # a signal could end the process of all tests

    server.ends = None
    monkeypatch.setattr(server, "tail", pressed)
    monkeypatch.setattr(job_server, "sleep", pressed)
    done = vdna("submit", *options, *AT, *BUILD, exits=130)
    [id] = server.known
    assert server.job(id).state == "running"
    [back] = [line for line in done.stderr.splitlines() if line.startswith("the job goes on")]
    assert f"`vdna logs {id} --follow --ray-address http://head:8265`" in back


@pytest.mark.parametrize("kind", [UsageError, TransientError])
@pytest.mark.parametrize("options", [(), ("--wait",), ("--json",), ("--json", "--no-follow")])
def test_an_error_after_the_submission_names_the_job_and_exits_with_1(
    server: MemoryJobs,
    options: tuple[str, ...],
    kind: type[VdnaError],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """2 would mean that nothing was submitted."""

    def refused(_: object) -> None:
        raise kind("no right to read pods/log")

    monkeypatch.setattr(job_server, "SILENT_SECONDS", 0.0)
    monkeypatch.setattr(server, "job" if options else "tail", refused)
    server.ends = None
    done = vdna("submit", *options, *AT, *BUILD, exits=1)
    [id] = server.known
    assert f"no right to read pods/log. The job {id} may go on; `vdna logs {id} --fo" in done.stderr


def test_a_job_whose_log_cannot_be_read_keeps_its_exit_code(
    server: MemoryJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise TransientError("its log is away")

    monkeypatch.setattr(job_server, "SILENT_SECONDS", 0.0)
    monkeypatch.setattr(server, "tail", broken)
    done = vdna("submit", *AT, *BUILD)
    assert "the rest of what it printed cannot be read: its log is away" in done.stderr
    assert ": succeeded after" in done.stderr
    server.ends = ("failed", 3)
    vdna("submit", *AT, *BUILD, exits=3)


def test_a_job_that_never_began_tells_why(server: MemoryJobs) -> None:
    server.ends = ("failed", None)
    done = vdna("submit", *AT, *BUILD, exits=1)
    assert done.stderr.splitlines()[-1].endswith(
        "failed after 0:01:02: the cluster does not say why"
    )


# Looking back


def test_jobs_are_listed_with_their_state(server: MemoryJobs) -> None:
    assert vdna("jobs").stdout.split() == ["job", "state", "started", "took", "command"]
    server.ends = ("failed", 3)
    vdna("submit", *BUILD, exits=3)
    [id] = server.known
    [_, row] = vdna("jobs", *AT).stdout.splitlines()
    assert row.split() == [
        *(id, "failed", "(3)", "1970-01-01", "00:16:40", "0:01:02"),
        *("vdna", "build", "--ray-address", "auto", "a", "s3://images", "-c", "s3://dnas"),
    ]
    [told] = json.loads(vdna("jobs", "--json").stdout)
    assert (told["id"], told["state"], told["exit_code"]) == (id, "failed", 3)
    assert (told["started"], told["ended"]) == (1000, 1062)


def test_a_job_of_a_clock_that_is_ahead_has_taken_no_time() -> None:
    job = SubmittedJob("vdna-gc-0-1", "vdna gc", "running", started=1000.5)
    [_, row] = job_lines([job], now=999.0)
    assert row.split()[-3:] == ["0:00:00", "vdna", "gc"]


def test_logs_are_printed_so_far_or_to_the_end(server: MemoryJobs) -> None:
    server.ends = None
    vdna("submit", "--no-follow", *BUILD)
    [id] = server.known
    assert vdna("logs", id).stdout.splitlines()[1:] == ["12 images", "nearly "]
    server.printed[id] = "a \x1b[31m terminal\n"
    assert vdna("logs", id).stdout == "a \\x1b[31m terminal\n"
    server.end(id, "failed", 4)
    assert vdna("logs", id, "--follow", exits=4).stdout.splitlines()[-1] == "done"
    assert "error: no job 'x'" in vdna("logs", "x", exits=1).stderr


def test_a_cancelled_job_says_how_to_go_on(server: MemoryJobs) -> None:
    server.ends = None
    vdna("submit", "--no-follow", *BUILD, "--include", "*.png")
    [id] = server.known
    kept, again = vdna("cancel", id, *AT).stdout.splitlines()
    assert kept.startswith(f"{id} is cancelled. What it counted is kept")
    assert kept.endswith("; give it --working-dir and --env again if it had them:")
    flags = "--ray-address http://head:8265"
    assert again.strip() == f"vdna submit {flags} {' '.join(BUILD)} --include '*.png'"
    assert vdna("cancel", id).stdout == f"{id} had ended before: cancelled\n"
    assert json.loads(vdna("cancel", id, "--json").stdout)["exit_code"] == 143
    assert "error: no job 'x'" in vdna("cancel", "x", exits=1).stderr


def test_a_command_that_only_asks_a_server_imports_nothing_that_computes() -> None:
    code = (
        "import sys; from jobs.app import app; at = ['--ray-address', 'http://127.0.0.1:1'];"
        "app(['jobs', *at], standalone_mode=False);"
        "print(sorted({'torch', 'numba', 'timm', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "no Ray cluster answers at http://127.0.0.1:1" in done.stderr
    assert done.stdout == "[]\n"
