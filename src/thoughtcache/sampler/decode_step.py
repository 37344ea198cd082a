"""One token per slot through the backbone, as it is or compiled.

Compiled (`torch.compile`, on a GPU with CUDA graphs) the step has static shapes: every slot attends to the whole buffer
under a mask, free slots run along, and nothing but tensors changes from round to round. The same policy up to rounding:
tests/parity/test_compiled.py. What cannot be compiled whole is an error, never a slower run in silence.

Not covered: compiled prefill; compiled choices of policies that choose. CUDA graphs are checked by
benchmarks/gpu/profiled.py, which has not been run so far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from thoughtcache.adapter.attention import QUERIES
from thoughtcache.adapter.cache_argument import cache_argument
from thoughtcache.cache.window_rules import WindowRules
from thoughtcache.measuring.phase_timer import PhaseTimer
from thoughtcache.policy.handle import PolicyHandle
from thoughtcache.sampler.slots.move import MoveFn, move_thoughts
from thoughtcache.sampler.slots.slot_cache import SlotCache

GRAPHS_PER_FUNCTION = 64
"""Shapes (batch sizes, windows, lengths of the longest prompt) that one process may compile for."""


class DecodeStep:
    """Processes the drawn tokens.

    Args:
        policy: the parts of the model.
        compiled: see above.
    """

    def __init__(self, policy: PolicyHandle, *, compiled: bool) -> None:
        self.backbone = policy.backbone
        self.argument = cache_argument(policy.backbone)
        self.run = compile_whole(_step, policy.device) if compiled else _step
        self.is_cold = compiled

    def __call__(self, cache: SlotCache, tokens: Tensor) -> Tensor:
        """One step of all slots, which `cache.finish_step` has to end.

        Args:
            cache: cache with room for a token in every slot.
            tokens: [slots, 1] tokens that were drawn.

        Returns:
            [slots, d] hidden states of these tokens.
        """
        cache.prepare_step()
        if self.is_cold:
            # What it writes is written again, at the same place, by the step that counts.
            self.run(self.backbone, cache, tokens, self.argument)
            self.is_cold = False
        return self.run(self.backbone, cache, tokens, self.argument)


def _step(backbone: nn.Module, cache: SlotCache, tokens: Tensor, argument: str) -> Tensor:
    more = {} if cache.log is None else {QUERIES: cache.log}
    output = backbone(
        input_ids=tokens,
        attention_mask=cache.step_mask(),
        position_ids=cache.positions.unsqueeze(1),
        use_cache=True,
        **{argument: cache},
        **more,
    )
    hidden: Tensor = output.last_hidden_state[:, -1]
    return hidden


def eviction_step(*, compiled: bool, timer: PhaseTimer | None = None) -> MoveFn:
    """The function that an eviction runs after the choice of what leaves, as it is or compiled."""
    move: MoveFn = compile_whole(move_thoughts, None) if compiled else move_thoughts
    return move if timer is None else timer.timed("move", move)


def timed_absorption(rules: WindowRules, timer: PhaseTimer | None) -> WindowRules:
    """The rules, whose absorption is a phase of the timer."""
    if timer is None or rules.absorb is None:
        return rules
    return replace(rules, absorb=timer.timed("absorb", rules.absorb))


def compile_whole(function: Callable[..., Any], device: torch.device | None) -> Callable[..., Any]:
    """`torch.compile` of a whole function; a part that cannot be compiled, or too many shapes, are an error.

    Args:
        function: function of tensors, modules and caches.
        device: replay CUDA graphs if it is a GPU; None never does.
    """
    from torch._inductor import config as inductor  # takes a second to import

    on_gpu = device is not None and device.type == "cuda"
    compiled = torch.compile(function, fullgraph=True, mode="reduce-overhead" if on_gpu else None)
    limits = torch._dynamo.config.patch(
        recompile_limit=GRAPHS_PER_FUNCTION, accumulated_recompile_limit=256, fail_on_recompile_limit_hit=True
    )
    # Without it PyTorch leaves graphs out with a warning.
    graphs = inductor.patch({"triton.cudagraph_or_error": on_gpu})

    def run(*args: Any) -> Any:
        try:
            with limits, graphs:
                return compiled(*args)
        except torch._dynamo.exc.FailOnRecompileLimitHit as error:
            raise RuntimeError(
                f"sampling was compiled for {GRAPHS_PER_FUNCTION} shapes in this process (numbers of slots, windows, "
                "lengths of the longest prompt), and no more are; use fewer, or compile=False"
            ) from error

    return run
