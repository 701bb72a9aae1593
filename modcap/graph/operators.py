"""What networks are made of: every function, method and operator that a stored graph may call.

The lists are closed. What is not on them cannot be written, read or run: nothing that opens files,
works in place, reads memory that was not written or without a check of bounds, or draws at random.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch._ops import OpOverload
from torch.nn import functional as F

from modcap.graph.aten import ATEN

__all__ = [
    "ATTRIBUTES",
    "BINARY",
    "METHODS",
    "SIZED",
    "UNARY",
    "aten",
    "function_names",
    "functions",
]

ATTRIBUTES = ("shape", "dtype", "device", "ndim")  # of a tensor, by getattr
UNARY = ("neg", "pos", "abs", "invert", "not_")
BINARY = (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"),
    *("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "xor"),
)

# of two names of one function, the first is written: dsmm is mm
_TORCH = """
abs absolute acos acosh adaptive_avg_pool1d adaptive_max_pool1d add addbmm addcdiv addcmul addmm
addmv addr adjoint all alpha_dropout amax amin aminmax angle any arange arccos arccosh arcsin
arcsinh arctan arctan2 arctanh argmax argmin argsort asin asinh atan atan2 atanh atleast_1d
atleast_2d atleast_3d avg_pool1d baddbmm batch_norm bilinear bitwise_and bitwise_left_shift
bitwise_not bitwise_or bitwise_right_shift bitwise_xor block_diag bmm broadcast_tensors
broadcast_to bucketize cat cdist ceil celu chain_matmul channel_shuffle chunk clamp clamp_max
clamp_min clip clone column_stack complex concat concatenate conj constant_pad_nd conv1d conv2d
conv3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d convolution copysign cos cosh
cosine_similarity count_nonzero cross cummax cummin cumprod cumsum cumulative_trapezoid deg2rad
detach diag diag_embed diagflat diagonal diff digamma dist div divide dot dropout dsmm dsplit
dstack einsum embedding eq equal erf erfc erfinv exp exp2 expm1 eye feature_alpha_dropout
feature_dropout fix flatten flip fliplr flipud float_power floor floor_divide fmax fmin fmod frac
full full_like gather ge ger gradient greater greater_equal grid_sampler grid_sampler_2d
grid_sampler_3d group_norm gt hardshrink heaviside hsplit hstack hypot imag index_add index_copy
index_fill index_put index_select inner instance_norm is_complex is_floating_point is_same_size
is_signed isclose isfinite isin isinf isnan isneginf isposinf isreal kron kthvalue layer_norm
ldexp le lerp less less_equal lgamma linspace log log10 log1p log2 log_softmax logaddexp
logaddexp2 logcumsumexp logical_and logical_not logical_or logical_xor logit logsumexp lt
masked_fill masked_scatter masked_select matmul max max_pool1d max_pool1d_with_indices max_pool2d
max_pool3d maximum mean median meshgrid min minimum mm mode moveaxis movedim msort mul multiply mv
nan_to_num nanmean nanmedian nansum narrow ne neg negative nextafter norm not_equal numel ones
ones_like outer pairwise_distance permute pixel_shuffle pixel_unshuffle polar positive pow prelu
prod quantile rad2deg ravel real reciprocal relu remainder renorm repeat_interleave reshape
resolve_conj resolve_neg rms_norm roll rot90 round row_stack rsqrt rsub scalar_tensor scatter
scatter_add scatter_reduce searchsorted select select_scatter selu sgn sigmoid sign signbit sin
sinc sinh slice_scatter softmax sort split split_with_sizes sqrt square squeeze stack std std_mean
sub subtract sum swapaxes swapdims sym_float sym_int sym_ite sym_max sym_min sym_not sym_sum t
take take_along_dim tan tanh tensor tensor_split tensordot threshold tile topk trace transpose
trapezoid trapz tril triu true_divide trunc unbind unflatten unsafe_chunk unsafe_split
unsafe_split_with_sizes unsqueeze var var_mean vdot view_as_complex view_as_real vsplit vstack
where xlogy zeros zeros_like
"""

_FUNCTIONAL = """
adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
adaptive_max_pool1d_with_indices adaptive_max_pool2d adaptive_max_pool2d_with_indices
adaptive_max_pool3d adaptive_max_pool3d_with_indices affine_grid alpha_dropout avg_pool1d
avg_pool2d avg_pool3d batch_norm bilinear celu channel_shuffle conv1d conv2d conv3d conv_tbc
conv_transpose1d conv_transpose2d conv_transpose3d cosine_similarity dropout dropout1d dropout2d
dropout3d elu embedding feature_alpha_dropout fold gelu glu grid_sample group_norm hardshrink
hardsigmoid hardswish hardtanh instance_norm interpolate layer_norm leaky_relu linear
local_response_norm log_softmax logsigmoid lp_pool1d lp_pool2d lp_pool3d max_pool1d
max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices
max_unpool1d max_unpool2d max_unpool3d mish normalize one_hot pad pairwise_distance pixel_shuffle
pixel_unshuffle prelu relu relu6 rms_norm rrelu scaled_dot_product_attention selu sigmoid silu
softmax softmin softplus softshrink softsign tanh tanhshrink threshold unfold upsample
upsample_bilinear upsample_nearest
"""

_METHODS = """
abs absolute acos acosh add addbmm addcdiv addcmul addmm addmv addr adjoint all amax amin aminmax
angle any arccos arccosh arcsin arcsinh arctan arctan2 arctanh argmax argmin argsort asin asinh
atan atan2 atanh baddbmm bfloat16 bitwise_and bitwise_left_shift bitwise_not bitwise_or
bitwise_right_shift bitwise_xor bmm bool broadcast_to byte ceil chunk clamp clamp_max clamp_min
clip clone conj contiguous copysign cos cosh count_nonzero cpu cross cuda cummax cummin cumprod
cumsum deg2rad detach diag diag_embed diagflat diagonal diff digamma dim dist div divide dot
double dsplit eq equal erf erfc erfinv exp exp2 expand expand_as expm1 fix flatten flip fliplr
flipud float float_power floor floor_divide fmax fmin fmod frac gather ge ger greater
greater_equal gt half hardshrink heaviside hsplit hypot index_add index_copy index_fill index_put
index_select inner int is_complex is_contiguous is_floating_point is_same_size is_signed isclose
isfinite isinf isnan isneginf isposinf isreal item kron kthvalue ldexp le lerp less less_equal
lgamma log log10 log1p log2 log_softmax logaddexp logaddexp2 logcumsumexp logical_and logical_not
logical_or logical_xor logit logsumexp long lt masked_fill masked_scatter masked_select matmul max
maximum mean median min minimum mm mode moveaxis movedim msort mul multiply mv nan_to_num nanmean
nanmedian nansum narrow ndimension ne neg negative nelement new_full new_ones new_tensor new_zeros
nextafter norm not_equal numel outer permute positive pow prelu prod quantile rad2deg ravel
reciprocal relu remainder renorm repeat repeat_interleave reshape reshape_as resolve_conj
resolve_neg roll rot90 round rsqrt scatter scatter_add scatter_reduce select select_scatter sgn
short sigmoid sign signbit sin sinc sinh size slice_scatter softmax sort split split_with_sizes
sqrt square squeeze std sub subtract sum swapaxes swapdims t take take_along_dim tan tanh
tensor_split tile to topk trace transpose tril triu true_divide trunc type type_as unbind
unflatten unfold unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze var vdot view view_as
vsplit where xlogy
"""
METHODS = frozenset(_METHODS.split())


_SIZED = """
adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
adaptive_max_pool2d adaptive_max_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d affine_grid arange
broadcast_to col2im constant_pad_nd expand eye fold full interpolate linspace max_unpool1d
max_unpool2d max_unpool3d new_full new_ones new_zeros one_hot ones pad reflection_pad1d
reflection_pad2d reflection_pad3d repeat repeat_interleave replication_pad1d replication_pad2d
replication_pad3d reshape tile unflatten upsample upsample_bicubic2d upsample_bilinear
upsample_bilinear2d upsample_linear1d upsample_nearest upsample_nearest1d upsample_nearest2d
upsample_nearest3d upsample_trilinear3d view zeros _upsample_bicubic2d_aa _upsample_bilinear2d_aa
_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
"""
SIZED = frozenset(_SIZED.split())  # whose arguments alone decide how large their result is


@cache
def functions() -> dict[str, Callable[..., Any]]:
    """Name to function, for everything that a ``call_function`` node may call but aten."""
    found: dict[str, Callable[..., Any]] = {
        f"operator.{name}": getattr(operator, name) for name in (*UNARY, *BINARY, "getitem")
    }
    for prefix, library, names in (
        ("torch", torch, _TORCH),
        ("torch.nn.functional", F, _FUNCTIONAL),
    ):
        for name in names.split():
            if hasattr(library, name):  # of this version of torch
                found[f"{prefix}.{name}"] = getattr(library, name)
    return found


@cache
def function_names() -> dict[Callable[..., Any], str]:
    """The first name of each function."""
    return {function: name for name, function in reversed(functions().items())}


def aten(name: str) -> OpOverload | None:
    """The operator ``aten.NAME.OVERLOAD``, if it is on the list."""
    if name not in ATEN:
        return None
    _, packet, overload = name.split(".")
    return getattr(getattr(torch.ops.aten, packet, None), overload, None)
