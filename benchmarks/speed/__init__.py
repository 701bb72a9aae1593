"""Time, memory and accuracy of reconstruction, beside peers: ``python -m benchmarks.speed``."""
