"""The parts of a run: its configuration, its folder, what it may change on resume, and its checks."""
