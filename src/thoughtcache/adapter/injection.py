"""Putting an adapter into a model and taking it out again: all or nothing, and nothing of it stays.

PEFT replaces layers one by one and stops where an error comes; its `delete_adapter` leaves empty LoRA layers. Here a
model that cannot have the adapter stays as it was, and when the last adapter goes the base has its own layers and no
hook of ours.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from peft.tuners.tuners_utils import delete_adapter as remove_adapter
from torch import nn
from torch.utils.hooks import RemovableHandle

from thoughtcache.adapter.checkpointing import release_checkpoints
from thoughtcache.adapter.refusals import PeftRefusals
from thoughtcache.adapter.support import check_bare


class RevertibleInjection(PeftRefusals):
    """The part of the tuner that comes into a model and leaves it."""

    def __init__(self, model: nn.Module, config: Any, adapter_name: str, **kwargs: Any) -> None:
        check_bare(model)
        self._hooks: list[RemovableHandle] = []
        super().__init__(model, config, adapter_name, **kwargs)

    @abstractmethod
    def _check_before(self, model: nn.Module, config: Any) -> None:
        """Refuse models and options that are not supported."""

    @abstractmethod
    def _check_after(self, adapter_name: str, config: Any) -> None:
        """Refuse an adapter that does not reach what it must."""

    @abstractmethod
    def _register_hooks(self) -> Sequence[RemovableHandle]:
        """Give the model the hooks that every adapter of this tuner shares."""

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Give the model another adapter; if it cannot have it, it stays as it was.

        Raises:
            ValueError: if the model, a layer or an option is not supported.
        """
        config = self.peft_config[adapter_name]
        self._check_before(model, config)
        trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
            self._check_after(adapter_name, config)
        except Exception:
            if len(self.peft_config) > 1:
                remove_adapter(model, adapter_name, self.prefix, self.tuner_layer_cls)
            else:
                self._unload_and_optionally_merge(merge=False)
            for parameter, requires_grad in trained:
                parameter.requires_grad_(requires_grad)
            raise
        if not self._hooks:
            self._hooks.extend(self._register_hooks())

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; with the last one the base gets its own layers back."""
        super().delete_adapter(adapter_name)
        if not self.peft_config:
            self._unload_and_optionally_merge(merge=False)

    def _unload_and_optionally_merge(self, merge: bool = True, *args: Any, **kwargs: Any) -> Any:
        """The base with its own layers, and none of our hooks.

        Raises:
            ValueError: if the adapter was to be merged.
        """
        base = super()._unload_and_optionally_merge(merge, *args, **kwargs)
        while self._hooks:
            self._hooks.pop().remove()
        release_checkpoints(self.model)
        self.active_adapter = []
        return base
