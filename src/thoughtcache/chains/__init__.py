"""Segmented thinking: a thought whose context is reset at boundaries and encoded again."""
