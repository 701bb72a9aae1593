"""The layers of ``torch.nn`` that a stored graph may call, and what each is made from."""

from __future__ import annotations

from typing import cast

from torch import nn

__all__ = ["LEAVES", "SIZED_LEAVES", "leaf"]

_CONVOLUTION = (
    "in_channels out_channels kernel_size stride padding dilation groups bias padding_mode"
)
_TRANSPOSED = f"{_CONVOLUTION} output_padding"
_NORM = "num_features eps momentum affine track_running_stats bias"
_SINGLE = """
AdaptiveAvgPool1d: output_size
AdaptiveAvgPool2d: output_size
AdaptiveAvgPool3d: output_size
AdaptiveMaxPool1d: output_size return_indices
AdaptiveMaxPool2d: output_size return_indices
AdaptiveMaxPool3d: output_size return_indices
AlphaDropout: p
AvgPool1d: kernel_size stride padding ceil_mode count_include_pad
AvgPool2d: kernel_size stride padding ceil_mode count_include_pad divisor_override
AvgPool3d: kernel_size stride padding ceil_mode count_include_pad divisor_override
Bilinear: in1_features in2_features out_features bias
CELU: alpha
ChannelShuffle: groups
CosineSimilarity: dim eps
CrossMapLRN2d: size alpha beta k
Dropout: p
Dropout1d: p
Dropout2d: p
Dropout3d: p
ELU: alpha
Embedding: num_embeddings embedding_dim padding_idx max_norm norm_type scale_grad_by_freq sparse
FeatureAlphaDropout: p
Flatten: start_dim end_dim
Fold: output_size kernel_size dilation padding stride
GELU: approximate
GLU: dim
GroupNorm: num_groups num_channels eps affine bias
Hardshrink: lambd
Hardsigmoid:
Hardswish:
Hardtanh: min_val max_val min_value max_value
Identity:
LPPool1d: norm_type kernel_size stride ceil_mode
LPPool2d: norm_type kernel_size stride ceil_mode
LPPool3d: norm_type kernel_size stride ceil_mode
LayerNorm: normalized_shape eps elementwise_affine bias
LeakyReLU: negative_slope
Linear: in_features out_features bias
LocalResponseNorm: size alpha beta k
LogSigmoid:
LogSoftmax: dim
MaxPool1d: kernel_size stride padding dilation return_indices ceil_mode
MaxPool2d: kernel_size stride padding dilation return_indices ceil_mode
MaxPool3d: kernel_size stride padding dilation return_indices ceil_mode
MaxUnpool1d: kernel_size stride padding
MaxUnpool2d: kernel_size stride padding
MaxUnpool3d: kernel_size stride padding
Mish:
PReLU: num_parameters init
PairwiseDistance: p eps keepdim
PixelShuffle: upscale_factor
PixelUnshuffle: downscale_factor
RMSNorm: normalized_shape eps elementwise_affine
RReLU: lower upper
ReLU:
ReLU6:
SELU:
SiLU:
Sigmoid:
Softmax: dim
Softmax2d:
Softmin: dim
Softplus: beta threshold
Softshrink: lambd
Softsign:
SyncBatchNorm: num_features eps momentum affine track_running_stats process_group bias
Tanh:
Tanhshrink:
Threshold: threshold value
Unflatten: dim unflattened_size
Unfold: kernel_size dilation padding stride
Upsample: size scale_factor mode align_corners recompute_scale_factor
UpsamplingBilinear2d: size scale_factor
UpsamplingNearest2d: size scale_factor
"""
_DIMENSIONS = {  # of one, two and three dimensions
    "Conv": _CONVOLUTION,
    "ConvTranspose": _TRANSPOSED,
    "BatchNorm": _NORM,
    "InstanceNorm": _NORM,
    "CircularPad": "padding",
    "ConstantPad": "padding value",
    "ReflectionPad": "padding",
    "ReplicationPad": "padding",
    "ZeroPad": "padding",
}


def _listed() -> dict[str, frozenset[str]]:
    single = (line.partition(":") for line in _SINGLE.strip().splitlines())
    found = {name: frozenset(arguments.split()) for name, _, arguments in single}
    for name, arguments in _DIMENSIONS.items():
        found |= {f"{name}{n}d": frozenset(arguments.split()) for n in (1, 2, 3)}
    return found


LEAVES = _listed()  # class to the names of its arguments
SIZED_LEAVES = frozenset(  # whose arguments alone decide how large their output is
    name
    for name in LEAVES
    if name.startswith(("Adaptive", "Upsampl", "Unflatten", "Fold", "MaxUnpool")) or "Pad" in name
)


def leaf(name: str) -> type[nn.Module] | None:
    """The class of that name, if it is on the list."""
    return cast(type[nn.Module], getattr(nn, name)) if name in LEAVES else None
