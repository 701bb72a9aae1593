"""modcap: post-training quantization of vision networks by module capacity.

The main path, in the order of the paper (MRECG, CVPR 2023, arXiv 2303.11906):
:mod:`modcap.graph` captures a network and cuts it into modules, :mod:`modcap.ptq` measures their
capacity, joins the neighbours that differ most and reconstructs each group, and
:mod:`modcap.export` packs the result. :mod:`modcap.jobs` turns this into a plan of
content-addressed jobs. :mod:`modcap.api` puts them together, in this process.
"""

from modcap.api import Quantized, quantize
from modcap.core.errors import GateRefused, InputError, ModcapError
from modcap.export.artifact import QuantizedNetwork, load
from modcap.graph.network import Network, build
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
