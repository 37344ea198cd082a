"""Matmul arithmetic of decoding one thought token, in closed form.

A multiply-add counts as two. Counted: the linears of the decoder layers, attention scores and their product with the
values over the resident tokens, the adapter, its reading of the state, the absorption of evicted tokens spread over
the tokens of a rollout, and the language-model head. Left out (no matmuls, or far below 1 %): embeddings, norms,
rotary positions, softmax, activations, residual sums, sampling, the initial state and the projected global queries
(once per rollout), and the prefill of the prompt, which costs the same with and without a window.

Covers the model types of `adapter/support.py` (dense, gated MLP). Proof: tests/unit/test_flops.py, against PyTorch's
own counter.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, fields
from statistics import fmean

from torch import nn
from transformers import PretrainedConfig

from thoughtcache.adapter.state_parameters import memory_shape
from thoughtcache.adapter.support import check_model
from thoughtcache.cache.schedule import num_evictions, resident_thoughts
from thoughtcache.config import OWN_WINDOW, ThoughtConfig
from thoughtcache.state.attention.read import read_flops, write_flops
from thoughtcache.state.attention.weights import MemoryShape
from thoughtcache.state.attention.window_share import EXTRA
from thoughtcache.state.rules import state_rule as rule_called

Targets = Collection[str] | str | None
NO_TARGETS: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class FlopsPerToken:
    """Floating-point operations of one decoded token of one sequence.

    Attributes:
        linears: projections and MLP of all decoder layers.
        attention: scores and weighted values over the resident tokens.
        adapter: the two low-rank factors of every targeted linear.
        state_read: the state between them; 0 for plain LoRA.
        memory_read: the memory that attention reads, and what a key more costs under "joint"; 0 without.
        absorption: state updates, spread evenly over the tokens.
        head: language-model head.
    """

    linears: float
    attention: float
    adapter: float
    state_read: float
    memory_read: float
    absorption: float
    head: float

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return float(sum(getattr(self, part.name) for part in fields(self)))


def flops_per_token(
    model_or_config: nn.Module | PretrainedConfig,
    *,
    context: float,
    rank: int = 0,
    num_global_tokens: int = 0,
    target_modules: Targets = "all-linear",
    reads_state: bool = True,
    state_rule: str = "linear",
    num_evicted: int = 0,
    evictions_per_token: float = 0.0,
    memory: MemoryShape | None = None,
) -> FlopsPerToken:
    """Operations of one decode step at a (mean) resident context.

    Args:
        model_or_config: a model, adapted or not, or its transformers configuration.
        context: tokens attended to, the new one included; may be a mean, since attention is linear in it.
        rank: R of the adapter; 0 means no adapter.
        num_global_tokens: G of the adapter, inputs of its second factors; R where linears read no state.
        target_modules: names of the targeted linears as in PEFT: "all-linear", a regular expression, or a list; None or
            nothing means none.
        reads_state: whether linears read a state; False for plain LoRA, whose state is the identity.
        state_rule: rule of the absorption.
        num_evicted: E, tokens that are absorbed at once.
        evictions_per_token: evictions per decoded token; 0 if nothing is absorbed.
        memory: the memory in attention space; None without, or where it is not read yet.

    Raises:
        ValueError: if the model type is not covered, the rule is unknown, or a number is negative.
    """
    config = _text_config(model_or_config)
    if min(context, rank, num_global_tokens, num_evicted, evictions_per_token) < 0:
        raise ValueError(
            f"all sizes must be 0 or more, got context={context}, rank={rank}, num_global_tokens={num_global_tokens}, "
            f"num_evicted={num_evicted}, evictions_per_token={evictions_per_token}"
        )
    layers = config.num_hidden_layers
    shapes = linear_shapes(config)
    targeted = _targeted_shapes(config, target_modules) if rank else []
    query_size = shapes["self_attn.q_proj"][1]
    kv_size = shapes["self_attn.k_proj"][1]
    event = 0
    if evictions_per_token and memory is not None:
        event += write_flops(memory, num_evicted)
    if evictions_per_token and reads_state:
        event += absorption_flops(kv_size, num_evicted, rank, num_global_tokens, state_rule)
    joint = 0.0 if memory is None else 4.0 * share_columns(memory, context)
    return FlopsPerToken(
        linears=float(2 * layers * sum(inputs * outputs for inputs, outputs in shapes.values())),
        attention=4.0 * layers * query_size * context,
        adapter=float(sum(2 * (rank * inputs + num_global_tokens * outputs) for inputs, outputs in targeted)),
        state_read=float(2 * rank * num_global_tokens * len(targeted)) if reads_state else 0.0,
        memory_read=0.0 if memory is None else layers * (read_flops(memory) + joint),
        absorption=layers * event * evictions_per_token,
        head=float(2 * config.hidden_size * config.vocab_size),
    )


def rollout_flops_per_token(
    model_or_config: nn.Module | PretrainedConfig,
    thought: ThoughtConfig | None,
    *,
    prompt_tokens: int,
    num_tokens: int,
    window: int | str | None = OWN_WINDOW,
) -> FlopsPerToken:
    """Mean operations per decode step of a rollout of `num_tokens` thoughts (its `num_tokens - 1` decode steps).

    `window=None` gives the full-cache row of a table, an integer the bounded one, for the same adapter.

    Args:
        model_or_config: a model, adapted or not, or its transformers configuration.
        thought: the adapter, or None for the base model (then `window` must be given, and 25 % is evicted).
        prompt_tokens: P, at least 1.
        num_tokens: T, at least 2: the first token needs the prefill only.
        window: W, "prompt" for a window of `prompt_tokens`, None for the full cache, or the adapter's own.

    Raises:
        ValueError: if a value is out of range, or if `flops_per_token` refuses its arguments.
    """
    if window == OWN_WINDOW and thought is None:
        raise ValueError("window='config' needs an adapter; pass an integer or None")
    layers = _text_config(model_or_config).num_hidden_layers
    cache = (thought or ThoughtConfig()).resolve_window(prompt_tokens, window, num_layers=layers)
    # A layer evicts as if its budget were the window of all; where budgets differ by head, it attends to the columns
    # of its largest head, and evicts as soon as its smallest one is full.
    sizes, firsts = cache.budgets or [cache.window], cache.first_budgets or [cache.window]
    context = fmean(mean_context(prompt_tokens, num_tokens, size, cache.num_evicted) for size in sizes)
    if thought is None:
        return flops_per_token(model_or_config, context=context)
    absorbs = thought.absorb and cache.num_evicted is not None
    steps = num_tokens - 1
    return flops_per_token(
        model_or_config,
        context=context,
        rank=thought.r,
        num_global_tokens=thought.num_state_rows,
        target_modules=thought.target_modules,
        reads_state=not thought.has_plain_linears,
        state_rule=thought.state_rule,
        num_evicted=cache.num_evicted or 0,
        evictions_per_token=fmean(num_evictions(steps, size, cache.num_evicted) for size in firsts) / steps * absorbs,
        memory=memory_of(model_or_config, thought),
    )


def memory_of(model_or_config: nn.Module | PretrainedConfig, thought: ThoughtConfig) -> MemoryShape | None:
    """The memory in attention space of an adapter on a model; None where it has none."""
    if not thought.has_attention_memory:
        return None
    config = _text_config(model_or_config)
    heads, shapes = config.num_attention_heads, linear_shapes(config)
    head_size = shapes["self_attn.q_proj"][1] // heads
    return memory_shape(thought, (heads, shapes["self_attn.k_proj"][1] // head_size, head_size))


def share_columns(memory: MemoryShape, context: float) -> float:
    """Numbers of scores and outputs that "joint" adds to a token's attention over a context, in one layer.

    Keys, queries and values are longer there, and one more of them stands before the others.
    """
    if memory.read != "joint":
        return 0.0
    return memory.query_heads * ((memory.head_size + EXTRA) * (context + 1) - memory.head_size * context)


def mean_context(prompt_tokens: int, num_tokens: int, window: int | None, num_evicted: int | None) -> float:
    """Mean resident tokens over the `num_tokens - 1` decode steps of a rollout, the new token included.

    Raises:
        ValueError: if the prompt is empty, or if there are fewer than two tokens.
    """
    if prompt_tokens < 1 or num_tokens < 2:
        raise ValueError(
            f"prompt_tokens must be at least 1 and num_tokens at least 2, got {prompt_tokens} and {num_tokens}"
        )
    steps = num_tokens - 1
    return prompt_tokens + sum(resident_thoughts(step, window, num_evicted) for step in range(steps)) / steps


def absorption_flops(kv_size: int, num_evicted: int, rank: int, num_global_tokens: int, state_rule: str) -> int:
    """Operations of one state update of one layer of one sequence.

    Raises:
        ValueError: if the rule is unknown.
    """
    return rule_called(state_rule).flops(kv_size, num_evicted, rank, num_global_tokens)


def linear_shapes(config: PretrainedConfig) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of the linears of one decoder layer by their name in it."""
    hidden, inner = config.hidden_size, config.intermediate_size
    head_size = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    queries, keys = config.num_attention_heads * head_size, config.num_key_value_heads * head_size
    return {
        "self_attn.q_proj": (hidden, queries),
        "self_attn.k_proj": (hidden, keys),
        "self_attn.v_proj": (hidden, keys),
        "self_attn.o_proj": (queries, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }


def _text_config(model_or_config: nn.Module | PretrainedConfig) -> PretrainedConfig:
    config = model_or_config.config if isinstance(model_or_config, nn.Module) else model_or_config
    assert isinstance(config, PretrainedConfig), type(config)
    check_model(config)
    return config


def targeted_linears(config: PretrainedConfig, target_modules: Targets) -> list[list[str]]:
    """Names of the targeted linears of every decoder layer, by PEFT's rules: a regular expression, or suffixes."""
    names = list(linear_shapes(config))
    if target_modules == "all-linear":
        return [names] * config.num_hidden_layers
    return [
        [name for name in names if _is_target(f"model.layers.{layer}.{name}", target_modules)]
        for layer in range(config.num_hidden_layers)
    ]


def _is_target(key: str, target_modules: Targets) -> bool:
    if isinstance(target_modules, str):
        return re.fullmatch(target_modules, key) is not None
    return any(key == target or key.endswith(f".{target}") for target in target_modules or NO_TARGETS)


def _targeted_shapes(config: PretrainedConfig, target_modules: Targets) -> list[tuple[int, int]]:
    """Shapes of all targeted linears of all layers."""
    shapes = linear_shapes(config)
    return [shapes[name] for names in targeted_linears(config, target_modules) for name in names]
