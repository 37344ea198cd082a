"""Chains in the trainer: which way of thinking a generation has, and numbers about its chains.

A chain is one row of TRL's batch: its tokens are those of the whole trace, and its log-probabilities come from the
replay of its links. So one advantage holds for all links, and TRL's own losses are those of the trace: with
`loss_type="grpo"` the tokens of all links are summed and divided by the length of the whole trace, as in Delethink.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thoughtcache.chains.chain import Chain, Trace
from thoughtcache.chains.sample import rollout_chains
from thoughtcache.chains.thinking import Thinking
from thoughtcache.policy.continuations import check_exact
from thoughtcache.sampler.rollout import rollout
from thoughtcache.scale.backend import RolloutBackend
from thoughtcache.train.trl.config import ThoughtGRPOConfig


def check_turns(
    thinking: object, backend: RolloutBackend | None, max_completion_length: int | None
) -> tuple[Thinking, ...]:
    """The ways of thinking of a run, in turn; none of them for ordinary rollouts.

    Args:
        thinking: what the trainer was given: a way of thinking, several of them, or None.
        backend: who samples instead of this process.
        max_completion_length: bound on the tokens of a whole chain.

    Raises:
        ValueError: for anything that is no way of thinking, if a backend samples, which knows no chains, or if no chain
            could have a second link.
    """
    if thinking is None:
        return ()
    assert max_completion_length is not None, "the configuration refuses rollouts without a bound"
    turns: tuple[Any, ...] = tuple(thinking) if isinstance(thinking, list | tuple) else (thinking,)
    if not turns:
        raise ValueError("thinking=() names no way of thinking; leave it out for ordinary rollouts")
    if backend is not None:
        raise ValueError("a rollout backend samples no chains; leave out rollout_backend, or thinking")
    for turn in turns:
        if not isinstance(turn, Thinking):
            raise ValueError(
                f"thinking={turn!r} is no way of thinking; pass a MarkovianThinking or a StepFolding, which "
                "chains.table.make_thinking makes of a name and its settings as texts, or a list of them"
            )
        try:
            turn.check(1, max_completion_length)
        except ValueError as error:
            raise ValueError(f"{error} (max_new_tokens is max_completion_length here)") from error
    return turns


def check_kept(turns: Sequence[Thinking], args: ThoughtGRPOConfig) -> None:
    """Refuse settings that links without a prompt of their own cannot be replayed under.

    Args:
        turns: the ways of thinking of a run.
        args: its settings.

    Raises:
        ValueError: if one of them keeps keys and values as they were written, and the gradient is cut somewhere, the
            learner is to start from records, or a reference sees the full cache.
    """
    if not any(turn.keeps_written for turn in turns):
        return
    check_exact(args.replay_options.gradient)
    if args.reuse_rollout:
        raise ValueError(
            "reuse_rollout=True starts from recorded keys and values, which are not recorded where links keep theirs "
            'as they were written (keep="written"); leave it out'
        )
    if args.beta and args.reference == "full":
        raise ValueError(
            f'reference="full" with beta={args.beta} evicts nothing, and what links keep as it was written '
            '(keep="written") depends on what was evicted; use reference="consistent"'
        )


def generation_number(global_step: int, micro_step: int, accumulation: int, generate_every: int) -> int:
    """Number of a generation of training, the same in a resumed run.

    Args:
        global_step: optimiser steps so far.
        micro_step: micro-steps that the trainer has counted, which a resumed run counts anew.
        accumulation: micro-steps of an optimiser step.
        generate_every: micro-steps between two generations.
    """
    return (global_step * accumulation + micro_step % accumulation) // generate_every


def sample_traces(
    model: nn.Module, prompt_ids: Sequence[Sequence[int]], thinking: Thinking | None, **options: Any
) -> list[Trace]:
    """One chain per prompt, or one rollout without a way of thinking.

    Args:
        model: the adapted model.
        prompt_ids: token ids of the prompts.
        thinking: how to think, or None.
        **options: what both `rollout` and `rollout_chains` take.
    """
    if thinking is None:
        return [*rollout(model, prompt_ids, **options)]
    return [*rollout_chains(model, prompt_ids, thinking, **options)]


def chain_totals(traces: Sequence[Trace]) -> Float[Tensor, " 4"]:
    """(chains, their links, how many did not come to an end of their own, how many ended with a step that is none)."""
    chains = [trace for trace in traces if isinstance(trace, Chain)]
    links = sum(len(chain.links) for chain in chains)
    unfinished = sum(chain.end != "stop" for chain in chains)
    return torch.tensor([len(chains), links, unfinished, sum(chain.end == "invalid" for chain in chains)]).float()


def chain_metrics(totals: Float[Tensor, "P 4"]) -> dict[str, float]:
    """Metrics from the totals of P processes; none without chains."""
    chains, links, unfinished, invalid = totals.sum(dim=0).tolist()
    if not chains:
        return {}
    return {
        "chains/links": links / chains,
        "chains/unfinished": unfinished / chains,
        "chains/invalid": invalid / chains,
    }
