"""A scan of many small checkpoints: time, the driver's CPU and memory, and the size of databases.

    python -m benchmarks.scan [--checkpoints 20 100 1000]

Runs on the local stack, below a prefix of its own. Each checkpoint is the shipped VGG with a head
of its own, rounded to nearest, tested on 100 images and registered. A scan of one checkpoint goes
before each, and what it costs is taken off: imports, connections. Writes
benchmarks/results/scan.json, a row for each number of checkpoints; those of other numbers stay.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file, save

from benchmarks.places import CHECKPOINTS, HOME, results
from modcap.flows.execution.connect import use_services

NETWORK = "vgg_tiny"
_FACTORY = f"modcap.zoo:{NETWORK}"
_RECIPE = {"w_bits": 4, "method": "rtn", "k": 0, "calibration": 32}
_RULE = {
    "arch": _FACTORY,
    "data": "fashion-mnist",
    "eval_images": 100,
    "recipes": [{"fields": _RECIPE}],
}


def upload(place: str, numbers: range) -> None:
    """Checkpoints below an s3:// address, each with other weights."""
    from modcap.tasks.storage.objects import split_address
    from modcap.tasks.storage.s3 import client, endpoint_of_environment

    bucket, prefix = split_address(place)
    weights = load_file(CHECKPOINTS / f"{NETWORK}.safetensors")
    head = max(name for name in weights if name.endswith("weight"))
    s3 = client(endpoint_of_environment())
    for number in numbers:
        data = save({**weights, head: weights[head] + number / 1e5})
        name = prefix.replace("/", "-")
        s3.put_object(Bucket=bucket, Key=f"{prefix}/{name}-{number}.safetensors", Body=data)


def scan(place: str, policy: Path) -> dict[str, Any]:
    """What ``modcap scan`` of an s3:// address says, and what its process cost."""
    command = [sys.executable, "-m", "modcap.flows.cli", "scan", "--json", place]
    start = time.perf_counter()
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen([*command, "--policy", str(policy)], stdout=out)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        report = json.loads(out.read())
    states = [row["state"] for row in report["checkpoints"]]
    return {
        "registered": states.count("registered"),
        "jobs": report["executed"],
        "seconds": round(time.perf_counter() - start, 1),
        "driver_cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "driver_peak_mb": used.ru_maxrss >> 10,
    }


def databases() -> dict[str, int]:
    """Bytes of each database of the stack that are used, in its log of writes, too."""
    return {file.name: _bytes(file) for file in HOME.rglob("*.db") if file.is_file()}


def _bytes(file: Path) -> int:
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as found:
        (pages,), (unused,), (size,) = (
            found.execute(f"PRAGMA {what}").fetchone()
            for what in ("page_count", "freelist_count", "page_size")
        )
    return (pages - unused) * size


def measure(count: int) -> dict[str, Any]:
    """A scan of one checkpoint, one of ``count``, and the difference for each of the others."""
    prefix = f"scan-{uuid.uuid4().hex[:8]}"
    os.environ["MODCAP_PREFIX"] = prefix
    place = f"s3://{os.environ['MODCAP_BUCKET']}/{prefix}"
    with tempfile.TemporaryDirectory() as scratch:
        policy = Path(scratch) / "policy.yaml"
        policy.write_text(
            yaml.dump({"settle_seconds": 0, "factories": [_FACTORY], "rules": [_RULE]})
        )
        upload(f"{place}/one", range(1))
        one = scan(f"{place}/one", policy)
        upload(f"{place}/many", range(1, count + 1))
        before = databases()
        many = scan(f"{place}/many", policy)
    grown = {name: size - before.get(name, 0) for name, size in databases().items()}
    each = {
        "driver_cpu_seconds": round(
            (many["driver_cpu_seconds"] - one["driver_cpu_seconds"]) / count, 3
        ),
        "seconds": round((many["seconds"] - one["seconds"]) / count, 2),
        "database_bytes": {name: size // count for name, size in grown.items()},
    }
    return {"checkpoints": count, "one": one, "many": many, "each": each}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--checkpoints", type=int, nargs="+", default=[20, 100, 1000])
    parser.add_argument("--quick", action="store_true", help="20 checkpoints")
    args = parser.parse_args()
    use_services()
    path = results("scan", args.quick)
    rows = json.loads(path.read_text()) if path.exists() else []
    for count in [20] if args.quick else args.checkpoints:
        rows = [row for row in rows if row["checkpoints"] != count] + [measure(count)]
        rows.sort(key=lambda row: row["checkpoints"])
        path.write_text(json.dumps(rows, indent=1) + "\n")
        print(table(rows), flush=True)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| checkpoints | driver: CPU s, each | driver: peak | s, each | Prefect's database, each "
        "| MLflow's, each |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        each = row["each"]
        grown = each["database_bytes"]
        lines.append(
            f"| {row['checkpoints']:,} | {each['driver_cpu_seconds']:.3f} "
            f"| {row['many']['driver_peak_mb']} MB | {each['seconds']:.2f} "
            f"| {grown['prefect.db'] / 1000:.0f} kB | {grown['mlflow.db'] / 1000:.0f} kB |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
