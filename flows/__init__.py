"""The four products: quantize, sweep, scan and promote, as Prefect flows."""
