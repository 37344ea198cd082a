"""Options that would do nothing are refused, by what was given; the same options are taken where they do something."""

from __future__ import annotations

from pathlib import Path

import pytest

from thoughtcache_cli.arguments import build_parser, command_parsers
from thoughtcache_cli.effect import RULES, refuse_without_effect

PROBE = ["probe", "--model", "m", "--adapter", "a", "--text", "t"]
PERPLEXITY = ["perplexity", "--model", "m"]
COMPARE = ["compare-eviction", "--model", "m"]
OWN = ["train", "--model", "m", "--dataset", "d"]
ASK = ["generate", "q", "--model", "m", "--adapter", "a"]
# refused arguments, the option that is named, and arguments with the same option where it does something
CASES: dict[str, tuple[list[str], str, list[str]]] = {
    "task": ([*OWN, "--task", "chains"], "--task", ["train", "--task", "chains"]),
    "evaluation size": ([*OWN, "--evaluation-size", "9"], "--evaluation-size", ["train", "--evaluation-size", "9"]),
    "output of one question": ([*ASK, "--output", "o"], "--output",
                               [ASK[0], *ASK[2:], "--questions", "q", "--output", "o"]),
    "quick": ([*OWN, "--quick"], "--quick", ["train", "--quick"]),
    "weight of no reward": ([*OWN, "--reward-weight", "1"], "--reward-weight",
                            [*OWN, "--reward", "a:b", "--reward-weight", "1"]),
    "distil batch": ([*OWN, "--distill-steps", "0", "--distill-batch-size", "9"], "--distill-batch-size",
                     [*OWN, "--distill-batch-size", "9"]),
    "teacher of no distillation": ([*OWN, "--distill-steps", "0", "--teacher-cache", "window=9"], "--teacher-cache",
                                   [*OWN, "--teacher-cache", "window=9"]),
    "teacher of a text": (["distill", "--model", "m", "--text", "t", "--teacher-batch-size", "9"],
                          "--teacher-batch-size",
                          ["distill", "--model", "m", "--dataset", "d", "--teacher-batch-size", "9"]),
    "plan of no teacher": (["plan", "--model", "m", "--window", "none", "--teacher-cache", "window=9"],
                           "--teacher-cache", ["plan", "--model", "m", "--teacher-cache", "window=9"]),
    "distil rate": ([*OWN, "--distill-steps", "0", "--distill-learning-rate", "1"], "--distill-learning-rate",
                    [*OWN, "--grpo-steps", "0", "--distill-learning-rate", "1"]),
    **{
        option: ([*OWN, "--grpo-steps", "0", option, *value], option, [*OWN, "--distill-steps", "0", option, *value])
        for option, value in {
            "--group-size": ["2"], "--grpo-batch-size": ["2"], "--grpo-learning-rate": ["1"], "--beta": ["1"],
            "--gradient-accumulation": ["2"], "--reward": ["a:b"],
            "--reuse-rollout": [], "--profile-memory": [], "--answer-column": ["a"],
            "--answer-type": ["aime"],
        }.items()
    },
    "split of a file": ([*OWN[:-1], __file__, "--split", "test"], "--split", [*OWN, "--split", "test"]),
    "r": ([*OWN, "--adapter", "a", "--r", "4"], "--r", [*OWN, "--r", "4"]),
    "rule": ([*OWN, "--adapter", "a", "--state-rule", "delta"], "--state-rule", [*OWN, "--state-rule", "delta"]),
    "absorb": ([*OWN, "--adapter", "a", "--no-absorb"], "--no-absorb", [*OWN, "--adapter", "a", "--window", "4"]),
    "fraction of no window": ([*OWN, "--window", "none", "--evict-fraction", "0.5"], "--evict-fraction",
                              [*OWN, "--window", "4", "--evict-fraction", "0.5"]),
    "policy of no window": ([*OWN, "--window", "none", "--eviction", "h2o"], "--eviction", [*OWN, "--eviction", "h2o"]),
    "option of no window": ([*OWN, "--window", "none", "--eviction-option", "sinks=1"], "--eviction-option",
                            [*OWN, "--eviction-option", "sinks=1"]),
    "scale of no writes": ([*OWN, "--no-absorb", "--write-scale", "1"], "--write-scale", [*OWN, "--write-scale", "1"]),
    "targets of an adapter": ([*OWN, "--adapter", "a", "--target-modules", "q_proj"], "--target-modules",
                              [*OWN, "--target-modules", "q_proj"]),
    "gradient": ([*OWN, "--window", "none", "--gradient", "detached"], "--gradient", [*OWN, "--gradient", "detached"]),
    "rule of no window": ([*OWN, "--window", "none", "--state-rule", "delta"], "--state-rule",
                          [*OWN, "--window", "none", "--no-absorb", "--initial-state", "identity"]),
    "rule that is never used": ([*OWN, "--no-absorb", "--state-norm", "none"], "--state-norm",
                                [*OWN, "--state-norm", "none"]),
    "norm of no writes": ([*OWN, "--no-absorb", "--state-norm-at", "read"], "--state-norm-at",
                          [*OWN, "--no-absorb", "--state-norm", "spectral"]),
    "norm of no window": ([*OWN, "--window", "none", "--state-norm", "none"], "--state-norm",
                          [*OWN, "--window", "none", "--state-norm", "orthogonal"]),
    "norm of what is not learned": ([*OWN, "--no-absorb", "--state-norm", "spectral", "--initial-state", "identity"],
                                    "--state-norm", [*OWN, "--state-norm", "spectral", "--initial-state", "identity"]),
    "start of an adapter": ([*OWN, "--adapter", "a", "--read-start", "0.5"], "--read-start",
                            [*OWN, "--read-start", "0.5", "--encoder-start", "base"]),
    "log": ([*OWN, "--no-recompute", "--kv-log", "host"], "--kv-log", [*OWN, "--kv-log", "host"]),
    "settings of one context": ([*OWN, "--thinking-option", "context=9"], "--thinking-option",
                                [*OWN, "--thinking", "markovian", "--thinking-option", "context=9"]),
    "stop of several links": ([*ASK, "--thinking", "markovian", "--stop", "w"], "--stop",
                              [*ASK, "--thinking", "markovian"]),
    "seed when greedy": (["generate", "q", "--model", "m", "--adapter", "a", "--seed", "3"], "--seed",
                         ["generate", "q", "--model", "m", "--adapter", "a", "--seed", "3", "--temperature", "1"]),
    "seed of an eviction by chance": ([*ASK, "--seed", "3"], "--seed", [*ASK, "--seed", "3", "--eviction", "random"]),
    "eval of runs that were made": (["eval", "--compare", "a", "b", "--samples", "2"], "--samples",
                                    ["eval", "--suite", "embedded", "--samples", "2"]),
    "eval's seed when greedy": (["eval", "--suite", "embedded", "--temperature", "0", "--seed", "3"], "--seed",
                                ["eval", "--suite", "embedded", "--window", "8", "--temperature", "0", "--seed", "3",
                                 "--eviction", "random"]),
    "eval's policy without a window": (["eval", "--suite", "embedded", "--eviction", "h2o"], "--eviction",
                                       ["eval", "--suite", "embedded", "--adapter", "a", "--eviction", "h2o"]),
    "eval's positions in the full cache": (
        ["eval", "--suite", "embedded", "--adapter", "a", "--window", "none", "--positions", "rolling"], "--positions",
        ["eval", "--suite", "embedded", "--window", "8", "--positions", "rolling"]),
    "a window beside several caches": (["eval", "--suite", "embedded", "--window", "8", "--cache", "full"], "--window",
                                       ["eval", "--suite", "embedded", "--window", "8"]),
    "multiples of nothing": (["scale", "--suite", "embedded", "--factors", "1,2"], "--factors",
                             ["scale", "--suite", "embedded", "--factors", "1,2", "--base-length", "14"]),
    "lengths of chains that grow": (["scale", "--operations", "3,6", "--lengths", "9"], "--lengths",
                                    ["scale", "--suite", "embedded", "--lengths", "9"]),
    "thinking that chooses nothing": (["eval", "--suite", "embedded", "--think-keep", "0.2"], "--think-keep",
                                      ["eval", "--suite", "embedded", "--think-keep", "0.2", "--select", "think@n"]),
    "a choice of the oldest": ([*PERPLEXITY, "--text", "t", "--window", "8", "--batch-size", "2"], "--batch-size",
                               [*PERPLEXITY, "--text", "t", "--window", "8", "--batch-size", "2", "--eviction", "h2o"]),
    "prompts of given token ids": ([*PERPLEXITY, "--tokens", "t", "--prompt-tokens", "2"], "--prompt-tokens",
                                   [*PERPLEXITY, "--text", "t", "--prompt-tokens", "2"]),
    "paper on a GPU": (["plan", "--paper", "--gpu", "24GB"], "--gpu", ["plan", "--paper", "--json", "a"]),
    "paper with a reserve": (["plan", "--paper", "--reserve", "0"], "--reserve", ["plan", "--reserve", "0"]),
    "picture": (["plan", "--picture", "a.png"], "--picture", ["plan", "--picture", "a.png", "--sweep"]),
    "group": (["plan", "--objective", "distill", "--group", "4"], "--group", ["plan", "--group", "4"]),
    "logits": (["plan", "--objective", "distill", "--logits", "chunked"], "--logits", ["plan", "--logits", "chunked"]),
    "log on a CPU": (["plan", "--device-type", "cpu", "--kv-log", "host"], "--kv-log", ["plan", "--kv-log", "host"]),
    "packing on a GPU": (["plan", "--no-pack-weights"], "--no-pack-weights",
                         ["plan", "--no-pack-weights", "--device-type", "cpu"]),
    "pieces of no text": ([*PROBE, "--what", "ages", "--pieces", "3"], "--pieces", [*PROBE, "--pieces", "3"]),
    "policies of no share": ([*PROBE, "--policies", "h2o"], "--policies",
                             [*PROBE, "--what", "sinks,attention-share", "--policies", "h2o"]),
    "tolerance of no sinks": ([*PROBE, "--what", "anatomy", "--tolerance", "0.2"], "--tolerance",
                              [*PROBE, "--what", "sinks", "--tolerance", "0.2"]),
    "text before no codes": ([*PROBE, "--what", "families", "--before", "4"], "--before",
                             [*PROBE, "--what", "ages", "--before", "4"]),
    "codes that nobody tells": ([*PROBE, "--codes", "4"], "--codes", [*PROBE, "--what", "families", "--codes", "4"]),
    "teaching without steps": (["recall", "--model", "m", "--steps", "0", "--batch-size", "2"], "--batch-size",
                               ["recall", "--model", "m", "--batch-size", "2"]),
    "a rate beside no other": (["recall", "--model", "m", "--memory-learning-rate", "0.1"], "--memory-learning-rate",
                               ["recall", "--model", "m", "--memory-learning-rate", "0.1", "--trains", "adapter"]),
    "memory of an adapter": (["recall", "--model", "m", "--adapter", "a", "--memory-features", "8"],
                             "--memory-features", ["recall", "--model", "m", "--adapter", "a", "--window", "8"]),
    "instruction for a text": (["distill", "--model", "m", "--text", "t", "--instruction", "i"], "--instruction",
                               ["distill", "--model", "m", "--dataset", "d", "--instruction", "i"]),
    "prompts of questions": (["distill", "--model", "m", "--dataset", "d", "--prompt-tokens", "4"], "--prompt-tokens",
                             ["distill", "--model", "m", "--text", "t", "--prompt-tokens", "4"]),
    "column of a text": ([*COMPARE, "--text", "t", "--prompt-column", "q"], "--prompt-column",
                         [*COMPARE, "--dataset", "d", "--prompt-column", "q"]),
    "prompts of token ids": ([*COMPARE, "--tokens", "t", "--prompt-tokens", "4"], "--prompt-tokens",
                             [*COMPARE, "--text", "t", "--prompt-tokens", "4"]),
    "window of a plan": (["plan", "--window", "none", "--evict-fraction", "1"], "--evict-fraction",
                         ["plan", "--evict-fraction", "1"]),
}  # fmt: skip


def check(arguments: list[str]) -> None:
    options = vars(build_parser().parse_args(arguments))
    command = options.pop("command")
    actions = command_parsers(build_parser())[command]._actions
    spelled = {action.dest: action.option_strings[-1] for action in actions if action.option_strings}
    refuse_without_effect(command, options, spelled)


@pytest.mark.parametrize("name", CASES)
def test_an_option_without_effect_is_refused_by_its_name(name: str) -> None:
    arguments, option, good = CASES[name]
    with pytest.raises(ValueError, match=f"^{option} .*; (leave|add|set)"):
        check(arguments)
    check(good)


def test_every_option_of_the_rules_exists_and_every_rule_has_a_case() -> None:
    for command, rules in RULES.items():
        known = {action.dest for action in command_parsers(build_parser())[command]._actions}
        for rule in rules:
            assert set(rule.names) <= known
    reasons = set()
    for arguments, _, _ in CASES.values():
        with pytest.raises(ValueError, match="--") as caught:
            check(arguments)
        reasons.add(str(caught.value).split(" ", 1)[1])
    assert reasons == {rule.reason for rules in RULES.values() for rule in rules}


def test_a_file_is_needed_for_the_rule_of_splits(tmp_path: Path) -> None:
    check([*OWN[:-1], str(tmp_path), "--split", "test"])


@pytest.mark.parametrize("command", [ASK, ["eval", "--suite", "embedded", "--adapter", "a", "--temperature", "0"]])
def test_the_seed_of_an_adapter_that_evicts_by_choice_is_taken(tmp_path: Path, command: list[str]) -> None:
    """A policy may draw, with no option that says so; the oldest leave without a draw."""
    greedy = [*command, "--adapter", str(tmp_path), "--seed", "3"]
    (tmp_path / "adapter_config.json").write_text('{"eviction": "random"}')
    check(greedy)
    for config in ('{"eviction": "sliding"}', "{}", "{", "[]"):
        (tmp_path / "adapter_config.json").write_text(config)
        with pytest.raises(ValueError, match="--seed changes nothing"):
            check(greedy)
