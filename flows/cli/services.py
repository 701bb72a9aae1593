"""The services that a command needs, and their words on the terminal."""

from __future__ import annotations

import os

from modcap.flows.execution import terminal

__all__ = ["connect_services", "find_store"]

_SILENT = {  # lines that C++ code writes to stderr of this process
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "GRPC_VERBOSITY": "NONE",
    "GLOG_minloglevel": "3",
}


def connect_services(*names: str) -> None:
    """Starts what is missing of them, all by default, and says what is waited for."""
    terminal.doing("connecting to S3, MLflow, Prefect and Ray")
    from modcap.flows.execution.connect import use_services

    use_services(*names, report=terminal.doing)
    if not terminal.verbose():  # what was started above has logs of its own, in full
        for name, level in _SILENT.items():
            os.environ.setdefault(name, level)
    terminal.doing("starting the run")


def find_store() -> None:
    """S3, where it runs already; nothing is started."""
    from modcap.flows.execution.connect import find_s3

    find_s3()
