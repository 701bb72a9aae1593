"""Packing: exact sizes, identity, and agreement with arithmetic on one large integer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modcap.quantization.bit_packing import pack, unpack


def reference(values: list[int], bits: int) -> bytes:
    whole = sum(value << (i * bits) for i, value in enumerate(values))
    return whole.to_bytes((len(values) * bits + 7) // 8, "little")


@settings(deadline=None)
@given(st.integers(1, 8), st.data())
def test_stream_is_one_little_endian_integer(bits: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=70))
    packed = pack(torch.tensor(values, dtype=torch.uint8), bits)
    assert packed.numpy().tobytes() == reference(values, bits)
    assert unpack(packed, bits, (len(values),)).tolist() == values


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shape", [(3, 5, 3, 3), (1,), (7, 11), (1 << 20, 3), (0, 4)])
def test_identity_for_odd_sizes(bits: int, shape: tuple[int, ...]) -> None:
    values = torch.randint(0, 2**bits, shape, generator=torch.Generator().manual_seed(bits))
    packed = pack(values, bits)
    assert packed.numel() == -(-values.numel() * bits // 8)
    assert torch.equal(unpack(packed, bits, shape), values.to(torch.uint8))


def test_values_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="0 to 4 do not fit 2 bits"):
        pack(torch.tensor([0, 4]), 2)
    with pytest.raises(ValueError, match="-1 to 0 do not fit"):
        pack(torch.tensor([0, -1]), 2)
    with pytest.raises(ValueError, match="9 bits"):
        pack(torch.tensor([0]), 9)
    with pytest.raises(ValueError, match="3 bytes do not hold 8 values"):
        unpack(torch.zeros(3, dtype=torch.uint8), 2, (8,))
