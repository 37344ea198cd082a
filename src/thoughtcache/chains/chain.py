"""The record of one chain: its links, and why it is over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from thoughtcache.chains.thinking import ChainEnd, Thinking
from thoughtcache.records import FinishReason, Rollout


@dataclass(frozen=True, kw_only=True, slots=True)
class Chain:
    """One thought in several links. Each link is a rollout that replays by itself, unless it `continues` another one.

    Attributes:
        links: the links in order, at least one; the prompt of the first is the question.
        end: "stop" after a stop token, "length" at the end of a budget, "invalid" after a step that is none.
        thinking: what decided where links end and what is carried.
    """

    links: tuple[Rollout, ...]
    end: ChainEnd
    thinking: Thinking

    @property
    def prompt_ids(self) -> list[int]:
        """Tokens of the question."""
        return self.links[0].prompt_ids

    @property
    def token_ids(self) -> list[int]:
        """Everything that was sampled, in order and each token once."""
        return [token for link in self.links for token in link.token_ids]

    @property
    def logprobs(self) -> Float[Tensor, " T"]:
        """Log-probability of each of these tokens in the link in which it was sampled."""
        return torch.cat([link.logprobs for link in self.links])

    @property
    def finish_reason(self) -> FinishReason:
        """That of a rollout: "stop" if the thought came to its own end."""
        return "stop" if self.end == "stop" else "length"

    @property
    def boundaries(self) -> list[int]:
        """Numbers of the thoughts before which a boundary lies."""
        ends = [0]
        for link in self.links[:-1]:
            ends.append(ends[-1] + len(link.token_ids))
        return ends[1:]


Trace = Rollout | Chain
"""A whole thought, in one link or in several."""


def links_of(traces: Sequence[Trace]) -> list[Rollout]:
    """The links of all traces, one after the other; a rollout is its own only link."""
    return [link for trace in traces for link in (trace.links if isinstance(trace, Chain) else (trace,))]
