"""What the store loses, or what diverges, costs that alone: one run mends all, or says it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from modcap.tasks.storage.objects import cache_folder
from modcap.tasks.storage.s3 import client
from modcap.tasks.storage.store import Store
from tests.integration.commands import modcap_command, sweep_arguments
from tests.integration.copies import copied

RECIPE: dict[str, Any] = {
    "scale_exponent": 2.0,  # found in half the time
    "calibration": 48,
    "optimiser": {"iterations": 2, "batch_size": 16},
    "homogeneity": "any",
    "schedule": "waves",
    "tuning": 8,
    "k_search": 1.0,
}
GRID = ("--w-bits", "4", "--k", "1,auto")
KINDS = {"capacity", "select", "reconstruct", "correct", "choose", "tune", "assemble", "evaluate"}


@pytest.fixture
def placed(stack: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Store:
    for name, value in stack.items():
        monkeypatch.setenv(name, value)
    return Store(stack["MODCAP_BUCKET"], "damage", stack["AWS_ENDPOINT_URL_S3"])


def sweep(stack: dict[str, str], folder: Path, prefix: str = "damage") -> dict[str, Any]:
    done = modcap_command(stack, *sweep_arguments(folder, RECIPE, *GRID), MODCAP_PREFIX=prefix)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.fixture(scope="module")
def report(stack: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return sweep(stack, tmp_path_factory.mktemp("whole"))


@pytest.fixture
def copy(report: dict[str, Any], placed: Store, tmp_path: Path) -> Store:
    """All that the sweep of ``report`` left, which a test may damage."""
    return copied(placed, f"damage-{tmp_path.name}")


HARM: list[Callable[[bytes], bytes | None]] = [
    lambda data: data[: len(data) // 2],  # an upload that was cut
    lambda data: None,
    lambda data: b"",
    lambda data: b"[1, 2]",
    lambda data: b'{"meta": {}, "sha256": "", "tensors_sha256": "../../x"}',
    lambda data: b"[" * 100_000,
    lambda data: b'{"meta": NaN, "sha256": "x", "tensors_sha256": 5}',
    lambda data: data[:-9] + b"\xff\xfe" + data[-7:],
    lambda data: data.replace(b"1", b"2"),
]


def harm(store: Store, kinds: set[str], part: str) -> int:
    """Damages results of these kinds, each in another way; says of how many jobs."""
    results = {key: (store.meta(key) or {}).get("kind") for key in list(store.keys())}
    assert set(results.values()) == KINDS
    count = 0
    for index, (key, kind) in enumerate(sorted(results.items())):
        if kind not in kinds:
            continue
        for entry in list(store.entries("jobs")):
            if entry.key != key or not entry.name.endswith(part) or "damaged-" in entry.name:
                continue
            found = store.get_document(entry.name)
            assert found is not None
            bad = HARM[index % len(HARM)](found[0])
            if bad is None:
                store.delete_document(entry.name)
            else:
                store.put_document(entry.name, bad)
            count += bad != found[0]
    return count


@pytest.mark.parametrize("part", ["result.json", ".safetensors"])
@pytest.mark.parametrize("kinds", [{"evaluate"}, KINDS], ids=["one kind", "all"])
def test_one_run_mends_whatever_is_damaged(
    stack: dict[str, str],
    report: dict[str, Any],
    copy: Store,
    tmp_path: Path,
    kinds: set[str],
    part: str,
) -> None:
    harmed = harm(copy, kinds, part)
    assert harmed >= (0 if part == ".safetensors" and kinds != KINDS else 2)
    again = sweep(stack, tmp_path, copy.prefix)
    for name in ("artifact_digest", "top1", "losses"):
        assert [cell[name] for cell in again["cells"]] == [cell[name] for cell in report["cells"]]
    assert list(copy.verify()) == []
    assert len(set(copy.keys())) == again["jobs"]["planned"]
    assert sweep(stack, tmp_path, copy.prefix)["jobs"]["executed"] == 0


def test_damaged_inputs_are_put_there_again(
    stack: dict[str, str], report: dict[str, Any], copy: Store, tmp_path: Path
) -> None:
    """Of the same size and age, so that the upload before the run sees nothing."""
    for entry in list(copy.entries("inputs")):
        found = copy.get_document(entry.name)
        assert found is not None
        copy.put_document(entry.name, found[0][:-1] + bytes([found[0][-1] ^ 1]))
        (cache_folder("inputs") / entry.key).unlink(missing_ok=True)
    copy.remove(list(copy.entries("jobs")))
    arguments = sweep_arguments(tmp_path, RECIPE, *GRID)
    done = modcap_command(stack, *arguments, MODCAP_PREFIX=copy.prefix)
    assert done.returncode == 0, done.stderr
    assert "put there again" in done.stderr
    again = json.loads(done.stdout)
    assert [c["artifact_digest"] for c in again["cells"]] == [
        c["artifact_digest"] for c in report["cells"]
    ]


def test_a_diverged_cell_is_a_row_and_the_others_finish(
    stack: dict[str, str], tmp_path: Path
) -> None:
    recipe = RECIPE | {
        "optimiser": {"iterations": 20, "batch_size": 16, "rounding_rate": 1e38},
        "tuning": 0,
        "correction": False,
    }
    flags = ("--w-bits", "4", "--k", "0", "--method", "rtn", "--method", "adaround")
    arguments = sweep_arguments(tmp_path, recipe, *flags)
    mlflow = MlflowClient(stack["MLFLOW_TRACKING_URI"])
    executed = []
    for _ in range(2):
        done = modcap_command(stack, *arguments, MODCAP_PREFIX="diverged")
        assert done.returncode == 1, done.stderr
        last = done.stderr.splitlines()[-1]
        assert "1 of 2 cells failed" in last
        assert "loss is" in last
        said = json.loads(done.stdout)
        rows = {row["recipe"]["method"]: row for row in said["cells"]}
        assert rows["rtn"]["state"] == "finished"
        assert rows["rtn"]["top1"] > 10
        assert rows["adaround"]["state"] == "failed"
        assert "the loss is" in rows["adaround"]["reason"]
        assert said["best"] == {"resnet18_narrow": rows["rtn"]["name"]}
        run = mlflow.get_run(said["mlflow_run_id"])
        assert run.info.status == "FAILED"
        assert "1 of 2 cells failed" in run.data.tags["modcap.reason"]
        assert run.data.metrics["cells_failed"] == 1
        nested = mlflow.get_run(rows["rtn"]["mlflow_run_id"])
        assert nested.data.tags["mlflow.parentRunId"] == said["mlflow_run_id"]
        executed.append(said["jobs"]["executed"])
    assert executed[0] > executed[1] == 0
    running = mlflow.search_runs(
        [run.info.experiment_id], "attributes.status = 'RUNNING'", max_results=50
    )
    assert not running


def test_whatever_ends_a_sweep_ends_its_run(
    stack: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from modcap.flows.registry.mlflow_runs import closing, closing_parent, reaching, start_parent

    for name, value in stack.items():
        monkeypatch.setenv(name, value)
    parent = start_parent("modcap", "broken off", "broken off")
    with pytest.raises(KeyboardInterrupt), closing_parent(parent):
        raise KeyboardInterrupt
    mlflow = MlflowClient(stack["MLFLOW_TRACKING_URI"])
    assert mlflow.get_run(parent.run_id).info.status == "FAILED"
    other = start_parent("modcap", "broken off too", "broken off too")
    with reaching() as connected, pytest.raises(ValueError), closing(connected, other.run_id):  # noqa: PT011
        raise ValueError("why")
    run = mlflow.get_run(other.run_id)
    assert (run.info.status, run.data.tags["modcap.reason"]) == ("FAILED", "why")


@pytest.mark.parametrize("count", [3, 1500])
def test_done_asks_for_what_it_wants_alone(
    placed: Store, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """However much else there is; a small store is listed once for very many."""
    from modcap.core.serialization import Result, digest

    store = Store(placed.bucket, "few", placed.endpoint)
    keys = [digest(str(i).encode()) for i in range(count)]
    for key in keys[:3]:
        store.put(key, Result(meta={}))
    assert store.done(keys) == set(keys[:3])
    listings = []
    monkeypatch.setattr(Store, "keys", lambda self: listings.append(1) or iter(()))
    monkeypatch.setattr(Store, "_objects", lambda self, start: 1e7)
    assert store.done(keys) == set(keys[:3])
    assert not listings


def test_the_size_of_a_store_is_seen_on_one_page(placed: Store) -> None:
    from modcap.core.serialization import digest

    store = Store(placed.bucket, "pages", placed.endpoint)
    assert store._objects("jobs/") == 0
    s3 = client(store.endpoint)
    for i in range(1300):
        s3.put_object(
            Bucket=store.bucket, Key=store._name(f"jobs/{digest(str(i).encode())}/x"), Body=b""
        )
    assert 1000 < store._objects("jobs/") < 1600
