"""How fast the command line answers: what it imports before it has work to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "examples/fashion_mnist/checkpoints"
GOOD = [
    str(SHIPPED / "resnet18_narrow.safetensors"),
    "--arch",
    "modcap.zoo:resnet18_narrow",
    "--json",
]
CLIENTS = {"mlflow", "prefect", "ray", "boto3", "botocore"}
HEAVY = CLIENTS | {"torch", "torchvision", "matplotlib"}


def imported(arguments: list[str], home: Path) -> set[str]:
    """Which heavy packages a command imports, in a process of its own."""
    code = (
        "import sys\n"
        "from modcap.flows.cli import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        f"print('found:', *({HEAVY!r} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={"PATH": "", "MODCAP_HOME": str(home), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    (said,) = [line for line in done.stdout.splitlines() if line.startswith("found:")]
    return set(said.split()[1:])


@pytest.mark.parametrize("arguments", [["--help"], ["quantize", "-h"], ["--version"]])
def test_help_does_not_wait_for_torch(arguments: list[str], tmp_path: Path) -> None:
    assert imported(arguments, tmp_path) == set()


@pytest.mark.parametrize("command", ["capacity", "plan"])
def test_what_starts_nothing_imports_no_client(command: str, tmp_path: Path) -> None:
    found = imported([command, *GOOD, *(["--method", "rtn"] * (command == "plan"))], tmp_path)
    assert found & CLIENTS == set()
