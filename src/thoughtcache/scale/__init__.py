"""Sampling on several processes or machines: shards of a call, records on the wire, and who samples what."""
