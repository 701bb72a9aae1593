"""Where benchmarks find checkpoints, keep what they measured, and publish it."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parent.parent
CHECKPOINTS = ROOT / "examples/fashion_mnist/checkpoints"
DOCS = ROOT / "docs"
HOME = Path(os.environ.get("MODCAP_HOME", ROOT / ".modcap"))


def results(name: str, quick: bool = False) -> Path:
    """The file of what the benchmark ``name`` found; short forms have their own, not committed."""
    return ROOT / f"benchmarks/results/{name}{'_quick' if quick else ''}.json"
