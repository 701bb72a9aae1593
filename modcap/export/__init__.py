"""The artifact of a quantized network, and other formats of it."""
