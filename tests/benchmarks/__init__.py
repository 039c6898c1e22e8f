"""Benchmarks: every figure with its peer or limit measured in the same run. ``python -m tests.benchmarks`` prints all."""
