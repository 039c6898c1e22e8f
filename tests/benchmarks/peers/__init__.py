"""Servers and clients that the benchmarks start as processes of their own. Each ends by itself after a while."""
