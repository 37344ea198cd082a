"""The memory plan of a training step: what is alive at the highest point of every phase.

    plan = make_plan(PlanSetting(model=load_config("Qwen2.5-3B"), thought=ThoughtConfig(), max_new_tokens=32768))
    plan.peak.name, plan.total_bytes, plan.peak.parts

Phases follow a GRPO step: sampling, the reference, the learner's forward and backward pass, the optimiser; or cache
distillation: the teacher's sampling and its pass, the learner, the optimiser. Counted are tensors, exactly; a reserve
stands for the CUDA context and fragmentation. Not covered: engines that allocate their cache in advance (vLLM), several
adapters, gradients of a model that is trained in full.
"""

from __future__ import annotations

from dataclasses import dataclass

from thoughtcache.planning.flops import linear_shapes
from thoughtcache.planning.memory.checkpointed import checkpointed_parts, reference_parts
from thoughtcache.planning.memory.distillation import kept_for_student, sampling_teacher, teacher_parts
from thoughtcache.planning.memory.layer import adapter_bytes, kv_bytes, layer_numbers
from thoughtcache.planning.memory.parts import Parts, add, highest, total
from thoughtcache.planning.memory.replay import (
    anchor_bytes,
    backward_parts,
    forward_parts,
    leaving_thought_bytes,
    record_parts,
    resident_columns_bytes,
    slot_bytes,
)
from thoughtcache.planning.memory.rollout import recorded_kv_bytes, rollout_parts
from thoughtcache.planning.model_size import model_size
from thoughtcache.planning.setting import PlanSetting

GIB = 2**30
CUDA_RESERVE_BYTES = GIB
"""CUDA context, cuBLAS workspaces and fragmentation: an assumption, not a calculation."""
TEACHER_SAMPLES = "teacher samples"
"""What the phases are called in which the teacher of distillation draws its texts."""
FOUR_BIT_BYTES = 0.5 + 4 / 64
"""bitsandbytes: half a byte and one fp32 scale per block of 64."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """One phase of a training step.

    Attributes:
        name: what runs.
        parts: bytes by part at its highest point, what is always resident included.
    """

    name: str
    parts: Parts

    @property
    def total_bytes(self) -> int:
        """All parts."""
        return total(self.parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Memory of a training step on one device.

    Attributes:
        phases: phases in the order in which they run.
        host_bytes: bytes of the records, and of keys and values, that wait on the host of a GPU.
    """

    phases: tuple[Phase, ...]
    host_bytes: int

    @property
    def peak(self) -> Phase:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.total_bytes)

    @property
    def total_bytes(self) -> int:
        """Bytes that the device must have."""
        return self.peak.total_bytes

    @property
    def largest_part(self) -> tuple[str, int]:
        """Name and bytes of the largest part of the peak."""
        return max(self.peak.parts.items(), key=lambda part: part[1])


def make_plan(setting: PlanSetting, *, reserve_bytes: int | None = None) -> Plan:
    """Plan the memory of a training step.

    Args:
        setting: the run.
        reserve_bytes: room for everything that is not a tensor; None means 1 GiB on CUDA and nothing on the CPU.

    Returns:
        The phases in order, with the bytes of every part; `total_bytes` is the highest point.
    """
    if reserve_bytes is None:
        reserve_bytes = CUDA_RESERVE_BYTES if setting.device_type == "cuda" else 0
    resident = resident_parts(setting) | {"reserve": reserve_bytes}
    scratch = dequantised_bytes(setting)
    gradients = resident["adapter"]
    accumulated = gradients if setting.completions > setting.batch else 0
    records: Parts = {
        "recorded K/V": recorded_kv_bytes(setting, setting.completions),
        **({} if setting.distills else record_parts(setting, setting.completions)),
    }

    def phase(name: str, *parts: Parts, runs_model: bool = True) -> Phase:
        return Phase(name=name, parts=add(resident, *parts, {"activations": scratch if runs_model else 0}))

    phases = [phase(name, parts) for name, parts in _rollout(setting).items()]
    replays = setting.learner == "replay"
    if setting.beta:
        reference = forward_parts(setting, keeps_log=False) if replays else reference_parts(setting)
        phases.append(phase("reference", records, {"gradients": accumulated}, reference))
    held = {"gradients": accumulated if replays else gradients}  # the replay counts its own
    phases += [phase(name, records, held, parts) for name, parts in learner_phases(setting).items()]
    phases.append(phase("optimizer step", records, {"gradients": gradients}, runs_model=False))
    return Plan(phases=tuple(phases), host_bytes=_host_bytes(setting))


def learner_phases(setting: PlanSetting) -> dict[str, Parts]:
    """Bytes that the learner alone has alive at the highest point of every phase of one micro-batch."""
    if setting.learner == "checkpointed":
        return {"learner": checkpointed_parts(setting)}
    phases = {"learner: backward": backward_parts(setting)}
    if setting.recompute and not setting.reuse:
        phases = {"learner: forward": forward_parts(setting, keeps_log=True), **phases}
    if not setting.distills:
        return phases
    kept = kept_for_student(setting)
    return {"teacher": teacher_parts(setting), **{name: add(parts, kept) for name, parts in phases.items()}}


def learner_bytes(setting: PlanSetting) -> int:
    """The highest point of the learner alone, over weights, adapter and optimiser."""
    return total(highest(learner_phases(setting).values()))


def resident_parts(setting: PlanSetting) -> Parts:
    """Bytes that are there in every phase: weights, adapter, its frozen copy with a KL term, both moments of Adam."""
    size = model_size(setting.model)
    linear = FOUR_BIT_BYTES if setting.load_in_4bit else float(setting.base_bytes)
    adapter = adapter_bytes(setting)
    return {
        "weights": int(size.linear_parameters * linear) + size.other_parameters * setting.base_bytes,
        "adapter": adapter,
        "reference adapter": adapter if setting.beta else 0,
        "optimizer": 2 * adapter,
    }


def dequantised_bytes(setting: PlanSetting) -> int:
    """The largest matrix in the dtype of the computation, while a 4-bit linear runs."""
    if not setting.load_in_4bit:
        return 0
    return max(inputs * outputs for inputs, outputs in linear_shapes(setting.model).values()) * setting.base_bytes


def _rollout(setting: PlanSetting) -> dict[str, Parts]:
    if setting.distills:
        return {f"{TEACHER_SAMPLES}: {name}": parts for name, parts in rollout_parts(sampling_teacher(setting)).items()}
    parts = {f"rollout: {name}": parts for name, parts in rollout_parts(setting).items()}
    if setting.learner == "checkpointed":
        # transformers' own cache grows by concatenation: one layer exists twice for a moment.
        rows, tokens = setting.decoded_at_once, setting.prompt_tokens + setting.max_new_tokens
        twice = kv_bytes(layer_numbers(setting), rows, tokens) // setting.model.num_hidden_layers
        parts = {name: add(phase, {"rollout K/V": twice}) for name, phase in parts.items()}
    return parts


def _host_bytes(setting: PlanSetting) -> int:
    """Bytes that a run on a GPU keeps on the host: eviction records, and keys and values with `kv_log="host"`."""
    if setting.device_type == "cpu":
        return 0
    if setting.distills and setting.teacher_cache is not None:
        teacher = sampling_teacher(setting)
        sampling = slot_bytes(teacher, teacher.completions) + leaving_thought_bytes(teacher)
    else:
        sampling = 0
    return max(sampling, _learner_host_bytes(setting))


def _learner_host_bytes(setting: PlanSetting) -> int:
    rows = 0 if setting.distills else setting.completions
    records = anchor_bytes(setting, rows) + slot_bytes(setting, rows) + leaving_thought_bytes(setting)
    if setting.learner != "replay" or setting.logs_on_device:
        return records
    logged = setting.batch + (setting.completions if setting.reuse else 0)
    columns = resident_columns_bytes(setting)
    return records + columns + kv_bytes(layer_numbers(setting), logged, setting.prompt_tokens + setting.max_new_tokens)
