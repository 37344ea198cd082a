"""Three executions of one policy: `rollout` (token by token), `replay` (segments, with gradient), `naive`."""

from thoughtcache.policy.handle import full_cache
from thoughtcache.policy.naive import naive_logprobs
from thoughtcache.policy.replay import replay
from thoughtcache.policy.rollout import rollout

__all__ = ["full_cache", "naive_logprobs", "replay", "rollout"]
