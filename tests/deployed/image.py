"""An image made by the steps of ``infra/image/Dockerfile``, each in a layer of its own.

The base is this machine with an empty virtual environment in front: nothing that is installed in
its Python is seen. Layers are kept by what made them, so that a second build is quick.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tests.deployed.hosts import Root

__all__ = ["Image", "build", "caddy", "postgres"]

_ENVIRONMENT = "/image"
_PATH = f"{_ENVIRONMENT}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_FOR_BUILDS = ("PIP_", "UV_", "APT_", "HTTP_", "HTTPS_", "http_", "https_", "SSL_", "NO_", "no_")


@dataclass(frozen=True)
class Image:
    """Layers, from the lowest, and what a Dockerfile says of how they are used."""

    layers: tuple[Path, ...]
    environment: Mapping[str, str]
    folder: str = "/"
    user: str = "root"
    command: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return self.layers[-1].parent.name if self.layers else ""


def build(dockerfile: Path, context: Path, kept: Path) -> Image:
    """Runs every step that is not kept from an earlier build.

    Args:
        dockerfile: its ``FROM`` is answered by this machine.
        context: the folder that COPY reads.
        kept: where layers are.
    """
    image = _layer(Image((), {"PATH": _PATH}), f"base {sys.version} {sys.base_prefix}", kept, _base)
    for word, rest in _steps(dockerfile.read_text()):
        image = _step(image, word, rest, context, kept)
    return image


def postgres(kept: Path) -> Image:
    """PostgreSQL, as Debian has it."""
    packages = "postgresql postgresql-client"
    have = "command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1"
    install = f"apt-get update && apt-get install --yes --no-install-recommends {packages}"
    image = Image((), {"PATH": _PATH})
    text = f"{have} || ({install})"
    return _layer(image, f"postgres {packages}", kept, lambda root: _run(root, image, text))


def caddy(kept: Path) -> Image:
    """Caddy, as Debian has it: its program alone."""
    image = Image((), {"PATH": _PATH})
    text = (
        "command -v caddy >/dev/null || { cd /tmp && apt-get update && apt-get download caddy && "
        "dpkg --extract caddy_*.deb caddy && install caddy/usr/bin/caddy /usr/bin/; }"
    )
    return _layer(image, f"caddy {text}", kept, lambda root: _run(root, image, text))


def _steps(text: str) -> Iterator[tuple[str, str]]:
    lines = [line for line in text.splitlines() if line.strip() and line.lstrip()[0] != "#"]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        yield word, rest.strip()


def _step(image: Image, word: str, rest: str, context: Path, kept: Path) -> Image:
    if word in ("ARG", "FROM"):  # the base is this machine
        return image
    if word == "ENV":
        pairs = dict(pair.split("=", 1) for pair in shlex.split(rest))
        return replace(image, environment={**image.environment, **pairs})
    if word == "WORKDIR":
        made = _layer(image, f"WORKDIR {rest}", kept, lambda root: _folder(root, rest))
        return replace(made, folder=rest)
    if word == "USER":
        return replace(image, user=rest)
    if word == "CMD":
        return replace(image, command=tuple(shlex.split(rest.strip("[]").replace(",", " "))))
    if word == "RUN":
        return _layer(image, f"RUN {rest}", kept, lambda root: _run(root, image, rest))
    if word == "COPY":
        *sources, place = rest.split()
        digests = [_digest(context / source) for source in sources]
        target = os.path.normpath(Path(image.folder, place))
        several = len(sources) > 1 or place.endswith("/")
        return _layer(
            image,
            f"COPY {rest} {digests}",
            kept,
            lambda root: [_copy(context / s, root, target, several) for s in sources],
        )
    raise ValueError(f"{word}: not a step that is known here")


def _layer(image: Image, made_by: str, kept: Path, make: Callable[[Root], object]) -> Image:
    said = f"{image.key}\n{image.user}\n{sorted(image.environment.items())}\n{made_by}"
    key = hashlib.sha256(said.encode()).hexdigest()[:16]
    folder = kept / key
    if not (folder / "whole").exists():
        shutil.rmtree(folder, ignore_errors=True)
        make(Root(folder, image.layers))
        (folder / "whole").touch()
    return replace(image, layers=(*image.layers, folder / "own"))


def _base(root: Root) -> None:
    """Whoever is not root may run this machine's Python, and an environment without packages."""
    above = " ".join(str(p) for p in Path(sys.base_prefix).parents if p != Path("/"))
    python = f"{sys.base_prefix}/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    image = Image((), {"PATH": _PATH})
    _run(root, image, f"chmod o+x {above or '/usr'} && {python} -m venv {_ENVIRONMENT}")


def _run(root: Root, image: Image, text: str) -> None:
    given = {k: v for k, v in os.environ.items() if k.startswith(_FOR_BUILDS)}
    done = subprocess.run(
        root.command(["/bin/sh", "-ec", text], user=image.user, folder=image.folder),
        env={"HOME": str(Path("~root").expanduser()), **given, **image.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{text}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def _folder(root: Root, place: str) -> None:
    (root.own / place.lstrip("/")).mkdir(parents=True, exist_ok=True)


def _copy(source: Path, root: Root, place: str, several: bool) -> None:
    target = root.own / place.lstrip("/")
    if source.is_dir():  # its content, as Docker does
        leave = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(source, target, symlinks=True, ignore=leave, dirs_exist_ok=True)
        return
    file = target / source.name if several else target
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, file)


def _digest(source: Path) -> str:
    files = sorted(source.rglob("*")) if source.is_dir() else [source]
    found = hashlib.sha256()
    for file in files:
        if "__pycache__" not in file.parts:
            content = str(file.readlink()).encode() if file.is_symlink() else b""
            content = file.read_bytes() if file.is_file() and not content else content
            found.update(f"{file.relative_to(source.parent)} {len(content)}\n".encode() + content)
    return found.hexdigest()[:16]
