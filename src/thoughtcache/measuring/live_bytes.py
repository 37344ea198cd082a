"""Live tensor bytes of a block of code: independent of the device, exact, and the same for fake tensors.

    with LiveBytes() as live:
        loss.backward()
    live.peak_bytes

Every operation's outputs pass by; a storage counts from the operation that made it until it is freed, and once however
many views it has. Not seen: scratch memory inside a kernel, rounding and caching of an allocator, tensors that were
made before the block.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context manager: bytes of the tensors that were made inside the block and are still alive.

    Args:
        device_type: count storages of this kind of device only; None counts all of them.

    Attributes:
        live_bytes: bytes that are alive now.
        peak_bytes: bytes at the highest point of the block, since `reset_peak` if it was called.
    """

    def __init__(self, device_type: str | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device_type = device_type
        self.live_bytes = 0
        self.peak_bytes = 0
        self._sizes: dict[int, int] = {}

    def reset_peak(self) -> None:
        """Forget the highest point so far; what is alive stays counted."""
        self.peak_bytes = self.live_bytes

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and count its new storages."""
        before = {id(_owner(t)) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and id(_owner(tensor)) not in before:
                self._count(tensor)
        return result

    def _count(self, tensor: Tensor) -> None:
        # A fake tensor knows its device, its storage does not.
        if self.device_type is not None and tensor.device.type != self.device_type:
            return
        owner = _owner(tensor)
        key = id(owner)
        if key in self._sizes:
            return
        self._sizes[key] = tensor.nbytes if owner is tensor else owner.nbytes()
        weakref.finalize(owner, self._forget, key)
        self.live_bytes += self._sizes[key]
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _forget(self, key: int) -> None:
        self.live_bytes -= self._sizes.pop(key, 0)


def _owner(tensor: Tensor) -> Any:
    """The object that the memory belongs to: the storage, or the tensor in oneDNN's own layout, which has none."""
    return tensor if tensor.is_mkldnn else tensor.untyped_storage()
