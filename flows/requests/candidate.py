"""A checkpoint that a scan found, and what its manifest and its metadata ask for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError, safe_open

from modcap.core.errors import InputError
from modcap.core.messages import parse
from modcap.flows.requests.asked import Request
from modcap.flows.requests.documents import read_mapping
from modcap.flows.requests.local_path import local_path
from modcap.flows.requests.permissions import Permissions
from modcap.flows.requests.scan_policy import Choice, Manifest, Rule

__all__ = ["Candidate", "Claim"]


class Candidate(BaseModel):
    """A checkpoint to look at.

    Attributes:
        address: of the object.
        bytes: its size.
        beside: address of its manifest, where there is one.
        rule: what the policy does with it.
        permissions: what its uploader may name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str
    bytes: int
    beside: str | None
    rule: Rule
    permissions: Permissions

    @property
    def stem(self) -> str:
        return PurePosixPath(self.address).stem


@dataclass(frozen=True)
class Claim:
    """A candidate, and what its manifest says."""

    candidate: Candidate
    manifest: Manifest

    @classmethod
    def read(cls, candidate: Candidate) -> Claim:
        """Reads the manifest.

        Raises:
            InputError: it is wrong.
        """
        if candidate.beside is None:
            return cls(candidate, Manifest())
        values = read_mapping(local_path(candidate.beside), candidate.beside)
        return cls(candidate, parse(Manifest, values, candidate.beside))

    @property
    def name(self) -> str:
        """What its registered models are called, but for the suffix of a recipe."""
        return self.manifest.name or self.candidate.stem

    @property
    def own_images(self) -> bool:
        """Whether its manifest, not the policy, chose the images."""
        rule = self.candidate.rule
        chosen = {self.manifest.data, self.manifest.eval_data} - {None}
        return not chosen <= {rule.data, rule.eval_data}

    @property
    def whole(self) -> bool:
        """Whether the object is what the manifest says that it will be."""
        stated = self.manifest
        if stated.bytes is not None and stated.bytes != self.candidate.bytes:
            return False
        if stated.sha256 is None:
            return True
        data = local_path(self.candidate.address).read_bytes()
        return hashlib.sha256(data).hexdigest() == stated.sha256

    def requests(self) -> list[Request]:
        """One for each recipe of its rule.

        Raises:
            InputError: the manifest, or the metadata of weights, name what is not theirs to choose.
        """
        self._check_manifest()
        arch = None if self.candidate.address.endswith(".pt2") else self._architecture()
        return [self._request(choice, arch) for choice in self.candidate.rule.recipes]

    def _request(self, choice: Choice, arch: str | None) -> Request:
        address, rule, said = self.candidate.address, self.candidate.rule, self.manifest
        data = said.data or rule.data
        if data is None:
            raise InputError(f"{address}: neither its manifest nor the policy names images (data)")
        fields = {
            "checkpoint": address,
            "arch": arch,
            "data": data,
            "eval_data": said.eval_data or rule.eval_data,
            "eval_images": rule.eval_images,
            "preprocess": said.preprocess or rule.preprocess,
            "metric": rule.metric,
            "name": f"{self.name}-{choice.suffix()}",
            "onnx": rule.onnx,
            "exports": rule.exports,
            "recipe": choice.recipe(),
        }
        return parse(Request, fields, address)

    def _check_manifest(self) -> None:
        said, rule, allowed = self.manifest, self.candidate.rule, self.candidate.permissions
        own = (rule.data, rule.eval_data)
        for field, place in (("data", said.data), ("eval_data", said.eval_data)):
            if place:
                allowed.check_place(place, field, own)
        if said.preprocess:
            allowed.check_preprocess(said.preprocess, rule.preprocess)

    def _architecture(self) -> str | None:
        """What manifest or weights say, where they may; else what the rule says."""
        candidate = self.candidate
        said = self.manifest.arch or _architecture_tag(local_path(candidate.address))
        if said and said != candidate.rule.arch:
            candidate.permissions.check_architecture(said)
        return said or candidate.rule.arch


def _architecture_tag(file: Path) -> str | None:
    """``architecture`` in the metadata of a safetensors file, if it has any."""
    if file.suffix != ".safetensors":
        return None
    try:
        with safe_open(file, "pt") as tensors:
            return (tensors.metadata() or {}).get("architecture")
    except SafetensorError:
        return None  # damaged: reading the checkpoint says how
