"""Instruments: memory, live tensors, arithmetic and seconds, of any code. They know nothing of what they measure."""
