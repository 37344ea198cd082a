"""Decides what a GRPO run can honour of the settings in a model's own `generation_config`.

TRL samples with `model.generate`, which takes from the model's configuration whatever TRL does not set. Our sampler has
explicit settings only, and the learner scores the whole softmax. So a setting that would shape TRL's samples and that
nothing here would score is refused, instead of being dropped in silence.
"""

from __future__ import annotations

from typing import Any

SET_BY_TRL = frozenset({
    "do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens", "max_length", "pad_token_id",
    "bos_token_id", "eos_token_id", "disable_compile",
})  # fmt: skip
"""TRL sets these from its own options, whatever the model says: a model that ships top_k=20 is sampled without it. Of
`eos_token_id` it takes the union with the tokenizer's (`ends.py`)."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "max_time": (None,),
    "stop_strings": (None, [], ()),
    "num_beams": (None, 1),
    "min_p": (None, 0.0),
    "top_h": (None, 1.0),
    "typical_p": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "encoder_repetition_penalty": (None, 1.0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "no_repeat_ngram_size": (None, 0),
    "bad_words_ids": (None, [], ()),
    "force_words_ids": (None, [], ()),
    "constraints": (None, [], ()),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "exponential_decay_length_penalty": (None,),
    "suppress_tokens": (None, [], ()),
    "begin_suppress_tokens": (None, [], ()),
    "sequence_bias": (None, [], (), {}),
    "token_healing": (None, False),
    "guidance_scale": (None, 1),
    "watermarking_config": (None,),
    "dola_layers": (None,),
}
"""Settings that change what is sampled, each with the values that do not."""

WITHOUT_EFFECT = frozenset({
    # settings of beams, which are refused
    "early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty", "low_memory",
    # a setting of greedy decoding
    "penalty_alpha",
    # drafts that the model accepts or not: the samples have the same distribution
    "use_mtp", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule",
    "assistant_confidence_threshold", "prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit",
    "assistant_lookbehind",
    "target_lookbehind", "assistant_ensemble_weight", "speculation_type",
    # how transformers computes, which is not how we do
    "use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size", "compile_config",
    "continuous_batching_config",
    # what it returns
    "num_return_sequences", "output_attentions", "output_hidden_states", "output_scores", "output_logits",
    "return_dict_in_generate",
    # settings that keep the distribution of finite logits
    "renormalize_logits", "remove_invalid_values",
    # settings of other kinds of model, and notes of transformers
    "decoder_start_token_id", "transformers_version", "_from_model_config",
})  # fmt: skip
"""Settings that change nothing of what TRL samples."""


def check_model_generation(generation_config: Any, *, min_p: float | None) -> None:
    """Refuse what the model asks its sampler for and no learner would score.

    Args:
        generation_config: `transformers.GenerationConfig` of the model.
        min_p: option of TRL; if it is a number it takes the place of the model's.

    Raises:
        ValueError: if the model asks for such a setting; the message names the first one and the remedy.
    """
    settings = generation_config.to_dict()
    for name, neutral in NEUTRAL.items():
        value = settings.get(name)
        if value in neutral or (name == "min_p" and min_p is not None):
            continue
        raise ValueError(
            f"model.generation_config.{name}={value!r} is not supported under a bounded cache: TRL would sample "
            "with it and the learner scores the whole softmax of the model; set "
            f"model.generation_config.{name} = {neutral[0]!r} to sample without it"
        )
