"""Execution 2: the learner repeats a rollout segment by segment, with gradient.

The learner decides nothing: lengths give the segments, the record gives the evicted slots, the anchors give the states
(their recorded values with the gradient of the recomputed ones). Loss functions take what comes out.

Gradient modes:
    "exact"     through keys, values and states of all segments;
    "detached"  keys and values are cut at every segment boundary, the states are not (cheaper, and biased: measured);
    n           exact inside blocks of n segments; keys, values and states are cut between blocks.

Memory grows with the rollout in the exact mode: activations of all segments are kept by autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from thoughtcache.adapter.model import ThoughtModel
from thoughtcache.cache import ReplayCache
from thoughtcache.cache.bounded_cache import States, split_slots
from thoughtcache.cache.schedule import segments
from thoughtcache.config import GradientMode
from thoughtcache.policy.batch import RolloutBatch, batch_rollouts
from thoughtcache.policy.handle import PolicyHandle, open_policy
from thoughtcache.policy.token_logprobs import in_chunks, token_logprobs
from thoughtcache.records import Rollout, TokenLogProbs

ScoreFunction = Callable[[Float[Tensor, "B n d"], int, int], tuple[Float[Tensor, "B n"], ...]]
Past = list[tuple[Tensor, Tensor]]


def replay(
    model: nn.Module,
    rollouts: Sequence[Rollout],
    *,
    gradient: GradientMode = "exact",
    anchored: bool = True,
    full_cache: bool = False,
) -> TokenLogProbs:
    """Log-probabilities of the sampled tokens under the policy that sampled them; differentiable.

    Args:
        model: the adapted model, wrapped (DDP, accelerate) or not; the call goes through its `forward`.
        rollouts: sequences sampled under one set of cache settings.
        gradient: "exact", "detached" or the number of segments per exact block.
        anchored: use the recorded states (with the gradient of the recomputed ones). Right as long as the weights are
            those that sampled; turn it off after an optimiser step.
        full_cache: score without evictions, for a full-context reference.

    Raises:
        ValueError: for unknown modes, empty input, mixed settings, or anchors of another shape.
    """
    check_gradient_mode(gradient)
    policy = open_policy(model)
    batch = batch_rollouts(rollouts, policy.device)
    if full_cache:
        batch = replace(batch, settings=replace(batch.settings, window=None, num_evicted=None))

    def score(hidden: Tensor, start: int, stop: int) -> tuple[Tensor, ...]:
        targets = batch.token_ids[:, start:stop]
        temperature = batch.settings.scoring_temperature

        def rows(hidden_rows: Tensor, target_rows: Tensor) -> tuple[Tensor, ...]:
            return token_logprobs(hidden_rows, target_rows, policy.head, temperature)

        flat = in_chunks(rows, policy.tuner.model.config.vocab_size, hidden.flatten(0, 1), targets.flatten())
        return tuple(column.view(targets.shape) for column in flat)

    logprobs, entropies = run_replay(model, batch, score, gradient=gradient, anchored=anchored)
    zero = logprobs.new_zeros(())
    return TokenLogProbs(
        logprobs=torch.where(batch.mask, logprobs, zero),
        mask=batch.mask,
        entropies=torch.where(batch.mask, entropies, zero.to(entropies.dtype)),
    )


def check_gradient_mode(gradient: GradientMode) -> None:
    """Refuse anything but "exact", "detached" and positive integers.

    Raises:
        ValueError: with the allowed values.
    """
    if gradient in ("exact", "detached") or (isinstance(gradient, int) and gradient >= 1):
        return
    raise ValueError(f'gradient={gradient!r} is not known; use "exact", "detached" or a positive number of segments')


def run_replay(
    model: nn.Module, batch: RolloutBatch, score: ScoreFunction, *, gradient: GradientMode, anchored: bool
) -> tuple[Tensor, ...]:
    """Run all segments through the wrapped model and join the scores to [B, T] tensors.

    Args:
        model: adapted model, wrapped or not.
        batch: the rollouts.
        score: (hidden states that predict thoughts start..stop, start, stop) -> tensors [B, stop - start].
        gradient: see the module.
        anchored: see `replay`.
    """
    policy = open_policy(model)

    def request(tuner: ThoughtModel) -> tuple[Tensor, ...]:
        return _run_segments(policy, batch, score, gradient, anchored)

    outputs: tuple[Tensor, ...] = model(thought_request=request)
    return outputs


@dataclass(frozen=True, kw_only=True, slots=True)
class _Boundary:
    """What passes from one segment to the next."""

    past: Past
    states: States


def _run_segments(
    policy: PolicyHandle, batch: RolloutBatch, score: ScoreFunction, gradient: GradientMode, anchored: bool
) -> tuple[Tensor, ...]:
    tuner, settings = policy.tuner, batch.settings
    absorb = tuner.absorber()
    states = tuner.initial_states() if tuner.adapter_enabled else None
    width = batch.prompts.ids.shape[1]
    past: Past | None = None
    scores: list[tuple[Tensor, ...]] = []
    parts = segments(batch.longest - 1, settings.window, settings.num_evicted)
    for index, part in enumerate(parts):
        if past is not None:
            assert settings.num_evicted is not None
            past, states = _detach(past, states, index, gradient)
            past, evicted = _evict(past, width, _slots(batch, index - 1, policy), settings.num_evicted)
            if absorb is not None and states is not None:
                updated = absorb(states, [k for k, _ in evicted], [v for _, v in evicted])
                updated = _freeze_finished(updated, states, _active_rows(batch, part.start))
                states = _anchor(updated, batch, index - 1) if anchored else updated
        start = 0 if index == 0 else width + part.start
        stop = width + part.stop
        cache = ReplayCache(tuner.num_layers, past, start, states)
        resident = cache.physical_length + (stop - start) - width
        output = policy.backbone(
            input_ids=batch.inputs(start, stop),
            attention_mask=batch.prompts.physical_mask(resident),
            position_ids=batch.prompts.positions(start, stop),
            past_key_values=cache,
            use_cache=True,
        )
        hidden = output.last_hidden_state[:, width - 1 :] if index == 0 else output.last_hidden_state
        scores.append(score(hidden, 0 if index == 0 else part.start + 1, part.stop + 1))
        past = [(layer.keys, layer.values) for layer in cache.layers]
    joined = tuple(torch.cat(column, dim=1) for column in zip(*scores, strict=True))
    return (joined[0] + _touch_encoders(tuner), *joined[1:])


def _touch_encoders(tuner: ThoughtModel) -> Tensor | float:
    """A zero that depends on every encoder parameter: short batches use few of them, and DDP wants all."""
    if not torch.is_grad_enabled() or not tuner.adapter_enabled:
        return 0.0
    parameters = [p for encoder in tuner.encoders() for p in encoder.parameters() if p.requires_grad]
    return sum((0.0 * p.sum() for p in parameters), start=0.0)


def _detach(past: Past, states: States, index: int, gradient: GradientMode) -> tuple[Past, States]:
    """Cut what the gradient mode cuts on entry to segment `index` (from 1)."""
    block_ends = isinstance(gradient, int) and index % gradient == 0
    if gradient == "detached" or block_ends:
        past = [(keys.detach(), values.detach()) for keys, values in past]
    if block_ends and states is not None:
        states = [state.detach() for state in states]
    return past, states


def _evict(past: Past, width: int, slots: Tensor | None, num_evicted: int) -> tuple[Past, Past]:
    """(what stays: prompt and kept thoughts, what leaves), per layer."""
    kept_layers, evicted_layers = [], []
    for layer, tensors in enumerate(past):
        chosen = None if slots is None else slots[:, layer]
        pairs = [split_slots(tensor[:, :, width:], chosen, num_evicted) for tensor in tensors]
        evicted_layers.append((pairs[0][0], pairs[1][0]))
        joined = [torch.cat([t[:, :, :width], kept], dim=2) for t, (_, kept) in zip(tensors, pairs, strict=True)]
        kept_layers.append((joined[0], joined[1]))
    return kept_layers, evicted_layers


def _slots(batch: RolloutBatch, event: int, policy: PolicyHandle) -> Tensor | None:
    """[B, L, H, E] recorded slots of one eviction; rows that had ended repeat a valid dummy. None: the oldest."""
    recorded = [r.evictions[event].slots if event < len(r.evictions) else None for r in batch.rollouts]
    example = next((slots for slots in recorded if slots is not None), None)
    if example is None:
        return None
    dummy = torch.arange(example.shape[-1], device=example.device).expand_as(example)
    return torch.stack([dummy if slots is None else slots for slots in recorded]).to(policy.device)


def _active_rows(batch: RolloutBatch, before_token: int) -> Bool[Tensor, "B 1 1"]:
    """Rows that really process thought input `before_token`."""
    active = [before_token <= length - 2 for length in batch.lengths]
    return torch.tensor(active, device=batch.token_ids.device)[:, None, None]


def _freeze_finished(updated: list[Tensor], before: list[Tensor], active: Tensor) -> list[Tensor]:
    return [torch.where(active, new, old) for new, old in zip(updated, before, strict=True)]


def _anchor(states: list[Tensor], batch: RolloutBatch, event: int) -> list[Tensor]:
    """Recorded values, recomputed gradients (straight-through), on rows that recorded this eviction."""
    anchored = []
    for layer, state in enumerate(states):
        value = state.detach().clone()
        for row, record in enumerate(batch.rollouts):
            if record.states is not None and event < record.states.shape[0]:
                if record.states.shape[2:] != state.shape[1:]:
                    raise ValueError(
                        f"rollout {row} recorded states of shape {tuple(record.states.shape[2:])}, the adapter has "
                        f"{tuple(state.shape[1:])}; replay it with the adapter that sampled it"
                    )
                value[row] = record.states[event, layer].to(value)
        anchored.append(state + (value - state.detach()))
    return anchored
