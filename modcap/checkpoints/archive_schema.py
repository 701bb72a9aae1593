"""The documents of a ``.pt2`` archive, field by field: what torch's own reader is given.

torch.export writes them by torch/_export/serde/schema.py. Every name in them is proved to be one
before torch makes Python source of it, every operator is of a closed list, every size is plain
arithmetic. Subgraphs, objects and operators as arguments have no place here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    model_validator,
)

from modcap.checkpoints.archive_sizes import SYMBOL, check_expression
from modcap.core.names import is_identifier, is_path
from modcap.graph.aten import ATEN, CHECKS, IN_PLACE, NORM
from modcap.graph.graph_proof import UNCHECKED, check_size
from modcap.graph.operators import SIZED

__all__ = ["Payloads", "Program", "TensorMeta"]

_SYMBOLIC = frozenset(
    f"{library}.{name}"
    for library, names in {
        "_operator": "getitem add sub mul floordiv truediv mod neg lt le gt ge eq ne and_ or_",
        "torch": "sym_float sym_int sym_ite sym_max sym_min sym_not sym_sum _check",
        "math": "ceil floor trunc sqrt",
    }.items()
    for name in names.split()
)
_TARGETS = _SYMBOLIC | {f"torch.ops.{name}" for name in ATEN | IN_PLACE | CHECKS | {NORM}}
_WORD = re.compile(r"(?!__)[A-Za-z_][A-Za-z0-9_]*|")
_KEY = re.compile(r"[\w.:/ -]{1,100}")
_STACK = re.compile(r"[^\x00-\x1f\\#]*")


def _name(text: str) -> str:
    if not is_identifier(text):
        raise ValueError(f"the name {text[:60]!r}")
    return text


def _path(text: str) -> str:
    if not is_path(text):
        raise ValueError(f"the path {text[:60]!r}")
    return text


def _word(text: str) -> str:
    if not _WORD.fullmatch(text):
        raise ValueError(f"the argument {text[:60]!r}")
    return text


def _text(text: str) -> str:
    if text in UNCHECKED:
        raise ValueError(f"the argument {text!r}")
    return text


def _target(text: str) -> str:
    if text not in _TARGETS:
        raise ValueError(f"the operator {text[:60]!r}")
    return text


def _symbol(text: str) -> str:
    if not SYMBOL.fullmatch(text):
        raise ValueError(f"the symbol {text[:60]!r}")
    return text


def _stack(metadata: dict[str, str]) -> dict[str, str]:
    """The modules that a node belongs to; nothing else of its metadata is read."""
    stack = metadata.get("nn_module_stack", "")
    fits = len(stack) <= 20_000 and _STACK.fullmatch(stack)
    return {"nn_module_stack": stack} if stack and fits else {}


Name = Annotated[str, AfterValidator(_name)]
Path = Annotated[str, AfterValidator(_path)]
Integer = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Size = Annotated[int, Field(ge=0, le=2**40)]
Number = float | Literal["Infinity", "-Infinity", "NaN"]
Text = Annotated[str, Field(max_length=500), AfterValidator(_text)]
Code = Annotated[int, Field(ge=0, le=100)]  # of a type, a layout, a memory format


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _One(_Fields):
    """A union: exactly one of its fields."""

    @model_validator(mode="after")
    def _has_one(self) -> _One:
        if len(self.model_fields_set) != 1:
            raise ValueError("a choice that is none")
        return self


class Device(_Fields):
    type: Literal["cpu", "cuda"]
    index: Annotated[int, Field(ge=0, le=64)] | None = None


class Hint(_One):
    as_int: Integer = 0
    as_bool: bool = False
    as_float: float = 0


class Expression(_Fields):
    expr_str: Annotated[str, AfterValidator(check_expression)]
    hint: Hint | None = None


class SymSize(_One):
    as_expr: Expression | None = None
    as_int: Size = 0


class SymInt(_One):
    as_expr: Expression | None = None
    as_int: Integer = 0


class SymFloat(_One):
    as_expr: Expression | None = None
    as_float: float = 0


class SymBool(_One):
    as_expr: Expression | None = None
    as_bool: bool = False


class TensorMeta(_Fields):
    dtype: Code
    sizes: list[SymSize] = Field(max_length=16)
    requires_grad: bool
    device: Device
    strides: list[SymSize] = Field(max_length=16)
    storage_offset: SymSize
    layout: Code


class IntArgument(_One):
    as_name: Name = ""
    as_int: Integer = 0


class FloatArgument(_One):
    as_name: Name = ""
    as_float: float = 0


class BoolArgument(_One):
    as_name: Name = ""
    as_bool: bool = False


class Tensor(_Fields):
    name: Name


class OptionalTensor(_One):
    as_tensor: Tensor | None = None
    as_none: bool = True


class Argument(_One):
    as_none: bool = True
    as_tensor: Tensor | None = None
    as_tensors: list[Tensor] = []
    as_int: Integer = 0
    as_ints: list[Integer] = []
    as_float: Number = 0
    as_floats: list[Number] = []
    as_string: Text = ""
    as_sym_int: IntArgument | None = None
    as_sym_ints: list[IntArgument] = []
    as_scalar_type: Code = 0
    as_memory_format: Code = 0
    as_layout: Code = 0
    as_device: Device | None = None
    as_bool: bool = False
    as_bools: list[bool] = []
    as_sym_bool: BoolArgument | None = None
    as_sym_bools: list[BoolArgument] = []
    as_sym_float: FloatArgument | None = None
    as_sym_floats: list[FloatArgument] = []
    as_optional_tensors: list[OptionalTensor] = []
    as_optional_tensor: OptionalTensor | None = None

    def integers(self) -> list[int]:
        """The sizes that it may give."""
        found = [*self.as_ints, *(one.as_int for one in self.as_sym_ints)]
        return [*found, self.as_int] if "as_int" in self.model_fields_set else found


class NamedArgument(_Fields):
    name: Annotated[str, AfterValidator(_word)]
    arg: Argument
    kind: Annotated[int, Field(ge=0, le=2)] | None = None


class Node(_Fields):
    target: Annotated[str, AfterValidator(_target)]
    inputs: list[NamedArgument] = Field(max_length=64)
    outputs: list[Argument] = Field(max_length=1000)
    metadata: Annotated[dict[str, str], AfterValidator(_stack)]
    is_hop_single_tensor_return: None = None
    name: Name | None = None

    @model_validator(mode="after")
    def _is_bounded(self) -> Node:
        if self.target.startswith("torch.ops.aten.") and self.target.split(".")[3] in SIZED:
            sizes = [size for given in self.inputs for size in given.arg.integers()]
            check_size(sizes, f"node '{self.name}'")
        return self


class Graph(_Fields):
    inputs: list[Argument] = Field(max_length=50_000)
    outputs: list[Argument] = Field(max_length=100)
    nodes: list[Node] = Field(max_length=50_000)
    tensor_values: dict[Name, TensorMeta]
    sym_int_values: dict[Name, SymInt]
    sym_bool_values: dict[Name, SymBool]
    is_single_tensor_return: bool = False
    custom_obj_values: dict[str, None] = Field({}, max_length=0)
    sym_float_values: dict[Name, SymFloat] = {}


class Constant(_One):
    as_none: bool = True
    as_int: Integer = 0
    as_float: Number = 0
    as_string: Text = ""
    as_bool: bool = False


class _Arg(_Fields):
    arg: Tensor


class Parameter(_Arg):
    parameter_name: Path


class Buffer(_Arg):
    buffer_name: Path
    persistent: bool = True


class TensorConstant(_Arg):
    tensor_constant_name: Path


class ConstantInput(_Fields):
    name: Name
    value: Constant


class User(_Fields):
    arg: Argument


class Input(_One):
    user_input: User | None = None
    parameter: Parameter | None = None
    buffer: Buffer | None = None
    tensor_constant: TensorConstant | None = None
    constant_input: ConstantInput | None = None


class Mutation(_Arg):
    buffer_name: Path


class Output(_One):
    user_output: User | None = None
    buffer_mutation: Mutation | None = None


class Signature(_Fields):
    input_specs: list[Input] = Field(max_length=50_000)
    output_specs: list[Output] = Field(max_length=1000)


_Kind = Literal["builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"]


class Tree(_Fields):
    type: _Kind | None
    context: str | None
    children_spec: list[Tree] = Field(max_length=100)

    @model_validator(mode="after")
    def _has_names(self, info: ValidationInfo) -> Tree:
        """The keys of a dict are names; nothing else has a context. Only what is returned may be
        an ``OrderedDict``, which torchvision's networks return."""
        is_key = cast(Any, info.context)
        keys = json.loads(self.context or "null") if len(self.context or "") < 2000 else 0
        if self.type in ("builtins.dict", "collections.OrderedDict"):
            ordered = self.type == "collections.OrderedDict"
            fits = isinstance(keys, list) and all(map(is_key, keys))
            fits = fits and (is_key is _is_key or not ordered)
        else:
            fits = keys is None
        if not fits:
            raise ValueError(f"an argument of type {self.type}")
        return self


def _is_key(key: object) -> bool:
    """Whether an output may have this key: torch makes no source of it."""
    return type(key) is int or (isinstance(key, str) and bool(_KEY.fullmatch(key)))


def _spec(text: str, is_key: Callable[[Any], bool]) -> str:
    """How arguments, or outputs, are nested, written again."""
    version, tree = json.loads(text) if len(text) < 100_000 else (0, None)
    if version != 1:
        raise ValueError("arguments of an unknown structure")
    return json.dumps([1, Tree.model_validate(tree, context=is_key).model_dump()])


InSpec = Annotated[str, AfterValidator(partial(_spec, is_key=is_identifier))]
OutSpec = Annotated[str, AfterValidator(partial(_spec, is_key=_is_key))]


class CallSignature(_Fields):
    inputs: list[Argument] = Field(max_length=100)
    outputs: list[Argument] = Field(max_length=100)
    in_spec: InSpec
    out_spec: OutSpec
    forward_arg_names: list[Name] | None = None


class Call(_Fields):
    fqn: str
    signature: CallSignature | None = None


class GraphModule(_Fields):
    graph: Graph
    signature: Signature
    module_call_graph: list[Call] = Field(min_length=1, max_length=50_000)
    metadata: dict[str, Any] = Field({}, exclude=True)
    treespec_namedtuple_fields: dict[str, Any] = Field({}, exclude=True)


class Range(_Fields):
    min_val: Integer | None
    max_val: Integer | None


class Version(_Fields):
    major: Code
    minor: Code


class Program(_Fields):
    graph_module: GraphModule
    opset_version: dict[Literal["aten"], Code]
    range_constraints: dict[Annotated[str, AfterValidator(_symbol)], Range]
    schema_version: Version
    verifiers: list[Literal["ATEN", "TRAINING", ""]] = []
    torch_version: Text = ""
    guards_code: list[str] = Field([], exclude=True)  # Python that torch would compile


class Payload(_Fields):
    path_name: Annotated[str, Field(pattern=r"^(weight|tensor)_\d{1,9}$")]
    is_param: bool
    use_pickle: Literal[False]
    tensor_meta: TensorMeta


class Payloads(_Fields):
    config: dict[Path, Payload]
