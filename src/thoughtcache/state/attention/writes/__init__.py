"""How keys and values that leave are written to the memory in attention space. One file per rule.

To add one: subclass `WriteRule` and list it in `WRITE_RULES`. Configuration, parameters, and the twin, gradient and
parity tests read that table.
"""

from thoughtcache.state.attention.writes.base import WriteRule
from thoughtcache.state.attention.writes.decay import DecayWrite
from thoughtcache.state.attention.writes.delta import DeltaWrite
from thoughtcache.state.attention.writes.linear import LinearWrite

WRITE_RULES: dict[str, type[WriteRule]] = {rule.name: rule for rule in (LinearWrite, DecayWrite, DeltaWrite)}

__all__ = ["WRITE_RULES", "WriteRule"]
