"""The aten operators that networks are made of, each with its overloads.

ATEN work on values alone. IN_PLACE and CHECKS occur in archives of torch.export, and are gone once
a network was captured: the first become functional, the second say what held for the example.
"""

from __future__ import annotations

__all__ = ["ATEN", "CHECKS", "IN_PLACE", "NORM"]


def _listed(text: str) -> frozenset[str]:
    """``aten.NAME.OVERLOAD`` of every ``NAME:OVERLOAD,OVERLOAD``."""
    named = (entry.split(":") for entry in text.split())
    return frozenset(f"aten.{name}.{one}" for name, all_ in named for one in all_.split(","))


ATEN = _listed("""
_adaptive_avg_pool2d:default _adaptive_avg_pool3d:default _conj:default _log_softmax:default
_softmax:default _to_copy:default _unsafe_index:Tensor _unsafe_view:default
_upsample_bicubic2d_aa:default,vec _upsample_bilinear2d_aa:default,vec
_upsample_nearest_exact1d:default,vec _upsample_nearest_exact2d:default,vec
_upsample_nearest_exact3d:default,vec abs:default acos:default acosh:default
adaptive_avg_pool1d:default adaptive_avg_pool2d:default adaptive_avg_pool3d:default
adaptive_max_pool1d:default adaptive_max_pool2d:default adaptive_max_pool3d:default
add:Tensor,Scalar addbmm:default addcdiv:default addcmul:default addmm:default addmv:default
addr:default alias:default all:default,dim,dims alpha_dropout:default amax:default amin:default
angle:default any:default,dim,dims arange:default,start,start_step argmax:default argmin:default
argsort:default,stable asin:default asinh:default atan:default atan2:default atanh:default
atleast_1d:default,Sequence atleast_2d:default,Sequence atleast_3d:default,Sequence
avg_pool1d:default avg_pool2d:default avg_pool3d:default baddbmm:default batch_norm:default
bitwise_and:Tensor,Scalar,Scalar_Tensor bitwise_left_shift:Tensor,Tensor_Scalar
bitwise_not:default bitwise_or:Tensor,Scalar,Scalar_Tensor
bitwise_right_shift:Tensor,Tensor_Scalar
bitwise_xor:Tensor,Scalar,Scalar_Tensor block_diag:default bmm:default broadcast_tensors:default
broadcast_to:default bucketize:Tensor,Scalar cat:default cdist:default ceil:default celu:default
channel_shuffle:default chunk:default clamp:default,Tensor clamp_max:default,Tensor
clamp_min:default,Tensor clip:default,Tensor clone:default col2im:default column_stack:default
complex:default concat:default concatenate:default conj:default constant_pad_nd:default
contiguous:default conv1d:default,padding conv2d:default,padding conv3d:default,padding
conv_transpose1d:default conv_transpose2d:input conv_transpose3d:input convolution:default
copysign:Tensor,Scalar cos:default cosh:default cosine_similarity:default
count_nonzero:default,dim_IntList cross:default cummax:default cummin:default cumprod:default
cumsum:default cumulative_trapezoid:x,dx deg2rad:default detach:default diag:default
diag_embed:default diagonal:default diff:default digamma:default dist:default
div:Tensor,Scalar,Tensor_mode,Scalar_mode divide:Tensor,Scalar,Tensor_mode,Scalar_mode dot:default
dropout:default dstack:default einsum:default elu:default embedding:default eq:Tensor,Scalar
erf:default erfc:default erfinv:default exp:default exp2:default expand:default expand_as:default
expm1:default eye:default,m feature_alpha_dropout:default feature_dropout:default fft_fft:default
fft_fft2:default fft_fftn:default fft_fftshift:default fft_ifft:default fft_ifft2:default
fft_ifftn:default fft_ifftshift:default fft_irfft:default fft_irfft2:default fft_irfftn:default
fft_rfft:default fft_rfft2:default fft_rfftn:default fill:Scalar,Tensor fix:default
flatten:using_ints flip:default fliplr:default flipud:default
float_power:Tensor_Tensor,Tensor_Scalar,Scalar floor:default floor_divide:default,Scalar
fmax:default fmin:default fmod:Tensor,Scalar frac:default full:default full_like:default
gather:default ge:Tensor,Scalar gelu:default ger:default glu:default grid_sampler:default
grid_sampler_2d:default grid_sampler_3d:default group_norm:default gt:Tensor,Scalar
hardshrink:default hardsigmoid:default hardswish:default hardtanh:default heaviside:default
hstack:default hypot:default im2col:default imag:default index:Tensor index_add:default
index_copy:default index_fill:int_Tensor,int_Scalar index_put:default index_select:default
inner:default instance_norm:default isclose:default isfinite:default isinf:default isnan:default
isneginf:default isposinf:default isreal:default kron:default kthvalue:default layer_norm:default
le:Tensor,Scalar leaky_relu:default lerp:Scalar,Tensor lgamma:default lift_fresh_copy:default
linalg_vector_norm:default linear:default
linspace:Tensor_Tensor,Tensor_Scalar,Scalar_Tensor,default log:default log10:default log1p:default
log2:default log_sigmoid:default log_softmax:int logaddexp:default logaddexp2:default
logcumsumexp:default logical_and:default logical_not:default logical_or:default
logical_xor:default logit:default logsumexp:default lt:Tensor,Scalar masked_fill:Scalar,Tensor
matmul:default max:other,default,dim max_pool1d:default max_pool1d_with_indices:default
max_pool2d:default max_pool2d_with_indices:default max_pool3d:default
max_pool3d_with_indices:default max_unpool2d:default max_unpool3d:default maximum:default
mean:default,dim median:default,dim meshgrid:default,indexing min:other,default,dim
minimum:default mish:default mm:default mode:default moveaxis:intlist,int movedim:int,intlist
msort:default mul:Tensor,Scalar multiply:Tensor,Scalar mv:default nan_to_num:default
nanmean:default nansum:default narrow:default,Tensor native_channel_shuffle:default
native_dropout:default native_group_norm:default native_layer_norm:default ne:Tensor,Scalar
neg:default negative:default new_full:default new_ones:default new_zeros:default nextafter:default
norm:Scalar,ScalarOpt_dim,ScalarOpt_dim_dtype,ScalarOpt_dtype one_hot:default ones:default
ones_like:default outer:default pad:default pairwise_distance:default permute:default
pixel_shuffle:default pixel_unshuffle:default polar:default positive:default
pow:Tensor_Tensor,Tensor_Scalar,Scalar prelu:default prod:default,dim_int quantile:default,scalar
rad2deg:default ravel:default real:default reciprocal:default reflection_pad1d:default
reflection_pad2d:default reflection_pad3d:default relu:default relu6:default
remainder:Tensor,Scalar,Scalar_Tensor renorm:default repeat:default
repeat_interleave:Tensor,self_Tensor,self_int replication_pad1d:default replication_pad2d:default
replication_pad3d:default reshape:default reshape_as:default resolve_conj:default
resolve_neg:default rms_norm:default roll:default rot90:default round:default,decimals
row_stack:default rsqrt:default rsub:Tensor,Scalar scalar_tensor:default
scaled_dot_product_attention:default scatter:value,src,reduce,value_reduce scatter_add:default
scatter_reduce:two searchsorted:Tensor,Scalar select:int select_scatter:default selu:default
sgn:default sigmoid:default sign:default signbit:default silu:default sin:default sinc:default
sinh:default slice:Tensor slice_scatter:default softmax:int softplus:default softshrink:default
sort:default,stable split:Tensor,sizes,default split_with_sizes:default sqrt:default
square:default squeeze:default,dim,dims stack:default std:default,dim,correction
std_mean:default,dim,correction sub:Tensor,Scalar subtract:Tensor,Scalar sum:dim_IntList,default
swapaxes:default swapdims:default sym_numel:default sym_size:int,default t:default take:default
take_along_dim:default tan:default tanh:default tensor_split:sections,indices tensordot:default
threshold:default tile:default to:device,dtype,other,dtype_layout topk:default trace:default
transpose:int tril:default triu:default true_divide:Tensor,Scalar trunc:default type_as:default
unbind:int unflatten:int unfold:default unsqueeze:default upsample_bicubic2d:default,vec
upsample_bilinear2d:default,vec upsample_linear1d:default,vec upsample_nearest1d:default,vec
upsample_nearest2d:default,vec upsample_nearest3d:default,vec upsample_trilinear3d:default,vec
var:default,dim,correction var_mean:default,dim,correction vdot:default view:default,dtype
view_as:default view_as_complex:default view_as_real:default vstack:default
where:self,ScalarOther,ScalarSelf,Scalar,default xlogy:Tensor,Scalar_Other,Scalar_Self
zeros:default zeros_like:default
""")

IN_PLACE = _listed("""
abs_:default add_:Tensor,Scalar addcdiv_:default addcmul_:default alpha_dropout_:default
bitwise_and_:Tensor,Scalar bitwise_not_:default bitwise_or_:Tensor,Scalar ceil_:default
celu_:default clamp_:default,Tensor clamp_max_:default,Tensor clamp_min_:default,Tensor
clip_:default,Tensor copy_:default,Tensor,int,float cos_:default detach_:default
div_:Tensor,Tensor_mode,Scalar,Scalar_mode dropout_:default elu_:default exp_:default
feature_dropout_:default fill_:Scalar,Tensor floor_:default floor_divide_:Tensor,Scalar
gelu_:default hardsigmoid_:default hardswish_:default hardtanh_:default index_add_:default
index_copy_:default index_fill_:int_Tensor,int_Scalar index_put_:default leaky_relu_:default
lerp_:Scalar,Tensor log_:default logical_and_:default logical_not_:default logical_or_:default
masked_fill_:Scalar,Tensor mish_:default mul_:Tensor,Scalar multiply_:Tensor,Scalar neg_:default
pow_:Scalar,Tensor reciprocal_:default relu6_:default relu_:default remainder_:Tensor,Scalar
round_:default,decimals rsqrt_:default scatter_:src,value,reduce,value_reduce scatter_add_:default
selu_:default sigmoid_:default sign_:default silu_:default sin_:default sqrt_:default
square_:default squeeze_:default,dim,dims sub_:Tensor,Scalar subtract_:Tensor,Scalar t_:default
tan_:default tanh_:default threshold_:default transpose_:default tril_:default triu_:default
true_divide_:Tensor,Scalar trunc_:default unsqueeze_:default zero_:default
""")

CHECKS = _listed("""
_assert_async:default,msg _assert_scalar:default _assert_tensor_metadata:default
lift_fresh:default sym_constrain_range:default sym_constrain_range_for_size:default
""")

NORM = "aten._native_batch_norm_legit_no_training.default"  # does not check its arguments
