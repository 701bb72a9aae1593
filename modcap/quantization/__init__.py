"""Integers for numbers: scales, fake quantization, packed bits."""
