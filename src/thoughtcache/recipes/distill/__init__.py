"""`thoughtcache distill`: stages of a recipe, one after the other, on texts; what each one won back is measured."""
