"""Addresses in S3: keys as they are."""

from __future__ import annotations

import pytest

from modcap.core.errors import InputError
from modcap.tasks.storage.objects import split_address


@pytest.mark.parametrize("key", ["", "a/b.npz", "a#b.npz", "a?b=c.npz", "a/", "/a", "a//b", "ä b"])
def test_a_key_is_all_that_follows_the_bucket(key: str) -> None:
    assert split_address(f"s3://bucket/{key}") == ("bucket", key)


@pytest.mark.parametrize("address", ["", "s3://", "s3:///key", "bucket/key", "http://bucket/key"])
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(InputError, match="no S3 address"):
        split_address(address)
