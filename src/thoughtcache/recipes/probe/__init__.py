"""`thoughtcache probe`: questions to a saved adapter, one after the other; `PROBES` in `run.py` lists them."""
