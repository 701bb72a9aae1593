"""A store below another prefix: new to workers, which keep results and inputs by their store."""

from __future__ import annotations

from modcap.tasks.storage.s3 import client, listed
from modcap.tasks.storage.store import Store


def copied(store: Store, prefix: str) -> Store:
    """All that ``store`` holds, below ``prefix``; the objects there are young, as new ones are."""
    copy = Store(store.bucket, prefix, store.endpoint)
    start = store._name("")
    for entry in list(listed(client(store.endpoint), store.bucket, start)):
        name = entry["Key"].removeprefix(start)
        found = store.get_document(name)
        assert found is not None
        copy.put_document(name, found[0])
    return copy
