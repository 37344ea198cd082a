"""Memory in attention space: what leaves the window is written to a small matrix per key-value head, by its key.

The query of every later token reads it there. The state inside the LoRA adapter is the other memory.

Per layer and key-value head a state `[F, D + 1]`: the values in the first D columns, and in the last one how much was
written at each feature, from which a read knows how much the memory has to say.
"""
