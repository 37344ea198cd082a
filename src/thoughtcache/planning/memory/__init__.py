"""Closed forms of the memory of each phase, by parts."""
