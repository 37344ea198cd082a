"""Tests of the suite that do not apply to a thought adapter, each with the reason. Whatever else fails is a fault."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class NotApplicable:
    """Tests, what their failure or their own reason for skipping must contain, and why that is no fault of ours."""

    tests: frozenset[str]
    text: str
    reason: str


def _entry(tests: str, text: str, reason: str) -> NotApplicable:
    return NotApplicable(tests=frozenset(tests.split()), text=text, reason=reason)


MERGING = "test_merge_layers test_merge_layers_fp16 test_merge_layers_multi test_merge_layers_nan"
COMBINING = "test_weighted_combination_of_adapters"
MIXED = "test_mixed_adapter_batches test_generate_with_mixed_adapter_batches"
PROMPTS = (
    "test_prompt_tuning_text_prepare_for_training test_prompt_tuning_sample_vocab_prepare_for_training "
    "test_training_prompt_learning_tasks test_set_requires_grad_prompt_learning_raises"
)

NOT_APPLICABLE: tuple[NotApplicable, ...] = (
    _entry(
        "test_add_adapter_no_autocast_adapter_dtype",
        "AssertionError: ",
        "asks for every adapter weight in half precision; state and encoder are fp32 whatever the model's dtype",
    ),
    _entry(PROMPTS, "Skipped: Test not applicable for <class", "skipped by the suite: about prompt learning"),
    _entry(PROMPTS, "Skipped: This test does not apply to <class", "skipped by the suite: about prompt learning"),
    _entry(PROMPTS, "Skipped: This test is only for prompt learning", "skipped by the suite: about prompt learning"),
    _entry(
        f"{MERGING} {COMBINING} {MIXED} test_lora_conversion test_unload_adapter test_disable_adapter",
        "aLoRA",
        "skipped by the suite for aLoRA, which ThoughtConfig refuses",
    ),
    _entry(
        f"{MERGING} {COMBINING} {MIXED} test_lora_conversion",
        "Skipped: Test not applicable for Activated LoRA",
        "skipped by the suite for aLoRA, which ThoughtConfig refuses",
    ),
    _entry(f"{MERGING}", "layers have no bias term", "skipped by the suite for models without biases"),
    _entry(
        f"{MERGING} {MIXED} test_prepare_for_training_parametrized",
        "rainable token",
        "skipped by the suite with trainable tokens",
    ),
    _entry(f"{MERGING}", "trainable tokens is tested elsewhere", "skipped by the suite with trainable tokens"),
    _entry(COMBINING, "Test does not work with model", "skipped by the suite for this model; combining is refused"),
    _entry(COMBINING, "Combining Gemma adapters with SVD", "skipped by the suite for this model, which is refused"),
)

REFUSALS = (
    "is not supported by ThoughtConfig",
    "is not supported with thought adapters",
    "cannot be merged into the weights",
    "cannot be combined by their weights",
    "is not inside a decoder layer",
    "have no adapted linear",
    "cannot be put into a model without its tuner",
    "cannot be combined with a thought state",
    "without the adapter's own cache",
)
"""What a refusal says. A `ValueError` of ours without one of these parts is a fault like any other."""
