"""The four services: their commands, environments, and how each shows that it works."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import sys
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modcap.core.errors import InputError, ModcapError
from modcap.infra.local.certificates import certificates
from modcap.infra.local.home import Home
from modcap.infra.local.private import close_to_others, write_private

__all__ = ["NAMES", "Service", "service"]

NAMES = ("s3", "mlflow", "prefect", "ray")
BUCKET = "modcap"
USER = "modcap"  # who logs in, to MLflow and Prefect
QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_enable_metrics_collection": "0",  # they would be everybody's to read
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

    @property
    def digest(self) -> str:
        """Of all that it is started with."""
        text = json.dumps([self.command, dict(self.environment)])
        return hashlib.sha256(text.encode()).hexdigest()


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


def _answers(url: str, login: str) -> Callable[[], bool]:
    """Whether the page is there for who logs in with ``login`` (user:password)."""
    basic = base64.b64encode(login.encode()).decode()
    request = urllib.request.Request(url, headers={"Authorization": f"Basic {basic}"})

    def ask() -> bool:
        try:
            with urllib.request.urlopen(request, timeout=5) as response:
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
    sockets = home.sockets(state)
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
        *("-filer.disableHttp", "-s3.allowedOrigins=http://127.0.0.1"),
        *(f"-{part}.localSocket={sockets}/{part}" for part in ("filer", "s3")),
        *("-master.volumeSizeLimitMB=256", "-volume.max=0", "-master.telemetry=false"),
        *("-master.electionTimeout=1s", "-volume.preStopSeconds=1"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0"),
    )

    def ready() -> bool:
        return _can_write(exports)

    environment = _closed(home)
    return Service("s3", exports["AWS_ENDPOINT_URL_S3"], command, environment, exports, ready)


def _closed(home: Home) -> dict[str, str]:
    """SeaweedFS's parts talk to each other, over HTTP and gRPC, by certificate alone.

    Its S3 port asks for keys; the others would answer anyone on this machine.
    """
    files = certificates(home.folder("certificates"))
    closed = {"WEED_GRPC_CA": str(files["ca"]), "WEED_HTTPS_CLIENT_ENABLED": "true"}
    for part in ("MASTER", "VOLUME", "FILER", "S3", "CLIENT"):
        for protocol in ("GRPC", "HTTPS"):
            closed |= {f"WEED_{protocol}_{part}_{n.upper()}": str(f) for n, f in files.items()}
    for kind in ("", "READ_", "FILER_", "FILER_READ_"):
        known = (
            f"WEED_JWT_{kind.removesuffix('READ_')}SIGNING_{'READ_' if 'READ_' in kind else ''}KEY"
        )
        closed[known] = home.secret(known.lower())
    return closed


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
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{port},localhost:{port}",
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": f"{address},http://localhost:{port}",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": home.secret("mlflow_cookies"),
        "MLFLOW_AUTH_CONFIG_PATH": str(_users(home)),
        "MLFLOW_AUTH_ADMIN_USERNAME": USER,
        "MLFLOW_AUTH_ADMIN_PASSWORD": home.secret("mlflow_password"),
    }
    command = (
        *(program("mlflow"), "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--app-name", "basic-auth"),
        *("--workers", "1", "--backend-store-uri", f"sqlite:///{home.folder('mlflow')}/mlflow.db"),
        *("--artifacts-destination", f"s3://{bucket}/mlflow"),
    )
    password = home.secret("mlflow_password")
    exports = {
        "MLFLOW_TRACKING_URI": address,
        "MLFLOW_TRACKING_USERNAME": USER,
        "MLFLOW_TRACKING_PASSWORD": password,
    }
    page = f"{address}/api/2.0/mlflow/users/current"
    ready = _answers(page, f"{USER}:{password}")
    return Service("mlflow", address, command, environment, exports, ready)


def _users(home: Home) -> Path:
    """MLflow's list of users: one, who may do everything; nobody else may do anything."""
    file = home.folder("mlflow") / "users.ini"
    database = f"sqlite:///{file.with_suffix('.db')}".replace("%", "%%")
    text = (
        f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = {database}\n"
        "auth_cache_ttl_seconds = 300\n"  # a password costs 50 ms to check
    )
    write_private(file, text)
    return file


def _prefect(home: Home, state: dict[str, Any], clients: Mapping[str, str]) -> Service:
    port = home.port(state, "prefect")
    address = f"http://127.0.0.1:{port}/api"
    folder = home.folder("prefect")
    login = f"{USER}:{home.secret('prefect_password')}"
    environment = {
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_API_AUTH_STRING": login,
        "PREFECT_API_AUTH_STRING": login,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://127.0.0.1:{port}",
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder}/prefect.db",
        "PREFECT_UI_API_URL": address,
    }
    command = (program("prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port))
    exports = {"PREFECT_API_URL": address, "PREFECT_API_AUTH_STRING": login}
    ready = _answers(f"{address}/admin/version", login)
    return Service("prefect", address, command, environment, exports, ready)


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
    folder = home.sockets(state) / "ray"
    command = (
        *(program("ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1"),
        *("--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}"),
        # workers listen at whatever is free: several stacks may run on one machine
        *("--min-worker-port=0", "--max-worker-port=0", "--log-color=false"),
        *(f"--{part}={port}" for part, port in ports.items()),
        *_gpu_memory(),
    )
    # a job that ran out of memory comes back to the driver, which asks for more of it
    storage = {n: v for n, v in clients.items() if n.startswith(("AWS_", "MODCAP_"))}
    environment = {**storage, **exports, "OMP_NUM_THREADS": "1", "RAY_task_oom_retries": "0"}
    # two servers of metrics ask for no token and cannot be turned off: no such port, no server
    environment |= {"AUTOSCALER_METRIC_PORT": "65536", "DASHBOARD_METRIC_PORT": "65536"}

    def ready() -> bool:
        import subprocess

        asked = subprocess.run(
            [program("ray"), "health-check", "--address", exports["RAY_ADDRESS"]],
            env={**os.environ, **exports},
            capture_output=True,
            check=False,
        )
        close_to_others(folder)  # Ray opens what it makes to everybody
        return asked.returncode == 0

    return Service("ray", exports["RAY_ADDRESS"], command, environment, exports, ready)


def _gpu_memory() -> tuple[str, ...]:
    """Tells Ray how many bytes the smallest GPU has, so that jobs ask for shares of one."""
    import subprocess

    asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20).stdout
        least = min(int(line) for line in said.split())
    except (OSError, subprocess.SubprocessError, ValueError):  # there is none
        return ()
    return ("--resources", json.dumps({"gpu_memory": least << 20}))


_RAY_PORTS = (
    "port",
    "node-manager-port",
    "object-manager-port",
    "ray-client-server-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
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
