"""The deployed stack from a client's side: hosts, PostgreSQL, passwords, by compose.yaml."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from modcap.core.serialization import digest
from modcap.recipe.recipe import Recipe
from tests.deployed.compose import services
from tests.deployed.deployment import NAME, Deployment, deployed
from tests.deployed.hosts import Host
from tests.integration.commands import ARCH, CHECKPOINT, ROOT, alone

pytestmark = [pytest.mark.deployed, pytest.mark.timeout(1800)]

OPTIONS: dict[str, Any] = {"calibration": 64, "optimiser": {"iterations": 10, "batch_size": 16}}
NETWORK = str(Path("/work") / CHECKPOINT.relative_to(ROOT / "examples"))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployed(tmp_path_factory.mktemp("deployed"), ray_worker=2) as made:
        joined = made.client.run("ray", "start", "--address=ray-head:6379", "--num-cpus=0")
        assert joined.returncode == 0, joined.stderr
        yield made


def modcap(stack: Deployment, *words: str, **environment: str) -> dict[str, Any]:
    done = stack.client.run("modcap", *words, "--json", environment=environment, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


FLAGS = (
    *("--arch", ARCH, "--data", "fashion-mnist", "--eval-images", "500", "--k", "2"),
    *("--calibration", "64", "--iterations", "10", "--batch-size", "16"),
)


@contextmanager
def started(stack: Deployment, name: str) -> Iterator[subprocess.Popen[str]]:
    """A run of some minutes of its own, under this name."""
    seed = str(int.from_bytes(name.encode()[-3:], "big"))
    own = ("--name", name, "--seed", seed, "--w-bits", "2", "--a-bits", "4", "--iterations", "400")
    process = stack.client.begin("modcap", "quantize", NETWORK, *FLAGS, *own, "--json")
    try:
        yield process
    finally:
        process.kill()


def keys_of(stack: Deployment, role: str) -> dict[str, str]:
    """Of a user of S3."""
    secret = stack.values[f"S3_{role.upper()}_SECRET"]
    return {"AWS_ACCESS_KEY_ID": role, "AWS_SECRET_ACCESS_KEY": secret}


def wait_for_jobs(stack: Deployment, process: subprocess.Popen[str]) -> None:
    """Until a worker computes."""
    until = time.monotonic() + 200
    while not any(_computes(host) for host in stack.hosts["ray-worker"]):
        assert process.poll() is None, process.communicate()[1][-2000:]
        assert time.monotonic() < until
        time.sleep(1)


def _computes(host: Host) -> bool:
    done = host.run("pgrep", "-f", "ray::[a-z]")
    return done.returncode == 0


@pytest.fixture(scope="module")
def report(stack: Deployment) -> dict[str, Any]:
    """Of the main job."""
    return modcap(stack, "quantize", NETWORK, *FLAGS, "--w-bits", "4", "--a-bits", "4")


def test_the_artifact_is_that_of_the_library(report: dict[str, Any]) -> None:
    assert report["fp_top1"] > 90
    recipe = Recipe.preset("quick", w_bits=4, a_bits=4, k=2, **OPTIONS)
    assert report["artifact_digest"] == digest(alone(recipe))


def test_a_sweep_shares_its_jobs(stack: Deployment, report: dict[str, Any]) -> None:
    grid = ("--w-bits", "2,4", "--a-bits", "4", "--k", "0,2")
    done = modcap(stack, "sweep", "--checkpoint", NETWORK, *FLAGS, *grid)
    assert len(done["cells"]) == 4
    assert done["jobs"]["executed"] < done["jobs"]["planned"]  # the main job's are there


def test_a_version_is_promoted_and_rolled_back(stack: Deployment, report: dict[str, Any]) -> None:
    gate = ("--data", "fashion-mnist", "--eval-images", "300", "--min-top1", "50")
    name = report["model_name"]
    first = modcap(stack, "promote", name, "--version", report["model_version"], *gate)
    assert first["passed"] is True
    again = modcap(stack, "quantize", NETWORK, *FLAGS, "--w-bits", "8", "--a-bits", "8")
    second = modcap(stack, "promote", name, "--version", again["model_version"], *gate)
    assert second["passed"] is True
    assert modcap(stack, "promote", name, "--rollback")["version"] == report["model_version"]


def test_a_scan_runs_on_its_schedule(stack: Deployment) -> None:
    """The deployment of prefect.yaml, every half minute instead of every quarter of an hour."""
    upload = (  # as an uploader, who may do nothing else
        "import boto3; s3 = boto3.client('s3'); "
        f"s3.upload_file({NETWORK!r}, 'modcap', 'incoming/landed.safetensors'); "
        "s3.put_object(Bucket='modcap', Key='incoming/landed.json', "
        f'Body=b\'{{"arch": "{ARCH}"}}\')'
    )
    done = stack.client.run("python", "-c", upload, environment=keys_of(stack, "uploader"))
    assert done.returncode == 0, done.stderr
    schedule = ("deployment", "schedule", "create", "scan/scan", "--interval", "30")
    made = stack.client.run("prefect", "--no-prompt", *schedule)
    assert made.returncode == 0, made.stderr
    ask = (
        "import mlflow, sys; c = mlflow.MlflowClient(); "
        "sys.exit(not c.search_model_versions(\"name = 'landed-w4a4'\"))"
    )
    until = time.monotonic() + 900
    while stack.client.run("python", "-c", ask).returncode:
        assert time.monotonic() < until, stack.hosts["worker"][0].log.read_text()[-3000:]
        time.sleep(10)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong"),
        ("MLFLOW_TRACKING_PASSWORD", "wrong"),
        ("PREFECT_API_AUTH_STRING", "modcap:wrong"),
        ("RAY_AUTH_TOKEN", "0" * 32),
    ],
)
def test_a_wrong_password_is_one_line(stack: Deployment, variable: str, value: str) -> None:
    flags = ("--name", "denied", "--no-compare", "--w-bits", "5")
    words = ("modcap", "quantize", NETWORK, *FLAGS, *flags)
    hurry = {"MODCAP_PATIENCE": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    done = stack.client.run(*words, environment={variable: value, **hurry}, timeout=300)
    assert done.returncode == 2, done.stderr[-2000:]
    assert done.stderr.strip().splitlines()[-1].startswith("modcap: ")
    assert "Traceback" not in done.stderr
    assert value not in done.stderr


@pytest.mark.parametrize(
    "variable",
    ["AWS_CA_BUNDLE", "MLFLOW_TRACKING_SERVER_CERT_PATH", "PREFECT_API_SSL_CERT_FILE"],
)
def test_a_server_of_an_unknown_authority_is_one_line(stack: Deployment, variable: str) -> None:
    """The authorities of the machine do not know that of the proxy."""
    words = ("modcap", "quantize", NETWORK, *FLAGS, "--name", "denied", "--no-compare")
    machine = {variable: "/etc/ssl/certs/ca-certificates.crt"}
    hurry = {"MODCAP_PATIENCE": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    done = stack.client.run(*words, environment=machine | hurry, timeout=300)
    assert done.returncode == 2, done.stderr[-2000:]
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("modcap: ")
    assert last.endswith(f"authority in {variable}")
    assert "Traceback" not in done.stderr


def test_nobody_speaks_to_the_proxy_without_tls(stack: Deployment) -> None:
    ask = "import urllib.request as r, sys; r.urlopen(sys.argv[1], timeout=5)"
    for port in (8333, 5000, 4200):
        done = stack.client.run("python", "-c", ask, f"http://{NAME}:{port}/")
        assert done.returncode != 0
        assert "400" in done.stderr  # Caddy's answer to plain HTTP at a port of TLS


@pytest.mark.parametrize("region", ["eu-central-1", "us-east-1"])
def test_a_client_is_well_in_any_region(stack: Deployment, region: str) -> None:
    done = stack.client.run(
        "modcap", "doctor", "--json", environment={"AWS_DEFAULT_REGION": region}
    )
    found = {each["check"]: each for each in json.loads(done.stdout)["findings"]}
    for service in ("S3", "MLflow", "Prefect", "Ray", "clock"):
        assert found[service]["state"] == "ok", found[service]


@pytest.mark.parametrize(
    ("role", "allowed", "denied"),
    [
        ("worker", "jobs/x", ["artifacts/x", "leases/x", "scans/x", "mlflow/x", "incoming/x"]),
        ("server", "mlflow/x", ["jobs/x", "inputs/x", "artifacts/x", "incoming/x"]),
        ("uploader", "incoming/x.txt", ["jobs/x", "inputs/x", "mlflow/x", "incoming2/x"]),
        ("driver", "doctor/x", ["mlflow/x", "incoming/x"]),
    ],
)
def test_a_user_of_s3_writes_only_where_its_work_is(
    stack: Deployment, role: str, allowed: str, denied: list[str]
) -> None:
    write = (
        "import boto3, sys\n"
        "for key in sys.argv[1:]:\n"
        "    try:\n"
        "        boto3.client('s3').put_object(Bucket='modcap', Key=key, Body=b'x')\n"
        "        print(key)\n"
        "    except Exception as error:\n"
        "        assert 'AccessDenied' in str(error), error\n"
    )
    words = ("python", "-c", write, allowed, *denied)
    done = stack.client.run(*words, environment=keys_of(stack, role))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [allowed]


def test_within_the_network_it_works_without_tls_too(
    stack: Deployment, report: dict[str, Any]
) -> None:
    """With the addresses of compose.yaml alone."""
    plain = services(stack.values)["worker"].environment
    flags = ("--w-bits", "4", "--a-bits", "4", "--k", "1")
    done = modcap(stack, "quantize", NETWORK, *FLAGS, *flags, **plain)
    assert done["jobs"]["executed"] < done["jobs"]["planned"]  # it is the same store


def test_a_worker_host_whose_cable_is_pulled_costs_no_run(stack: Deployment) -> None:
    """Thirty seconds without it, in mid-run; then it is back."""
    host = stack.hosts["ray-worker"][0]
    with started(stack, "cable") as run:
        wait_for_jobs(stack, run)
        stack.network.cable(host, plugged=False)
        time.sleep(30)
        stack.network.cable(host, plugged=True)
        out, error = run.communicate(timeout=900)
    assert run.returncode == 0, error[-3000:]
    assert json.loads(out)["model_version"]


@pytest.mark.parametrize("name", ["mlflow", "prefect", "postgres"])
def test_a_service_restarts_in_mid_run(stack: Deployment, name: str) -> None:
    with started(stack, f"restart-{name}") as run:
        wait_for_jobs(stack, run)
        stack.stop(name)
        time.sleep(3)
        stack.start(name)
        stack.wait(name)
        out, error = run.communicate(timeout=900)
    assert run.returncode == 0, error[-3000:]
    assert json.loads(out)["model_version"]


def test_every_worker_host_is_replaced_in_mid_run(stack: Deployment) -> None:
    """One comes, and those that there were go for good, with the jobs that they held."""
    with started(stack, "replaced") as run:
        wait_for_jobs(stack, run)
        before = [*stack.hosts["ray-worker"]]
        new = stack.grow("ray-worker")
        until = time.monotonic() + 200
        while not _computes(new):
            assert run.poll() is None, run.communicate()[1][-2000:]
            assert time.monotonic() < until
            if new.run("pgrep", "raylet").returncode == 0:
                for host in before[:]:
                    stack.shrink("ray-worker", host)
                    before.remove(host)
            time.sleep(1)
        out, error = run.communicate(timeout=900)
    assert run.returncode == 0, error[-3000:]
    assert json.loads(out)["model_version"]
