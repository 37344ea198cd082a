"""State rules: how evicted keys and values change the thought state. One file per rule.

To add one: subclass `StateRule` and list it in `STATE_RULES`. Configuration, encoder, planner, command line and the
twin, gradient and parity tests read that table.
"""

from thoughtcache.state.rules.base import EncoderWeights, ExtraParameter, StateRule
from thoughtcache.state.rules.decay import DecayRule
from thoughtcache.state.rules.delta import DeltaRule
from thoughtcache.state.rules.gated import GatedRule
from thoughtcache.state.rules.linear import LinearRule
from thoughtcache.state.rules.softmax import SoftmaxRule

STATE_RULES: dict[str, type[StateRule]] = {
    rule.name: rule for rule in (LinearRule, GatedRule, DeltaRule, SoftmaxRule, DecayRule)
}


def state_rule(name: str) -> type[StateRule]:
    """The rule called `name`.

    Raises:
        ValueError: if there is no such rule.
    """
    if name not in STATE_RULES:
        raise ValueError(f"state_rule={name!r} is not known; choose one of {list(STATE_RULES)}")
    return STATE_RULES[name]


__all__ = ["STATE_RULES", "EncoderWeights", "ExtraParameter", "StateRule", "state_rule"]
