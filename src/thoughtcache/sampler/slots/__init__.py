"""What the sampler keeps per slot: keys and values, thought states, and the record of what passed through."""
