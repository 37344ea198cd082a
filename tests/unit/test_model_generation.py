"""What a model's own generation_config asks for: taken from TRL's options, refused, or without effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig
from trl.trainer.grpo_trainer import GRPOTrainer

import thoughtcache as tc
from support.grpo import base_with_eos, make_trainer
from support.models import adapt
from support.rollouts import PROMPTS
from thoughtcache.train.trl.model_generation import NEUTRAL, SET_BY_TRL, WITHOUT_EFFECT, check_model_generation

ASKED: dict[str, Any] = {
    "min_length": 4,
    "min_new_tokens": 4,
    "max_time": 3.0,
    "stop_strings": ["w3"],
    "num_beams": 2,
    "min_p": 0.1,
    "top_h": 0.5,
    "typical_p": 0.9,
    "epsilon_cutoff": 3e-4,
    "eta_cutoff": 3e-4,
    "encoder_repetition_penalty": 1.1,
    "encoder_no_repeat_ngram_size": 3,
    "no_repeat_ngram_size": 3,
    "bad_words_ids": [[5]],
    "force_words_ids": [[5]],
    "constraints": ["anything"],
    "forced_bos_token_id": 5,
    "forced_eos_token_id": 2,
    "exponential_decay_length_penalty": (5, 1.1),
    "suppress_tokens": [5],
    "begin_suppress_tokens": [5],
    "sequence_bias": [[[5], -10.0]],
    "token_healing": True,
    "guidance_scale": 1.5,
    "watermarking_config": {"bias": 2.5},
    "dola_layers": "high",
}
SHIPPED = {"repetition_penalty": 1.1, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "do_sample": True}
"""As in the files of Qwen2.5-Instruct."""


def test_every_setting_of_transformers_is_in_one_list() -> None:
    """A new one must be read and put into a list."""
    listed = [*SET_BY_TRL, *NEUTRAL, *WITHOUT_EFFECT]
    assert sorted(set(GenerationConfig().to_dict()) - set(listed)) == []
    assert len(listed) == len(set(listed))
    assert ASKED.keys() == NEUTRAL.keys()


@pytest.mark.parametrize("name", NEUTRAL)
def test_what_no_learner_scores_is_refused_with_the_remedy(name: str) -> None:
    settings = GenerationConfig()
    setattr(settings, name, ASKED[name])
    with pytest.raises(ValueError, match=rf"^model\.generation_config\.{name}=.*; set model\..*{name} = "):
        check_model_generation(settings, min_p=None)
    for neutral in NEUTRAL[name]:
        setattr(settings, name, neutral)
        check_model_generation(settings, min_p=None)


def test_min_p_of_trl_takes_the_place_of_the_models() -> None:
    check_model_generation(GenerationConfig(min_p=0.1), min_p=0.0)


def test_trl_sets_what_the_list_says(tmp_path: Path) -> None:
    trainer = make_trainer(adapt(base_with_eos(dtype=torch.float32)), tmp_path)
    assert isinstance(trainer, GRPOTrainer)
    values = trainer.generation_config.to_dict()
    # max_length gives way to max_new_tokens.
    assert sorted(name for name in SET_BY_TRL - {"max_length"} if values[name] is None and name != "bos_token_id") == []
    assert (values["top_k"], values["top_p"], values["temperature"], values["min_p"]) == (0, 1.0, 1.0, None)


def test_a_trainer_refuses_at_once_and_keeps_what_models_ship(tmp_path: Path) -> None:
    base = base_with_eos(dtype=torch.float32)
    base.generation_config.suppress_tokens = [5]
    with pytest.raises(ValueError, match=r"suppress_tokens=\[5\] is not supported under a bounded cache"):
        make_trainer(adapt(base), tmp_path)
    base = base_with_eos(dtype=torch.float32)
    base.generation_config.update(**SHIPPED)
    make_trainer(adapt(base), tmp_path)


def test_rollout_has_explicit_settings_only() -> None:
    """As docs/sampling.md says: whatever the model's configuration asks for, other than where a sequence ends."""
    plain = adapt(base_with_eos(dtype=torch.float32))
    expected = tc.rollout(plain, PROMPTS, max_new_tokens=9)
    asking = base_with_eos(dtype=torch.float32)
    asking.generation_config.update(**SHIPPED, suppress_tokens=sorted({t for row in expected for t in row.token_ids}))
    found = tc.rollout(adapt(asking), PROMPTS, max_new_tokens=9)
    assert [row.token_ids for row in found] == [row.token_ids for row in expected]
