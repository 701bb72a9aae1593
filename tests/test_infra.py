"""What cannot be started here is at least well formed, and says what it has to."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from modcap.infra.local import services as local_services
from modcap.infra.local.home import Home
from modcap.infra.s3.identities import ROLES
from tests.deployed import compose

INFRA = Path(__file__).parents[1] / "infra"


def read(name: str) -> Any:
    return yaml.safe_load((INFRA / name).read_text())


def test_ray_cluster_passes_rays_own_validation() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = read("ray/cluster.yaml")
    validate_config(prepare_config(config))
    for role in ("head", "worker"):  # nobody joins without the token, and no server is without one
        start = config[f"{role}_start_ray_commands"][-1]
        assert "RAY_AUTH_MODE=token RAY_enable_metrics_collection=0" in start
    assert list(config["file_mounts"]) == ["~/.ray/auth_token"]
    worker = config["available_node_types"]["gpu_spot"]
    assert worker["resources"]["GPU"] == 1
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_no_range_of_ports_is_that_of_every_stack_of_a_machine(tmp_path: Path) -> None:
    """Ray's workers listen at whatever is free; each of the other ports is one that was free."""
    home, state = Home.at(tmp_path), {"ports": {}}
    ports = dict(
        flag.removeprefix("--").split("=")
        for flag in local_services.service("ray", home, state, {}).command
        if re.match(r"--[a-z-]*port=", flag)
    )
    assert ports.pop("min-worker-port") == ports.pop("max-worker-port") == "0"
    assert set(map(int, ports.values())) == set(state["ports"].values())


def test_compose_keeps_secrets_out_and_ports_on_loopback() -> None:
    services = read("compose/compose.yaml")["services"]
    assert {"s3", "postgres", "mlflow", "prefect", "ray-head", "ray-worker", "worker"} == set(
        services
    )
    known = (
        "build image restart entrypoint command environment volumes ports healthcheck depends_on "
        "shm_size deploy"
    )
    named = dict.fromkeys(line.split("=")[0] for line in _lines("compose/example.env"))
    for service in services.values():
        assert set(service) <= set(known.split())
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        for variable, value in service.get("environment", {}).items():
            if variable == "AWS_ACCESS_KEY_ID":  # a name; the secret is beside it
                assert value in ROLES
            elif any(word in variable for word in ("KEY", "PASSWORD", "TOKEN", "SECRET")):
                assert value.removeprefix("${").removesuffix(":?}") in named


def test_every_server_of_compose_asks_for_a_secret_and_its_clients_have_it() -> None:
    services = read("compose/compose.yaml")["services"]
    login = "modcap:${PREFECT_PASSWORD:?}"
    assert services["prefect"]["environment"]["PREFECT_SERVER_API_AUTH_STRING"] == login
    mlflow = services["mlflow"]
    assert "--app-name basic-auth" in mlflow["command"][0]
    assert mlflow["environment"]["MLFLOW_AUTH_ADMIN_PASSWORD"] == "${MLFLOW_PASSWORD:?}"
    storage = services["s3"]["command"][0]  # its other ports stay inside the container
    assert "-ip.bind=127.0.0.1 -filer -filer.disableHttp" in storage
    for name in ("ray-head", "ray-worker", "worker"):
        environment = services[name]["environment"]
        assert environment["PREFECT_API_AUTH_STRING"] == login
        assert environment["MLFLOW_TRACKING_PASSWORD"] == "${MLFLOW_PASSWORD:?}"
        assert environment["RAY_AUTH_TOKEN"] == "${RAY_TOKEN:?}"
        assert environment["RAY_enable_metrics_collection"] == "0"


def test_every_kuberay_container_has_the_token() -> None:
    for name in ("base/raycluster", "rayjob"):
        spec = read(f"kubernetes/{name}.yaml")["spec"]
        spec = spec.get("rayClusterSpec", spec)
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            (container,) = group["template"]["spec"]["containers"]
            variables = {one["name"]: one for one in container["env"]}
            assert variables["RAY_AUTH_MODE"]["value"] == "token"
            assert variables["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]["name"] == "modcap-ray"


def _lines(name: str) -> list[str]:
    return [line for line in (INFRA / name).read_text().splitlines() if "=" in line]


@pytest.mark.parametrize("name", ["base/raycluster", "rayjob"])
def test_kuberay_manifests_have_what_the_resource_needs(name: str) -> None:
    manifest = read(f"kubernetes/{name}.yaml")
    assert manifest["apiVersion"] == "ray.io/v1"
    spec = manifest["spec"]
    cluster = spec["rayClusterSpec"] if manifest["kind"] == "RayJob" else spec
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        assert {"name", "image", "resources"} <= set(container)
    for worker in groups[1:]:
        assert worker["minReplicas"] <= worker["replicas"] <= worker["maxReplicas"]
        assert worker["groupName"]


@pytest.mark.parametrize(
    ("name", "writes"),
    [
        ("driver", {"jobs", "inputs", "artifacts", "scans", "leases", "doctor"}),
        ("worker", {"jobs", "inputs"}),
        ("server", {"mlflow"}),
        ("uploader", {"incoming"}),
    ],
)
def test_policies_grant_no_more_than_is_used(name: str, writes: set[str]) -> None:
    policy = json.loads((INFRA / f"s3/{name}.json").read_text())
    actions = {action for s in policy["Statement"] for action in s["Action"]}
    assert not any("*" in action for action in actions)
    put = [s["Resource"] for s in policy["Statement"] if "s3:PutObject" in s["Action"]]
    assert {place.split("/")[1] for places in put for place in places} == writes


def test_deployments_name_flows_that_exist() -> None:
    import importlib

    from prefect import Flow

    deployments = yaml.safe_load((INFRA.parent / "prefect.yaml").read_text())["deployments"]
    assert {d["name"] for d in deployments} == {"quantize", "sweep", "scan", "promote", "rollback"}
    for deployment in deployments:
        module, _, name = deployment["entrypoint"].rpartition(".")
        flow = getattr(importlib.import_module(module), name)
        assert isinstance(flow, Flow)
        flow.validate_parameters(deployment["parameters"]) if "parameters" in deployment else None


def test_kubernetes_work_pool_fills_every_placeholder_and_takes_secrets_by_name() -> None:
    template = json.loads((INFRA / "kubernetes/work-pool.json").read_text())
    variables = template["variables"]["properties"]
    configuration = json.dumps(template["job_configuration"])
    assert set(re.findall(r"{{ (\w+) }}", configuration)) <= set(variables)
    assert variables["image"]["default"] == "modcap:latest"
    pod = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["envFrom"] == [
        *({"configMapRef": {"name": name}} for name in ("modcap-store", "modcap-client")),
        *({"secretRef": {"name": name}} for name in ("modcap-s3", "modcap-servers", "modcap-ray")),
    ]


def test_compose_is_read_as_docker_compose_reads_it() -> None:
    given = {name: f"${name} 1" for name in compose.variables(INFRA / "compose/example.env")}
    found = compose.services(given)
    assert found["ray-head"].environment["RAY_AUTH_TOKEN"] == "$RAY_TOKEN 1"
    assert compose._filled("$$HOME ${A:?}", {"A": "$b"}) == "$HOME $b"  # the shell's own
    assert found["mlflow"].needs == {"postgres": True, "s3": True}
    assert found["postgres"].command == ()
    health = found["postgres"].health
    assert health is not None
    assert (health.command[:2], health.interval, health.retries) == (("/bin/sh", "-c"), 5.0, 24)
    with pytest.raises(KeyError):
        compose.services({})


def test_with_tls_clients_speak_https_to_the_proxy_and_nothing_else_is_published() -> None:
    file = INFRA / "compose/tls.yaml"
    named = re.findall(r"\${(\w+):\?}", file.read_text())
    example = (INFRA / "compose/example.env").read_text()
    assert all(f"#{name}=" in example for name in named)
    secrets = dict.fromkeys(compose.variables(INFRA / "compose/example.env"), "x")
    own = {name: f"/{name}" for name in named} | {"TLS_NAME": "modcap.test"}
    plain, found = compose.services(secrets), compose.services(secrets | own, file)
    for name in ("ray-head", "ray-worker", "worker"):
        environment = found[name].environment
        changed = {k: v for k, v in environment.items() if plain[name].environment.get(k) != v}
        addresses = {k: v for k, v in changed.items() if v.startswith("https://modcap.test:")}
        assert {"AWS_ENDPOINT_URL_S3", "MLFLOW_TRACKING_URI", "PREFECT_API_URL"} == set(addresses)
        (authority,) = set(changed.values()) - set(addresses.values())
        assert ("/TLS_AUTHORITY", authority) in found[name].volumes
    assert found["tls"].aliases == ("modcap.test",)
    assert {name for name, service in found.items() if service.ports} == {"tls"}


def test_nothing_is_installed_when_services_start() -> None:
    for service in read("compose/compose.yaml")["services"].values():
        assert "install" not in str(service.get("command", ""))
