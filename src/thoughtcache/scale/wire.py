"""Records as bytes for the wire: JSON for what is plain, safetensors for the tensors; no pickle on either side.

Layout: 8 bytes (little-endian) with the length of the JSON text, the JSON text, a safetensors file. Generic over the
fields of the records in `records.py`: a field that is added there travels without a change here.

Not covered: versions. Both sides run the same release.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from thoughtcache import records
from thoughtcache.records import Rollout

_LENGTH_BYTES = 8
_RECORD, _TUPLE, _TENSOR = "record", "tuple", "tensor"
_PLAIN = (str, int, float, bool, type(None))


NOT_PACKED = "{} bytes are no packed {what}; pass what pack_{what} returned, unshortened"


def pack_rollouts(rollouts: Sequence[Rollout]) -> bytes:
    """Rollouts as bytes, their tensors copied to the host.

    Raises:
        ValueError: if a field has a type that has no place on the wire.
    """
    tensors: dict[str, Tensor] = {}
    return join([_encode(rollout, tensors) for rollout in rollouts], tensors)


def unpack_rollouts(data: bytes, device: torch.device | str = "cpu") -> list[Rollout]:
    """The rollouts in `pack_rollouts(...)`.

    Args:
        data: the bytes.
        device: where tensors go that were not on the host of the sender; what was on its host stays on the host.

    Raises:
        ValueError: for bytes that `pack_rollouts` did not write.
    """
    plain, tensors = split(data, "rollouts")
    try:
        rollouts: list[Rollout] = [_decode(item, tensors, torch.device(device)) for item in plain]
    except (KeyError, TypeError) as error:
        raise ValueError(NOT_PACKED.format(len(data), what="rollouts")) from error
    return rollouts


def join(plain: Any, tensors: dict[str, Tensor]) -> bytes:
    """Plain data as JSON, and tensors of the host, in one piece; equal values give equal bytes."""
    text = json.dumps(plain).encode()
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text + safetensors.torch.save(tensors)


def split(data: bytes, what: str) -> tuple[Any, dict[str, Tensor]]:
    """The plain data and the tensors that `join` joined; `what` names them in the error.

    Raises:
        ValueError: for bytes that `join` did not write.
    """
    start = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    try:
        return json.loads(data[_LENGTH_BYTES:start]), safetensors.torch.load(data[start:])
    except (ValueError, safetensors.SafetensorError) as error:
        raise ValueError(NOT_PACKED.format(len(data), what=what)) from error


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON for a value; tensors go to `tensors`. Dicts are tags here, so no record may hold one."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, list):
        return [_encode(item, tensors) for item in value]
    if isinstance(value, tuple):
        return {_TUPLE: [_encode(item, tensors) for item in value]}
    if isinstance(value, Tensor):
        name = str(len(tensors))
        # A copy: safetensors refuses views that share memory.
        tensors[name] = torch.empty_like(value, device="cpu", memory_format=torch.contiguous_format).copy_(value)
        return {_TENSOR: name, "host": value.device.type == "cpu"}
    if is_dataclass(value) and vars(records).get(type(value).__name__) is type(value):
        content = {field.name: _encode(getattr(value, field.name), tensors) for field in fields(value)}
        return {_RECORD: type(value).__name__, "fields": content}
    raise ValueError(f"{type(value).__name__} cannot be sent; records hold numbers, texts, lists, tuples and tensors")


def _decode(value: Any, tensors: dict[str, Tensor], device: torch.device) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors, device) for item in value]
    if not isinstance(value, dict):
        return value
    if _TUPLE in value:
        return tuple(_decode(item, tensors, device) for item in value[_TUPLE])
    if _TENSOR in value:
        tensor = tensors[value[_TENSOR]]
        return tensor if value["host"] else tensor.to(device)
    content = {name: _decode(item, tensors, device) for name, item in value["fields"].items()}
    return vars(records)[value[_RECORD]](**content)
