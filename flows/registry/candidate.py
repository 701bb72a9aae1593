"""Which version is the candidate: the alias moves by a rule, and what it did is said.

A later version takes the alias from the one that has it, unless

- it may be wrong (its run warns), and the other does not warn; or
- both were measured on the same images by one metric, and it is worse without being smaller.
"""

from __future__ import annotations

from dataclasses import dataclass

from modcap.flows.registry.version_tags import scale_of
from modcap.tasks.storage.lease import Lease

from mlflow import MlflowClient  # isort: skip  # after mlflow_runs, which sets what it reads at import
from mlflow.entities.model_registry import ModelVersion

__all__ = ["ALIAS", "Move", "move_candidate"]

ALIAS = "candidate"
_TAG = "not_candidate"  # of a version that did not take the alias: why


@dataclass(frozen=True)
class Move:
    """What became of the alias.

    Attributes:
        version: the one that has it now.
        reason: why it did not move, or moved to a version that is worse; '' where nothing is to
            be said.
    """

    version: str
    reason: str = ""


def move_candidate(client: MlflowClient, name: str, version: str, mine: Lease) -> Move:
    """Gives ``version`` of ``name`` the alias, unless a later one has it (a crash, or another
    driver, may have come between a version and its alias), or the rule is against it.

    Args:
        client: of MLflow.
        name: of the registered model.
        version: the one that was made, or found.
        mine: the lease of the model's aliases.
    """
    before = client.get_registered_model(name).aliases.get(ALIAS)
    if before is not None and int(before) >= int(version):
        return Move(str(before))
    reason = ""
    if before is not None:
        new = client.get_model_version(name, version)
        old = client.get_model_version(name, str(before))
        reason = _why_not(new, old)
        if reason:
            said = f"version {before} stays {ALIAS}: {reason}"
            client.set_model_version_tag(name, version, _TAG, said)
            return Move(str(before), said)
        reason = _worse(new, old)
    mine.check()
    client.set_registered_model_alias(name, ALIAS, version)
    return Move(version, reason and f"version {version} is {ALIAS} now, not {before}: {reason}")


def _why_not(new: ModelVersion, old: ModelVersion) -> str:
    """What is against the new one, or ''."""
    if new.tags.get("warnings") and not old.tags.get("warnings"):
        return f"version {new.version} may be wrong ({new.tags['warnings']})"
    if not _comparable(new, old) or _good(new) >= _good(old):
        return ""
    if _size(new) < _size(old):
        return ""
    return f"version {new.version} is less accurate ({_said(new, old)}), and not smaller"


def _worse(new: ModelVersion, old: ModelVersion) -> str:
    """In what the new one is worse, though it takes the alias."""
    if not _comparable(new, old) or _good(new) >= _good(old):
        return ""
    return f"it is less accurate ({_said(new, old)}), but smaller"


def _comparable(new: ModelVersion, old: ModelVersion) -> bool:
    """Whether both were measured by one metric, on the same images. Of versions from before these
    were recorded, the images that they were calibrated on stand for them."""
    scale = scale_of(new.tags)
    if scale != scale_of(old.tags):
        return False
    if not {scale.label, "artifact_bytes"} <= new.tags.keys() & old.tags.keys():
        return False
    name = "evaluation_digest" if _recorded(new) and _recorded(old) else "data_digest"
    return bool(new.tags.get(name) == old.tags.get(name))


def _recorded(version: ModelVersion) -> bool:
    return "evaluation_digest" in version.tags


def _figure(version: ModelVersion) -> float:
    return float(version.tags[scale_of(version.tags).label])


def _good(version: ModelVersion) -> float:
    """Larger for a better version, of those by one metric."""
    return scale_of(version.tags).goodness(_figure(version))


def _size(version: ModelVersion) -> int:
    return int(version.tags["artifact_bytes"])


def _said(new: ModelVersion, old: ModelVersion) -> str:
    scale = scale_of(new.tags)
    unit = " %" if scale.is_percent else ""
    return (
        f"{scale.words} {scale.text(_figure(new))} against {scale.text(_figure(old))}{unit}, "
        f"{_size(new):,} against {_size(old):,} bytes"
    )
