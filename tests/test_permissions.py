"""What an uploader may name in a scan, and what only the policy may."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from modcap.checkpoints import architecture
from modcap.core.errors import InputError
from modcap.flows.requests.permissions import Permissions
from modcap.flows.requests.scan_policy import Policy

ALLOWED = Permissions(
    factories=("lab.nets:small",), data_below=("s3://b/images", "s3://open", "fashion-mnist")
)


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet18", "lab.nets:small"])
def test_an_uploader_may_name_libraries_and_listed_factories(name: str) -> None:
    ALLOWED.check_architecture(name)


@pytest.mark.parametrize(
    "name",
    [
        *("os:abort", "sys:exit", "signal:pause", "lab.nets:other", "lab.nets.deep:small"),
        *("torchvision.models:resnet18", "timm.models:x", "lab.nets", ":", "", "Torchvision:x"),
    ],
)
def test_an_uploader_names_no_other_code(name: str) -> None:
    with pytest.raises(InputError) as caught:
        ALLOWED.check_architecture(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "place",
    ["s3://b/images/a.npz", "s3://b/images/deep/a#1?.npz", "s3://open/x.npz", "fashion-mnist"],
)
def test_manifests_name_images_below_the_prefixes(place: str) -> None:
    ALLOWED.check_place(place, "data", ())


@pytest.mark.parametrize(
    "place",
    [
        *("s3://b/images-rejected/a.npz", "s3://b/images", "s3://b/images/", "s3://b/other/a.npz"),
        *("s3://b/images/../secret/a.npz", "s3://b/images//a.npz", "s3://b/images/./a.npz"),
        *("s3://openly/x.npz", "S3://b/images/a.npz", "s3://B/images/a.npz", "https://b/images/a"),
        *("/etc/passwd", "etc", "file:///etc/passwd", "fashion-mnist:/etc", "fashion-mnist:", ""),
        "s3://b/images/a\n.npz",
    ],
)
def test_manifests_name_nothing_else(place: str) -> None:
    with pytest.raises(InputError, match="data_below") as caught:
        ALLOWED.check_place(place, "data", ())
    assert "\n" not in str(caught.value)


def test_without_a_word_of_the_policy_only_its_own_data_is_allowed() -> None:
    nothing = Permissions()
    nothing.check_place("s3://b/own.npz", "data", ("s3://b/own.npz", None))
    for place in ("fashion-mnist", "s3://b/own.npz2"):
        with pytest.raises(InputError):
            nothing.check_place(place, "data", ("s3://b/own.npz", None))


def test_preprocessing_is_written_out_or_lies_where_it_may() -> None:
    for text in ("imagenet", "mean=0.5,std=0.5", "s3://b/images/p.yaml", "/policy/own.json"):
        ALLOWED.check_preprocess(text, "/policy/own.json")
    for text in ("/etc/p.json", "p.yml", "s3://b/p.yaml", "file:///p.yaml", "s3://b/images/../p"):
        with pytest.raises(InputError):
            ALLOWED.check_preprocess(text, None)


@pytest.mark.parametrize(
    "fields",
    [
        {"factories": ["os"]},
        {"data_below": ["/local"]},
        {"data_below": ["s3://"]},
        {"data_below": ["s3://b/../c"]},
        {"data_below": ["fashion-mnist:/tmp"]},
    ],
)
def test_a_policy_allows_only_what_can_be_checked(fields: dict[str, list[str]]) -> None:
    rules = [{"data": "fashion-mnist", "recipes": [{}]}]
    Policy.model_validate({"rules": rules})
    with pytest.raises(ValidationError):
        Policy.model_validate({"rules": rules} | fields)


def test_a_factory_that_ends_the_process_is_wrong_input() -> None:
    with pytest.raises(InputError, match="SystemExit"):
        architecture.build("sys:exit", {})
