"""The eviction policies, one small class per file; `table.py` lists them."""
