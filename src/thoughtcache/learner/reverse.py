"""The exact gradient at flat memory: segments run again in reverse, each with its own graph.

Forward: all chunks without a graph; kept are the scores, the K/V log (kv_log.py) and the states between chunks.
Backward, last chunk first: enter the chunk again with its resident keys, values and states as leaves, run it with a
graph, and give it three gradients: of its scores, of the keys and values that later chunks read, of the state that it
hands on. What comes out for its entry is carried to the chunk before; what comes out for parameters is summed and
*returned*, so that DDP, gradient accumulation and loss scaling see one ordinary backward pass.

The graph of one chunk is all that lives at a time. `gradient=n` needs no log: its blocks are independent and run again
in order, each under one graph. Cost: one forward pass more than plain autograd (plain.py), which is the naive twin.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from thoughtcache.learner.chunk import Boundary, cut, join_scores, run_chunk, with_rows
from thoughtcache.learner.chunk_plan import Chunk, cuts_past, cuts_states
from thoughtcache.learner.exits import Exit, as_exits, exit_of_row, rows_over_in
from thoughtcache.learner.from_records import entry_states, recorded_scores
from thoughtcache.learner.kv_log import KVLog
from thoughtcache.learner.options import ReplayOptions
from thoughtcache.policy.batch import RolloutBatch
from thoughtcache.policy.handle import PolicyHandle
from thoughtcache.policy.scores import ScoreFunction, running_autocast


def reverse_replay(
    policy: PolicyHandle,
    batch: RolloutBatch,
    chunks: list[Chunk],
    score: ScoreFunction,
    options: ReplayOptions,
    entry: Boundary | None = None,
    over: Sequence[int] = (),
) -> tuple[tuple[Tensor, ...], list[Exit]]:
    """Scores [B, T] of all chunks; the first one is differentiable with respect to all trainable parameters.

    Args:
        policy: the parts of the model.
        batch: the rollouts.
        chunks: chunks from `plan_chunks`.
        score: see `scores.ScoreFunction`.
        options: see `replay.py`.
        entry: the columns and states that are given to the first chunk (`Chunk.given`).
        over: rows whose caches are wanted as they are when their thoughts are over; the chunks must be of "exact".

    Returns:
        The scores, and the caches of these rows, which are differentiable as well. All of it depends on `entry`.
    """
    run = _Replay(
        policy=policy, batch=batch, chunks=chunks, score=score, options=options, entry=entry or Boundary(), over=over
    )
    past, states = _flat(run.entry)
    outputs: tuple[Tensor, ...] = _ReverseReplay.apply(run, *past, *states, *run.parameters)  # type: ignore[no-untyped-call]
    return outputs[: run.num_scores], as_exits(outputs[run.num_scores :], len(over))


class _ReverseReplay(torch.autograd.Function):
    """The seam to autograd; the work is in `_Replay`."""

    @staticmethod
    def forward(ctx: Any, run: _Replay, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.run = run
        scores = run.forward()
        ctx.mark_non_differentiable(*scores[1:])
        return (*scores, *(tensor for row in run.over for tensor in run.exits.pop(row).tensors))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
        run: _Replay | None = ctx.run
        if run is None:
            raise RuntimeError("a replay can go backward once; its log is freed. Replay again, or use recompute=False")
        ctx.run = None
        return (None, *run.backward(gradient, others[run.num_scores - 1 :]))


@dataclass(kw_only=True, slots=True)
class _Replay:
    """One replay between its forward and its backward pass.

    Attributes:
        parameters: trainable parameters, in the order in which their gradients are returned.
        log: keys and values of all columns; None for blocks.
        states: states on entry of every chunk; None where the chunk makes its own.
        known: joined scores of the forward pass.
        autocast: arguments of the autocast region of the forward pass.
        entry: what is given to the first chunk, until the log has it.
        is_given: whether anything is.
        over: rows whose caches are wanted.
        exits: these caches, until they are handed over.
    """

    policy: PolicyHandle
    batch: RolloutBatch
    chunks: list[Chunk]
    score: ScoreFunction
    options: ReplayOptions
    entry: Boundary
    over: Sequence[int]
    parameters: list[Tensor] = field(init=False)
    log: KVLog | None = None
    states: list[list[Tensor] | None] = field(default_factory=list)
    known: tuple[Tensor, ...] = ()
    autocast: dict[str, Any] = field(default_factory=dict)
    exits: dict[int, Exit] = field(default_factory=dict)
    is_given: bool = False

    def __post_init__(self) -> None:
        self.parameters = [p for p in self.policy.tuner.parameters() if p.requires_grad]

    @property
    def num_scores(self) -> int:
        """How many tensors the score function returns."""
        return len(self.known)

    def forward(self) -> tuple[Tensor, ...]:
        """Run all chunks without a graph."""
        self.autocast = running_autocast(self.policy.device.type)
        if not isinstance(self.options.gradient, int):
            self.log = KVLog(
                self.batch,
                self.chunks,
                self.options.kv_log,
                self.policy.tuner.key_rotations(self.batch.settings.positions),
            )
        if self.options.reuse:
            return self._recorded()
        entry, self.entry, scores = self.entry, Boundary(), []
        if self.log is not None and entry.past is not None:
            self.is_given = True
            self.log.write_given(entry.past)
        for chunk in self.chunks:
            self.states.append(entry.states)
            found, entry = self._run(chunk, entry, known=None)
            scores.append(found)
            if self.log is not None:
                assert entry.past is not None
                self.log.write(chunk, entry.past)
            for row in rows_over_in(self.batch, chunk, self.over):
                self.exits[row] = exit_of_row(self.batch, chunk, row, entry)
        self.known = join_scores(scores, len(self.batch.rollouts))
        return self.known

    def _recorded(self) -> tuple[Tensor, ...]:
        """Take what the forward pass would have found from the records of sampling, and return the recorded scores."""
        if self.log is not None:
            self.log.fill()
        self.states = [entry_states(self.policy.tuner, self.batch, chunk) for chunk in self.chunks]
        self.known = recorded_scores(self.batch)
        return self.known

    def backward(self, gradient: Tensor, of_exits: Sequence[Tensor] = ()) -> list[Tensor | None]:
        """Gradients of `entry` and of `parameters`, zeros where nothing depends on one of these."""
        sums = [torch.zeros_like(parameter) for parameter in self.parameters]
        with self._recomputation():
            if isinstance(self.options.gradient, int):
                self._backward_blocks(gradient, sums)
                return [*sums]
            carried = _Carried()
            exits = dict(zip(self.over, as_exits(of_exits, len(self.over)), strict=True))
            for index in reversed(range(len(self.chunks))):
                carried = self._backward_chunk(index, gradient, carried, sums, exits)
        given = [*(carried.past or ()), *(carried.states or ())] if self.is_given else []
        return [*given, *sums]

    def _backward_chunk(
        self, index: int, gradient: Tensor, carried: _Carried, sums: list[Tensor], exits: dict[int, Exit]
    ) -> _Carried:
        """Run one chunk again and back; a call of its own, so that everything but what it returns is let go."""
        assert self.log is not None
        chunk = self.chunks[index]
        entry = _as_leaves(Boundary(past=self.log.read(index, chunk), states=self.states[index]), chunk.rows)
        with torch.enable_grad():
            scores, leaving = self._run(chunk, entry, known=self._part(self.known, chunk))
        outputs, gradients = _pair_up(scores, leaving, self._part((gradient,), chunk), carried)
        for row in rows_over_in(self.batch, chunk, self.over):
            with torch.enable_grad():
                pairs = zip(exit_of_row(self.batch, chunk, row, leaving).tensors, exits[row].tensors, strict=True)
            differentiable = [pair for pair in pairs if pair[0].requires_grad]
            outputs += [output for output, _ in differentiable]
            gradients += [value for _, value in differentiable]
        keys_values, states = _flat(entry)
        found = torch.autograd.grad(outputs, [*keys_values, *states, *self.parameters], gradients, allow_unused=True)
        _add(sums, found[len(keys_values) + len(states) :])
        return _Carried(
            past=None if cuts_past(chunk, self.options.gradient) else list(found[: len(keys_values)]),
            states=None
            if cuts_states(chunk, self.options.gradient)
            else list(found[len(keys_values) : len(keys_values) + len(states)]),
        )

    def _backward_blocks(self, gradient: Tensor, sums: list[Tensor]) -> None:
        assert isinstance(self.options.gradient, int)
        size, entry = self.options.gradient, Boundary()
        for _, block in groupby(self.chunks, key=lambda chunk: chunk.segment // size):
            outputs: list[Tensor] = []
            gradients: list[Tensor] = []
            for chunk in block:
                with torch.enable_grad():
                    scores, entry = self._run(chunk, cut(entry, chunk, size), known=self._part(self.known, chunk))
                outputs.extend(scores[:1])
                gradients.extend(self._part((gradient,), chunk)[: len(scores)])
            if outputs:
                _add(sums, torch.autograd.grad(outputs, self.parameters, gradients, allow_unused=True))

    def _run(
        self, chunk: Chunk, entry: Boundary, known: tuple[Tensor, ...] | None
    ) -> tuple[tuple[Tensor, ...], Boundary]:
        return run_chunk(
            self.policy,
            self.batch,
            chunk,
            entry,
            self.score,
            anchored=self.options.anchored,
            checkpoint_layers=self.options.checkpoint_layers and torch.is_grad_enabled(),
            known=known,
        )

    def _recomputation(self) -> AbstractContextManager[Any]:
        return torch.autocast(**self.autocast)

    @staticmethod
    def _part(joined: Sequence[Tensor], chunk: Chunk) -> tuple[Tensor, ...]:
        """The columns and rows of one chunk."""
        return tuple(tensor[: chunk.rows, chunk.first_score : chunk.last_score] for tensor in joined)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Carried:
    """Gradients of a chunk's exit: of keys and values (flat, per layer), and of states. None: nothing arrives."""

    past: list[Tensor | None] | None = None
    states: list[Tensor | None] | None = None


def _as_leaves(entry: Boundary, rows: int) -> Boundary:
    """Entry tensors as leaves of the chunk's own graph, cut to its rows."""
    past, states = entry.past, entry.states
    if past is not None:
        past = [(keys.detach().requires_grad_(), values.detach().requires_grad_()) for keys, values in past]
    if states is not None:
        states = [state[:rows].detach().requires_grad_() for state in states]
    return Boundary(past=past, states=states)


def _flat(boundary: Boundary) -> tuple[list[Tensor], list[Tensor]]:
    """(keys and values of all layers in one list, states of all layers)."""
    past = [tensor for pair in boundary.past or () for tensor in pair]
    return past, list(boundary.states or ())


def _pair_up(
    scores: tuple[Tensor, ...], leaving: Boundary, gradient: tuple[Tensor, ...], carried: _Carried
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs of a chunk that receive a gradient, and the gradients."""
    outputs, gradients = list(scores[:1]), list(gradient[: len(scores)])
    for tensors, arriving in zip(_flat(leaving), (carried.past, carried.states), strict=True):
        for tensor, value in zip(tensors, arriving or [None] * len(tensors), strict=True):
            if value is not None and tensor.requires_grad:
                outputs.append(tensor)
                gradients.append(with_rows(value, tensor.shape[0]))
    return outputs, gradients


def _add(sums: list[Tensor], found: Sequence[Tensor | None]) -> None:
    for total, value in zip(sums, found, strict=True):
        if value is not None:
            total.add_(value)
