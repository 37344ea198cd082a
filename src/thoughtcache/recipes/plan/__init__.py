"""Planning the memory of a run, and measuring whether the plan is right."""
