"""The front door of the library: quantize a model in this process, without any server."""

from modcap.api.in_process import quantize
from modcap.api.quantized import Quantized

__all__ = ["Quantized", "quantize"]
