"""aimet-torch: AdaRound layer by layer with full-precision activations, which are then quantized
with ranges searched on the same images."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from child import Bench, measured, tolerate_torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader

tolerate_torchvision()

import aimet_torch  # noqa: E402
from aimet_torch.adaround.adaround_weight import Adaround, AdaroundParameters  # noqa: E402
from aimet_torch.batch_norm_fold import fold_all_batch_norms  # noqa: E402
from aimet_torch.common.quantsim_config import utils as configurations  # noqa: E402
from aimet_torch.model_preparer import prepare_model  # noqa: E402
from aimet_torch.quantsim import QuantizationSimModel  # noqa: E402

PER_CHANNEL = str(Path(configurations.__file__).parent / "default_config_per_channel.json")


def _weight_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def _edges_with_eight_bits(sim: Any) -> None:
    """Weights and inputs of the first and the last layer."""
    layers = _weight_layers(sim.model)
    for _, layer in (layers[0], layers[-1]):
        layer.param_quantizers["weight"].bitwidth = 8
        for quantizer in (*layer.input_quantizers, *layer.output_quantizers):
            if quantizer is not None and layer is layers[-1][1]:
                quantizer.bitwidth = 8
    for module in sim.model.modules():  # the image, and what the last layer reads
        if isinstance(module, nn.AdaptiveAvgPool2d | nn.Flatten) or module is layers[0][1]:
            both = (
                module.output_quantizers if module is not layers[0][1] else module.input_quantizers
            )
            for quantizer in both:
                if quantizer is not None:
                    quantizer.bitwidth = 8


def quantize(bench: Bench) -> tuple[Callable[[Tensor], Tensor], dict[str, Any]]:
    example = bench.images[:2]
    model = prepare_model(bench.model)
    fold_all_batch_norms(model, example.shape, dummy_input=example)
    loader = DataLoader(bench.images, batch_size=bench.spec["batch"])  # type: ignore[arg-type]
    steps = bench.spec["steps"]
    parameters = AdaroundParameters(
        loader, len(loader), default_num_iterations=steps, forward_fn=lambda net, x: net(x)
    )
    layers = _weight_layers(model)
    with tempfile.TemporaryDirectory() as folder:
        rounded = Adaround.apply_adaround(
            model,
            example,
            parameters,
            path=folder,
            filename_prefix="weights",
            default_param_bw=bench.spec["w_bits"],
            param_bw_override_list=[(layers[0][1], 8), (layers[-1][1], 8)],
            default_config_file=PER_CHANNEL,
        )
        sim = QuantizationSimModel(
            rounded,
            example,
            default_param_bw=bench.spec["w_bits"],
            default_output_bw=bench.spec["a_bits"],
            config_file=PER_CHANNEL,
        )
        _edges_with_eight_bits(sim)
        sim.set_and_freeze_param_encodings(encoding_path=f"{folder}/weights.encodings")
        with torch.no_grad():
            sim.compute_encodings(lambda net: [net(batch) for batch in loader])
    return sim.model, {"steps": steps * len(layers), "layers": len(layers)}


if __name__ == "__main__":
    assert aimet_torch
    measured("aimet-torch", quantize)
