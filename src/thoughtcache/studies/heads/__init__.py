"""Probes of single kv heads over the full cache: scores for budgets by head."""
