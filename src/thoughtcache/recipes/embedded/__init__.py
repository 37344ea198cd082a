"""The embedded job: what `make train` runs, its baselines, and its report."""
