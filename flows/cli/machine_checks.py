"""What of this machine may stand in the way of a run; nothing is started, nothing is changed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import gettempdir
from typing import Literal

import psutil
from packaging.requirements import Requirement

from modcap.infra.local.home import Home

__all__ = ["Finding", "machine_checks"]

_EXTRAS = ("cluster", "export")
_GIB = 2**30
_MEMORY = 4 * _GIB  # of a node for networks of 224 pixels
_DISK_FULL, _DISK_LOW = 1 * _GIB, 5 * _GIB
_SHARED_MEMORY = 256 * 2**20
_IN_MEMORY = ("tmpfs", "ramfs")


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        check: what was looked at.
        state: ``warning``: a run works, but not as well as it could; ``problem``: it does not.
        said: what was found.
        mend: what to do, where something is wrong.
    """

    check: str
    state: Literal["ok", "warning", "problem"]
    said: str
    mend: str = ""


def machine_checks() -> Iterator[Finding]:
    """Versions, GPU, memory and disks."""
    yield _packages()
    yield _gpu()
    yield _memory()
    yield _disk("disk, results", _existing(Home.place()), "MODCAP_HOME")
    yield _disk("disk, temporary files", Path(gettempdir()), "TMPDIR")
    yield _shared_memory()


def _packages() -> Finding:
    wrong = [line for line in map(_unmet, _requirements()) if line]
    version = f"modcap {metadata.version('modcap')}"
    if not wrong:
        return Finding("packages", "ok", f"{version}, with all that it needs, as it needs it")
    mend = "pip install 'modcap[cluster,export]', with -c constraints.txt of the same version"
    return Finding("packages", "problem", f"{version}: {'; '.join(wrong)}", mend)


def _requirements() -> Iterator[Requirement]:
    for text in metadata.requires("modcap") or []:
        found = Requirement(text)
        marker = found.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in _EXTRAS):
            yield found


def _unmet(needed: Requirement) -> str | None:
    try:
        version = metadata.version(needed.name)
    except metadata.PackageNotFoundError:
        return f"{needed.name} is not installed"
    if needed.specifier.contains(version, prereleases=True):
        return None
    return f"{needed.name} is {version}, not {needed.specifier}"


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Finding("GPU", "ok", f"{', '.join(names)}; used by --device auto")
    if shutil.which("nvidia-smi") is None:
        return Finding("GPU", "ok", "none: jobs run on the CPU")
    said = f"there is a driver, but torch {torch.__version__} finds no GPU"
    return Finding("GPU", "warning", said, "install a torch that was built for its CUDA version")


def _memory() -> Finding:
    free = psutil.virtual_memory().available
    said = f"{free / _GIB:.1f} GiB free, {psutil.cpu_count()} threads of the processor"
    if free >= _MEMORY:
        return Finding("memory", "ok", said)
    mend = "networks of 224 pixels want 4 GiB: end other programs, or lower activation_memory"
    return Finding("memory", "warning", said, mend)


def _disk(check: str, place: Path, variable: str) -> Finding:
    free = shutil.disk_usage(place).free
    said = f"{place}: {free / _GIB:.1f} GiB free"
    mend = f"make room, or name another folder by {variable}"
    if free < _DISK_FULL:
        return Finding(check, "problem", said, mend)
    if _file_system(place) in _IN_MEMORY:
        return Finding(check, "warning", f"{said}, in memory", f"name one on a disk by {variable}")
    return Finding(check, "warning" if free < _DISK_LOW else "ok", said, mend)


def _existing(place: Path) -> Path:
    return next(folder for folder in (place, *place.parents) if folder.is_dir())


def _file_system(place: Path) -> str:
    mounts = {mount.mountpoint: mount.fstype for mount in psutil.disk_partitions(all=True)}
    above = [str(folder) for folder in (place.resolve(), *place.resolve().parents)]
    return next((mounts[folder] for folder in above if folder in mounts), "")


def _shared_memory() -> Finding:
    place = Path("/dev/shm")
    if not place.is_dir() or os.environ.get("RAY_ADDRESS"):
        return Finding("shared memory", "ok", "not this machine's to give")
    free = shutil.disk_usage(place).free
    said = f"{place}: {free / _GIB:.1f} GiB free"
    if free >= _SHARED_MEMORY:
        return Finding("shared memory", "ok", said)
    return Finding("shared memory", "warning", said, "containers: give --shm-size=1g or more")
