"""Whose a registered model is: its versions come from one place, in one architecture and width.

Else its candidate would go to and fro between different networks, and each would be compared with
the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from modcap.core.errors import InputError
from modcap.flows.registry.mlflow_runs import reaching
from modcap.flows.reports.cell_record import Finished
from modcap.flows.requests.asked import Request

__all__ = ["check_default_name", "check_name"]


def check_name(finished: Finished, model_name: str) -> None:
    """Refuses a name, which a scan chose, that is another object's, architecture's or width's.

    Raises:
        InputError: it is; or somebody made versions without modcap.
        Unavailable: MLflow cannot be reached.
    """
    source = finished.source
    for tags in _versions(model_name):
        owner = tags.get("source_uri", "")
        if owner != source["checkpoint"]:
            raise _belongs(model_name, owner, "give this checkpoint another name in its manifest")
        _check_same(tags, "architecture", source["architecture"], model_name)
        _check_same(tags, "bits", finished.recipe.bits_label, model_name)


def check_default_name(request: Request, source: Mapping[str, str]) -> None:
    """Refuses a name that nobody chose, but follows from the file's, where it is another file's:
    one that is neither of this path, nor of this content. A name that was chosen is not asked.

    Raises:
        InputError: it is.
        Unavailable: MLflow cannot be reached.
    """
    if request.name is not None:
        return
    for tags in _versions(request.model_name):
        owner = tags.get("source_uri", "")
        if tags.get("source_digest") == source["checkpoint_digest"]:
            continue
        if not _same_place(owner, source["checkpoint"]):
            raise _belongs(request.model_name, owner, "choose one with --name")
        _check_same(tags, "architecture", source["architecture"], request.model_name)


def _versions(model_name: str) -> list[Mapping[str, str]]:
    with reaching() as client:
        found = client.search_model_versions(f"name = '{model_name}'")
    return [version.tags for version in found]


def _same_place(one: str, other: str) -> bool:
    if one == other or "" in (one, other) or "://" in one + other:
        return one == other
    return Path(one).resolve() == Path(other).resolve()


def _belongs(model_name: str, owner: str, mend: str) -> InputError:
    return InputError(
        f"the registered model {model_name!r} belongs to {owner or 'somebody else'}: {mend}"
    )


def _check_same(tags: Mapping[str, str], name: str, value: str, model_name: str) -> None:
    """Versions from before a tag was set have none."""
    if tags.get(name, value) != value:
        raise InputError(
            f"the registered model {model_name!r} holds versions of {name} {tags[name]}, and this "
            f"one is of {value}: give it another name"
        )
