"""The table of TRL's options is complete, and it says what happens."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from tests.unit.test_grpo_config import REFUSED as TRIED
from trl.trainer.grpo_config import GRPOConfig

import thoughtcache as tc
from support.grpo import quick_arguments
from thoughtcache.train.trl.options import NO_MEANING, REFUSED, REFUSED_BY_OTHER_NAME, SOME_VERSIONS, WORKS

ROOT = Path(__file__).parents[2]
FIELDS = {field.name: field for field in dataclasses.fields(GRPOConfig)}
PASSED_ON = "tests/unit/test_trl_options.py, left to transformers and TRL"
CHECKPOINTING = "activation_checkpointing" if "activation_checkpointing" in FIELDS else "gradient_checkpointing"
TRIED_BY_OTHER_NAME: dict[str, tuple[dict[str, Any], str]] = {
    "activation_checkpointing": ({CHECKPOINTING: True}, "gradient_checkpointing=True"),
    "bf16": ({"bf16": True}, "mixed_precision='bf16'"),
    "fp16": ({"fp16": True}, "mixed_precision='fp16'"),
    "torch_compile_backend": ({"torch_compile_backend": "eager"}, "torch_compile=True"),
    "torch_compile_mode": ({"torch_compile_mode": "default"}, "torch_compile=True"),
    "auto_find_batch_size": ({"auto_find_batch_size": True}, "auto_find_batch_size is not supported by GRPO"),
}


def test_every_option_of_trl_is_in_the_table() -> None:
    """A new one: read what it does, try it, put it where it belongs in train/trl/options.py."""
    listed = {*REFUSED, *REFUSED_BY_OTHER_NAME}
    for names in (*WORKS.values(), *NO_MEANING.values()):
        listed |= set(names)
    assert sorted(FIELDS.keys() - listed) == [], "TRL has options that nobody has looked at"
    assert sorted(listed - FIELDS.keys() - SOME_VERSIONS - {"mixed_precision"}) == [], "TRL has these options no more"


def test_no_option_has_two_verdicts() -> None:
    works = [name for names in WORKS.values() for name in names]
    nothing = [name for names in NO_MEANING.values() for name in names]
    verdicts = [*works, *nothing, *REFUSED_BY_OTHER_NAME]
    assert len(verdicts) == len(set(verdicts))
    # Of these, some values work and others are refused.
    assert {name for name in works if name in REFUSED} == {"temperature", "max_completion_length"}
    assert not set(nothing) & REFUSED.keys()


def test_the_tests_that_are_named_exist() -> None:
    for test in WORKS:
        assert (ROOT / test.split(",")[0]).is_file(), test


def test_every_refusal_is_tried() -> None:
    assert REFUSED.keys() - TRIED.keys() == {"parallelism_config", "deepspeed", "fsdp"}, "these are tried here"
    assert REFUSED_BY_OTHER_NAME.keys() == TRIED_BY_OTHER_NAME.keys() | {"use_transformers_paged"}


@pytest.mark.parametrize("name", TRIED_BY_OTHER_NAME)
def test_an_option_that_comes_to_a_refused_one_is_refused(name: str, tmp_path: Path) -> None:
    changes, message = TRIED_BY_OTHER_NAME[name]
    with pytest.raises(ValueError, match=message):
        tc.ThoughtGRPOConfig(**quick_arguments(tmp_path, **changes))


def test_the_deprecated_name_of_continuous_batching_is_refused(tmp_path: Path) -> None:
    with (
        pytest.warns(FutureWarning, match="use_transformers_paged"),
        pytest.raises(ValueError, match="use_transformers_continuous_batching=True"),
    ):
        tc.ThoughtGRPOConfig(**quick_arguments(tmp_path, use_transformers_paged=True))


@pytest.mark.parametrize("name", ["parallelism_config", "deepspeed", "fsdp"])
def test_sharded_parameters_are_refused(name: str) -> None:
    """By the table's own check: each needs a library or a process group before transformers accepts it."""
    settings = dict.fromkeys(("parallelism_config", "deepspeed", "fsdp")) | {name: "full_shard"}
    assert REFUSED[name].given(type("Settings", (), settings))
    assert not any(REFUSED[other].given(type("Settings", (), settings)) for other in settings if other != name)


# Those that need a server, a hub, a device or a process group are left at their defaults.
OTHER_VALUES: dict[str, Any] = {
    "dataloader_drop_last": True,
    "dataloader_in_order": False,
    "dataloader_num_workers": 1,
    "dataloader_persistent_workers": True,
    "dataloader_prefetch_factor": 3,
    "ddp_broadcast_buffers": False,
    "ddp_bucket_cap_mb": 7,
    "ddp_find_unused_parameters": True,
    "ddp_static_graph": True,
    "eval_delay": 2,
    "hub_always_push": True,
    "hub_model_id": "me/mine",
    "hub_private_repo": True,
    "hub_revision": "main",
    "ignore_data_skip": True,
    "log_level": "info",
    "log_level_replica": "info",
    "log_on_each_node": False,
    "log_unique_prompts": True,
    "logging_first_step": True,
    "logging_nan_inf_filter": False,
    "optim_target_modules": "all-linear",
    "project": "mine",
    "restore_callback_states_from_checkpoint": True,
    "run_name": "first",
    "save_on_each_node": True,
    "save_only_model": True,
    "skip_memory_metrics": False,
    "torch_empty_cache_steps": 3,
    "trackio_space_id": "me/space",
    "trust_remote_code": True,
}


def test_what_is_left_to_transformers_and_trl_arrives_as_it_does_there(tmp_path: Path) -> None:
    assert OTHER_VALUES.keys() <= set(WORKS[PASSED_ON])
    values = {name: value for name, value in OTHER_VALUES.items() if name in FIELDS}
    assert OTHER_VALUES.keys() - values.keys() <= SOME_VERSIONS
    theirs = GRPOConfig(**quick_arguments(tmp_path, bf16=False, gradient_checkpointing=None, **values))
    ours = tc.ThoughtGRPOConfig(**quick_arguments(tmp_path, **values))
    defaults = tc.ThoughtGRPOConfig(**quick_arguments(tmp_path))
    for name in FIELDS.keys() & set(WORKS[PASSED_ON]):
        assert str(getattr(ours, name)) == str(getattr(theirs, name)), name
        if name in OTHER_VALUES:
            assert getattr(ours, name) != getattr(defaults, name), f"{name}: the value is the default"
