"""Settings of cache distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from thoughtcache.checks import at_least_one, one_of
from thoughtcache.learner.options import AUTO, Auto, count_or_auto
from thoughtcache.policy.other_cache import check_teacher_cache
from thoughtcache.train.divergence import DIVERGENCES
from thoughtcache.train.loop_config import ReplayLoopConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig(ReplayLoopConfig):
    """Settings of `tc.distill`: those of the loop (`ReplayLoopConfig`), and these.

    The defaults are the embedded job's (docs/lab-log.md has their history).

    Attributes:
        loss: "forward_kl" (teacher || student), "reverse_kl" or "cross_entropy".
        max_new_tokens: length of the teacher's samples.
        temperature: temperature of the teacher's samples and of both distributions.
        samples_per_prompt: teacher samples per prompt.
        sample_batch_size: rows sampled at once.
        teacher_cache: the cache under which the teacher samples, as settings of `ThoughtConfig` with a window; None for
            the full one. Its distributions are those of the full cache in any case.
        micro_batch_size: samples of a step that the learner takes at once; the step is the same up to rounding. "auto":
            all, or on a GPU where they do not fit, the largest equal parts that do.
        pack_weights: sample from a faster copy of the weights on a CPU; see `rollout`.
        evaluate_every: steps between evaluations, 0 for none.
        allow_no_eviction: train even if no sample is long enough to be evicted under the student's window. Teacher and
            student then see the same cache, and an adapter at its start has nothing but rounding noise to learn.

    Raises:
        ValueError: for a value that is unknown or out of range.
    """

    batch_size: int = 32
    loss: str = "forward_kl"
    max_new_tokens: int = 64
    temperature: float = 1.0
    samples_per_prompt: int = 1
    sample_batch_size: int = 256
    teacher_cache: dict[str, Any] | None = None
    micro_batch_size: int | Auto = AUTO
    pack_weights: bool = True
    evaluate_every: int = 0
    allow_no_eviction: bool = False

    def __post_init__(self) -> None:
        ReplayLoopConfig.__post_init__(self)
        one_of("loss", self.loss, sorted(DIVERGENCES))
        at_least_one(self, "max_new_tokens", "samples_per_prompt", "sample_batch_size")
        check_teacher_cache(self.teacher_cache, self.max_new_tokens)
        object.__setattr__(self, "micro_batch_size", count_or_auto("micro_batch_size", self.micro_batch_size))
