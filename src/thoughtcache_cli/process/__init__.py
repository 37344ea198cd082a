"""The process of a command: what a launcher started, and what Ctrl-C does."""
