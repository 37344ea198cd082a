"""`thoughtcache eval`: how many questions of a suite are answered rightly, and how two runs compare."""
