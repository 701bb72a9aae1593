"""modcap: post-training quantization of vision networks by module capacity.

The main path, in the order of the paper (MRECG, CVPR 2023, arXiv 2303.11906):
:mod:`~modcap.capture` and :mod:`~modcap.partition` cut a network into modules,
:mod:`~modcap.capacity` measures them, :mod:`~modcap.selection` joins the neighbours that differ
most, :mod:`~modcap.reconstruct` optimises each group, :mod:`~modcap.artifact` packs the result.
:mod:`~modcap.plan` turns this into content-addressed :mod:`~modcap.jobs`, and
:mod:`~modcap.runners` runs one.
"""

from modcap.artifact import QuantizedNetwork, load
from modcap.errors import GateRefused, InputError, ModcapError
from modcap.network import Network, build
from modcap.quantize import Quantized, quantize
from modcap.recipe import Recipe

__all__ = [
    "GateRefused",
    "InputError",
    "ModcapError",
    "Network",
    "Quantized",
    "QuantizedNetwork",
    "Recipe",
    "build",
    "load",
    "quantize",
]
