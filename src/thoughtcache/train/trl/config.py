"""Configuration of GRPO under the bounded cache: TRL's, less everything that would score another policy than sampled.

Each refusal names the reason and the remedy (`options.py`, docs/trl.md). What is not refused is TRL's and behaves
as TRL documents it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeVar

from trl.trainer.grpo_config import GRPOConfig

from thoughtcache.checks import at_least_one, one_of
from thoughtcache.learner.options import AUTO, ReplayOptions, replay_options, take_savings
from thoughtcache.train.memory_rate import check_memory_rate
from thoughtcache.train.trl.options import refuse_options

REFERENCES = ("consistent", "full")
C = TypeVar("C")


def _without_run_time_types(config: type[C]) -> type[C]:
    """Leave the generated `__init__` out of run-time type checks: transformers keeps values of other types in it."""
    config.__init__.__no_type_check__ = True  # type: ignore[attr-defined]
    return config


@_without_run_time_types
@dataclass
class ThoughtGRPOConfig(GRPOConfig):
    """`trl.GRPOConfig` for a policy with a bounded cache and a thought state.

    Attributes:
        memory_learning_rate: peak learning rate of what writes and reads the states, scheduled as the other one; None
            takes `learning_rate`.
        gradient: "exact", "detached" (keys and values cut at segment boundaries) or a number of segments such as "4"
            (exact inside blocks of that many); an integer is taken as well.
        recompute: run segments again in the backward pass (memory flat in the length of the rollout, one more forward
            pass); False keeps all activations.
        checkpoint_layers: keep only the inputs of the layers inside a chunk, for one more forward pass: what gradient
            checkpointing is elsewhere. "auto", as for the next two: the planner chooses when it has seen prompts
            (`planning/savings.py`); "True" and "False" are taken as well.
        chunk_tokens: bound on the tokens of a row whose activations live at once, as a number or text; None or "none"
            keeps segments whole.
        kv_log: where keys and values wait for the backward pass: "device" or "host".
        reuse_rollout: let the learner start from the sampler's keys, values, states and log-probabilities as long as
            the weights have not changed, which saves its first forward pass and costs the memory of these records
            (`kv_log` says where). The logged gap between sampling and replay is then zero by construction.
        reference: what the KL term compares with. "consistent": the same evictions replayed (default); "full": full
            cache (the paper's). The weights are those with the adapter off if the trainer made the adapter
            (`peft_config`); of a model that came with one, TRL's frozen copy of that.
        profile_memory: keep a timeline of the memory in use in `trainer.memory.timeline`.
        rollouts_file: file that gets a line of JSON for every rollout of training: step, prompt, completion, rewards,
            advantage, tokens, evictions, and the reasons of the rewards of this package; None for none.
        rollout_batch_size: sequences decoded at once; None decodes the generation batch of a process in one go.
        compile_rollout: static shapes and compiled steps in sampling; see `rollout(compile=True)`.
        pack_weights: sample from a faster copy of the weights on a CPU; see `rollout(pack_weights=True)`.
        gradient_checkpointing: refused, because transformers then drops the cache.
        bf16: refused with `fp16`; load the model in the dtype that it should compute in.

    Raises:
        ValueError: for a value that is unknown or out of range, or an option of TRL's that would score another policy
            than was sampled; docs/trl.md lists them.
    """

    memory_learning_rate: float | None = field(
        default=None, metadata={"help": "peak learning rate of what writes and reads the states"}
    )
    gradient: str = field(
        default="exact", metadata={"help": "exact, detached, or the number of segments of an exact block"}
    )
    recompute: bool = field(default=True, metadata={"help": "run segments again in backward: flat memory"})
    checkpoint_layers: Literal["auto", True, False] = field(
        default=AUTO, metadata={"help": "keep inputs of layers, not their activations: auto, True or False"}
    )
    chunk_tokens: int | str | None = field(
        default=AUTO, metadata={"help": "tokens of a row whose activations live at once: auto, none or a number"}
    )
    kv_log: Literal["auto", "device", "host"] = field(
        default=AUTO, metadata={"help": "where keys and values wait: auto, device or host"}
    )
    reuse_rollout: bool = field(default=False, metadata={"help": "learner starts from the sampler's records"})
    reference: str = field(default="consistent", metadata={"help": "consistent (same evictions) or full (full cache)"})
    profile_memory: bool = field(default=False, metadata={"help": "keep a timeline of the memory in use"})
    rollouts_file: str | None = field(default=None, metadata={"help": "file with a line of JSON per rollout"})
    rollout_batch_size: int | None = field(default=None, metadata={"help": "sequences decoded at once"})
    compile_rollout: bool = field(default=False, metadata={"help": "sample with compiled steps of static shapes"})
    pack_weights: bool = field(default=True, metadata={"help": "on a CPU, sample from a faster copy of the weights"})
    # None becomes False; an explicit False would make transformers warn about the option's old name.
    gradient_checkpointing: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "must stay off: it drops the cache"}
    )
    bf16: bool = field(default=False, metadata={"help": "must stay off: load the model in bfloat16 instead"})

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.gradient = str(self.gradient)
        if self.gradient not in ("exact", "detached") and not (self.gradient.isdecimal() and int(self.gradient) > 0):
            raise ValueError(
                f'gradient={self.gradient!r} is not known; use "exact", "detached" or a positive number of segments'
            )
        take_savings(self)
        _ = self.replay_options
        check_memory_rate(self.memory_learning_rate)
        one_of("reference", self.reference, REFERENCES)
        at_least_one(self, "rollout_batch_size", optional=True)
        if self.reuse_rollout and not self.recompute:
            raise ValueError("reuse_rollout=True needs recompute=True: plain autograd has to run forward itself")
        refuse_options(self)

    @property
    def replay_options(self) -> ReplayOptions:
        """Options with which the learner repeats rollouts of its own weights; other passes change single fields."""
        gradient = int(self.gradient) if self.gradient.isdecimal() else self.gradient
        return replay_options(self, gradient=gradient)
