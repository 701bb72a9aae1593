"""The kinds of jobs. A new one is a file here: its fields, what it computes, its memory, time and
label; and its name in :data:`KINDS`."""

from modcap.jobs.kinds.allocate import Allocate
from modcap.jobs.kinds.assemble import Assemble
from modcap.jobs.kinds.capacity import DataDependentCapacity, DataFreeCapacity
from modcap.jobs.kinds.evaluate import EvaluateFull, EvaluateQuantized
from modcap.jobs.kinds.export import WriteExport
from modcap.jobs.kinds.reconstruct import Reconstruct
from modcap.jobs.kinds.select import Select, SelectExplicit
from modcap.jobs.kinds.sensitivity import LayerSensitivity, NetworkSensitivity
from modcap.jobs.kinds.whole import Choose, Correct, Tune

__all__ = ["KINDS"]

_WORK = (
    *(LayerSensitivity, NetworkSensitivity, Allocate),
    *(DataFreeCapacity, DataDependentCapacity, Select, SelectExplicit, Reconstruct),
    *(Correct, Choose, Tune, Assemble, EvaluateFull, EvaluateQuantized),
    WriteExport,
)
KINDS = tuple(dict.fromkeys(work.kind for work in _WORK))
"""Their names, in the order of a run."""
