"""The search for the scale and zero point of a quantizer: the least sum of |x - q(x)|^p."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from modcap.quantization.affine import fake_quantize, levels, middle
from modcap.quantization.scheme import ANY, Grid

__all__ = ["ranges", "scales", "search_scale", "spread"]

_SHRINKS = 90  # candidate ranges: 100 % down to 11 % of the range seen

_HALVINGS = 5  # candidate scales that are powers of two: from what covers the range seen

_SAMPLE = 1 << 14  # values a per-tensor search looks at

_ROW_SAMPLE = 1 << 12  # values of each row that a per-channel search looks at

_GOLDEN = (math.sqrt(5) - 1) / 2

_CHUNK = 1 << 18  # values at once, during the search: they stay in the cache
_GPU_CHUNK = 1 << 24  # on a GPU, where what counts is how many kernels are started


def search_scale(x: Tensor, bits: int, p: float = 2.4, grid: Grid = ANY) -> tuple[Tensor, Tensor]:
    """The scale and zero point that minimise sum |x - q(x)|^p for each row.

    Candidates are the range of the row (zero included) shrunk in steps of one percent, or halved
    where scales are powers of two, each with the zero point that the range implies and its two
    neighbours, or the middle one. Of longer rows, a sample is
    looked at (16,384 of a single row, 4,096 of each of several); the range is of all. Where what
    the range found leaves out weighs more than twice as much, over the whole row, as all errors
    that the sample shows, the sample has missed rare large values: then the search sees these, too.

    Args:
        x: (rows, values); one row per output channel, or a single row per tensor.
        bits: 2 to 8.
        p: exponent of the error; 2.4 in the published recipe.
        grid: which scales and zero points there may be.

    Returns:
        (scale, zero_point), each of shape (rows,) and x's dtype; zero points are integral.
    """
    low, width = ranges(x, bits, grid)
    limit = _SAMPLE if len(x) == 1 else _ROW_SAMPLE
    sampled = x.shape[1] > limit
    sample = x[:, spread(x.shape[1], limit).to(x.device)] if sampled else x
    rows = max(1, _chunk(x) // max(1, sample.shape[1]))
    parts = [
        _search_rows(part, lows, widths, bits, p, grid)
        for part, lows, widths in zip(
            sample.split(rows), low.split(rows), width.split(rows), strict=True
        )
    ]
    scale = torch.cat([scale for scale, _ in parts])
    zero = torch.cat([zero for _, zero in parts])
    if sampled:
        each = x.shape[1] / limit  # of the row, for one of the sample
        shown = sample - fake_quantize(sample, scale[:, None], zero[:, None], bits)
        missed = _left_out(x, scale, zero, bits, p) > 2 * each * _power_sum(shown, p)
        for row in missed.nonzero().flatten().tolist():
            one = slice(row, row + 1)
            values, weights = _with_rare(sample[row], x[row])
            scale[one], zero[one] = _search_rows(
                values, low[one], width[one], bits, p, grid, weights
            )
    return scale, zero


def ranges(x: Tensor, bits: int, grid: Grid) -> tuple[Tensor, Tensor]:
    """The least value of each row (rows, values), and the width of its range, 0 included; where
    zero points lie in the middle, 0 and the width of a range as wide on both sides."""
    low = x.amin(1).clamp(max=0.0)
    high = x.amax(1).clamp(min=0.0)
    if grid.symmetric:
        top = levels(bits)
        high = torch.maximum(high, -low) * top / (top - middle(bits))
        low = torch.zeros_like(low)
    return low, (high - low).clamp(min=torch.finfo(x.dtype).tiny * 2**12)


def _chunk(x: Tensor) -> int:
    return _GPU_CHUNK if x.is_cuda else _CHUNK


def _with_rare(sample: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """A ``sample`` (values,) and all of ``row`` beyond it, as one row (1, n), and how many values
    of the row each stands for (n,)."""
    rare = row[(row < sample.min()) | (row > sample.max())]
    each = torch.full_like(sample, len(row) / len(sample))
    return torch.cat([sample, rare])[None], torch.cat([each, torch.ones_like(rare)])


def _left_out(x: Tensor, scale: Tensor, zero: Tensor, bits: int, p: float) -> Tensor:
    """sum |error|^p of each row (rows, values), over the values outside of its range."""
    low, high = (-zero * scale)[:, None], ((levels(bits) - zero) * scale)[:, None]
    total = torch.zeros_like(scale)
    for part in x.split(max(1, _chunk(x) // len(x)), 1):
        away = part - torch.clamp(part, low, high)
        row, place = away.nonzero(as_tuple=True)
        total.index_add_(0, row, away[row, place].abs().pow(p))
    return total


def spread(count: int, limit: int) -> Tensor:
    """``limit`` distinct places of ``count``, by multiples of the golden ratio: even over the whole
    and over every part. A stride that divides width, height or channels would meet the same pixels
    or channels again and again."""
    step = round(_GOLDEN * count)
    while math.gcd(step, count) > 1:
        step += 1
    return torch.arange(limit) * step % count


def _search_rows(
    x: Tensor,
    low: Tensor,
    width: Tensor,
    bits: int,
    p: float,
    grid: Grid,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The search over x (rows, values), of which each counts as often as ``weights`` (values,)
    say."""
    top = levels(bits)
    best = torch.full_like(low, torch.inf)
    best_scale, best_zero = width / top, torch.zeros_like(low)
    for shrink, scale in scales(width, top, grid.power_of_two):
        implied = torch.round(-low * shrink / scale)
        if grid.symmetric:
            implied = torch.full_like(low, middle(bits))
        ratio = x / scale[:, None]
        rounded = torch.round(ratio)
        for shift in (0,) if grid.symmetric else (0, -1, 1):
            zero = torch.clamp(implied + shift, 0, top)
            steps = torch.clamp(rounded, -zero[:, None], (top - zero)[:, None])
            error = _power_sum(steps.sub_(ratio), p, weights)
            score = error * shrink**p  # in units of (width / top)^p
            better = score < best
            best = torch.where(better, score, best)
            best_scale = torch.where(better, scale, best_scale)
            best_zero = torch.where(better, zero, best_zero)
    return best_scale, best_zero


def scales(width: Tensor, top: int, power_of_two: bool) -> Iterator[tuple[float | Tensor, Tensor]]:
    """Scales (rows,) for ranges of ``width``, each after the share of the range that it covers."""
    if not power_of_two:
        for step in range(_SHRINKS):
            shrink = 1 - step / 100
            yield shrink, width * shrink / top
        return
    most = torch.ceil(torch.log2(width / top)).int()
    for step in range(_HALVINGS):
        scale = torch.ldexp(torch.ones_like(width), most - step)
        yield scale * top / width, scale


def _power_sum(error: Tensor, p: float, weights: Tensor | None = None) -> Tensor:
    """sum |error|^p of each row, weighted; overwrites ``error``. exp(p log) is half the time of
    pow."""
    powers = error.square_() if p == 2 else error.abs_().log_().mul_(p).exp_()
    return (powers if weights is None else powers.mul_(weights)).sum(1)
