"""Every field of `peft.LoraConfig`: which ones a thought adapter keeps, and why the others are refused.

`ThoughtConfig` inherits all of them, and PEFT acts on most before our code sees a layer: an initialisation may change
the base weights, a variant may put parameters on the layer that the thought state then ignores. A field that stands in
neither list is newer than this release; it is refused as soon as it is set.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from peft import LoraConfig

KEPT_FIELDS = frozenset(
    {
        # what PEFT writes down about an adapter
        "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
        "inference_mode",
        # which linears, how wide, how strong
        "r", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
        "lora_alpha", "alpha_pattern", "use_rslora", "init_lora_weights",
        # what is trained beside the adapter
        "modules_to_save", "trainable_token_indices", "ensure_weight_tying",
        # without meaning until a refused field is set
        "megatron_core", "qalora_group_size",
    }
)  # fmt: skip
REFUSED_FIELDS = {
    "lora_dropout": "dropout makes the scored policy differ from the sampled one; set it to 0.0",
    "fan_in_fan_out": "it is for layers that keep their weight transposed (GPT-2), which are not supported; leave it",
    "bias": "biases of the base would change, and the model without the adapter would not be the base; set 'none'",
    "rank_pattern": "one state serves all linears of a layer; give one r",
    "megatron_config": "Megatron's parallel linears ignore the thought state; leave it out",
    "loftq_config": "LoftQ changes the base weights and starts from an adapter that is not zero; leave it out",
    "eva_config": "EVA deals ranks out layer by layer, and one state serves all linears of a layer; leave it out",
    "corda_config": "CorDA changes the base weights; leave it out",
    "lora_ga_config": "LoRA-GA changes the base weights; leave it out",
    "use_dora": "the delta is never materialised, so it has no norm; leave it out",
    "velora_config": "VeLoRA has a backward pass of its own, without the thought state; leave it out",
    "alora_invocation_tokens": "aLoRA decides token by token where the adapter acts, without the state; leave it out",
    "use_qalora": "QA-LoRA pools the inputs of the adapter, without the thought state; leave it out",
    "monteclora_config": "MonteCLoRA draws the adapter anew in every pass, so that no rollout repeats; leave it out",
    "layer_replication": "every layer needs keys and values of its own; leave it out",
    "runtime_config": "ephemeral_gpu_offload is for initialisations and variants that are refused; leave it out",
    "lora_bias": "a bias would bypass the state; leave it out",
    "target_parameters": "only linear layers carry the state; use target_modules",
    "use_bdlora": "block-diagonal factors do not fit one state for all linears of a layer; leave it out",
    "arrow_config": "Arrow routes tokens between adapters, and their states would overwrite each other; leave it out",
    "kasa_config": "KaSA changes the base weights; leave it out",
}
INITIALISATIONS = (True, False, "gaussian")


def check_lora_fields(config: LoraConfig) -> None:
    """Refuse what a thought adapter would ignore, or what would make it wrong.

    Args:
        config: a `ThoughtConfig`.

    Raises:
        ValueError: if a field has a value that is not supported; the message names the field, its value, the reason and
            the remedy.
    """
    for field in fields(LoraConfig):
        value = getattr(config, field.name)
        if field.name in KEPT_FIELDS or not _is_given(field, value):
            continue
        reason = REFUSED_FIELDS.get(field.name, "this release does not know the option; leave it out")
        raise ValueError(f"{field.name}={value!r} is not supported by ThoughtConfig: {reason}")
    if config.task_type != "CAUSAL_LM":
        raise ValueError(
            f"task_type={config.task_type!r} is not supported by ThoughtConfig: the state is made of generated "
            'tokens, and only PEFT\'s class for task_type="CAUSAL_LM" generates under the window'
        )
    if config.init_lora_weights not in INITIALISATIONS:
        raise ValueError(
            f"init_lora_weights={config.init_lora_weights!r} is not supported by ThoughtConfig: it changes the base "
            "weights, freezes factors, or counts on the product of both factors, in the middle of which the thought "
            f"state stands; choose one of {list(INITIALISATIONS)}"
        )


def _is_given(field: Any, value: Any) -> bool:
    """Whether a field is set: its value is neither the default nor empty (None, {}, [])."""
    default = field.default_factory() if field.default is MISSING else field.default
    return bool(value) and value != default
