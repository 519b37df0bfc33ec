"""Benchmarks; each file runs alone and under pytest-benchmark."""
