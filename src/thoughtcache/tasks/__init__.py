"""Data sets, answer checking, and the embedded tiny reasoner with the two arithmetic tasks it was pre-trained on."""
