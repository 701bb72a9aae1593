"""How broad capture is: networks of torchvision and timm with random weights, a row for each.

    python -m benchmarks.breadth [--quick] [--only PATTERN] [--again] [--page]

A row says whether the network is captured, into how many modules, which share of the weights the
largest holds, and how far its forward, and its rounding to W8A8, are from the model. Rows are
kept: what has one is not run again. Writes benchmarks/results/breadth.jsonl and docs/breadth.md.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from benchmarks.breadth_page import page
from benchmarks.places import DOCS, ROOT
from modcap.checkpoints import _torchvision, architecture
from modcap.core.errors import ModcapError
from modcap.core.messages import first_line
from modcap.graph.network import Network, build
from modcap.graph.nodes import weight_layers
from modcap.ptq.bit_policy import BitPolicy
from modcap.ptq.reconstruct import freeze
from modcap.quantization.affine import levels
from modcap.quantization.insert import insert_quantizers, quantizers
from modcap.quantization.layers import ActivationQuantizer

NETWORKS = Path(__file__).with_name("breadth_networks.txt")
IMAGES = 4
LIMIT = 240  # seconds for one network
_ASKED = dict.fromkeys(("googlenet", "inception_v3"), "?transform_input=true")
_SIZES = (64, 96, 128, 224, 256)


def names() -> list[tuple[str, str]]:
    """(architecture, family): those of timm as listed, and every classifier of torchvision."""
    listed = (line.split() for line in NETWORKS.read_text().splitlines() if line[:1] != "#")
    timm = [(f"timm:{name}", family) for family, *members in listed for name in members]
    models = _torchvision.models()
    vision = models.list_models(module=models)
    families = [models.get_model_builder(name).__module__.split(".")[-1] for name in vision]
    named = [f"torchvision:{name}{_ASKED.get(name, '')}" for name in vision]
    return timm + list(zip(named, families, strict=True))


@torch.no_grad()
def measure(name: str) -> dict[str, Any]:
    """The row of one network, without its names."""
    start = time.perf_counter()
    torch.manual_seed(0)
    model = trained(architecture.build(name, {}).eval())
    images = fitting(model)
    made = time.perf_counter()
    row: dict[str, Any] = {"size": images.shape[-1], "captured": False}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = build(model, images[:2])
    except ModcapError as error:
        return row | {"why": first_line(error), "seconds": round(time.perf_counter() - start, 1)}
    captured = time.perf_counter()
    expected = model(images.clone())
    weights = [_weights(module) for module in network.partition.modules]
    return row | {
        "captured": True,
        "modules": len(weights),
        "share": round(max(weights) / sum(weights), 3),
        "error": _relative(network(images), expected),
        "w8a8": _relative(rounded(network, images), expected),
        "notices": len(network.notices),
        "capture_seconds": round(captured - made, 1),
        "seconds": round(time.perf_counter() - start, 1),
    }


def trained(model: nn.Module) -> nn.Module:
    """The model with what fresh ones have at nought: statistics of batch norms, scales of layers,
    gains of residuals."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1)
            assert module.running_var is not None
            module.running_var.uniform_(0.5, 1.5)
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.ndim <= 1 and not parameter.any():
            parameter.data.normal_(0, 0.02)
    return model


def fitting(model: nn.Module) -> Tensor:
    """Random images of the smallest size that the model takes."""
    for size in _SIZES:
        images = torch.randn(IMAGES, 3, size, size)
        try:
            if model(images.clone()).isfinite().all():
                return images
        except Exception:  # of its size
            continue
    config = getattr(model, "default_cfg", {})
    return torch.randn(IMAGES, *config.get("input_size", (3, 299, 299)))


def _weights(module: fx.GraphModule) -> int:
    layers = (module.get_submodule(str(node.target)) for node in weight_layers(module))
    return sum(layer.weight.numel() for layer in layers)  # type: ignore[operator,union-attr]


def _relative(found: Tensor, expected: Tensor) -> float:
    return float(f"{float((found - expected).norm() / expected.norm()):.2g}")


def rounded(network: Network, x: Tensor) -> Tensor:
    """What the network gives with weights and activations rounded to 8 bits, by least and largest
    values."""
    found, full = x, x
    bits = BitPolicy(8, 8, 8).resolve(network.partition)
    for module, widths in zip(network.partition.modules, bits, strict=True):
        quantized = insert_quantizers(module, widths)
        layers, activations = quantizers(quantized)
        for layer in layers.values():
            rows = layer.weight.transpose(0, layer.axis).flatten(1)
            layer.scale, layer.zero_point = _grid(rows.amin(1), rows.amax(1))
        handles = [q.register_forward_pre_hook(_fit) for q in activations.values()]
        full = quantized(full)
        for handle in handles:
            handle.remove()
        for quantizer in activations.values():
            quantizer.enabled = True
        freeze([quantized])
        found = quantized(found)
    return found


def _fit(quantizer: nn.Module, args: tuple[Tensor, ...]) -> None:
    assert isinstance(quantizer, ActivationQuantizer)
    quantizer.set(*_grid(args[0].min(), args[0].max()))
    quantizer.enabled = False


def _grid(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point of 8 bits from ``low`` to ``high``, and nought among them."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / levels(8)).clamp(min=1e-12)
    return scale, torch.round(-low / scale)


def _stop(*_: object) -> None:
    raise TimeoutError(f"more than {LIMIT} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="every tenth network")
    parser.add_argument("--only", default="", help="a pattern of names")
    parser.add_argument("--again", action="store_true", help="measure what has a row, too")
    parser.add_argument("--page", action="store_true", help="write the page alone")
    options = parser.parse_args()
    place = ROOT / f"benchmarks/results/breadth{'_quick' if options.quick else ''}.jsonl"
    rows = {row["network"]: row for row in _read(place)}
    if not options.page:
        for name, family in names()[:: 10 if options.quick else 1]:
            if re.search(options.only, name) and (options.again or name not in rows):
                rows[name] = {"network": name, "family": family} | guarded(name)
                print(json.dumps(rows[name]), flush=True)
                place.write_text("".join(f"{json.dumps(rows[n])}\n" for n in sorted(rows)))
    if not options.quick:
        (DOCS / "breadth.md").write_text(page([rows[name] for name in sorted(rows)], len(names())))


def guarded(name: str) -> dict[str, Any]:
    """The row of one network, within its time; whatever else goes wrong is its reason."""
    signal.signal(signal.SIGALRM, _stop)
    signal.alarm(LIMIT)
    try:
        return measure(name)
    except Exception as error:
        return {"captured": False, "why": f"{type(error).__name__}: {first_line(error)}"}
    finally:
        signal.alarm(0)


def _read(place: Path) -> Iterator[dict[str, Any]]:
    if place.exists():
        yield from map(json.loads, place.read_text().splitlines())


if __name__ == "__main__":
    main()
