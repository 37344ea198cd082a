"""Benchmarks: no speed is reported before its correctness gate is green; every figure is a ratio of one run."""
