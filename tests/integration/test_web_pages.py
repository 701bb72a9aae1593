"""Pages of others, in a browser on this machine: they start nothing, and read nothing."""

from __future__ import annotations

import base64
from urllib.parse import urlsplit

import httpx
import pytest

EVIL = {"Origin": "http://evil.example"}


def login(stack: dict[str, str], server: str) -> dict[str, str]:
    """What a browser that was logged in would send by itself."""
    both = {
        "prefect": stack["PREFECT_API_AUTH_STRING"],
        "mlflow": f"{stack['MLFLOW_TRACKING_USERNAME']}:{stack['MLFLOW_TRACKING_PASSWORD']}",
    }
    return {"Authorization": "Basic " + base64.b64encode(both[server].encode()).decode()}


def test_no_browser_keeps_the_password_of_prefect(stack: dict[str, str]) -> None:
    page = f"{stack['PREFECT_API_URL']}/flows/filter"
    refused = httpx.post(page, json={})
    assert refused.status_code == 401
    assert "www-authenticate" not in refused.headers  # it would ask for one, and send it ever after
    answered = httpx.post(page, json={}, headers=login(stack, "prefect") | EVIL)
    assert answered.status_code == 200
    assert "set-cookie" not in answered.headers
    assert "access-control-allow-origin" not in answered.headers


def test_mlflow_refuses_what_other_pages_send(stack: dict[str, str]) -> None:
    page = f"{stack['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/experiments/create"
    for odd in (EVIL, {"Host": "evil.example"}):
        found = httpx.post(page, json={"name": "evil"}, headers=login(stack, "mlflow") | odd)
        assert found.status_code == 403, odd
        assert "access-control-allow-origin" not in found.headers
    asked = f"{stack['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/experiments/get-by-name"
    there = httpx.get(asked, params={"experiment_name": "evil"}, headers=login(stack, "mlflow"))
    assert there.status_code == 404


@pytest.mark.parametrize(
    "server", ["PREFECT_API_URL", "MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL_S3"]
)
def test_no_server_gives_other_origins_leave(stack: dict[str, str], server: str) -> None:
    parts = urlsplit(stack[server])
    asked = EVIL | {"Access-Control-Request-Method": "POST"}
    found = httpx.options(f"{parts.scheme}://{parts.netloc}/api/flows/filter", headers=asked)
    assert found.headers.get("access-control-allow-origin") not in ("*", EVIL["Origin"])
