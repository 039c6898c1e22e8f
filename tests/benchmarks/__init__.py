"""Benchmarks: every figure beside a peer or limit of the same run. ``python -m tests.benchmarks`` prints them."""
