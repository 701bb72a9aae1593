"""One more Ray node on this machine: ``python -m modcap.infra.local.node --cpus 1 --folder DIR``.

What ``ray start --address=HOST:PORT --block`` starts, with one difference: everything listens on
loopback alone. ``ray start`` replaces 127.0.0.1, in the head's address and in its own, with the
machine's other address. Every port is one that is free.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from modcap.infra.local.private import private_folder
from modcap.infra.local.services import QUIET

__all__ = ["main", "start"]

_LOOPBACK = "127.0.0.1"
_STORE_BYTES = 150 << 20  # jobs hand over less than that: their results go through S3


def start(address: str, cpus: int, folder: Path) -> None:
    """Joins the cluster at ``address`` and stays until the node ends or a signal comes.

    Args:
        address: host:port of the head, on loopback.
        cpus: that the node offers.
        folder: its working folder, for sessions, logs and the inputs that it keeps; its path must
            be short (at most some 36 characters), because sockets lie in it.
    """
    os.umask(0o077)
    folder = private_folder(folder, "--folder")
    os.environ["TMPDIR"] = str(folder)
    os.environ.update(QUIET)
    os.chdir(folder)
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    node = Node(
        RayParams(
            gcs_address=address,
            node_ip_address=_LOOPBACK,
            num_cpus=cpus,
            object_store_memory=_STORE_BYTES,
            temp_dir=str(folder / "ray"),  # which Ray opens to everybody
            min_worker_port=0,
            max_worker_port=0,
            node_manager_port=0,
            dashboard_agent_listen_port=None,
        ),
        head=False,
        shutdown_at_exit=True,
        spawn_reaper=True,
    )
    while not node.dead_processes():
        time.sleep(0.5)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="One more Ray node on this machine")
    parser.add_argument("--address", default=os.environ.get("RAY_ADDRESS"), help="of the head")
    parser.add_argument("--cpus", type=int, default=1)
    parser.add_argument("--folder", type=Path, required=True, help="a short path of its own")
    given = parser.parse_args()
    if not given.address:
        parser.error("no address: set RAY_ADDRESS, or give --address")
    start(given.address, given.cpus, given.folder.absolute())


if __name__ == "__main__":
    main()
