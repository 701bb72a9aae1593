"""Results of jobs as the driver sees them: whole, whatever becomes of the store meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from modcap.core.serialization import Result
from modcap.tasks.storage.store import Store

__all__ = ["Results"]

# tensors that reports read; the others stay in the store
_REPORTED = ("curve", "artifact", "export", "predictions")


class Results:
    """Read from the store once and kept, as far as reports read them.

    The first that is asked for by index brings all that ``expect`` named, side by side. Those that
    are gone, or damaged, are computed again together before anybody sees that.
    """

    def __init__(self, store: Store, recompute: Callable[[Iterable[str]], None]) -> None:
        """``recompute`` is told the keys of results that were lost, and leaves them in the store,
        or raises."""
        self._store = store
        self._recompute = recompute
        self._kept: dict[str, Result] = {}
        self._expected: set[str] = set()

    def expect(self, keys: Iterable[str]) -> None:
        """These are there, and will be asked for."""
        self._expected = set(keys)

    def get(self, key: str) -> Result | None:
        """The result, or None where the store has none that is whole."""
        if key not in self._kept:
            self._keep(self._store.get_all([key]))
        return self._kept.get(key)

    def __getitem__(self, key: str) -> Result:
        while missing := {key, *self._expected} - self._kept.keys():
            found = self._store.get_all(missing)
            self._keep(found)
            if lost := missing - found.keys():
                self._recompute(lost)
        return self._kept[key]

    def _keep(self, found: dict[str, Result]) -> None:
        for key, result in found.items():
            tensors = {n: t for n, t in result.tensors.items() if n in _REPORTED}
            self._kept[key] = Result(tensors, result.meta)
