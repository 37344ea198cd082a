"""Benchmarks. Each refuses to report a speed before its correctness gate is green; every figure is a ratio of one run."""
