"""What a deployment costs to run: memory and CPU of each service, and how its data grows.

    python -m benchmarks.deployed

Starts the services of Compose as ``make deployed`` does (root, Linux), looks at them idle and under
a sweep, then at what the sweep left in S3 and PostgreSQL, and what ``modcap store gc`` gives back.
Writes benchmarks/results/deployed.json and the tables of docs/deploy.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.pages import publish
from benchmarks.places import results
from tests.deployed.deployment import Deployment, deployed
from tests.deployed.hosts import Host

_TICKS = os.sysconf("SC_CLK_TCK")
_NETWORK = "fashion_mnist/checkpoints/resnet18_narrow.safetensors"
_GRID = (
    *("--checkpoint", _NETWORK, "--arch", "modcap.zoo:resnet18_narrow", "--data", "fashion-mnist"),
    *("--calibration", "64", "--iterations", "100", "--batch-size", "16", "--eval-images", "500"),
    *("--a-bits", "4", "--k", "0,1,2"),
)
_SIZES = """
import boto3, collections, json
sizes = collections.Counter()
for page in boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket="modcap"):
    for found in page.get("Contents", []):
        sizes[found["Key"].partition("/")[0]] += found["Size"]
print(json.dumps(sizes))
"""


def processes(host: Host) -> list[Path]:
    """Of a host: those in its network namespace."""
    words = ["ip", "netns", "pids", host.space]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return [Path("/proc", number) for number in done.stdout.split()]


def memory(host: Host) -> int:
    """Bytes, of pages that are shared each process's part."""
    total = 0
    for process in processes(host):
        try:
            text = (process / "smaps_rollup").read_text()
        except OSError:  # it has ended
            continue
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total << 10


def seconds(host: Host) -> dict[str, float]:
    """Of CPU, of each process and those of its children that ended."""
    found = {}
    for process in processes(host):
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found[process.name] = sum(map(int, fields[11:15])) / _TICKS
    return found


def watch(stack: Deployment, while_: Any) -> dict[str, dict[str, float]]:
    """Largest memory, and mean cores in use, of each host until ``while_`` says False."""
    hosts = {host.name: host for each in stack.hosts.values() for host in each}
    most = dict.fromkeys(hosts, 0)
    first = {name: seconds(host) for name, host in hosts.items()}
    last = {name: dict(found) for name, found in first.items()}
    start = time.monotonic()
    while while_():
        for name, host in hosts.items():
            most[name] = max(most[name], memory(host))
            last[name] |= seconds(host)
        time.sleep(2)
    wall = time.monotonic() - start
    used = {
        name: sum(value - first[name].get(number, 0) for number, value in found.items())
        for name, found in last.items()
    }
    return {
        name: {"mib": round(most[name] / 2**20), "cores": round(used[name] / wall, 2)}
        for name in hosts
    }


def sizes(stack: Deployment) -> dict[str, int]:
    """Bytes of each prefix of the bucket, and of each database."""
    done = stack.client.run("python", "-c", _SIZES)
    found = {f"s3 {name}/": size for name, size in json.loads(done.stdout).items()}
    password = {"PGPASSWORD": stack.values["POSTGRES_PASSWORD"]}
    for name in ("mlflow", "prefect"):
        ask = f"select pg_database_size('{name}')"
        words = ("psql", "-h", "postgres", "-U", "modcap", "-d", name, "-Atc", ask)
        asked = stack.hosts["postgres"][0].run(*words, environment=password)
        found[f"postgres {name}"] = int(asked.stdout)
    return found


def modcap(stack: Deployment, *words: str) -> dict[str, Any]:
    done = stack.client.run("modcap", *words, "--json", timeout=3000)
    assert done.returncode == 0, done.stderr[-3000:]
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def measure(stack: Deployment, idle: float, bits: str) -> dict[str, Any]:
    """All figures of a deployment that is up and did nothing yet."""
    until = time.monotonic() + idle
    resting = watch(stack, lambda: time.monotonic() < until)
    before = sizes(stack)
    with ThreadPoolExecutor(1) as pool:
        sweep = pool.submit(modcap, stack, "sweep", *_GRID, "--w-bits", bits)
        working = watch(stack, lambda: not sweep.done())
        said = sweep.result()
    after = sizes(stack)
    back = modcap(stack, "store", "gc", "--older-than", "0d")
    return {
        "idle": resting,
        "sweep": working,
        "jobs": said["jobs"]["executed"],
        "cells": len(said["cells"]),
        "before": before,
        "after": after,
        "after_gc": sizes(stack),
        "gc": back,
    }


def table_of_services(found: dict[str, Any]) -> str:
    rows = ["| service | idle: MiB | cores | under a sweep: MiB | cores |", "|---|---|---|---|---|"]
    for name, idle in found["idle"].items():
        busy = found["sweep"][name]
        rows.append(
            f"| {name} | {idle['mib']} | {idle['cores']} | {busy['mib']} | {busy['cores']} |"
        )
    return "\n".join(rows)


def table_of_growth(found: dict[str, Any]) -> str:
    rows = [
        "| | grew by, KiB | per 1,000 jobs, MiB | per cell, KiB | `store gc` gives back, KiB |",
        "|---|---|---|---|---|",
    ]
    for name, size in found["after"].items():
        grown = size - found["before"].get(name, 0)
        back = size - found["after_gc"].get(name, 0)
        jobs, cells = grown * 1000 / found["jobs"] / 2**20, grown / found["cells"] / 2**10
        rows.append(
            f"| {name} | {grown / 1024:.0f} | {jobs:.1f} | {cells:.0f} | {back / 1024:.0f} |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as place, deployed(Path(place), ray_worker=2) as stack:
        stack.client.run("ray", "start", "--address=ray-head:6379", "--num-cpus=0")
        found = measure(stack, 20 if quick else 60, "4" if quick else "2,4")
    results("deployed", quick).write_text(json.dumps(found, indent=1) + "\n")
    if not quick:
        said = f"{found['jobs']} jobs, {found['versions']} cells."
        publish("deploy.md", "services", table_of_services(found))
        publish("deploy.md", "growth", f"{table_of_growth(found)}\n\n{said}")


if __name__ == "__main__":
    main()
