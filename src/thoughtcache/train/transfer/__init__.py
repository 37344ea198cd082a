"""Attention transfer: a memory learns, layer by layer, to give back the attention output that the window loses.

Texts go through the base model with the full cache once. Beside every layer runs the attention that the window leaves,
with the memory; the relative squared error between both outputs is the loss. Nothing is run backward but the memory
itself, so that a step costs little more than a forward pass (LoLCATs, arXiv 2410.10254, stage 1; LESS, arXiv
2402.09398).
"""
