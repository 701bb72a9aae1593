"""Bits of some layers by their names, weights alone, and layers that stay float."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import modcap
from modcap.core.errors import InputError
from modcap.export.artifact import unpack_network
from modcap.export.onnx import widths_of
from modcap.flows.cli.options import grid_options, recipe_options
from modcap.flows.reports.layers import layers_in
from modcap.graph.network import Network, build
from modcap.ptq.bit_policy import BitPolicy, LayerBits
from modcap.quantization.bits import FLOAT, Bits
from modcap.recipe import Recipe
from tests.golden import small_network

RTN: dict[str, Any] = {"method": "rtn", "k": 0, "calibration": 32}


class Squeezing(nn.Module):
    """A convolution whose output is scaled by what two small layers make of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.se = nn.Sequential(nn.Conv2d(4, 2, 1), nn.ReLU(), nn.Conv2d(2, 4, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        return x * self.se(x.mean((2, 3), keepdim=True))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.blocks = nn.Sequential(Squeezing(), Squeezing())
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return build(Net().eval(), torch.randn(2, 1, 8, 8))


IMAGES = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def bits_of(network: Network, **fields: Any) -> dict[str, Bits]:
    resolved = Recipe.make(fields).bit_policy.resolve(network)
    paths = [path for own in network.paths for path in own]
    return dict(zip(paths, (bits for own in resolved for bits in own), strict=True))


def test_layers_are_called_what_the_model_calls_them(network: Network) -> None:
    assert [path for own in network.paths for path in own] == [
        "stem",
        *("blocks.0.conv", "blocks.0.se.0", "blocks.0.se.2"),
        *("blocks.1.conv", "blocks.1.se.0", "blocks.1.se.2"),
        "head",
    ]


def test_the_last_rule_that_matches_a_layer_or_what_is_around_it_decides(network: Network) -> None:
    found = bits_of(
        network,
        w_bits=3,
        a_bits=4,
        bits={"blocks": 6, "*.conv": {"w": 2}, "blocks.1.*": "a8", "head": "w5a5"},
        float=["*.0.se"],
    )
    assert found == {
        "stem": Bits(8, 8),
        **{"blocks.0.conv": Bits(2, 6), "blocks.0.se.0": FLOAT, "blocks.0.se.2": FLOAT},
        **{"blocks.1.conv": Bits(2, 8), "blocks.1.se.0": Bits(6, 8), "blocks.1.se.2": Bits(6, 8)},
        "head": Bits(5, 5),
    }


def test_weights_alone(network: Network) -> None:
    found = bits_of(network, a_bits="none", bits={"head": 5, "blocks.0": {"a": 8}})
    assert found["stem"] == Bits(8, 0)
    assert found["blocks.1.conv"] == Bits(4, 0)
    assert found["head"] == Bits(5, 0), "a number is of weights alone where activations are float"
    assert found["blocks.0.conv"] == Bits(4, 8)
    assert Recipe(a_bits=None) == Recipe(a_bits="none")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"bits": {"haed": 8}}, "bits: 'haed' matches no .* layer; names near it: head"),
        ({"float": ["block.*.se.*"]}, "float: .* names near it: blocks"),
        ({"float": ["*"]}, "all layers stay float"),
    ],
)
def test_names_that_are_none_are_refused_in_one_line(
    network: Network, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        modcap.quantize(network, IMAGES, Recipe.preset("quick", **RTN, **fields))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"bits": {"head": 9}}, r"^recipe: bits: of 'head': give 2 to 8, or w and a"),
        ({"bits": {"head": {"w": 9}}}, r"of 'head': give 2 to 8.*w: .*less than or equal to 8"),
        ({"bits": {"head": "x4"}}, r"of 'head': give 2 to 8.*\(given: 'x4'\)"),
        ({"bits": {"head": {"b": 4}}}, r"of 'head': .*b: Extra inputs"),
        ({"bits": 8}, "give a mapping of patterns"),
        ({"a_bits": "all"}, "a_bits: Input should be a whole number, or none"),
        ({"a_bits": "none", "activations": "all"}, "activations all .* leave float"),
        ({"bits": {"head": "anone"}, "activations": "all"}, "activations all .* leave float"),
    ],
)
def test_wrong_rules_are_named_in_one_line(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        Recipe.make(fields)
    assert "\n" not in str(caught.value)


def test_rules_keep_their_order_in_json_and_in_digests() -> None:
    one = Recipe.make({"bits": {"z": 8, "a*": {"w": 2, "a": None}}})
    written = one.model_dump(mode="json")
    assert written["bits"] == [["z", 8], ["a*", {"w": 2, "a": "none"}]]
    assert Recipe.make(written) == one
    other = Recipe.make({"bits": {"a*": {"w": 2, "a": None}, "z": 8}})
    assert one.digest != other.digest
    assert Recipe.make({"bits": {"b": 3}}, one).bits == (("b", 3),), "what is given replaces"
    assert one.bits_label == "W4A4-mixed"
    assert Recipe(a_bits="none").bits_label == "W4A32"


RULES: dict[str, Any] = {
    "bits": {"blocks.0.conv": "w2a3", "blocks.1": "anone"},
    "float": ["*.0.se.*", "head"],
}


@pytest.fixture(scope="module")
def mixed(network: Network) -> modcap.Quantized:
    steps = {"iterations": 3, "batch_size": 8}
    recipe = Recipe.preset("quick", k=0, calibration=32, optimiser=steps, **RULES)
    return modcap.quantize(network, IMAGES, recipe)


def test_what_stays_float_is_float_in_the_artifact(
    network: Network, mixed: modcap.Quantized
) -> None:
    loaded = unpack_network(mixed.artifact)
    assert torch.equal(loaded(IMAGES), mixed.network(IMAGES))
    wanted = {"weights": {"8": 1, "2": 1, "4": 3, "float": 3}, "activations": {"8": 1, "3": 1}}
    assert widths_of(loaded) == wanted
    full = network.partition.modules[-1].state_dict()
    kept = loaded.modules_in_order[-1].state_dict()
    assert full.keys() == kept.keys()
    assert all(torch.equal(full[name], kept[name]) for name in full)


@pytest.mark.parametrize("name", ["onnx", "pt2", "encodings"])
def test_what_stays_float_is_float_in_exports(
    mixed: modcap.Quantized, name: str, tmp_path: Any
) -> None:
    import json

    said = mixed.export(name, tmp_path / "file")
    if name == "encodings":
        document = json.loads((tmp_path / "file").read_text())
        assert document["excluded_layers"] == [
            *("blocks.0/blocks_0_se_0", "blocks.0/blocks_0_se_2", "head/head"),
        ]
        assert sorted(each["bw"] for each in document["param_encodings"]) == [2, 4, 4, 4, 8]
        assert sorted(each["bw"] for each in document["activation_encodings"]) == [3, 8]
    else:
        assert said["agreement"] == 100
        assert said["largest_difference"] < 1e-4 * max(1.0, said["largest_logit"])


def test_what_stays_float_is_float_in_the_report(mixed: modcap.Quantized) -> None:
    layers = {layer.name: layer for layer in layers_in(mixed.artifact, {})}
    assert len(layers) == 8
    assert layers["head"].w_bits == layers["head"].a_bits == 0
    assert layers["head"].bytes == 4 * (4 * 5 + 5)
    assert layers["head"].macs == 20
    assert (layers["blocks_0_conv"].w_bits, layers["blocks_0_conv"].a_bits) == (2, 3)
    assert (layers["blocks_1_conv"].w_bits, layers["blocks_1_conv"].a_bits) == (4, 0)


def test_weights_alone_leave_all_activations() -> None:
    network, x = small_network()
    found = modcap.quantize(network, x, Recipe.preset("quick", **RTN, a_bits="none"))
    assert widths_of(found.network) == {"weights": {"4": 6, "8": 2}, "activations": {}}


def test_a_module_in_float_is_the_module(network: Network) -> None:
    recipe = Recipe.preset("quick", k=0, calibration=32, correction=False, tuning=0)
    recipe = Recipe.make(
        {"a_bits": "none", "float": ["stem"], "optimiser": {"iterations": 2, "batch_size": 8}},
        recipe,
    )
    found = modcap.quantize(network, IMAGES, recipe)
    assert found.losses[0] == 0
    assert found.losses[1] > 0


def test_a_chain_without_names_takes_those_of_its_graphs(network: Network) -> None:
    read = Network.from_bytes(network.to_bytes())
    policy = BitPolicy(4, 4, 8, (("blocks_0_conv", LayerBits(w=2)),))
    assert policy.resolve(read)[1][0] == Bits(2, 4)


def test_the_command_line_reads_patterns_and_words() -> None:
    def given(**typed: Any) -> dict[str, Any]:
        group = recipe_options()
        names = [parameter.name for parameter in group.parameters()]
        return group.given(dict.fromkeys(names) | typed)

    found = given(bits=["head=8", "a=b*=w4anone"], float=["*.se.*"], a_bits="none")
    assert found == {
        "bits": (("head", "8"), ("a=b*", "w4anone")),
        "float": ("*.se.*",),
        "a_bits": "none",
    }
    assert Recipe.make(found).bits == (("head", 8), ("a=b*", LayerBits(w=4, a="none")))
    for typed, said in (
        ({"bits": ["head"]}, "--bits 'head': give PATTERN=BITS"),
        ({"a_bits": "x"}, "--a-bits 'x': give a whole number, or none"),
        ({"k": "x"}, "--k 'x': give a whole number, or auto"),
    ):
        with pytest.raises(InputError, match=said):
            given(**typed)
    axes = grid_options()
    names = [parameter.name for parameter in axes.parameters()]
    assert axes.given(dict.fromkeys(names) | {"a_bits": "none,8,4-5"})["a_bits"] == (
        8,
        4,
        5,
        "none",
    )
