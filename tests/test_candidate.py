"""The rule by which a later version becomes candidate, and what a gate must ask for."""

from __future__ import annotations

from typing import Any

import pytest
from mlflow.entities.model_registry import ModelVersion, ModelVersionTag

from modcap.core.errors import InputError
from modcap.core.messages import parse
from modcap.flows.registry.candidate import _why_not, _worse
from modcap.flows.requests.gate import Gate

TAGS = {"top1": "90.0", "artifact_bytes": "1000", "data_digest": "a", "evaluation_digest": "b"}


def version(number: int, **changes: str | None) -> ModelVersion:
    tags = {name: value for name, value in {**TAGS, **changes}.items() if value is not None}
    return ModelVersion(
        "net", str(number), 0, tags=[ModelVersionTag(key, value) for key, value in tags.items()]
    )


@pytest.mark.parametrize(
    ("new", "old", "stays", "said"),
    [
        ({}, {}, "", ""),
        ({"top1": "91.0"}, {}, "", ""),
        ({"top1": "89.0"}, {}, "less accurate", "less accurate"),
        ({"top1": "89.0", "artifact_bytes": "2000"}, {}, "less accurate", "less accurate"),
        ({"top1": "89.0", "artifact_bytes": "900"}, {}, "", "but smaller"),
        ({"top1": "89.0", "evaluation_digest": "c"}, {}, "", ""),  # of other images
        ({"top1": "89.0"}, {"evaluation_digest": None}, "less accurate", "less accurate"),
        ({"top1": "89.0"}, {"evaluation_digest": None, "data_digest": "z"}, "", ""),
        ({"warnings": "it guesses", "top1": "99.0"}, {}, "it guesses", ""),
        ({"warnings": "it guesses"}, {"warnings": "it guesses"}, "", ""),
        ({"top1": "99.0"}, {"warnings": "it guesses"}, "", ""),
        ({"top1": None}, {}, "", ""),  # of somebody else
    ],
)
def test_a_later_version_takes_the_alias_unless_it_is_worse(
    new: dict[str, str | None], old: dict[str, str | None], stays: str, said: str
) -> None:
    found = _why_not(version(2, **new), version(1, **old))
    assert stays in found
    assert bool(found) is bool(stays)
    assert said in _worse(version(2, **new), version(1, **old))


def test_a_gate_that_asks_for_nothing_is_refused() -> None:
    given: dict[str, Any] = {"name": "net", "data": "images"}
    with pytest.raises(InputError, match="--min-top1"):
        parse(Gate, given)
    for asked in ({"min_top1": 90}, {"max_drop": 0}, {"max_bytes": 1}, {"against": "champion"}):
        assert list(parse(Gate, given | asked).conditions) == list(asked)
    with pytest.raises(InputError, match="min_top1"):
        parse(Gate, given | {"min_top1": 101})
