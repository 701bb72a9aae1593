"""A Ray task that lets a warm child process do work on what is not trusted."""

from __future__ import annotations

from functools import cache
from typing import Any

import ray

from modcap.tasks.workers.isolation import Child, Ended, Limits

__all__ = ["ask_isolated"]

_MEMORY = 512 << 20  # asked of Ray: what a child that imported torch has, and room


@cache
def _child(module: str, limits: Limits) -> Child:
    """One for each process of Ray's that is asked, kept between tasks."""
    return Child(module, limits)


@ray.remote(num_cpus=1, memory=_MEMORY, max_retries=2)
def ask_isolated(module: str, request: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """What ``python -m module`` answers, as ``answer``; or how its process ``ended``, and what it
    was ``doing`` then."""
    try:
        return {"answer": _child(module, limits).ask(request)}
    except Ended as ended:
        return {"ended": ended.how, "doing": ended.doing}
