"""The second source: the real model and the real code under fake tensors. No weights, no GPU, no arithmetic.

The model is built on the meta device with its own sizes, adapted by PEFT, and run by `replay` (or by TRL's way of
training) while `LiveBytes` counts what is alive. What is alive at a moment is linear in the number of layers, so two
shallow models give any depth, as long as the highest moment is the same one in all three: in a shallow model it may be
at the head. The closed form tells from where on that is so, and nothing else.

The attention is that of the CPU: the same saved tensors as FlashAttention, plus the dense mask of chunks with resident
tokens. Gradients that meet are added in a new tensor here, and in place without the counter: up to one activation of
the MLP too much. Not seen: what a kernel allocates for itself.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import peft
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from thoughtcache.cache.budgets import layer_budgets
from thoughtcache.cache.eviction.policies.sliding import sliding_evictions
from thoughtcache.learner.replay import score_rollouts
from thoughtcache.measuring.live_bytes import LiveBytes
from thoughtcache.measuring.operator_flops import OperatorFlops
from thoughtcache.planning.memory.parts import total
from thoughtcache.planning.model_size import model_size
from thoughtcache.planning.plan import learner_phases
from thoughtcache.planning.setting import PlanSetting
from thoughtcache.policy.handle import full_cache
from thoughtcache.records import Rollout, SamplingSettings, slot_dtype

SHALLOWEST = STEP = 4
"""Layers of the shallowest model that is traced, and how many more the next one has."""
BENT = 0.005
"""Share by which the extrapolated closed form may miss the one of the full depth."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Traced:
    """Live tensor bytes over the model itself.

    Attributes:
        forward_bytes: highest point of the forward pass.
        backward_bytes: highest point from then to the end of the backward pass.
        flops: matmul arithmetic of both.
        parameters: number of parameters of base and adapter.
    """

    forward_bytes: int
    backward_bytes: int
    flops: int
    parameters: int

    @property
    def peak_bytes(self) -> int:
        """Highest point of both."""
        return max(self.forward_bytes, self.backward_bytes)


def trace_learner(setting: PlanSetting, *, depths: tuple[int, int] | None = None) -> Traced:
    """Trace two shallow models and extrapolate to the depth of the configuration.

    Args:
        setting: the run; its `device_type` is ignored.
        depths: layers of the two models; None: see `depths_to_trace`.
    """
    if setting.cache.budgets is not None:  # a shallower model shares out other budgets
        return trace_as_it_is(setting)
    depths = depths or depths_to_trace(setting)
    if setting.model.num_hidden_layers == depths[1]:
        return trace_as_it_is(setting)
    shallow, deeper = (trace_as_it_is(with_layers(setting, depth)) for depth in depths)
    steps = (setting.model.num_hidden_layers - depths[0]) / (depths[1] - depths[0])

    def at_full_depth(name: str) -> int:
        first, second = getattr(shallow, name), getattr(deeper, name)
        return int(first + steps * (second - first))

    return Traced(**{field.name: at_full_depth(field.name) for field in fields(Traced)})


def depths_to_trace(setting: PlanSetting) -> tuple[int, int]:
    """The shallowest depths from which the closed form of every phase of the learner is extrapolated rightly."""
    layers = setting.model.num_hidden_layers
    full = _phase_bytes(setting, layers)
    for first in range(SHALLOWEST, layers - STEP, STEP):
        shallow, deeper = _phase_bytes(setting, first), _phase_bytes(setting, first + STEP)
        steps = (layers - first) / STEP
        if all(abs(a + steps * (b - a) - c) <= BENT * c for a, b, c in zip(shallow, deeper, full, strict=True)):
            return first, first + STEP
    return max(1, layers - STEP), layers


def _phase_bytes(setting: PlanSetting, layers: int) -> list[int]:
    phases = learner_phases(with_layers(replace(setting, device_type="cpu"), layers))
    return [total(parts) for parts in phases.values()]


def trace_as_it_is(setting: PlanSetting) -> Traced:
    """Trace the model at the depth of its configuration."""
    mode = FakeTensorMode()
    model = adapted_model(setting)
    _to_fake(model, mode)
    with mode, OperatorFlops() as flops:
        rollouts = blank_rollouts(setting)
        with LiveBytes() as live:
            scores = (
                _checkpointed(model, setting)
                if setting.learner == "checkpointed"
                else _replayed(model, setting, rollouts)
            )
            forward = live.peak_bytes
            live.reset_peak()
            scores.sum().backward()  # type: ignore[no-untyped-call]
    return Traced(
        forward_bytes=forward,
        backward_bytes=live.peak_bytes,
        flops=flops.total,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def with_layers(setting: PlanSetting, layers: int) -> PlanSetting:
    """The setting of the same run on a model with so many layers."""
    config = copy.deepcopy(setting.model)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1] * layers
    return replace(setting, model=config)


def blank_rollouts(setting: PlanSetting) -> list[Rollout]:
    """Rollouts of full length as sampling would leave them, tokens and states arbitrary.

    With `unequal_prompts` every other prompt is a token shorter; with `reuse` each carries its record.
    """
    count, evicted, config = setting.max_new_tokens, setting.num_evicted, setting.model
    size, dtype = model_size(config), getattr(torch, setting.dtype)
    heads = size.kv // size.head_size
    cache, budgets = setting.cache, layer_budgets(setting.cache)
    evictions = sliding_evictions(count - 1, cache.smallest_budget, evicted)
    if setting.chooses and budgets is not None:
        one = torch.arange(evicted or 0, dtype=slot_dtype(budgets.largest))
        full = [sum(budgets.is_due(layer, event) for layer in range(size.layers)) for event in range(len(evictions))]
        evictions = tuple(
            replace(eviction, slots=one.expand(layers, heads, -1).clone())
            for eviction, layers in zip(evictions, full, strict=True)
        )
    thought = setting.thought
    shape = (len(evictions), config.num_hidden_layers, *setting.state_shape)
    has_states = bool(evictions) and setting.absorbs and not thought.is_plain_lora
    sampling = SamplingSettings(
        temperature=1.0,
        max_new_tokens=count,
        window=setting.window,
        num_evicted=evicted,
        eviction=setting.thought.eviction,
        eviction_options=cache.eviction_options,
        budgets=cache.budgets,
        head_budgets=cache.head_budgets,
        seed=0,
        ignore_eos=True,
        positions="rolling" if setting.rolls else "absolute",
    )
    prompts = [max(1, setting.prompt_tokens - row % 2 * setting.unequal_prompts) for row in range(setting.batch)]

    def record(prompt: int) -> torch.Tensor:
        return torch.zeros(size.layers, 2, heads, prompt + count - 1, size.head_size, dtype=dtype)

    return [
        Rollout(
            prompt_ids=[1] * prompt,
            token_ids=[1] * count,
            logprobs=torch.zeros(count),
            evictions=evictions,
            states=torch.zeros(shape) if has_states else None,
            keys_values=record(prompt) if setting.reuse else None,
            entropies=torch.zeros(count) if setting.reuse else None,
            finish_reason="length",
            settings=sampling,
        )
        for prompt in prompts
    ]


def adapted_model(setting: PlanSetting) -> nn.Module:
    """The adapted model on the meta device, in the dtypes that training gives it."""
    with torch.device("meta"), _default_dtype(getattr(torch, setting.dtype)):
        base: Any = AutoModelForCausalLM.from_config(setting.model)  # type: ignore[no-untyped-call]
    base.config.use_cache = False
    if setting.learner == "checkpointed":
        _checkpoint_layers(base)
    with torch.device("meta"):
        model: nn.Module = peft.get_peft_model(base, copy.deepcopy(setting.thought), low_cpu_mem_usage=True)
    return model.train()


def _checkpoint_layers(base: nn.Module) -> None:
    """Do what `gradient_checkpointing_enable` does; transformers renamed it within the supported versions."""
    for module in base.modules():
        if isinstance(module, GradientCheckpointingLayer):
            layer: Any = module
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)


def _replayed(model: nn.Module, setting: PlanSetting, rollouts: list[Rollout]) -> torch.Tensor:
    return score_rollouts(model, rollouts, setting.replay_options).logprobs


def _checkpointed(model: Any, setting: PlanSetting) -> torch.Tensor:
    """Log-probabilities as TRL's trainer asks for them."""
    from trl.trainer.utils import add_fused_lm_head, selective_log_softmax

    ids = torch.ones(setting.batch, setting.prompt_tokens + setting.max_new_tokens, dtype=torch.long)
    if setting.logits == "materialised":
        with full_cache(model):
            out = model(input_ids=ids, logits_to_keep=setting.max_new_tokens + 1, use_cache=False)
        logits = out.logits[:, :-1].float()
        chosen: torch.Tensor = selective_log_softmax(logits, ids[:, -setting.max_new_tokens :])
        return chosen

    add_fused_lm_head(model.get_base_model(), outputs=("log_probs", "entropy"))
    labels = ids.clone()
    labels[:, : setting.prompt_tokens] = -100
    with full_cache(model):
        found: torch.Tensor = model(input_ids=ids, labels=labels, fused_lm_head=True).log_probs
    return found


def _to_fake(model: nn.Module, mode: FakeTensorMode) -> None:
    """Replace every parameter and buffer by a fake CPU tensor; tied ones stay tied."""
    known: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in known:
                    with mode:
                        fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    known[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
                tensors[name] = known[id(tensor)]  # type: ignore[assignment]


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
