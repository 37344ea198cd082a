"""Faster forms of the linear layers, for as long as a sampler decodes."""
