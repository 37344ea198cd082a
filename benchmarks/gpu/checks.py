"""The list of checks, in the order in which they run: what must hold first, what is slow last."""

from __future__ import annotations

from functools import partial

from benchmarks.gpu import memory, parity, profiled, speed, training
from benchmarks.gpu.check import Check

CHECKS = (
    Check(name="parity and gradients, fp64", run=parity.fp64),
    Check(name="parity and gradients, fp32", run=parity.fp32),
    Check(name="parity and gradients, bf16", run=parity.bf16),
    Check(name="generate is the sampler", run=parity.generate),
    Check(name="distillation", run=training.distillation),
    Check(name="GRPO", run=training.grpo),
    Check(name="the sampler's memory is flat", run=memory.sampler_is_flat),
    Check(name="the learner's memory is flat", run=memory.learner_is_flat),
    Check(name="the planner against the allocator", run=memory.planner),
    Check(name="the host does not wait", run=profiled.no_waits, needs_cuda=True),
    Check(name="attention kernels", run=profiled.attention_kernels),
    Check(name="copies to and from the host", run=profiled.copies, needs_cuda=True),
    Check(name="compiled steps are CUDA graphs", run=profiled.graphs, needs_cuda=True, seconds=180.0),
    Check(name="learner against TRL, short", run=partial(speed.learner, number=0)),
    Check(name="decoding against generate", run=speed.decoding),
    Check(name="learner against TRL, long", run=partial(speed.learner, number=1)),
    Check(name="compiled steps against generate", run=speed.compiled_decoding, needs_cuda=True, seconds=180.0),
)
