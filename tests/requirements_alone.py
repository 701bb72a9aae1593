"""An environment that holds a list of requirements, and what these need, out of this one.

Packages are linked, not installed, so it takes a moment and no index.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

__all__ = ["link_packages", "needed_by"]


def needed_by(requirements: Iterable[str]) -> set[str]:
    """Names of distributions: of ``requirements``, and of all that they need in turn."""
    found: set[str] = set()
    ahead = [Requirement(text) for text in requirements]
    while ahead:
        wanted = ahead.pop()
        for extra in ("", *wanted.extras):
            name = f"{wanted.name.lower()}[{extra}]"
            if name in found or not _applies(wanted, extra=""):
                continue
            found.add(name)
            listed = map(Requirement, metadata.distribution(wanted.name).requires or [])
            ahead += [each for each in listed if _applies(each, extra)]
    return {name.partition("[")[0] for name in found}


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def link_packages(requirements: Iterable[str], folder: Path) -> set[str]:
    """Links what these distributions installed into ``folder``; their names."""
    names = needed_by(requirements)
    for name in names:
        distribution = metadata.distribution(name)
        lines = (distribution.read_text("RECORD") or "").splitlines()  # .files takes seconds
        tops = {line.partition(",")[0].partition("/")[0] for line in lines}
        for top in tops - {"", "..", "__pycache__", "bin"}:
            link = folder / top
            if not link.exists():
                link.symlink_to(Path(str(distribution.locate_file(top))))
    return names
