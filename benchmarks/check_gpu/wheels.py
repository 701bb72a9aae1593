"""Wheels of what a machine may lack that has torch for its GPU, and no way to the internet.

    python -m benchmarks.check_gpu.wheels [FOLDER]    # .whl by default; about 50 MB

There: ``python3 -m pip install --no-index --no-deps --target /tmp/site .whl/*.whl``, and
``PYTHONPATH=/tmp/site``. What no part of the check reads is left out of the largest ones.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from benchmarks.places import ROOT

__all__ = ["main", "without"]

_NAMES = (
    *("annotated-types", "pydantic", "pydantic-core", "typing-inspection"),
    *("boto3", "botocore", "jmespath", "s3transfer", "tenacity"),
    *("ray", "attrs", "jsonschema", "jsonschema-specifications", "referencing", "rpds-py"),
)
_PYTHON = "3.12"
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
_UNREAD = {  # beginnings of names inside a wheel, but for those of the second list
    "ray": (("ray/jars/", "ray/rllib/", "ray/llm/", "ray/dashboard/client/"), ()),
    "botocore": (
        ("botocore/data/",),
        ("botocore/data/s3/", "botocore/data/endpoints", "botocore/data/part", "botocore/data/sdk"),
    ),
}


def main() -> None:
    folder = Path(sys.argv[1] if sys.argv[1:] else ".whl")
    _download(folder)
    for name, (unread, kept) in _UNREAD.items():
        (wheel,) = folder.glob(f"{name}-*.whl")
        without(wheel, unread, kept)
    print(f"{sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.0f} MB in {folder}")


def _download(folder: Path) -> None:
    pinned = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    versions = {line.partition("==")[0]: line.partition(" ")[0] for line in pinned}
    asked = [versions.get(name, name) for name in _NAMES]
    platforms = [f"--platform={name}" for name in _PLATFORMS]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", f"--python-version={_PYTHON}", "--implementation=cp"]
    subprocess.run([*command, *platforms, f"--dest={folder}", *asked], check=True)


def without(wheel: Path, unread: tuple[str, ...], kept: tuple[str, ...]) -> None:
    """Takes the files whose names begin as ``unread`` says, but for ``kept``, out of ``wheel``."""

    def stays(name: str) -> bool:
        return not name.startswith(unread) or name.startswith(kept)

    smaller = wheel.with_suffix(".new")
    with (
        zipfile.ZipFile(wheel) as old,
        zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new,
    ):
        for entry in filter(lambda entry: stays(entry.filename), old.infolist()):
            data = old.read(entry)
            if entry.filename.endswith(".dist-info/RECORD"):
                lines = data.decode().splitlines()
                data = "\n".join([*filter(stays, lines), ""]).encode()
            new.writestr(entry, data, zipfile.ZIP_DEFLATED)
    smaller.replace(wheel)


if __name__ == "__main__":
    main()
