"""Hosts of our own: each a network namespace on one bridge, with the root of an image and a name.

What a container gets from Docker, made of what Linux gives to root: network, mount and process
namespaces (``ip``, ``unshare``, ``nsenter``) and overlayfs. Nothing of the machine is changed: its
files are the lowest layer, which is only read, and no host reaches anything but the others.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess

__all__ = ["Host", "Network", "Root", "disk", "run"]

_ENTER = """
set -e
merged=$1 options=$2 name=$3 user=$4 folder=$5 as=$6; shift 6
mount -t overlay overlay -o "$options" "$merged"
mount --rbind /dev "$merged/dev"
mount --rbind /sys "$merged/sys"
mount -t proc proc "$merged/proc"
mount -t tmpfs -o mode=1777 tmpfs "$merged/tmp"
while [ "$1" != -- ]; do mount --bind "$1" "$merged$2"; shift 2; done; shift
hostname "$name"
exec chroot "$merged" /bin/sh -ec "$as" enter "$folder" "$user" "$@"
"""
_AS = """
cd "$1"; user=$2; shift 2
exec setpriv --reuid "$user" --regid "$user" --clear-groups -- "$@"
"""


def run(*words: str | Path) -> None:
    """A command that must succeed."""
    subprocess.run([str(word) for word in words], check=True, capture_output=True)


@contextmanager
def disk(file: Path, place: Path, gigabytes: int = 40) -> Iterator[Path]:
    """A file system of its own in a file that grows, since overlayfs takes no layer that lies in
    another one; mounted at ``place``, and kept."""
    if not file.exists():
        run("truncate", "-s", f"{gigabytes}G", file)
        run("mkfs.ext4", "-q", file)
    place.mkdir(parents=True, exist_ok=True)
    run("mount", "-o", "loop", file, place)
    try:
        yield place
    finally:
        run("umount", "--lazy", place)


class Root:
    """A root folder of layers: the machine's below, then those of an image, then its own."""

    def __init__(self, folder: Path, layers: Sequence[Path] = ()) -> None:
        """``layers``: from the lowest to the highest; only what is in ``folder`` is written."""
        self.layers = [*layers]
        self.own, self._work, self._merged = (folder / n for n in ("own", "work", "merged"))
        for place in (self.own, self._work, self._merged):
            place.mkdir(parents=True, exist_ok=True)

    def command(
        self,
        words: Sequence[str],
        name: str = "build",
        user: str = "root",
        folder: str = "/",
        mounts: Mapping[str, Path] | None = None,
    ) -> list[str]:
        """What runs ``words`` inside, as the first process of namespaces of its own."""
        lower = ":".join(map(str, [*reversed(self.layers), "/"]))
        options = f"lowerdir={lower},upperdir={self.own},workdir={self._work}"
        binds = [str(part) for place, source in (mounts or {}).items() for part in (source, place)]
        return [
            *("unshare", "--mount", "--pid", "--uts", "--fork", "--"),
            *(
                "/bin/sh",
                "-c",
                _ENTER,
                "enter",
                str(self._merged),
                options,
                name,
                user,
                folder,
                _AS,
            ),
            *(*binds, "--", *words),
        ]

    def write(self, place: str, text: str) -> None:
        """A file of this layer; while nothing runs in it."""
        file = self.own / place.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


class Network:
    """A bridge, in a namespace of its own, and the hosts on it."""

    def __init__(self, prefix: str) -> None:
        self.prefix, self.hosts = prefix, dict[str, Host]()
        self._switch = f"{prefix}-switch"
        run("ip", "netns", "add", self._switch)
        self._ip("link", "add", "bridge", "type", "bridge")
        self._ip("addr", "add", "10.213.0.1/24", "dev", "bridge")
        self._ip("link", "set", "bridge", "up")

    def _ip(self, *words: str) -> None:
        run("ip", "-n", self._switch, *words)

    def add(self, name: str, root: Root, user: str, environment: Mapping[str, str]) -> Host:
        """A new host, which the others know by ``name`` once :meth:`name_all` was called."""
        number = len(self.hosts) + 2
        space, link = f"{self.prefix}-{name}", f"host{number}"
        run("ip", "netns", "add", space)
        self._ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
        self._ip("link", "set", link, "master", "bridge", "up")
        for words in (
            ("addr", "add", f"10.213.0.{number}/24", "dev", "eth0"),
            ("link", "set", "lo", "up"),
            ("link", "set", "eth0", "up"),
            ("route", "add", "default", "via", "10.213.0.1"),  # which leads nowhere
        ):
            run("ip", "-n", space, *words)
        host = Host(name, f"10.213.0.{number}", space, root, user, environment)
        self.hosts[name] = host
        return host

    def name_all(self) -> None:
        """Every host that is not running yet learns the names of all."""
        for host in self.hosts.values():
            self.name(host)

    def name(self, host: Host) -> None:
        """A host that is not running yet learns the names of all."""
        names = [" ".join([h.address, h.name, *h.aliases]) for h in self.hosts.values()]
        host.root.write("etc/hosts", "\n".join(["127.0.0.1 localhost", *names, ""]))
        host.root.write("etc/resolv.conf", "")

    def cable(self, host: Host, plugged: bool) -> None:
        """Pulls the network cable of a host, or plugs it in."""
        number = host.address.rpartition(".")[2]
        self._ip("link", "set", f"host{number}", "up" if plugged else "down")

    def close(self) -> None:
        """Ends everything on every host, and removes the network."""
        for host in self.hosts.values():
            host.stop(grace=0)
            subprocess.run(["ip", "netns", "del", host.space], check=False)
        subprocess.run(["ip", "netns", "del", self._switch], check=False)


class Host:
    """One host; its first process is its service, and ends with it."""

    def __init__(
        self,
        name: str,
        address: str,
        space: str,
        root: Root,
        user: str,
        environment: Mapping[str, str],
    ) -> None:
        self.name, self.address, self.space, self.root = name, address, space, root
        self.user, self.environment = user, dict(environment)
        self.mounts: dict[str, Path] = {}
        self.aliases: tuple[str, ...] = ()
        self.folder = "/"
        self._main: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.root.own.parent / "log"

    def start(self, words: Sequence[str]) -> None:
        """Starts its service."""
        inside = self.root.command(words, self.name, self.user, self.folder, self.mounts)
        with self.log.open("ab") as log:
            self._main = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self.space}", "--", *inside],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def started(self) -> bool:
        """Was it, ever?"""
        return self._main is not None

    @property
    def running(self) -> bool:
        return self._main is not None and self._main.poll() is None

    def _beside(self, words: Sequence[str]) -> list[str]:
        """What runs ``words`` beside its service, as ``docker exec`` does."""
        return [
            *("nsenter", f"--target={self._first()}", "--net", "--mount", "--pid", "--uts"),
            *("--root", "--", "/bin/sh", "-ec", _AS, "run", self.folder, self.user, *words),
        ]

    def run(
        self, *words: str, environment: Mapping[str, str] | None = None, timeout: float = 600
    ) -> CompletedProcess[str]:
        """Runs a command beside its service, and waits for it."""
        return subprocess.run(
            self._beside(words),
            env=self.environment | dict(environment or {}),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """Starts a command beside its service."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self._beside(words), env=self.environment, stdout=pipe, stderr=pipe, text=True
        )

    def _first(self) -> int:
        """The service's process; the one that started it stays outside of the namespaces."""
        assert self._main is not None
        until = time.monotonic() + 10
        while time.monotonic() < until:
            found = Path(f"/proc/{self._main.pid}/task/{self._main.pid}/children").read_text()
            if found.split():
                return int(found.split()[0])
            time.sleep(0.05)
        raise RuntimeError(f"{self.name} does not start: {self.log.read_text()[-2000:]}")

    def stop(self, grace: float = 10) -> None:
        """Ends it as ``docker stop`` does: asks, waits, kills."""
        if not self.running:
            return
        assert self._main is not None
        first = self._first()  # all that runs inside ends with it
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            if grace:
                os.kill(first, signal.SIGTERM)
                self._main.wait(grace)
        with contextlib.suppress(ProcessLookupError):
            os.kill(first, signal.SIGKILL)
        self._main.wait()
