"""The LoRA variant `y = W x + (alpha / R) A (S (B x))` (paper, equation of the modulated adapter).

PEFT calls our `B` `lora_A` ([R, d_in]) and our `A` `lora_B` ([d_out, G]). The delta is never materialised, so each row
of a batch has a state of its own. `S = I` takes PEFT's own arithmetic, bit for bit.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from torch import Tensor, nn
from torch.nn.functional import linear

from thoughtcache.adapter.binding import StateBinding
from thoughtcache.config import ThoughtConfig

MERGE_REFUSAL = "a thought adapter depends on the sequence and cannot be merged into the weights; keep it as an adapter"
NO_STATE = (
    "an adapted linear ran outside of a forward pass of the decoder, where no thought state is known. Call the whole "
    "model; for checkpoints of activations use model.gradient_checkpointing_enable(), not another library's"
)
HOTSWAP_REFUSAL = (
    "hot-swapping is not supported with thought adapters, and prepare_model_for_compiled_hotswap has changed the "
    "scaling of this one, and the sizes of its factors if it was given a rank; load the adapter again, and switch "
    "between adapters with set_adapter(name)"
)


class ThoughtVariant(LoraVariant):
    """Forward pass of one adapted linear layer.

    Args:
        binding: where the states of the running forward pass are found.
        layer_index: decoder layer of the linear.
        needs_state: whether the adapter has a state; False for plain LoRA, whose state is the identity.
    """

    def __init__(self, binding: StateBinding, layer_index: int, *, needs_state: bool) -> None:
        self.binding = binding
        self.layer_index = layer_index
        self.needs_state = needs_state

    def supports_lora_conversion(self) -> bool:
        """False: the adapter is not one low-rank matrix."""
        return False

    @staticmethod
    def init(  # type: ignore[override]
        module: LoraLayer, adapter_name: str, config: ThoughtConfig, **kwargs: Any
    ) -> None:
        """Give `lora_B` (our A) its G inputs, and its start.

        It is zero, or what `torch.nn.Linear` draws with `init_lora_weights=False`, as PEFT has it. With `read_start` it
        is drawn as `lora_A` (our B) is, times that number.
        """
        up: Any = module.lora_B[adapter_name]
        if config.num_state_rows != up.in_features:
            old, weight = up, up.weight
            up = nn.Linear(
                config.num_state_rows, old.out_features, bias=False, device=weight.device, dtype=weight.dtype
            )
            if config.init_lora_weights is not False:
                nn.init.zeros_(up.weight)
            module.lora_B[adapter_name] = up
        if config.read_start and config.init_lora_weights == "gaussian":
            nn.init.normal_(up.weight, std=config.read_start / config.r)
        elif config.read_start:
            down: Any = module.lora_A[adapter_name]
            bound = config.read_start / math.sqrt(down.in_features)
            nn.init.uniform_(up.weight, -bound, bound)

    def forward(  # type: ignore[override]
        self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any
    ) -> Tensor:
        """`result` plus the modulated low-rank term; x [B, T, d_in], result [B, T, d_out].

        Raises:
            ValueError: outside of a forward pass of the decoder, or if the layer was prepared for hot-swapping.
        """
        states, up = self.binding.states, module.lora_B[active_adapter]
        assert isinstance(up, nn.Linear)
        down = module.lora_A[active_adapter](x)
        state = None if states is None else states[self.layer_index]
        if state is None and self.needs_state:
            raise ValueError(NO_STATE)
        if is_prepared_for_hotswap(module, active_adapter):
            raise ValueError(HOTSWAP_REFUSAL)
        return modulate(result, down, state, up.weight, module.scaling[active_adapter])

    @staticmethod
    def merge_safe(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Refused."""
        raise ValueError(MERGE_REFUSAL)

    @staticmethod
    def merge_unsafe(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> None:
        """Refused."""
        raise ValueError(MERGE_REFUSAL)


def modulate(
    result: Tensor, down: Tensor, state: Tensor | None, up_weight: Tensor, scaling: float, *, in_place: bool = False
) -> Tensor:
    """`result + scaling * up(S down)`.

    Args:
        result: [B, T, d_out] of the base.
        down: [B, T, R] what the first matrix makes of the input.
        state: [B or 1, G, R], or None for the identity, where G = R.
        up_weight: [d_out, G].
        scaling: alpha / R.
        in_place: whether `result` may be written to.

    Returns:
        [B, T, d_out], in the dtype of `result` where the adapter has it too, else in the wider one of both.
    """
    if state is not None:
        state = state.to(down.dtype)
        multiply = torch.bmm if state.shape[0] == down.shape[0] else torch.matmul
        down = multiply(down, state.mT)
        if result.dtype == down.dtype and not torch.is_autocast_enabled(result.device.type):
            # One kernel instead of three, without the two tensors between them.
            rows, down = result.reshape(-1, result.shape[-1]), down.reshape(-1, down.shape[-1])
            # Not `addmm_`, which PyTorch's FLOP counter does not know.
            out = rows if in_place else None
            return torch.addmm(rows, down, up_weight.T, alpha=scaling, out=out).view(result.shape)
    return result + linear(down, up_weight) * scaling


def is_prepared_for_hotswap(module: LoraLayer, adapter_name: str) -> bool:
    """Whether PEFT has made the scaling a tensor: its preparation begins with that, whatever rank it is given."""
    return isinstance(module.scaling[adapter_name], Tensor)
