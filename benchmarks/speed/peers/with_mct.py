"""model-compression-toolkit: gradient-based PTQ of the whole network at once."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from child import Bench, measured, tolerate_torchvision
from torch import Tensor, fx, nn

tolerate_torchvision()

import model_compression_toolkit as mct  # noqa: E402
from mct_quantizers import QuantizationMethod  # noqa: E402
from model_compression_toolkit.core.common.network_editors import NodeNameFilter  # noqa: E402
from model_compression_toolkit.target_platform_capabilities.schema import (  # noqa: E402
    mct_current_schema as schema,
)


def _operation(config: Any, w_bits: int, a_bits: int) -> Any:
    """An operator's bits. Activations are asymmetric with any scale, which is more exact than the
    powers of two of the default target; kernels stay symmetric per channel, its default."""
    kernels = {
        name: attribute.clone_and_edit(weights_n_bits=w_bits)
        if attribute.enable_weights_quantization
        else attribute
        for name, attribute in config.attr_weights_configs_mapping.items()
    }
    return config.clone_and_edit(
        activation_n_bits=a_bits,
        supported_input_activation_n_bits=(a_bits, 8),
        activation_quantization_method=QuantizationMethod.UNIFORM,
        attr_weights_configs_mapping=kernels,
    )


def _options(choice: Any, w_bits: int, a_bits: int) -> Any:
    base = choice.base_config or choice.quantization_configurations[0]
    some, eight = _operation(base, w_bits, a_bits), _operation(base, 8, 8)
    both = (some,) if some == eight else (some, eight)
    return schema.QuantizationConfigOptions(quantization_configurations=both, base_config=some)


def capabilities(w_bits: int, a_bits: int) -> Any:
    """The default target with ``w_bits`` and ``a_bits``, or 8 where a layer is told so; what it
    knows no operator for (input, pooling) has 8."""
    target = mct.get_target_platform_capabilities()
    sets = tuple(
        schema.OperatorsSet(
            name=known.name,
            qc_options=_options(known.qc_options or target.default_qco, w_bits, a_bits),
        )
        for known in target.operator_set
    )
    default = _operation(target.default_qco.quantization_configurations[0], 8, 8)
    eight = schema.QuantizationConfigOptions(quantization_configurations=(default,))
    return target.model_copy(update={"default_qco": eight, "operator_set": sets})


def edges(model: nn.Module) -> Any:
    """First and last weight layer with 8 bits."""
    config = mct.core.BitWidthConfig()
    layers = [  # a convolution that took up a batch norm has another name
        node.name + "_bn" * isinstance(model.get_submodule(node.target), nn.Conv2d)
        for node in fx.symbolic_trace(model).graph.nodes
        if node.op == "call_module"
        and isinstance(model.get_submodule(node.target), nn.Conv2d | nn.Linear)
    ]
    for name in (layers[0], layers[-1]):
        config.set_manual_weights_bit_width(NodeNameFilter(name), 8, "weight")
    config.set_manual_activation_bit_width(NodeNameFilter(layers[-1]), 8)
    return config


def quantize(bench: Bench) -> tuple[Callable[[Tensor], Tensor], dict[str, Any]]:
    def images() -> Iterator[list[Any]]:
        for batch in bench.batches():
            yield [batch.numpy()]

    hessian = bench.spec.get("hessian", False)
    per_epoch = math.ceil(len(bench.images) / bench.spec["batch"])
    epochs = max(1, round(bench.spec["steps"] / per_epoch))
    network, _ = mct.gptq.pytorch_gradient_post_training_quantization(
        bench.model,
        images,
        core_config=mct.core.CoreConfig(bit_width_config=edges(bench.model)),
        gptq_config=mct.gptq.get_pytorch_gptq_config(
            n_epochs=epochs, use_hessian_based_weights=hessian, use_hessian_sample_attention=hessian
        ),
        target_platform_capabilities=capabilities(bench.spec["w_bits"], bench.spec["a_bits"]),
    )
    return network, {"steps": epochs * per_epoch}


if __name__ == "__main__":
    measured("model-compression-toolkit", quantize)
