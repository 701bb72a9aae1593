"""What all tests share."""

from __future__ import annotations

import os

# Before any import of the packages that read them: no service that is configured takes part, and
# whatever runs beside others has one thread.
for _name in list(os.environ):
    if _name.startswith(("AWS_", "MLFLOW_", "PREFECT_", "RAY_", "MODCAP_")):
        del os.environ[_name]
os.environ |= {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_NUM_THREADS": "1",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # as the command line sets it
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # stay on loopback, as the stack does
    "RAY_USAGE_STATS_ENABLED": "0",
}


def pytest_make_parametrize_id(val: object) -> str | None:
    """Short names for long texts and bytes: a name travels, and one input here has 100 MiB."""
    return ascii(val[:40]) if isinstance(val, str | bytes) and len(val) > 60 else None
