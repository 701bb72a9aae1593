"""Whose a registered model is: its versions come from one place, in one architecture and width.

Else its candidate would go to and fro between different networks, and each would be compared with
the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from modcap.core.errors import InputError
from modcap.flows.registry.mlflow_runs import reaching
from modcap.flows.registry.version_tags import LAYERS, layers_digest
from modcap.flows.reports.cell_record import Finished
from modcap.flows.requests.asked import Request

__all__ = ["check_name", "check_owner"]

_MEND = "choose another with --name, or say --force"


def check_name(finished: Finished, model_name: str) -> None:
    """Refuses a name, which a scan chose, that is another object's, architecture's or width's.

    Raises:
        InputError: it is; or somebody made versions without modcap.
        Unavailable: MLflow cannot be reached.
    """
    source, mend = finished.source, "give it another name"
    for tags in _versions(model_name):
        owner = tags.get("source_uri", "")
        if owner != source["checkpoint"]:
            raise _belongs(model_name, owner, "give this checkpoint another name in its manifest")
        _check_same(tags, "architecture", source["architecture"], model_name, mend)
        _check_same(tags, "bits", finished.recipe.bits_label, model_name, mend)


def check_owner(
    request: Request, source: Mapping[str, str], paths: Iterable[Iterable[str]]
) -> None:
    """Refuses a name whose versions are another network's: of another architecture, or of other
    weight layers. Where nobody chose the name, but it follows from the file's, another file's, too:
    one that is neither of this path, nor of this content. ``force`` takes any.

    Args:
        request: its name, and whether it was chosen.
        source: what the version would say of its checkpoint.
        paths: of the weight layers of each module.

    Raises:
        InputError: it is.
        Unavailable: MLflow cannot be reached.
    """
    if request.force:
        return
    name, layers = request.model_name, layers_digest(path for some in paths for path in some)
    for tags in _versions(name):
        if tags.get("source_digest") == source["checkpoint_digest"]:
            continue
        owner = tags.get("source_uri", "")
        if request.name is None and not _same_place(owner, source["checkpoint"]):
            raise _belongs(name, owner, _MEND)
        _check_same(tags, "architecture", source["architecture"], name, _MEND)
        if tags.get(LAYERS, layers) != layers:
            raise InputError(
                f"the registered model {name!r} holds versions of another network, whose weight "
                f"layers are others (from {owner}): {_MEND}"
            )


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


def _check_same(tags: Mapping[str, str], name: str, value: str, model_name: str, mend: str) -> None:
    """Versions from before a tag was set have none."""
    if tags.get(name, value) != value:
        raise InputError(
            f"the registered model {model_name!r} holds versions of {name} {tags[name]}, and this "
            f"one is of {value}: {mend}"
        )
