"""One function says how far positions reach; rollout, train and plan ask it."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console
from transformers import LlamaConfig

from support.plans import cpu_setting
from thoughtcache import ThoughtConfig
from thoughtcache.adapter.positions import PositionReach, check_positions, position_reach, positions_needed
from thoughtcache.planning.limits import max_length
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.recipes.run.lengths import check_lengths
from thoughtcache.report.plan import print_positions

K = 1024
PROMPTS = [[1] * 100, [2] * 7]
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16}


def config_of(positions, **rope):
    rope.setdefault("rope_theta", 10000.0)
    return LlamaConfig(
        hidden_size=64, num_attention_heads=2, num_hidden_layers=1, max_position_embeddings=positions,
        rope_parameters=rope,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("positions", "rope", "reach"),
    [
        (4 * K, {"rope_type": "default"}, 4 * K),
        # Qwen2.5's page: the original length stays in max_position_embeddings.
        (32 * K, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32 * K}, 128 * K),
        # Qwen3's: 40K positions, of which 32K were trained.
        (40 * K, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32 * K}, 128 * K),
        # Raised as well: not counted twice.
        (128 * K, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32 * K}, 128 * K),
        (32 * K, {"rope_type": "yarn", "factor": 2.5}, 80 * K),
        (4 * K, {"rope_type": "linear", "factor": 4.0}, 16 * K),
        # Llama 3.2: a factor of 32 over 8K, made for 128K.
        (128 * K, {**LLAMA3, "factor": 32.0, "original_max_position_embeddings": 8 * K}, 128 * K),
        (32 * K, {"rope_type": "dynamic", "factor": 4.0}, 32 * K),
        (128 * K, {**LONGROPE, "factor": 32.0, "original_max_position_embeddings": 4 * K}, 4 * K),
    ],
    ids=lambda value: value.get("rope_type") if isinstance(value, dict) else str(value),
)
def test_the_reach_of_a_configuration(positions, rope, reach):
    found = position_reach(config_of(positions, **rope))
    assert found.positions == reach
    assert found.varies == (rope["rope_type"] in ("dynamic", "longrope"))


def test_a_model_that_says_nothing_has_no_bound():
    assert position_reach(object()) == PositionReach(positions=None)
    check_positions(10**9, 10**9, PositionReach(positions=None), rolling_window=None)


def test_positions_that_roll_need_room_for_the_window_only():
    assert [positions_needed(7, 63, window) for window in (None, 5, 63, 64)] == [70, 12, 70, 70]


def test_the_last_position_is_allowed_and_the_next_is_not():
    reach = PositionReach(positions=20)
    check_positions(7, 13, reach, rolling_window=None)
    check_positions(7, 10**6, reach, rolling_window=13)
    with pytest.raises(ValueError, match=r"the 20 positions of the model; shorten either, load the model with rope"):
        check_positions(7, 14, reach, rolling_window=None)
    with pytest.raises(ValueError, match="the window is 14, together more than the 20 positions"):
        check_positions(7, 10**6, reach, rolling_window=14)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}


def run_of(**settings):
    return RunConfig(model="there", dataset="data.jsonl", **{"max_new_tokens": 1900, **settings})


def test_train_counts_a_factor_that_stretches():
    check_lengths(PROMPTS, run_of(), ThoughtConfig(), config_of(512, **YARN))
    with pytest.raises(ValueError, match=r"the 2048 positions of the model; .*raise the factor .*\(yarn, 4\)"):
        check_lengths(PROMPTS, run_of(max_new_tokens=1949), ThoughtConfig(), config_of(512, **YARN))


def test_train_refuses_where_frequencies_change_and_does_not_propose_what_would_be_refused():
    config = config_of(512, rope_type="dynamic", factor=4.0)
    check_lengths(PROMPTS, run_of(max_new_tokens=412), ThoughtConfig(), config)
    with pytest.raises(ValueError, match="up to which the frequencies of its rope type 'dynamic' are fixed") as raised:
        check_lengths(PROMPTS, run_of(max_new_tokens=413), ThoughtConfig(), config)
    assert "rolling" not in str(raised.value)


def test_train_with_rolling_positions_is_bounded_by_the_window_unless_a_teacher_keeps_everything():
    thought, config = ThoughtConfig(positions="rolling", window=64), config_of(200)
    check_lengths(PROMPTS, run_of(distill_steps=0), thought, config)
    with pytest.raises(ValueError, match="--positions rolling with a --window and --distill-steps 0"):
        check_lengths(PROMPTS, run_of(distill_steps=1), thought, config)
    with pytest.raises(ValueError, match=r"--window is 101, .*200 positions"):
        check_lengths(PROMPTS, run_of(distill_steps=0), ThoughtConfig(positions="rolling", window=101), config)


def test_the_planner_counts_a_factor_that_stretches():
    setting = cpu_setting()
    prompt, reach = setting.prompt_tokens, setting.max_positions
    stretched = type(setting.model)(
        **{**setting.model.to_dict(), "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0}}
    )
    assert max_length(replace(setting, model=stretched)) == 4 * reach - prompt


def test_the_note_of_the_planner_proposes_what_was_not_done_yet():
    def note(**rope):
        console = Console(record=True, width=300, file=io.StringIO())
        print_positions(replace(cpu_setting(), model=config_of(512, **rope), max_new_tokens=4000), console)
        return console.export_text()

    assert "the model has 512; load the model with rope scaling, or use --positions" in note(rope_type="default")
    assert "the model has 2,048; raise the factor of its rope scaling (yarn, 4)" in note(**YARN)
    assert "--positions" not in note(rope_type="dynamic", factor=4.0)
