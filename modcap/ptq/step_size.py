"""How much a pass with gradients keeps: measured on an image or two."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from modcap.graph.forward import run
from modcap.graph.nodes import weight_layers
from modcap.ptq.methods import QDrop
from modcap.quantization.bits import Bits
from modcap.quantization.insert import insert_quantizers, quantizers

__all__ = ["kept_for_gradients"]


def kept_for_gradients(module: fx.GraphModule, x: Tensor) -> int:
    """Bytes for each image that a pass through ``module`` with quantizers keeps for its gradients.

    Args:
        module: in full precision.
        x: one image of its input (1, ...); what it holds does not matter.
    """
    quantized = insert_quantizers(module, [Bits(4, 4)] * len(weight_layers(module)))
    layers, activations = quantizers(quantized)
    QDrop().begin([*activations.values()], torch.Generator().manual_seed(0))
    for layer in layers.values():
        layer.learn_scales()
    one, two = (_kept(quantized, x.expand(n, *x.shape[1:])) for n in (1, 2))
    return two - one


def _kept(module: fx.GraphModule, x: Tensor) -> int:
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        held.append(tensor)
        return tensor

    held: list[Tensor] = []  # so that no other tensor takes its place
    x = x.clone().requires_grad_(True)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        run([module], x)
    return sum(sizes.values())
