"""Recipes: one function per experiment, over shared builders. Each leaves a table, a plot and a results file behind."""
