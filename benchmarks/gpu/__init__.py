"""What only a GPU can show, in one command: `make gpu-check`, or check.sh for a machine without a network."""
