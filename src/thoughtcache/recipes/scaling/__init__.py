"""`thoughtcache scale`: accuracy over the maximum length of an answer, with the window as it is."""
