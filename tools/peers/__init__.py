"""Runs the test suites of other projects with our classes in the place of theirs. Nothing of them is committed."""
