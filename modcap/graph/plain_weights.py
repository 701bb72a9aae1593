"""Weights that a model computes anew for each call become plain parameters, on a copy of it.

Parametrisations, weight norm, spectral norm and pruning make a weight of other parameters alone:
in eval mode it is the same for all images.
"""

from __future__ import annotations

import copy
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from modcap.core.errors import InputError
from modcap.core.messages import first_line

__all__ = ["plain_copy"]


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in eval mode, without gradients, whose weights are all stored.

    Raises:
        InputError: the model cannot be copied.
    """
    try:
        copied = copy.deepcopy(model, _computed(model))
    except Exception as error:  # of the author's own __deepcopy__, too
        raise InputError(
            f"the model cannot be copied ({first_line(error)}): give one that copy.deepcopy takes"
        ) from None
    copied.eval().requires_grad_(False)
    for module in copied.modules():
        _store_parametrised(module)
        _store_hooked(module)
    return copied.requires_grad_(False)


def _computed(model: nn.Module) -> dict[int, Any]:
    """What the copy takes in place of tensors with a history, which cannot be copied."""
    values = (value for module in model.modules() for value in vars(module).values())
    tensors = (value for value in values if isinstance(value, Tensor) and not value.is_leaf)
    return {id(tensor): tensor.detach().clone() for tensor in tensors}


def _store_parametrised(module: nn.Module) -> None:
    """Stores what its parametrisations give; torch's own way takes them off the class, which the
    original has, too."""
    if not parametrize.is_parametrized(module):
        return
    lists = cast(nn.ModuleDict, module.parametrizations)
    weights = {name: getattr(module, name).detach().clone() for name in lists}
    learned = {name for name in lists if any(True for _ in lists[name].parameters())}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module._modules["parametrizations"]
    for name, weight in weights.items():
        if name in learned:
            module.register_parameter(name, nn.Parameter(weight, requires_grad=False))
        else:
            module.register_buffer(name, weight)


def _store_hooked(module: nn.Module) -> None:
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
        elif isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, hook._tensor_name)
