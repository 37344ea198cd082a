"""Turns logits into tokens, row by row: distributions, filters, uniform numbers, and where a text ends."""
