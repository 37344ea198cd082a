"""Options that several commands have, and how their values are read."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any

from thoughtcache_cli.options.eviction import add_eviction_options, budgets, modules, value_of

PRESETS = "paper, lora, memory or hybrid"


def window(text: str) -> int | str | None:
    """An integer, "prompt", or "none" for the full cache."""
    if text == "none":
        return None
    return int(text) if text.lstrip("-").isdigit() else text


def count_or_none(text: str) -> int | None:
    """An integer, or "none" for no bound."""
    return None if text == "none" else int(text)


def integer_or_word(text: str) -> int | str:
    """An integer, or a word that the settings know, such as "auto" or "exact"."""
    return int(text) if text.lstrip("-").isdigit() else text


def integers(text: str) -> tuple[int, ...]:
    """Integers between commas."""
    return tuple(int(part) for part in text.split(","))


def numbers(text: str) -> tuple[float, ...]:
    """Numbers between commas."""
    return tuple(float(part) for part in text.split(","))


def names(text: str) -> tuple[str, ...]:
    """Words between commas."""
    return tuple(part.strip() for part in text.split(","))


def question_options(group: argparse._ArgumentGroup) -> None:
    """Enter how questions and reference answers are read from a data set."""
    group.add_argument("--split", help="split of a hub data set (train)")
    group.add_argument("--prompt-column", help="column with the question (found by name)")
    group.add_argument("--answer-column", help="column with the reference answer (found by name)")
    group.add_argument(
        "--answer-type", help="how answers are compared: auto (default), aime, integer, number and others"
    )
    group.add_argument("--instruction", help="text after each question")
    group.add_argument("--bad-rows", help="refuse (default) or drop rows without a usable question or reference answer")
    group.add_argument("--limit", type=count_or_none, help='use the first rows only; "none" for all')


def adapter_options(parser: argparse.ArgumentParser, preset: str = "paper") -> None:
    """Enter the settings of an adapter and its cache.

    Args:
        parser: where they go.
        preset: the preset of the command, for whoever chooses no method.
    """
    group = parser.add_argument_group("adapter and cache")
    group.add_argument("--preset", help=f"settings that belong together: {PRESETS}; options beside it win ({preset})")
    group.add_argument("--window", type=window, help='resident thoughts: an integer, "prompt" or "none" (1024)')
    group.add_argument("--positions", help="absolute (default), or rolling: inside the window, for any length")
    group.add_argument("--evict-fraction", type=float, help="share of the window that leaves when it is full (0.25)")
    group.add_argument("--r", type=int, help="rank of the adapter (32)")
    group.add_argument("--target-modules", type=modules, help="linear layers, with commas between them (all-linear)")
    group.add_argument("--num-global-tokens", type=int, help="global queries and tokens (32)")
    group.add_argument("--lora-alpha", type=int, help="the delta is scaled by lora-alpha / r (32)")
    group.add_argument("--state-rule", help="how evicted tokens change the state (linear)")
    group.add_argument("--state-norm", help="frobenius (default), spectral, orthogonal or none")
    group.add_argument("--state-norm-at", help="where it is normalised: write (default), or read: states are raw sums")
    group.add_argument("--write-scale", type=float, help="how much is written at the start (0.1)")
    group.add_argument("--encoder-start", help="random (default), or base: directions of the base's keys and values")
    group.add_argument("--read-start", type=float, help="scale of the factor that starts at zero (0.0)")
    group.add_argument("--initial-state", help="global (default), zero or identity (plain LoRA)")
    group.add_argument("--memory", help="what learns from evicted tokens: adapter (default), attention or both")
    group.add_argument("--memory-features", type=int, help="features per key-value head of a memory in attention (16)")
    group.add_argument("--memory-feature-map", help="softmax (default), hedgehog or unit")
    group.add_argument("--memory-write", help="how evicted tokens are written: linear (default), decay or delta")
    group.add_argument("--memory-read", help="balanced (default), joint or added")
    group.add_argument("--memory-keys", help="content (default): un-rotated; or rotated")
    group.add_argument("--memory-weight", type=float, help="weight of the memory at the start (1.0)")
    group.add_argument("--no-absorb", dest="absorb", action="store_false", help="evicted tokens never change the state")
    add_eviction_options(parser, "sliding")


def cache_options(parser: argparse.ArgumentParser) -> None:
    """Enter the cache under which an adapter, or the base, is measured."""
    group = parser.add_argument_group("cache")
    group.add_argument(
        "--window",
        type=window,
        help='resident thoughts: an integer, "prompt" or "none" (the adapter\'s own; none for the base)',
    )
    group.add_argument("--evict-fraction", type=float, help="share of the window that leaves when it is full")
    group.add_argument("--positions", help="absolute, or rolling: inside the window, for any length")
    add_eviction_options(parser, "that of the adapter; sliding for the base")


def _with_commas(text: str) -> str:
    """Budgets with commas for + signs: those between integers, and those in front of a setting, not those in a file."""
    return re.sub(r"\+(?=\w+=)" if ":" in text else r"\+", ",", text)


_OF_A_CACHE: dict[str, Callable[[str], Any]] = {
    "window": window,
    "evict-fraction": float,
    "positions": str,
    "eviction": str,
    "eviction-budgets": lambda text: budgets(_with_commas(text)),
    "adapter": lambda text: None if text == "none" else text,
    "name": str,
}
_OWN = "own"
_WINDOWS = {"full": "none", _OWN: _OWN}
_OPTION_OF_A_CACHE = "eviction-option"
CACHE_HELP = (
    "one of several caches, with commas between its settings: full, own (the adapter's), window=64, "
    "evict-fraction=0.5, positions=rolling, eviction=h2o, eviction-option=KEY=VALUE, eviction-budgets=pyramid "
    "(integers, and settings, with + between them: 20+12, by head 8+4/6+6), adapter=FOLDER (none for the base), "
    "name=NAME; may be given repeatedly"
)


def cache_settings(text: str) -> dict[str, Any]:
    """The settings in one `--cache`, by the names that they have in Python.

    Raises:
        argparse.ArgumentTypeError: for a setting that is not known, is given twice, or has no value.
    """
    found: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for part in (part.strip() for part in text.split(",")):
        name, equals, value = part.partition("=")
        if part in _WINDOWS:
            name, value = "window", _WINDOWS[part]
        elif name not in (*_OF_A_CACHE, _OPTION_OF_A_CACHE) or not equals or not value:
            known = ", ".join(f"{known}=" for known in (*_OF_A_CACHE, _OPTION_OF_A_CACHE))
            raise argparse.ArgumentTypeError(
                f"{part!r} in {text!r} is no setting of a cache, such as full, own, {known}"
            )
        if name == _OPTION_OF_A_CACHE:
            key, equals, value = value.partition("=")
            if not key or not equals or not value:
                raise argparse.ArgumentTypeError(f"{part!r} is no {_OPTION_OF_A_CACHE}=KEY=VALUE, such as sinks=2")
            taken, into, made = key in options, options, value_of(value)
        else:
            key = name.replace("-", "_")
            try:
                taken, into, made = key in found, found, _OF_A_CACHE[name](value)
            except ValueError as error:
                raise argparse.ArgumentTypeError(f"{part!r} in {text!r} has no usable value ({error})") from error
        if taken:
            raise argparse.ArgumentTypeError(f"{text!r} says {key} twice; leave out one of them")
        into[key] = made
    if found.get("window") == _OWN:
        del found["window"]
    return {**found, **({"eviction_options": options} if options else {})}


def teacher_cache(text: str) -> dict[str, Any] | None:
    """The cache of a teacher: its settings, or none for the full one."""
    found = cache_settings(text)
    return None if found == {"window": None} else found


def teacher_options(group: argparse._ArgumentGroup, *, sizes: bool = True) -> None:
    """Enter how the base samples the texts of distillation.

    Args:
        group: where they go.
        sizes: whether the number of texts at once may be given.
    """
    if sizes:
        group.add_argument(
            "--teacher-batch-size",
            type=integer_or_word,
            help="texts that the base samples at once; left to the planner (auto)",
        )
    group.add_argument(
        "--teacher-cache",
        type=teacher_cache,
        metavar="CACHE",
        help="cache in which the base samples them: full, unless a bounded one is named, as window=512,eviction=h2o; "
        "what is learned are the full cache's distributions on them",
    )


def base_options(group: argparse._ArgumentGroup, dtypes: str) -> None:
    """Enter how the base model is loaded."""
    group.add_argument("--dtype", help=f"of the base model: {dtypes}")
    group.add_argument("--load-in-4bit", action="store_true", help="quantise the base with bitsandbytes")


def folder_options(
    group: argparse._ArgumentGroup,
    output_dir: str,
    *,
    several_seeds: bool = False,
    save_every: int = 50,
    may_grow: bool = True,
) -> None:
    """Enter the options of commands that leave a run folder.

    Args:
        group: where they go.
        output_dir: the default folder.
        several_seeds: whether several seeds may be given.
        save_every: the default number of steps between checkpoints.
        may_grow: whether a run may go on with more steps than it had.
    """
    group.add_argument("--output-dir", help=f"run folder ({output_dir})")
    if several_seeds:
        group.add_argument(
            "--seed", type=integers, help="seed of everything (0); several between commas run one by one"
        )
    else:
        group.add_argument("--seed", type=int, help="seed of everything (0)")
    group.add_argument("--save-every", type=int, help=f"steps between checkpoints ({save_every})")
    more = ", or with more steps" if may_grow else ""
    group.add_argument("--resume", action="store_true", help=f"go on where the run in this folder stopped{more}")
    group.add_argument("--overwrite", action="store_true", help="start anew in a folder that holds another run")


def learner_options(parser: argparse.ArgumentParser, *, reuse_field: str) -> None:
    """Enter the options of rollouts and of the learner."""
    group = parser.add_argument_group("rollout and learner")
    group.add_argument("--max-new-tokens", type=int, help="length of the thoughts (3072)")
    group.add_argument(
        "--no-pack-weights", dest="pack_weights", action="store_false", help="on a CPU: sample slower, in less memory"
    )
    group.add_argument("--beta", type=float, help="weight of the KL to the reference (0)")
    group.add_argument(
        "--gradient", type=integer_or_word, help="exact (default), detached, or segments per exact block"
    )
    group.add_argument(
        "--no-recompute", dest="recompute", action="store_false", help="keep all activations: faster, where they fit"
    )
    group.add_argument(
        "--no-checkpoint-layers",
        dest="checkpoint_layers",
        action="store_false",
        help="keep all activations of a chunk; the planner chooses if neither this nor the next is given",
    )
    group.add_argument(
        "--checkpoint-layers", action="store_true", help="keep inputs of layers only: less memory, one more forward"
    )
    group.add_argument(
        "--chunk-tokens",
        type=count_or_none,
        help='tokens of a row whose activations live at once, or "none"; left to the planner (auto)',
    )
    group.add_argument(
        "--kv-log", help="where keys and values wait for backward: device or host; left to the planner (auto)"
    )
    group.add_argument(
        "--reuse-rollout",
        dest=reuse_field,
        action="store_true",
        help="GRPO's learner starts from the sampler's records",
    )
