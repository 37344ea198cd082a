"""ThoughtCache: reinforcement learning for reasoning models under a fixed-size KV cache.

`import thoughtcache` registers the PEFT method `ThoughtConfig` and nothing else.
Training code is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import thoughtcache.adapter  # noqa: F401  registers the PEFT method
from thoughtcache.cache.budgets.adakv import adakv_budgets
from thoughtcache.cache.budgets.headkv import headkv_budgets
from thoughtcache.chains.chain import Chain
from thoughtcache.chains.folding import StepFolding
from thoughtcache.chains.given import given_chains
from thoughtcache.chains.markovian import MarkovianThinking
from thoughtcache.chains.replay import naive_chain_logprobs, replay_chains
from thoughtcache.chains.sample import rollout_chains
from thoughtcache.config import ThoughtConfig
from thoughtcache.learner.replay import replay
from thoughtcache.policy.handle import full_cache
from thoughtcache.policy.naive import naive_logprobs
from thoughtcache.presets import preset
from thoughtcache.records import Eviction, Rollout, TokenFilters, TokenLogProbs
from thoughtcache.sampler.engine import Engine
from thoughtcache.sampler.request import Request
from thoughtcache.sampler.rollout import rollout

if TYPE_CHECKING:
    from thoughtcache.scale.processes import rollout_across_processes
    from thoughtcache.scale.ray_rollouts import RayRollouts
    from thoughtcache.studies.ages import probe_ages
    from thoughtcache.studies.anatomy import probe_anatomy
    from thoughtcache.studies.attention_share import probe_attention_share
    from thoughtcache.studies.capacity import probe_capacity
    from thoughtcache.studies.families import probe_families
    from thoughtcache.studies.heads.far_attention import probe_far_attention
    from thoughtcache.studies.heads.pooled_attention import probe_pooled_attention
    from thoughtcache.studies.passcode import probe_passcode
    from thoughtcache.studies.sinks import probe_sinks
    from thoughtcache.studies.state_use import probe_state_use
    from thoughtcache.train.distill import distill
    from thoughtcache.train.distill_config import DistillConfig
    from thoughtcache.train.folding_reward import folding_reward
    from thoughtcache.train.recall_config import RecallConfig
    from thoughtcache.train.teach_recall import teach_recall
    from thoughtcache.train.transfer.config import TransferConfig
    from thoughtcache.train.transfer.teach import transfer_attention
    from thoughtcache.train.trl.trainer import ThoughtGRPOConfig, ThoughtGRPOTrainer

__version__ = "0.1.0"

_LAZY = {
    "DistillConfig": "thoughtcache.train.distill_config",
    "RayRollouts": "thoughtcache.scale.ray_rollouts",
    "RecallConfig": "thoughtcache.train.recall_config",
    "TransferConfig": "thoughtcache.train.transfer.config",
    "probe_ages": "thoughtcache.studies.ages",
    "probe_capacity": "thoughtcache.studies.capacity",
    "probe_anatomy": "thoughtcache.studies.anatomy",
    "probe_attention_share": "thoughtcache.studies.attention_share",
    "probe_families": "thoughtcache.studies.families",
    "probe_far_attention": "thoughtcache.studies.heads.far_attention",
    "probe_pooled_attention": "thoughtcache.studies.heads.pooled_attention",
    "probe_passcode": "thoughtcache.studies.passcode",
    "probe_sinks": "thoughtcache.studies.sinks",
    "probe_state_use": "thoughtcache.studies.state_use",
    "rollout_across_processes": "thoughtcache.scale.processes",
    "folding_reward": "thoughtcache.train.folding_reward",
    "teach_recall": "thoughtcache.train.teach_recall",
    "transfer_attention": "thoughtcache.train.transfer.teach",
    "distill": "thoughtcache.train.distill",
    "ThoughtGRPOConfig": "thoughtcache.train.trl.trainer",
    "ThoughtGRPOTrainer": "thoughtcache.train.trl.trainer",
}


def __getattr__(name: str) -> Any:
    """Import training code on first use: TRL takes seconds, and sampling or loading an adapter does not need it."""
    if name not in _LAZY:
        raise AttributeError(f"module 'thoughtcache' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    """Names that are there already, and those that are imported on first use."""
    return sorted({*globals(), *_LAZY})


__all__ = [
    "Chain",
    "DistillConfig",
    "Engine",
    "Eviction",
    "MarkovianThinking",
    "RayRollouts",
    "RecallConfig",
    "Request",
    "Rollout",
    "StepFolding",
    "ThoughtConfig",
    "ThoughtGRPOConfig",
    "ThoughtGRPOTrainer",
    "TokenFilters",
    "TokenLogProbs",
    "TransferConfig",
    "adakv_budgets",
    "distill",
    "folding_reward",
    "full_cache",
    "given_chains",
    "headkv_budgets",
    "naive_chain_logprobs",
    "naive_logprobs",
    "preset",
    "probe_ages",
    "probe_anatomy",
    "probe_attention_share",
    "probe_capacity",
    "probe_families",
    "probe_far_attention",
    "probe_passcode",
    "probe_pooled_attention",
    "probe_sinks",
    "probe_state_use",
    "replay",
    "replay_chains",
    "rollout",
    "rollout_across_processes",
    "rollout_chains",
    "teach_recall",
    "transfer_attention",
]
