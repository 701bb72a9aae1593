"""Gradients through rounding: the autograd functions of quantized values and rounded weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["GAMMA", "ZETA", "FakeQuantize", "PowerOfTwo", "SoftRound", "StraightThroughRound"]

GAMMA, ZETA = -0.1, 1.1  # stretch of the rectified sigmoid (AdaRound, eq. 23)


class FakeQuantize(torch.autograd.Function):
    """x quantized where ``keep`` is 1; gradients pass through the rounding (LSQ, eq. 3-5).

    All that the backward pass needs is two factors, one for each gradient. Selecting by a random
    mask costs ten times what blending by it does (mispredicted branches), hence the arithmetic.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, low: float, high: float, keep: Tensor | None
    ) -> Tensor:
        ratio = x / scale
        rounded = torch.round(ratio)
        steps = torch.clamp(rounded, low, high)
        clipped = rounded.sub_(steps).abs_().clamp_(max=1)  # 1 where the range ends, else 0
        y = steps * scale
        learns = ctx.needs_input_grad[1]
        slope = torch.addcmul(steps.sub_(ratio), ratio, clipped) if learns else None
        if keep is not None:
            y = torch.lerp(x, y, keep)
            if slope is not None:
                slope.mul_(keep)
            clipped.mul_(keep)
        ctx.save_for_backward(slope, 1 - clipped)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        slope, through = ctx.saved_tensors
        (grad,) = grads
        of_scale = None if slope is None else (grad * slope).sum()
        return grad * through, of_scale, None, None, None


class SoftRound(torch.autograd.Function):
    """h(V) (AdaRound, eq. 23) and the sum of 1 - |2 h(V) - 1|^beta (eq. 24), with its weight.

    Both gradients come from one sigmoid, and the power from one logarithm.
    """

    @staticmethod
    def forward(ctx: Any, rounding: Tensor, beta: float | None) -> tuple[Tensor, Tensor]:
        sigmoid = torch.sigmoid(rounding)
        up = torch.clamp(sigmoid * (ZETA - GAMMA) + GAMMA, 0, 1)
        inside = ((up > 0) & (up < 1)).to(up.dtype)
        slope = sigmoid.mul_(1 - sigmoid).mul_(ZETA - GAMMA).mul_(inside)
        if beta is None:
            ctx.save_for_backward(slope, None)
            return up, up.new_zeros(())
        centred = 2 * up - 1
        logarithm = centred.abs().clamp_(min=1e-30).log_()
        penalty = up.numel() - torch.exp(beta * logarithm).sum()
        pull = torch.exp((beta - 1) * logarithm).mul_(centred.sign_()).mul_(-2 * beta).mul_(slope)
        ctx.save_for_backward(slope, pull)
        return up, penalty

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        slope, pull = ctx.saved_tensors
        grad = grads[0] * slope
        return (grad if pull is None else torch.addcmul(grad, pull, grads[1])), None


class PowerOfTwo(torch.autograd.Function):
    """The power of two whose logarithm is nearest to that of a scale; gradients pass straight
    through the rounding of the logarithm."""

    @staticmethod
    def forward(ctx: Any, scale: Tensor) -> Tensor:
        positive = scale.abs().clamp_min(torch.finfo(scale.dtype).tiny)
        power = torch.ldexp(torch.ones_like(scale), torch.round(torch.log2(positive)).int())
        ctx.save_for_backward(power / positive)
        return power

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        slope: Tensor
        (slope,) = ctx.saved_tensors
        return grads[0] * slope


class StraightThroughRound(torch.autograd.Function):
    """Rounds to 0 .. top; gradients pass straight through, but where the range ends."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, top: int) -> Tensor:
        rounded = torch.round(latent)
        q = torch.clamp(rounded, 0, top)
        ctx.save_for_backward(q == rounded)
        return q

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None
