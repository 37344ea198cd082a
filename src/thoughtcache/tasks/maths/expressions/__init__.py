"""Expressions as they are written in answers: read into a tree, computed exactly or to many digits, compared."""
