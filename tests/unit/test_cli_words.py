"""Errors on the command line name options, as they are typed, and leave everything else alone."""

from __future__ import annotations

import pytest

from thoughtcache_cli.arguments import build_parser, command_parsers
from thoughtcache_cli.words import in_options

SAID: dict[str, tuple[str, str, str]] = {
    "values": ("train", "grpo_batch_size=6 must be a multiple of group_size=4",
               "--grpo-batch-size 6 must be a multiple of --group-size 4"),
    "quoted value": ("train", "state_rule='magic' is not known", "--state-rule magic is not known"),
    "option of a policy": ("train", "eviction_options kernal=3 is not known to eviction='snapkv'; it has kernel=5",
                           "--eviction-option kernal=3 is not known to --eviction snapkv; it has kernel=5"),
    "none": ("train", "window=None keeps the full cache", "--window none keeps the full cache"),
    "bound": ("train", "chunk_tokens must be at least 1 or None, got 0",
              "--chunk-tokens must be at least 1 or none, got 0"),
    "short name": ("train", "r must be at least 1, got 0", "--r must be at least 1, got 0"),
    "names alone": ("train", "settings (beta, max_new_tokens); choose", "settings (beta, --max-new-tokens); choose"),
    "flag that is on": ("train", "checkpoint_layers=True goes with", "--checkpoint-layers goes with"),
    "flag that is off": ("train", "plain autograd (recompute=False)", "plain autograd (--no-recompute)"),
    "flag to leave out": ("train", "initial_state='zero' with absorb=False; set absorb=True",
                          "--initial-state zero with --no-absorb; leave out --no-absorb"),
    "configuration": ("train", 'with ThoughtConfig(positions="rolling")', "with --positions rolling"),
    "ellipsis": ("train", "pass split=... or one of these", "pass --split ... or one of these"),
    "names of TRL": ("train", "divisible by num_generations (3)", "divisible by --group-size (3)"),
    "another command": ("generate", "top_k=5 is nothing at temperature=0", "--top-k 5 is nothing at --temperature 0"),
    "another name": ("plan", "reuse=True repeats", "--reuse-rollout repeats"),
    "already an option": ("train", "lower --max-new-tokens", "lower --max-new-tokens"),
}  # fmt: skip
LEFT = [
    "the columns are 'prompt_column', \"answer_column\"",
    "runs/max_new_tokens/a is a file",
    "max_new_tokens.jsonl holds no rows",
    "my_max_new_tokens and max_new_tokens_2",
    "the window is full and a model is there",
]


@pytest.mark.parametrize("name", SAID)
def test_settings_become_options(name: str) -> None:
    command, said, expected = SAID[name]
    assert in_options(said, command_parsers(build_parser())[command]) == expected


@pytest.mark.parametrize("text", LEFT)
def test_other_words_stay(text: str) -> None:
    assert in_options(text, command_parsers(build_parser())["train"]) == text
