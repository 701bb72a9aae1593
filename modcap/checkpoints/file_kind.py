"""What a file is, told by its content, and what to do with one that is not what its name says."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from modcap.core.errors import InputError

__all__ = ["check"]

_WEIGHTS, _SAFETENSORS, _EXPORT = "weights of torch.save", "safetensors", "an archive of export"
_MENDS = {
    _WEIGHTS: "call it NAME.pth, and say --arch",
    _SAFETENSORS: "call it NAME.safetensors",
    _EXPORT: "call it NAME.pt2, and leave out --arch",
    "TorchScript": "give the state dict of the nn.Module that it was made from, by torch.save("
    "model.state_dict(), 'NAME.pth') and --arch, or a .pt2 of torch.export.save",
    "a numpy archive": "save a state dict of tensors, by torch.save",
    "a zip of other files": "unpack it, and give the checkpoint inside",
    "a tar of other files": "unpack it, and give the checkpoint inside",
    "compressed": "decompress it first",
    "a pointer of Git LFS": "fetch what it stands for, by git lfs pull",
    "a web page": "the download answered with a page, download the file again",
    "ONNX": "give the PyTorch checkpoint that it was made from",
    "HDF5 (Keras)": "modcap reads checkpoints of PyTorch",
    "TFLite": "modcap reads checkpoints of PyTorch",
    "GGUF": "modcap reads checkpoints of PyTorch",
}
_BEGINNINGS = {
    b"version https://git-lfs": "a pointer of Git LFS",
    b"\x89HDF": "HDF5 (Keras)",
    b"GGUF": "GGUF",
    b"\x93NUMPY": "a numpy archive",
    b"\x1f\x8b": "compressed",
    b"BZh": "compressed",
    b"\xfd7zXZ": "compressed",
    b"\x28\xb5\x2f\xfd": "compressed",
    b"<html": "a web page",
    b"<!doctype": "a web page",
}
_MEANT = {".pt2": _EXPORT, ".safetensors": _SAFETENSORS}


def check(file: Path, data: bytes) -> None:
    """Refuses content of another kind than the suffix of ``file`` says; what is of no known kind
    is left to the reader of that suffix.

    Raises:
        InputError: the line says what the file is, and how to give it.
    """
    found = _kind(data)
    if found is not None and found != _MEANT.get(file.suffix, _WEIGHTS):
        raise InputError(f"checkpoint {file} is {found}: {_MENDS[found]}")


def _kind(data: bytes) -> str | None:
    start = data[:64].lstrip().lower()
    for beginning, kind in _BEGINNINGS.items():
        if data.startswith(beginning) or start.startswith(beginning):
            return kind
    if data[:4] == b"PK\x03\x04":
        return _kind_of_zip(data)
    if data[257:262] == b"ustar":
        return "a tar of other files"
    if data[8:10] == b'{"' and int.from_bytes(data[:8], "little") < len(data):
        return _SAFETENSORS
    if data[4:8] == b"TFL3":
        return "TFLite"
    if data[:1] == b"\x08" and data[2:3] == b"\x12" and data[4 : 4 + data[3]].isascii():
        return "ONNX"  # a version, and who wrote it
    return _WEIGHTS if data[:1] == b"\x80" else None  # a pickle, as torch once wrote them


def _kind_of_zip(data: bytes) -> str | None:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = [name.partition("/")[2] or name for name in archive.namelist()]
    except Exception:  # of a damaged archive, which its reader names
        return None
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        return "TorchScript"
    if "archive_format" in names:
        return _EXPORT
    if "data.pkl" in names:
        return _WEIGHTS
    if any(name.endswith(".npy") for name in names):
        return "a numpy archive"
    own = ("version", "byteorder", ".data", "data/")  # of torch, in what is damaged
    return None if any(name.startswith(own) for name in names) else "a zip of other files"
