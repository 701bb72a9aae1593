"""Users of SeaweedFS, for ``-s3.config``: ``python infra/s3/identities.py > FILE``.

A user's access key is its name; its secret key is the variable ``S3_<NAME>_SECRET``. It may do, in
the bucket ``MODCAP_BUCKET``, what the policy of its name beside this file says: the same policies
that AWS and MinIO take. There is no user who may do everything.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["ROLES", "identities", "policy"]

ROLES = ("driver", "worker", "server", "uploader")


def policy(role: str, results: str, checkpoints: str) -> str:
    """The policy of a role (JSON), for the bucket of results and that of checkpoints."""
    text = (Path(__file__).parent / f"{role}.json").read_text()
    return text.replace("RESULTS", results).replace("CHECKPOINTS", checkpoints)


def identities(bucket: str, secrets: Mapping[str, str]) -> dict[str, Any]:
    """All users, for one bucket that holds checkpoints and results.

    Args:
        bucket: its name.
        secrets: the secret key of each role.
    """
    return {
        "identities": [
            {
                "name": role,
                "credentials": [{"accessKey": role, "secretKey": secrets[role]}],
                "policyNames": [role],
            }
            for role in ROLES
        ],
        "policies": [{"name": role, "content": policy(role, bucket, bucket)} for role in ROLES],
    }


def main() -> None:
    """Prints them as JSON."""
    secrets = {role: os.environ[f"S3_{role.upper()}_SECRET"] for role in ROLES}
    print(json.dumps(identities(os.environ["MODCAP_BUCKET"], secrets)))


if __name__ == "__main__":
    main()
