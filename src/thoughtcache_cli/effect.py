"""Options that would change nothing beside the others that were given are refused: whoever gave them meant them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Options = Mapping[str, Any]

ON_TEXTS = ("state-use", "anatomy", "attention-share", "sinks")
_TEACHER = ("teacher_batch_size", "teacher_cache")
_DISTILLATION = (
    "distill_batch_size", "distill_micro_batch_size", "distill_learning_rate", "distill_memory_learning_rate",
    *_TEACHER,
)  # fmt: skip
_GRPO = (
    "group_size", "grpo_batch_size", "gradient_accumulation", "grpo_learning_rate", "grpo_memory_learning_rate",
    "beta", "reuse_rollout", "reward", "reward_weight",
    "profile_memory", "answer_column", "answer_type", "thinking", "held_out", "log_completions", "baseline",
)  # fmt: skip
_SHAPE = (
    "preset", "r", "target_modules", "num_global_tokens", "lora_alpha", "state_rule", "state_norm", "state_norm_at",
    "initial_state", "absorb", "write_scale", "encoder_start", "read_start",
    "memory", "memory_features", "memory_feature_map", "memory_write", "memory_read", "memory_keys", "memory_weight",
)  # fmt: skip
_TEACHING = (
    "batch_size", "learning_rate", "memory_learning_rate", "max_evictions", "max_before", "growth_steps", "trains",
    "write_cost", "min_code_length", "save_every",
)  # fmt: skip
_OLDEST = "sliding"
_EVICTING = ("evict_fraction", "eviction", "eviction_options", "eviction_budgets")
_THINK = (
    "think_prefix", "think_keep", "think_threshold", "think_depth", "think_reading", "think_norm", "think_log_base",
    "think_finish_rest",
)  # fmt: skip
_OF_EVAL = (
    "suite", "data", "limit", "prompt_column", "answer_column", "answer_type", "bad_rows", "model", "adapter", "dtype",
    "tokenizer", "instruction", "system", "samples", "temperature", "top_p", "top_k", "max_new_tokens", "stop",
    "window", "positions", *_EVICTING, "thinking", "thinking_options", "batch_size", "pack_weights", "seed", "resume",
    "overwrite", "select", *_THINK, "caches",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """Options without effect under a condition.

    Attributes:
        names: names of the options, as they are stored.
        when: whether they have no effect, as a function of the given options.
        reason: what follows the options in the error, with the remedy.
    """

    names: tuple[str, ...]
    when: Callable[[Options], bool]
    reason: str


def _of_probes(names: tuple[str, ...], *probes: str) -> Rule:
    """Options that only these probes read."""
    them = probes[0] if len(probes) == 1 else f"one of {', '.join(probes)}"
    return Rule(
        names=names,
        when=lambda options: not set(probes) & set(options.get("what", ("state-use",))),
        reason=f"changes nothing in the other probes; leave it out, or add {them} to --what",
    )


def _full_cache(options: Options) -> bool:
    return "window" in options and options["window"] is None


def _never_absorbs(options: Options) -> bool:
    return options.get("absorb") is False


def _keeps_initial_norm(options: Options) -> bool:
    """Whether an initial state that stays for ever is normalised, or not, as it is by default."""
    return options.get("initial_state", "global") != "global" or options.get("state_norm") in ("frobenius", "none")


def _draws_nothing(options: Options) -> bool:
    """Whether neither tokens nor evictions are drawn; a policy that chooses may draw."""
    if options.get("temperature") != 0 or "caches" in options:
        return False
    return _full_cache(options) or options.get("eviction", _saved_eviction(options)) == _OLDEST


def _saved_eviction(options: Options) -> str:
    """The eviction policy of the adapter, read without the library; what cannot be read is refused with the adapter."""
    try:
        saved = json.loads((Path(options["adapter"]) / "adapter_config.json").read_text(encoding="utf-8"))
        return str(saved.get("eviction", _OLDEST))
    except (KeyError, OSError, ValueError, AttributeError):
        return _OLDEST


_OF_WRITES, _OF_STATES = ("state_rule", "state_norm_at", "write_scale"), ("state_norm",)
_NO_WRITES = "changes nothing under --no-absorb, where the state stays as it was; leave out one of them"
_NO_EVICTIONS = "changes nothing under --window none, where nothing is evicted; leave it out, or give a window"
_NEVER_ABSORBS = (
    Rule(names=_OF_WRITES, when=_never_absorbs, reason=_NO_WRITES),
    Rule(names=_OF_STATES, when=lambda o: _never_absorbs(o) and _keeps_initial_norm(o), reason=_NO_WRITES),
)
_CACHE = (
    Rule(
        names=(*_EVICTING, "gradient", *_OF_WRITES),
        when=_full_cache,
        reason=_NO_EVICTIONS,
    ),
    Rule(names=_OF_STATES, when=lambda o: _full_cache(o) and _keeps_initial_norm(o), reason=_NO_EVICTIONS),
    *_NEVER_ABSORBS,
    Rule(
        names=("kv_log",),
        when=lambda options: options.get("recompute") is False,
        reason="changes nothing under --no-recompute, which keeps all activations; leave out one of them",
    ),
)
_OF_AN_ADAPTER = Rule(
    names=_SHAPE,
    when=lambda options: "adapter" in options,
    reason="is a setting of the adapter in --adapter, which keeps its own; leave out one of them",
)
_SPLIT_OF_A_FILE = Rule(
    names=("split",),
    when=lambda options: Path(options.get("dataset", "")).expanduser().is_file(),
    reason="chooses among the files of a folder or hub data set, and --dataset is a file; leave it out",
)
_OF_THINKING = Rule(
    names=("thinking_options",),
    when=lambda options: "thinking" not in options,
    reason="is a setting of --thinking, which is not given; leave it out, or add --thinking",
)
_CACHE_OF_ONE_MODEL = Rule(
    names=(*_EVICTING, "positions"),
    when=lambda options: _full_cache(options) or not {"adapter", "window"} & set(options),
    reason="changes nothing with the full cache, where nothing is evicted; leave it out, or give a --window",
)
_CACHE_OF_ONE_ARM = Rule(
    names=("window", "positions", *_EVICTING),
    when=lambda options: "caches" in options,
    reason="is the cache of a run without --cache; leave it out, and write it into each one: window=64,eviction=h2o",
)
_SEED_OF_GREEDY = Rule(
    names=("seed",),
    when=_draws_nothing,
    reason="changes nothing at --temperature 0, where nothing is drawn; leave it out, or set a temperature",
)
_TOKENS_OF_NO_TEXT = Rule(
    names=("prompt_tokens",),
    when=lambda options: "text" not in options,
    reason="cuts a --text into pieces; leave it out, or give one",
)
RULES: dict[str, tuple[Rule, ...]] = {
    "train": (
        _OF_THINKING,
        Rule(
            names=("task", "evaluation_size", "quick"),
            when=lambda options: "model" in options,
            reason="belongs to the embedded job and changes nothing for --model; leave it out",
        ),
        Rule(
            names=_DISTILLATION,
            when=lambda options: options.get("distill_steps") == 0,
            reason="changes nothing with --distill-steps 0; leave it out, or set steps",
        ),
        Rule(
            names=_GRPO,
            when=lambda options: options.get("grpo_steps") == 0,
            reason="changes nothing with --grpo-steps 0; leave it out, or set steps",
        ),
        Rule(
            names=("reward_weight",),
            when=lambda options: "reward" not in options,
            reason="weighs what --reward gives, which is not there; leave it out, or add a --reward for each",
        ),
        _SPLIT_OF_A_FILE,
        _OF_AN_ADAPTER,
        *_CACHE,
    ),
    "generate": (
        _OF_THINKING,
        Rule(
            names=("stop", "min_new_tokens"),
            when=lambda options: "thinking" in options,
            reason="is about one sequence, and --thinking makes several of it; leave out one of them",
        ),
        _SEED_OF_GREEDY,
        Rule(
            names=("output", "prompt_column", "limit", "bad_rows", "batch_size", "resume", "overwrite"),
            when=lambda options: "questions" not in options,
            reason="is about a file of questions; leave it out, or add --questions",
        ),
    ),
    "export": (),
    "eval": (
        _OF_THINKING,
        Rule(
            names=_OF_EVAL,
            when=lambda options: "compare" in options,
            reason="changes nothing under --compare, which reads two runs that were made; leave out one of them",
        ),
        _SEED_OF_GREEDY,
        Rule(
            names=_THINK,
            when=lambda options: "select" not in options,
            reason="changes nothing without --select think@n, which chooses by it; add that, or leave it out",
        ),
        _CACHE_OF_ONE_ARM,
        _CACHE_OF_ONE_MODEL,
    ),
    "scale": (
        Rule(
            names=("suite", "lengths", "factors", "base_length", "sample_each"),
            when=lambda options: "operations" in options,
            reason="is about one length of the questions, and --operations has several; leave out one of them",
        ),
        Rule(
            names=("factors",),
            when=lambda options: "base_length" not in options,
            reason="is multiples of --base-length; add that, or leave it out and give --lengths",
        ),
        _SEED_OF_GREEDY,
        _CACHE_OF_ONE_ARM,
        _CACHE_OF_ONE_MODEL,
    ),
    "perplexity": (
        _TOKENS_OF_NO_TEXT,
        _CACHE_OF_ONE_MODEL,
        Rule(
            names=("batch_size", "seed"),
            when=lambda options: "adapter" not in options and options.get("eviction", _OLDEST) == _OLDEST,
            reason="is for policies that choose, and the oldest leave; leave it out, or give an --eviction",
        ),
    ),
    "distill": (
        Rule(
            names=("split", "prompt_column", "instruction"),
            when=lambda options: "text" in options,
            reason="is about questions, and --text is running text; leave it out, or give --dataset",
        ),
        Rule(
            names=(*_TEACHER, "force"),
            when=lambda options: "text" in options,
            reason="is about what the base answers, and --text is running text; leave it out, or give --dataset",
        ),
        Rule(
            names=("prompt_tokens",),
            when=lambda options: "dataset" in options,
            reason="cuts a --text into pieces, and questions are prompts as they are; leave it out",
        ),
        _SPLIT_OF_A_FILE,
        _OF_AN_ADAPTER,
        *_NEVER_ABSORBS,
    ),
    "recall": (
        Rule(
            names=_TEACHING,
            when=lambda options: options.get("steps") == 0,
            reason="changes nothing with --steps 0, which measures only; leave it out, or set steps",
        ),
        Rule(
            names=("memory_learning_rate",),
            when=lambda options: options.get("trains", "memory") == "memory",
            reason="is --learning-rate where nothing but the memory is trained; leave it out, or add --trains adapter",
        ),
        _OF_AN_ADAPTER,
        *_NEVER_ABSORBS,
    ),
    "probe": (
        _of_probes(("prompt_tokens", "length", "pieces"), *ON_TEXTS),
        _of_probes(("policies",), "attention-share", "capacity"),
        _of_probes(("first_tokens", "tolerance"), "sinks"),
        _of_probes(("before",), "ages"),
        _of_probes(("codes", "code_length", "kind", "distances"), "ages", "families", "capacity"),
    ),
    "compare-eviction": (
        Rule(
            names=("split", "prompt_column", "instruction"),
            when=lambda options: "dataset" not in options,
            reason="is about questions; leave it out, or give --dataset",
        ),
        _TOKENS_OF_NO_TEXT,
        _SPLIT_OF_A_FILE,
    ),
    "cost": (_SPLIT_OF_A_FILE, _OF_AN_ADAPTER, *_CACHE),
    "plan": (
        Rule(
            names=("gpu", "reserve", "picture", "tokens_per_second"),
            when=lambda options: "paper" in options,
            reason="changes nothing under --paper, which has models and settings of its own; leave out all but --json",
        ),
        Rule(
            names=("picture",),
            when=lambda options: "sweep" not in options,
            reason="is drawn by --sweep only; add it, or leave out the picture",
        ),
        Rule(
            names=("group", "logits"),
            when=lambda options: options.get("objective") == "distill",
            reason="changes nothing under --objective distill, without groups and full-cache LoRA; leave it out",
        ),
        Rule(
            names=("teacher_cache",),
            when=_full_cache,
            reason="changes nothing under --window none, without distillation; leave it out, or give a window",
        ),
        Rule(
            names=("kv_log",),
            when=lambda options: options.get("device_type") == "cpu" and "measured" not in options,
            reason="changes nothing under --device-type cpu, where device and host are one; leave it out",
        ),
        Rule(
            names=("pack_weights",),
            when=lambda options: options.get("device_type") != "cpu" and "measured" not in options,
            reason="changes nothing on a GPU, where no packed copy is made; leave it out, or add --device-type cpu",
        ),
        *_CACHE,
    ),
}


def refuse_without_effect(command: str, options: Options, spelled: Mapping[str, str]) -> None:
    """Refuse the first option that would do nothing.

    Args:
        command: name of the command.
        options: the options that were given, and those with a default of their own.
        spelled: how each option is written, by the name that it is stored under.

    Raises:
        ValueError: if there is one; the message names the option, the reason and the remedy.
    """
    for rule in RULES[command]:
        given = [name for name in rule.names if name in options]
        if given and rule.when(options):
            raise ValueError(f"{spelled[given[0]]} {rule.reason}")
