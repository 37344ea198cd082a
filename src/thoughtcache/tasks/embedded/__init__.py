"""The embedded tasks, and the tiny model that solves them."""
