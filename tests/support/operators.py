"""Which operators a block of code calls; and those that wait for the device."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {
    "_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "bincount", "item", "isin",
}  # fmt: skip


class Operators(TorchDispatchMode):
    """Names of the operators that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))
