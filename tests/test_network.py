"""Networks and artifacts as bytes: identity, and refusal of what is not a tensor operation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modcap.core.errors import InputError, ModcapError
from modcap.data.image_set import ImageSet
from modcap.export.artifact import pack_network, unpack_network
from modcap.graph.forward import run_batched
from modcap.graph.graph_json import graph_from_json, graph_to_json
from modcap.graph.network import Network, build
from modcap.ptq.bit_policy import BitPolicy
from modcap.ptq.metrics import top1
from modcap.ptq.reconstruct import calibrate, freeze
from modcap.quantization.insert import insert_quantizers, state_of
from tests.networks import make

NAMES = ["resnet18", "shufflenet_v2_x0_5", "mobilenet_v3_small", "densenet121", "zoo_vgg"]


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_bytes_give_the_same_network(name: str) -> None:
    model, images = make(name)
    network = build(model, images, {"architecture": name})
    data = network.to_bytes()
    again = Network.from_bytes(data)
    assert torch.equal(network(images), again(images))
    assert again.to_bytes() == data
    assert again.digest == network.digest


def test_source_is_not_part_of_the_identity() -> None:
    model, images = make("zoo_vgg")
    assert build(model, images, {"a": "1"}).digest == build(model, images, {"a": "2"}).digest


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize(
    ("name", "value"),
    [("0.weight", torch.nan), ("3.bias", torch.inf), ("1.running_mean", torch.nan)],
)
def test_broken_weights_are_named(name: str, value: float, exported: bool) -> None:
    x = torch.randn(2, 3, 4, 4)
    model: Any = nn.Sequential(
        *(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 5), nn.Sigmoid())
    )
    model.state_dict()[name].flatten()[1] = value
    if exported:
        model = torch.export.export(
            model.eval(), (x,), dynamic_shapes=({0: torch.export.Dim("n")},)
        )
    with pytest.raises(InputError, match=f"'{name}' of the model holds NaN or infinity"):
        build(model, x)


def test_infinity_may_be_a_mask_but_no_logit() -> None:
    class Masked(nn.Module):
        def __init__(self, logits: bool) -> None:
            super().__init__()
            self.head, self.logits = nn.Linear(12, 4), logits
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf, 0.0, 0.0]))

        def forward(self, x: Tensor) -> Tensor:
            y = self.head(x.flatten(1)) + self.mask
            return y if self.logits else y.softmax(1)

    x = torch.randn(2, 3, 2, 2)
    assert build(Masked(False), x)(x).isfinite().all()
    with pytest.raises(InputError, match="answers with NaN or infinity"):
        build(Masked(True), x)


@pytest.mark.parametrize("bits", [(2, 4), (3, 3), (8, 8)])
@torch.no_grad()
def test_artifact_loads_back_to_bit_equal_outputs(bits: tuple[int, int]) -> None:
    model, images = make("zoo_mobilenet")
    network = build(model, images)
    widths = BitPolicy(*bits, 8).resolve(network.partition)
    modules = [
        insert_quantizers(m, b) for m, b in zip(network.partition.modules, widths, strict=True)
    ]
    x, states = images, {}
    for index, module in enumerate(modules):
        calibrate([module], x, 2.0)
        freeze([module])
        x = run_batched([module], x)
        states |= {f"{index}.{name}": tensor for name, tensor in state_of(module)}
    data = pack_network(network, states, widths)
    assert pack_network(network, states, widths) == data
    loaded = unpack_network(data)
    assert torch.equal(loaded(images), x)
    layers = [p for m in network.partition.modules for p in m.parameters() if p.ndim > 1]
    packed = sum(p.numel() for p in layers) * bits[0] / 8
    per_channel = sum(len(p) for p in layers) * 9  # scale, zero point, bias
    assert packed < len(data) < packed + per_channel + 60_000  # graph, names, 8-bit edges


def test_damaged_artifact_is_refused_in_one_line() -> None:
    for data in (b"", b"nonsense", bytes(100)):
        with pytest.raises(InputError, match="not a modcap artifact"):
            unpack_network(data)


def test_damaged_network_is_refused() -> None:
    model, images = make("zoo_vgg")
    data = build(model, images).to_bytes()
    for bad in (b"", data[:100], data[:-5]):
        with pytest.raises(ModcapError):
            Network.from_bytes(bad)


def document() -> dict[str, Any]:
    graph = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()))
    return graph_to_json(graph)


@pytest.mark.parametrize(
    "change",
    [
        {"op": "call_function", "target": "torch.load"},
        {"op": "call_function", "target": "torch.hub.load"},
        {"op": "call_function", "target": "os.system"},
        {"op": "call_function", "target": "operator.attrgetter"},
        {"op": "call_function", "target": "operator.methodcaller"},
        {"op": "call_function", "target": "aten.from_file.default"},
        {"op": "call_function", "target": "aten.relu_.default"},
        {"op": "call_function", "target": "prims.relu.default"},
        {"op": "call_function", "target": "getattr", "args": {"tuple": ["x", "__class__"]}},
        {"op": "call_method", "target": "__reduce__"},
        {"op": "call_method", "target": "apply_"},
        {"op": "call_method", "target": "map_"},
        {"op": "call_method", "target": "requires_grad_hook"},
    ],
)
def test_document_that_names_anything_else_is_refused(change: dict[str, Any]) -> None:
    bad = copy.deepcopy(document())
    bad["nodes"][2] |= change
    with pytest.raises(InputError, match="is not supported"):
        graph_from_json(bad)


@pytest.mark.parametrize("kind", ["Sequential", "Module", "os", "__loader__", "functional"])
def test_only_leaf_modules_of_torch_are_built(kind: str) -> None:
    bad = copy.deepcopy(document())
    next(iter(bad["modules"].values()))["type"] = kind
    with pytest.raises(InputError, match="is not supported"):
        graph_from_json(bad)


def test_foreign_function_is_refused_when_written() -> None:
    graph = torch.fx.Graph()
    graph.output(graph.call_function(print, (graph.placeholder("x"),)))
    with pytest.raises(InputError, match="operator <built-in function print> at node"):
        graph_to_json(torch.fx.GraphModule(nn.Module(), graph))


def test_images_survive_bytes_and_are_normalized() -> None:
    pixels = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    images = ImageSet(pixels, torch.arange(5), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    again = ImageSet.from_bytes(images.to_bytes())
    assert again.digest == images.digest
    expected = (pixels[1:3, 1].float() / 255 - 0.4) / 0.3
    torch.testing.assert_close(again.normalized(1, 3)[:, 1], expected)


def test_top1_counts_hits() -> None:
    images = ImageSet(torch.zeros(4, 1, 1, 1), torch.tensor([0, 1, 1, 1]), (0.0,), (1.0,))
    assert top1(lambda x: torch.tensor([[0.0, 1.0]]).repeat(len(x), 1), images) == 75.0
