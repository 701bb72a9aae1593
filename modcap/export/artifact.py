"""The artifact: a quantized network as one safetensors file, weights packed to their bits.

The tensor ``header`` is compressed JSON that holds the graph, so loading needs neither the code of
the architecture nor pickle. The other tensors are, for weight layer L of module i,
``i.L.integers`` (bit stream, see :mod:`modcap.quantization.bit_packing`), ``i.L.scale`` and
``i.L.zero_point`` (per output channel) and ``i.L.bias``; for activation quantizer A ``i.A.scale``
and ``i.A.zero_point``; and what stayed float, under its name: bits of 0 say of which layers. Where
they are known, the header says how images are preprocessed and what the classes are called.

Format 2 is of networks whose values are all quantized: its header says where the quantizers stand,
and biases are integers.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, fx, nn

from modcap.core.errors import InputError
from modcap.core.serialization import canonical, encode_tensors
from modcap.graph.forward import run
from modcap.graph.graph_file import GraphFile, inflate, parse_header, read_tensors, split
from modcap.graph.graph_json import check_tensor, fill, graph_from_json, graph_to_json, tensors_of
from modcap.graph.network import Network
from modcap.graph.nodes import weight_layers
from modcap.graph.outputs import Output, outputs_field, separate
from modcap.quantization.bit_packing import pack, unpack
from modcap.quantization.bits import Bits
from modcap.quantization.insert import attach, quantizers, restore
from modcap.quantization.layers import integer_bias
from modcap.quantization.placement import Placement, placements
from modcap.quantization.scheme import USUAL, Activations, Scheme

__all__ = ["QuantizedNetwork", "load", "pack_network", "unpack_network"]

FORMAT, FORMAT_OF_ALL = 1, 2
_LONGEST = 10_000  # characters of a name of a class, or of what preprocessing is written as
_Width = Annotated[int, Field(ge=2, le=8)]
_WidthOrFloat = Literal[0] | _Width


class _Place(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(pattern=r"^input_quantizer_[0-9]{1,6}_{0,9}$")
    bits: _Width
    values: list[str] = Field(min_length=1)
    layers: list[str]


class _Header(GraphFile):
    format: Literal[1, 2]
    bits: list[list[tuple[_WidthOrFloat, _WidthOrFloat]]]
    quantizers: list[list[_Place]] | None = None
    preprocess: str = Field("", max_length=_LONGEST)
    classes: list[Annotated[str, Field(max_length=_LONGEST)]] = Field([])

    @model_validator(mode="after")
    def _one_for_each_module(self) -> _Header:
        if len(self.bits) != len(self.graphs):
            raise ValueError("bits of each module")
        if (self.format == FORMAT_OF_ALL) != (self.quantizers is not None):
            raise ValueError("quantizers belong to format 2")
        if self.quantizers is not None and len(self.quantizers) != len(self.graphs):
            raise ValueError("quantizers of each module")
        return self


class QuantizedNetwork(nn.Module):
    """A hard quantized network: integer weights, quantized activations.

    Maps preprocessed images (N, C, H, W) float32 to what the network returns, such as logits
    (N, classes); several outputs come as a dict, by name.

    Attributes:
        preprocess: of these images, as ``--preprocess`` takes it; empty where it is not known.
        classes: names of the logits, in their order; empty where they are not known.
        outputs: what tells several outputs apart; empty where there is one.
    """

    def __init__(
        self,
        modules: Sequence[fx.GraphModule],
        names: Sequence[str],
        input_shape: tuple[int, int, int],
        preprocess: str = "",
        classes: Sequence[str] = (),
        outputs: Sequence[Output] = (),
    ) -> None:
        super().__init__()
        self.chain = nn.ModuleList(modules)
        self.names = tuple(names)
        self.input_shape = input_shape
        self.preprocess = preprocess
        self.classes = tuple(classes)
        self.outputs = tuple(outputs)
        self.eval().requires_grad_(False)

    @property
    def modules_in_order(self) -> list[nn.Module]:
        return list(self.chain)

    def forward(self, x: Tensor) -> Any:
        return separate(self.rows(x), self.outputs)

    def rows(self, x: Tensor) -> Tensor:
        """All outputs for (N, C, H, W) as one tensor; see :mod:`modcap.graph.outputs`."""
        return run(self.chain, x)


def _widths(module: fx.GraphModule, bits: Sequence[Bits]) -> dict[str, int]:
    """Bits of weights of each quantized layer, by its name."""
    names = [cast(str, node.target) for node in weight_layers(module)]
    return {name: own.weight for name, own in zip(names, bits, strict=True) if own.weight}


def _floats(module: fx.GraphModule, quantized: Collection[str]) -> dict[str, Tensor]:
    """What stays float: the tensors that belong to no quantized layer."""
    state = tensors_of(module)
    return {name: t for name, t in state.items() if name.rpartition(".")[0] not in quantized}


def pack_network(
    network: Network,
    states: Mapping[str, Tensor],
    bits: Sequence[Sequence[Bits]],
    scheme: Scheme = USUAL,
    preprocess: str = "",
    classes: Sequence[str] = (),
) -> bytes:
    """The artifact's bytes; the same for the same network, states, bits and what is said of images.

    Args:
        network: the full-precision network.
        states: ``i.NAME`` to tensor, as :func:`modcap.quantization.layers.state_of` names them.
        bits: of each weight layer of each module.
        scheme: by which the states were made.
        preprocess: as ``--preprocess`` takes it, where it is known.
        classes: names of the logits, in their order, where they are known.
    """
    tensors = dict(states)
    places = _places(network, bits) if scheme.of_all else None
    for index, module_places in enumerate(places or ()):
        tensors |= _integer_biases(states, index, module_places)
    for index, (module, own) in enumerate(zip(network.partition.modules, bits, strict=True)):
        widths = _widths(module, own)
        for layer, width in widths.items():
            name = f"{index}.{layer}.integers"
            tensors[name] = pack(states[name], width)
        tensors |= {f"{index}.{name}": t.clone() for name, t in _floats(module, widths).items()}
    header = {
        "format": FORMAT if places is None else FORMAT_OF_ALL,
        **({} if places is None else {"quantizers": [[vars(p) for p in own] for own in places]}),
        "bits": bits,
        "graphs": [graph_to_json(module) for module in network.partition.modules],
        "input_shape": network.input_shape,
        "names": network.partition.names,
        **({"preprocess": preprocess} if preprocess else {}),
        **({"classes": list(classes)} if classes else {}),
        **outputs_field(network.outputs),
    }
    compressed = bytearray(zlib.compress(canonical(header), level=9))
    tensors["header"] = torch.frombuffer(compressed, dtype=torch.uint8)
    return encode_tensors(tensors)


def unpack_network(data: bytes) -> QuantizedNetwork:
    """The network that :func:`pack_network` packed, bit-equal in its outputs.

    Raises:
        InputError: the bytes are no artifact, or damaged.
    """
    try:
        tensors = read_tensors(data)
        header = parse_header(_Header, inflate(_compressed(tensors)))
        parts = split(tensors, len(header.graphs))
    except (InputError, zlib.error) as error:
        raise InputError(f"not a modcap artifact, or a damaged one ({error})") from None
    places: Sequence[list[_Place] | None] = header.quantizers or [None] * len(parts)
    given = zip(header.graphs, header.bits, parts, places, strict=True)
    modules = [
        _rebuild(document, [Bits(*b) for b in bits], own, module_places)
        for document, bits, own, module_places in given
    ]
    return QuantizedNetwork(
        modules,
        header.names,
        header.input_shape,
        header.preprocess,
        header.classes,
        header.outputs,
    )


def _compressed(tensors: dict[str, Tensor]) -> bytes:
    header = tensors.pop("header", None)
    if header is None or header.dtype != torch.uint8:
        raise InputError("no header")
    return header.numpy().tobytes()


def _places(network: Network, bits: Sequence[Sequence[Bits]]) -> list[list[Placement]]:
    modules = network.partition.modules
    return [
        placements(module, widths, of_all=True, last=index == len(modules) - 1)
        for index, (module, widths) in enumerate(zip(modules, bits, strict=True))
    ]


def _integer_biases(
    states: Mapping[str, Tensor], index: int, places: Sequence[Placement]
) -> dict[str, Tensor]:
    """The biases of a module as 32-bit integers, by their names in a file."""
    found = {}
    for place in places:
        for layer in place.layers:
            name = f"{index}.{layer}"
            if f"{name}.bias" in states:
                unit = states[f"{index}.{place.name}.scale"] * states[f"{name}.scale"]
                found[f"{name}.bias"] = integer_bias(states[f"{name}.bias"], unit).int()
    return found


def _rebuild(
    document: dict[str, Any],
    bits: list[Bits],
    own: dict[str, Tensor],
    given: Sequence[_Place] | None,
) -> fx.GraphModule:
    module = graph_from_json(document)
    if len(weight_layers(module)) != len(bits):
        raise InputError("an artifact without bits for each of its layers: it is damaged")
    widths = _widths(module, bits)
    floats = _floats(module, widths)
    state = {name: own.pop(name) for name in floats if name in own}
    _check_complete(state.keys(), floats.keys())
    fill(module, state)
    scheme = Scheme() if given is None else Scheme(activations=Activations.ALL)
    biases = torch.float32 if given is None else torch.int32
    for layer, width in widths.items():
        _unpack(layer, module.get_submodule(layer), width, biases, own)
    places = placements(module, bits) if given is None else _checked(module, widths, given)
    quantized = attach(module, bits, scheme, places)
    _check_complete(own.keys(), _state_names(quantized, own))
    for name, weights in quantizers(quantized)[0].items():
        if weights.reads and f"{name}.bias" in own:
            (place,) = (place for place in places if name in place.layers)
            unit = own[f"{place.name}.scale"] * own[f"{name}.scale"]
            own[f"{name}.bias"] = own[f"{name}.bias"].float() * unit
    restore(quantized, own)
    return quantized


def _checked(
    module: fx.GraphModule, layers: Collection[str], given: Sequence[_Place]
) -> list[Placement]:
    """Where the header says that quantizers stand, if they can stand there."""
    nodes = {node.name for node in module.graph.nodes if node.op != "output"}
    values = [value for place in given for value in place.values]
    read = [layer for place in given for layer in place.layers]
    names = [place.name for place in given]
    if (
        not nodes.issuperset(values)
        or sorted(read) != sorted(layers)
        or any(len(set(each)) != len(each) for each in (values, names))
        or any(hasattr(module, name) for name in names)
    ):
        raise InputError("an artifact whose quantizers are not of its graphs: it is damaged")
    return [Placement(p.name, p.bits, tuple(p.values), tuple(p.layers)) for p in given]


def _check_complete(given: Collection[str], expected: Collection[str]) -> None:
    for name in set(given) ^ set(expected):
        what = "lacks" if name in expected else "holds an unknown"
        raise InputError(f"an artifact that {what} tensor '{name[:80]}': it is damaged")


def _unpack(
    name: str, layer: nn.Module, bits: int, biases: torch.dtype, own: dict[str, Tensor]
) -> None:
    """Checks the tensors of one weight layer, and unpacks its integers in ``own``."""
    weight = cast(Tensor, layer.weight)
    channels = weight.shape[1 if getattr(layer, "transposed", False) else 0]
    packed = own.get(f"{name}.integers")
    if packed is None or packed.dtype != torch.uint8 or packed.ndim != 1:
        raise InputError(f"an artifact without the integers of '{name}': it is damaged")
    try:
        own[f"{name}.integers"] = unpack(packed, bits, tuple(weight.shape))
    except ValueError as error:
        raise InputError(f"an artifact is damaged at '{name}': {error}") from None
    for part, kind in (("scale", torch.float32), ("zero_point", torch.uint8)):
        _check(f"{name}.{part}", own, torch.empty(channels, dtype=kind, device="meta"))
    if layer.bias is not None:
        _check(f"{name}.bias", own, torch.empty(channels, dtype=biases, device="meta"))


def _check(name: str, own: Mapping[str, Tensor], like: Tensor) -> None:
    if name not in own:
        raise InputError(f"an artifact that lacks tensor '{name}': it is damaged")
    check_tensor(name, own[name], like)


def _state_names(module: fx.GraphModule, own: Mapping[str, Tensor]) -> set[str]:
    """The names of what :func:`restore` reads; checks activation quantizers."""
    layers, activations = quantizers(module)
    for name in activations:
        _check(f"{name}.scale", own, torch.empty((), device="meta"))
        _check(f"{name}.zero_point", own, torch.empty((), dtype=torch.uint8, device="meta"))
    names = {f"{n}.{part}" for n in (*layers, *activations) for part in ("scale", "zero_point")}
    names |= {f"{name}.integers" for name in layers}
    return names | {f"{n}.bias" for n, layer in layers.items() if layer.layer.bias is not None}


def load(path: str | Path) -> QuantizedNetwork:
    """Reads an artifact from a local file.

    Example:
        >>> network = load("model.safetensors")  # doctest: +SKIP
        >>> logits = network(images)  # (N, C, H, W) float32, preprocessed  # doctest: +SKIP
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"artifact {path}: cannot be read ({error.strerror})") from None
    return unpack_network(data)
