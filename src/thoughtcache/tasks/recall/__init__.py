"""Texts whose end can be known only from something that was said long before: what a memory is for."""
