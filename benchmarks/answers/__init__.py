"""How often the answer check errs, on rewritten and on wrong forms of reference answers."""
