"""All services of Compose on hosts of their own, in their order, kept running."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from modcap.infra.local.certificates import certificates
from tests.deployed.compose import FILE, Service, services, variables
from tests.deployed.hosts import Host, Network, Root, disk
from tests.deployed.image import Image, build, caddy, postgres

__all__ = ["NAME", "Deployment", "deployed"]

NAME = "modcap.test"  # by which clients know the machine that tls.yaml publishes

ROOT = Path(__file__).parents[2]
_PATIENCE = 600.0  # seconds for a service to become healthy
_POSTGRES = r"""
bin=$(dirname "$(readlink -f "$(command -v initdb || echo /usr/lib/postgresql/*/bin/initdb)")")
data=/var/lib/postgresql/data
if [ ! -s "$data/PG_VERSION" ]; then
  printf %s "$POSTGRES_PASSWORD" > /tmp/password
  "$bin/initdb" -D "$data" -U "$POSTGRES_USER" -A scram-sha-256 --pwfile=/tmp/password \
    -E UTF8 --locale C.UTF-8 >/dev/null
  echo "host all all all scram-sha-256" >> "$data/pg_hba.conf"
  "$bin/pg_ctl" -D "$data" -o "-c listen_addresses= -k /tmp" -w start >/dev/null
  export PGPASSWORD=$POSTGRES_PASSWORD
  psql -h /tmp -U "$POSTGRES_USER" -d postgres -c "CREATE DATABASE $POSTGRES_DB" >/dev/null
  for file in /docker-entrypoint-initdb.d/*.sql; do
    [ ! -f "$file" ] || psql -h /tmp -U "$POSTGRES_USER" -d "$POSTGRES_DB" -f "$file" >/dev/null
  done
  "$bin/pg_ctl" -D "$data" -w stop >/dev/null
fi
exec "$bin/postgres" -D "$data" -c listen_addresses='*' -k /tmp
"""  # what the image of Docker Hub does at its start


class Deployment:
    """Every service that compose.yaml and tls.yaml name, and a host for its client.

    Attributes:
        services: as in compose.yaml.
        network: its hosts; a service that runs more than once has hosts called NAME-1, NAME-2.
        client: a host that runs nothing, with the variables that docs/deploy.md tells a client.
    """

    def __init__(self, folder: Path, kept: Path, scale: Mapping[str, int]) -> None:
        self.folder, self._scale = folder, dict(scale)
        self.values = {
            name: secrets.token_hex(16) for name in variables(FILE.parent / "example.env")
        }
        self.services = services(self.values | _tls(folder / "tls"), FILE.parent / "tls.yaml")
        self.images = {
            "modcap": build(ROOT / "infra/image/Dockerfile", ROOT, kept),
            "postgres": postgres(kept),
            "caddy": caddy(kept),
        }
        self.network = Network(f"modcap{os.getpid()}")
        self.hosts = {name: self._hosts_of(service) for name, service in self.services.items()}
        self.client = self._client()
        self._stopped: set[str] = set()
        self._over = threading.Event()
        self._tender = threading.Thread(target=self._tend, daemon=True)

    def _hosts_of(self, service: Service) -> list[Host]:
        count = self._scale.get(service.name, 1)
        names = [service.name] if count == 1 else [f"{service.name}-{n + 1}" for n in range(count)]
        return [self._host(name, service) for name in names]

    def _host(self, name: str, service: Service) -> Host:
        image = self._image(service)
        root = Root(self.folder / "hosts" / name, image.layers)
        user = "postgres" if service.image.startswith("postgres") else image.user
        home = {"HOME": _account(root, user).home, "USER": user, "LOGNAME": user}
        environment = {**home, **image.environment, **service.environment}
        host = self.network.add(name, root, user, environment)
        host.folder, host.aliases = image.folder, service.aliases
        for source, place in service.volumes:
            host.mounts[place] = self._volume(host, source, place)
        return host

    def _image(self, service: Service) -> Image:
        return self.images[service.image.partition(":")[0]]

    def _volume(self, host: Host, source: str, place: str) -> Path:
        """A volume is its user's; a file is mounted as it is."""
        inside = host.root.own / place.lstrip("/")
        if source.startswith((".", "/")):
            inside.parent.mkdir(parents=True, exist_ok=True)
            inside.touch()
            return (FILE.parent / source).resolve()
        volume = self.folder / "volumes" / source
        volume.mkdir(parents=True, exist_ok=True)
        inside.mkdir(parents=True, exist_ok=True)
        account = _account(host.root, host.user)
        os.chown(volume, account.user, account.group)
        volume.chmod(0o700)
        return volume

    def _client(self) -> Host:
        image = self.images["modcap"]
        root = Root(self.folder / "hosts/client", image.layers)
        worker = self.services["worker"]  # it has the variables that docs/deploy.md names
        account = _account(root, image.user)
        home = {"HOME": account.home, "USER": image.user, "LOGNAME": image.user}
        environment = {**home, **image.environment, **worker.environment}
        host = self.network.add("client", root, image.user, environment)
        host.folder = "/work"
        (root.own / "work").mkdir(parents=True)
        host.mounts["/work"] = ROOT / "examples"
        for source, place in worker.volumes:
            host.mounts[place] = self._volume(host, source, place)
        return host

    def up(self) -> None:
        """Starts all; each when what it needs runs, or is healthy."""
        self.network.name_all()
        self.client.start(["sleep", "infinity"])
        self._tender.start()
        left = dict(self.services)
        while left:
            ready = [s for s in left.values() if not set(s.needs) & set(left)]
            for service in ready:
                for needed, healthy in service.needs.items():
                    if healthy:
                        self.wait(needed)
                self.start(service.name)
                del left[service.name]
        for name, service in self.services.items():
            if service.health:
                self.wait(name)

    def start(self, name: str) -> None:
        """Starts every host of a service."""
        for host in self.hosts[name]:
            host.start(self._command(self.services[name]))
        self._stopped.discard(name)

    def _command(self, service: Service) -> list[str]:
        if service.image.startswith("postgres"):
            return ["/bin/sh", "-ec", _POSTGRES]
        return list(service.command or self._image(service).command)

    def stop(self, name: str, grace: float = 10) -> None:
        """Stops a service, which stays down until :meth:`start`."""
        self._stopped.add(name)
        for host in self.hosts[name]:
            host.stop(grace)

    def grow(self, name: str) -> Host:
        """One more host of a service, which starts at once."""
        number = 1 + sum(known.startswith(f"{name}-") for known in self.network.hosts)
        host = self._host(f"{name}-{number}", self.services[name])
        self.network.name(host)
        host.start(self._command(self.services[name]))
        self.hosts[name].append(host)
        return host

    def shrink(self, name: str, host: Host) -> None:
        """Takes a host away, as when its power goes."""
        self.hosts[name].remove(host)
        host.stop(grace=0)

    def wait(self, name: str) -> None:
        """Until its health check says yes."""
        health = self.services[name].health
        assert health is not None, f"{name} has no health check"
        until = time.monotonic() + _PATIENCE
        while True:
            answers = [self._asked(host, health.command) for host in self.hosts[name]]
            if all(answer is None for answer in answers):
                return
            if time.monotonic() > until:
                log = self.hosts[name][0].log.read_text()[-3000:]
                raise RuntimeError(f"{name} is not healthy: {answers}\n{log}")
            time.sleep(1)

    @staticmethod
    def _asked(host: Host, command: tuple[str, ...]) -> str | None:
        if not host.running:
            return "it does not run"
        try:
            done = host.run(*command, timeout=60)
        except subprocess.TimeoutExpired:
            return "no answer in a minute"
        return None if done.returncode == 0 else done.stderr[-500:] or "no"

    def _tend(self) -> None:
        """restart: unless-stopped."""
        while not self._over.wait(1):
            for name, hosts in self.hosts.items():
                for host in [*hosts]:
                    if name not in self._stopped and host.started and not host.running:
                        host.start(self._command(self.services[name]))

    def close(self) -> None:
        self._over.set()
        if self._tender.is_alive():
            self._tender.join()
        self.network.close()


def _tls(folder: Path) -> dict[str, str]:
    """The variables of tls.yaml, with an authority of this deployment's own."""
    folder.mkdir(parents=True)
    files = certificates(folder, NAME)
    names = {"ca": "AUTHORITY", "cert": "CERTIFICATE", "key": "KEY"}
    files["ca"].chmod(0o644)  # everybody reads it, as the certificate of an authority may be
    return {"TLS_NAME": NAME, **{f"TLS_{n}": str(files[key]) for key, n in names.items()}}


class _Account(NamedTuple):
    user: int
    group: int
    home: str


def _account(root: Root, name: str) -> _Account:
    """A user, whom a layer of the image may have made."""
    files = [layer / "etc/passwd" for layer in reversed(root.layers)] + [Path("/etc/passwd")]
    text = next(file.read_text() for file in files if file.exists())
    line = next(line for line in text.splitlines() if line.startswith(f"{name}:"))
    user, group, _, home = line.split(":")[2:6]
    return _Account(int(user), int(group), home)


@contextmanager
def deployed(place: Path, **scale: int) -> Iterator[Deployment]:
    """A running deployment in ``place``; ``scale``: hosts of a service, with _ for -."""
    counts = {name.replace("_", "-"): number for name, number in scale.items()}
    with disk(Path(tempfile.gettempdir(), "modcap-images.ext4"), place / "disk") as found:
        shutil.rmtree(found / "deployed", ignore_errors=True)
        made = Deployment(found / "deployed", found / "layers", counts)
        try:
            made.up()
            yield made
        finally:
            made.close()
