"""The bounded cache: its schedule (integers), its eviction policies, and the caches that transformers models read."""
