"""The thought state: what is learned from tokens before they leave the cache. `naive.py` reads like the equations."""

from thoughtcache.state.absorb import absorb, initial_state
from thoughtcache.state.encoder import ThoughtEncoder
from thoughtcache.state.norms import STATE_NORMS
from thoughtcache.state.rules import STATE_RULES
from thoughtcache.state.rules.common import normalise

__all__ = ["STATE_NORMS", "STATE_RULES", "ThoughtEncoder", "absorb", "initial_state", "normalise"]
