"""The options of every command, a file each, and those that several have."""
