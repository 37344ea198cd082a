"""From logits to tokens, row by row: distributions, filters, uniform numbers, and where a text ends."""
