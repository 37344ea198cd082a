"""The state of a sampler per slot: keys and values, thought states, and the record of what passed through."""
