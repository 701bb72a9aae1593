"""Networks for devices that compute in integers alone: what is quantized, how it is stored, and
that onnxruntime fuses it to its integer kernels."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

import modcap
from modcap.core.errors import InputError
from modcap.export import Export
from modcap.export import save as export
from modcap.export.artifact import unpack_network
from modcap.graph.network import build
from modcap.quantization.affine import middle
from modcap.quantization.bits import Bits
from modcap.quantization.fake_quantize import PowerOfTwo
from modcap.quantization.insert import quantizers
from modcap.quantization.placement import placements
from modcap.quantization.scale_search import search_scale
from modcap.quantization.scheme import Activations, Grid, Scales, Scheme, WeightRange
from modcap.recipe import Recipe
from tests.exports import artifact_of

SHAPE = (3, 12, 12)
ALL = Scheme(activations=Activations.ALL, weights=WeightRange.SYMMETRIC)
ALL_SHIFTS = ALL.model_copy(update={"scales": Scales.POWER_OF_TWO})


class Small(nn.Module):
    """A residual sum, a concatenation, both kinds of pooling, a depthwise layer, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.deep = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False)
        self.left, self.right = nn.Conv2d(8, 5, 1), nn.Conv2d(8, 3, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.two(F.relu(self.one(x))))
        x = F.max_pool2d(F.relu6(self.deep(x)), 2)
        x = torch.cat([self.left(x), self.right(x)], 1)
        logits: Tensor = self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def small() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


def images(count: int = 8) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(count))


@pytest.fixture(scope="module")
def artifact() -> bytes:
    return artifact_of(small(), images(), 8, 8, ALL)


def fused(file: Path) -> Counter[str]:
    """The operators that onnxruntime makes of a file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(file.with_suffix(".optimised"))
    options.log_severity_level = 4
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return Counter(n.op_type for n in onnx.load(options.optimized_model_filepath).graph.node)


def test_onnxruntime_leaves_nothing_in_float(artifact: bytes, tmp_path: Path) -> None:
    said = export(Export(artifact), "onnx", tmp_path / "n.onnx")
    found = fused(tmp_path / "n.onnx")
    assert found["QLinearConv"] == 6
    assert found["QLinearAdd"] == found["QLinearConcat"] == found["QGemm"] == 1
    assert found["QLinearGlobalAveragePool"] == 1
    assert (found["QuantizeLinear"], found["DequantizeLinear"]) == (1, 1)  # images and logits
    floats = {"Conv", "FusedConv", "Add", "Relu", "Clip", "Gemm", "MatMul", "GlobalAveragePool"}
    assert not floats & set(found)
    assert said["largest_difference"] <= 0.03 * said["largest_logit"]


def test_runtime_agrees_with_the_artifact(artifact: bytes, tmp_path: Path) -> None:
    export(Export(artifact), "onnx", tmp_path / "n.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "n.onnx", providers=["CPUExecutionProvider"])
    expected = unpack_network(artifact)(images(64))
    (found,) = session.run(["logits"], {"images": images(64).numpy()})
    step = float(quantizers(unpack_network(artifact).chain[-1])[1].popitem()[1].scale)
    assert float((torch.from_numpy(found) - expected).abs().max()) <= 2.01 * step
    assert float((torch.from_numpy(found) != expected).float().mean()) < 0.2


@pytest.mark.parametrize(("w", "scheme"), [(4, ALL), (8, Scheme(activations=Activations.ALL))])
def test_what_kernels_do_not_take_keeps_its_guards(w: int, scheme: Scheme, tmp_path: Path) -> None:
    """onnxruntime takes no zero point for each channel of a weight, and no 4 bits."""
    export(Export(artifact_of(small(), images(), w, 8, scheme)), "onnx", tmp_path / "n.onnx")
    assert fused(tmp_path / "n.onnx")["QLinearConv"] == 0
    assert {"Max", "Min"} <= {n.op_type for n in onnx.load(tmp_path / "n.onnx").graph.node}


def test_an_activation_function_that_cuts_levels_stays(tmp_path: Path) -> None:
    """Where the range goes beyond 6, ReLU6 is a node of its own, behind an integer layer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Flatten(), nn.Linear(400, 3)).eval()
    tensors = load(artifact_of(model, 9 * images(), 8, 8, ALL))
    tensors["1.input_quantizer_0.scale"].fill_(0.03)
    wide = save(tensors)
    export(Export(wide), "onnx", tmp_path / "n.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "n.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"images": 9 * images().numpy()})
    expected = unpack_network(wide)(9 * images())
    assert float((torch.from_numpy(found) - expected).norm() / expected.norm()) < 0.02
    assert fused(tmp_path / "n.onnx")["QLinearConv"] == 1


def test_what_a_device_holds_is_quantized() -> None:
    modules = build(small(), images()).partition.modules
    found = []
    for index, module in enumerate(modules):
        bits = [Bits(4, 4 + index)] * len(modules)
        places = placements(module, bits[: _layers(module)], True, index == len(modules) - 1)
        found += [(p.values, p.layers, p.bits) for p in places]
    layers = [layer for _, of_place, _ in found for layer in of_place]
    assert sorted(layers) == sorted({"stem", "one", "two", "deep", "left", "right", "head"})
    values = [value for of_place, _, _ in found for value in of_place]
    assert {"two", "left", "right", "head"} <= set(values) | {v for v in values if "head" in v}
    assert len(values) == len(found) + _joined(found)


def _layers(module: Any) -> int:
    from modcap.graph.nodes import weight_layers

    return len(weight_layers(module))


def _joined(found: list[Any]) -> int:
    return sum(len(values) - 1 for values, _, _ in found)


def test_a_concatenation_has_one_scale(artifact: bytes) -> None:
    for module in unpack_network(artifact).chain:
        for node in module.graph.nodes:
            if node.target is torch.cat:
                (sources,) = ({source.target for source in node.args[0]},)
                assert len(sources) == 1
                assert "quantizer" in next(iter(sources))
                return
    pytest.fail("no concatenation")


def test_biases_are_integers_of_both_scales(artifact: bytes) -> None:
    tensors = load(artifact)
    biases = {name: tensor for name, tensor in tensors.items() if name.endswith(".bias")}
    assert len(biases) == 6
    assert {tensor.dtype for tensor in biases.values()} == {torch.int32}
    header = json.loads(zlib.decompress(tensors["header"].numpy().tobytes()))
    assert header["format"] == 2
    network = unpack_network(artifact)
    for index, places in enumerate(header["quantizers"]):
        layers = quantizers(network.chain[index])[0]
        for place in places:
            for layer in place["layers"]:
                unit = tensors[f"{index}.{place['name']}.scale"] * tensors[f"{index}.{layer}.scale"]
                bias = layers[layer].layer.bias
                if bias is not None:
                    assert torch.equal(biases[f"{index}.{layer}.bias"].float() * unit, bias)
                    assert torch.equal(layers[layer].trained_bias(), bias)


def test_usual_networks_keep_their_format() -> None:
    tensors = load(artifact_of(small(), images(), 8, 8))
    header = json.loads(zlib.decompress(tensors["header"].numpy().tobytes()))
    assert header["format"] == 1
    assert "quantizers" not in header


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no quantizers": lambda h: h.pop("quantizers"),
    "of another format": lambda h: h.update(format=1),
    "too few": lambda h: h["quantizers"].pop(),
    "an unknown node": lambda h: h["quantizers"][0][0]["values"].append("nothing"),
    "the output": lambda h: h["quantizers"][0][0]["values"].append("output"),
    "twice at one place": lambda h: h["quantizers"][0][0]["values"].extend(
        h["quantizers"][0][0]["values"]
    ),
    "a layer twice": lambda h: h["quantizers"][0][0]["layers"].extend(["stem"]),
    "a name of Python": lambda h: h["quantizers"][0][0].update(name="forward"),
    "bits": lambda h: h["quantizers"][0][0].update(bits=40),
    "nowhere": lambda h: h["quantizers"][0][0].update(values=[]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_damaged_headers_are_one_line(artifact: bytes, change: str) -> None:
    tensors = load(artifact)
    header = json.loads(zlib.decompress(tensors["header"].numpy().tobytes()))
    CHANGES[change](header)
    packed = bytearray(zlib.compress(json.dumps(header).encode()))
    damaged = save(tensors | {"header": torch.frombuffer(packed, dtype=torch.uint8)})
    with pytest.raises(InputError, match="damaged") as refusal:
        unpack_network(damaged)
    assert "\n" not in str(refusal.value)


def test_pt2_and_encodings_hold_the_same(artifact: bytes, tmp_path: Path) -> None:
    said = export(Export(artifact), "pt2", tmp_path / "n.pt2")
    assert said["largest_difference"] <= 1e-5 * said["largest_logit"]
    program = torch.export.load(tmp_path / "n.pt2")
    integers = [t for n, t in program.state_dict.items() if t.dtype == torch.int32]
    assert sum(t.numel() for t in integers) == 8 + 8 + 8 + 5 + 3 + 5
    export(Export(artifact), "encodings", tmp_path / "n.json")
    document = json.loads((tmp_path / "n.json").read_text())
    widths = Counter(entry["bw"] for entry in document["param_encodings"])
    assert widths == {8: 7, 32: 6}
    assert all(entry["is_sym"] for entry in document["param_encodings"])


@pytest.mark.parametrize("method", ["qdrop", "adaround", "rtn"])
def test_grids_are_kept_while_they_learn(method: str) -> None:
    recipe = Recipe.preset(
        "quick",
        method=method,
        k=0,
        w_bits=4,
        a_bits=8,
        activations="all",
        weights="symmetric",
        scales="power-of-two",
        calibration=32,
        optimiser={"iterations": 8, "batch_size": 8, "weight_scale_rate": 0.1, "scale_rate": 0.1},
        tuning=0 if method == "rtn" else 8,
        tuning_rate=0.1,
    )
    network = build(small(), images())
    done = modcap.quantize(network, images(32), recipe)
    for module in done.network.chain:
        layers, activations = quantizers(module)
        for part in (*layers.values(), *activations.values()):
            power = torch.log2(part.scale)
            assert torch.equal(power, torch.round(power))
        for layer in layers.values():
            assert bool((layer.zero_point == middle(layer.bits)).all())
    error = (done.network(images(32)) - network(images(32))).norm() / network(images(32)).norm()
    assert float(error) < 0.5


def test_a_scale_that_jumps_leaves_weights_where_they_are() -> None:
    from modcap.ptq.rounding import StraightThroughRounding
    from modcap.quantization.layers import QuantLayer

    torch.manual_seed(0)
    layer = QuantLayer(nn.Linear(32, 4), 8, Grid(True, True))
    layer.calibrate(2.4)
    full = layer.weight.detach().clone()
    layer.learned_integers = StraightThroughRounding().start(layer, full)
    layer.learn_scales()
    assert layer.log_scale_offset is not None
    layer.log_scale_offset.data.fill_(0.5)  # to the next power of two
    before = layer.scale.clone()
    layer.trained_weight().sum().backward()
    assert layer.log_scale_offset.grad is not None
    layer.freeze()
    assert torch.equal(layer.scale, 2 * before)
    assert float((layer.weight - full).norm() / full.norm()) < 0.02


def test_powers_of_two_are_nearest_by_their_logarithm() -> None:
    scales = torch.tensor([1e-6, 0.3, 0.7, 0.71, 1.0, 1.41, 1.42, 5e4]).requires_grad_()
    powers = PowerOfTwo.apply(scales)  # type: ignore[no-untyped-call]
    assert powers.tolist() == [2.0**-20, 0.25, 0.5, 1.0, 1.0, 1.0, 2.0, 2.0**16]
    powers.sum().backward()
    assert torch.allclose(scales.grad, (powers / scales).detach())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_search_keeps_to_its_grid(bits: int) -> None:
    x = torch.randn(6, 500, generator=torch.Generator().manual_seed(bits)) + 0.3
    for grid in (Grid(True, False), Grid(False, True), Grid(True, True)):
        scale, zero = search_scale(x, bits, 2.4, grid)
        if grid.symmetric:
            assert bool((zero == middle(bits)).all())
        if grid.power_of_two:
            assert torch.equal(torch.log2(scale), torch.round(torch.log2(scale)))
        free, free_zero = search_scale(x, bits, 2.4)
        assert _error(x, scale, zero, bits) <= 16 * _error(x, free, free_zero, bits)


def _error(x: Tensor, scale: Tensor, zero: Tensor, bits: int) -> float:
    from modcap.quantization.affine import fake_quantize

    found = fake_quantize(x, scale[:, None], zero[:, None], bits)
    return float((x - found).abs().pow(2.4).sum())


def test_recipes_read_the_fields() -> None:
    recipe = Recipe.make({"activations": "all", "weights": "symmetric", "scales": "power-of-two"})
    assert recipe.scheme == ALL_SHIFTS
    assert Recipe().digest == Recipe.make({"activations": "inputs", "scales": "any"}).digest
    assert recipe.digest != Recipe().digest
    with pytest.raises(InputError, match="activations"):
        Recipe.make({"activations": "some"})
