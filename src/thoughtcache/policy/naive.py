"""Execution 3: the policy one sequence and one token at a time, as DESIGN section 2 says it. Slow on purpose.

Keys and values are Python lists with one entry per token; the state follows `state/naive.py`. No padding, no batch, no
preallocation, no anchors. `sampler/` and `learner/` are compared with this file in values and in all gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from thoughtcache.adapter.attention import QUERIES, thought_attention
from thoughtcache.adapter.cache_argument import cache_keyword
from thoughtcache.cache.layer_masks import GivenMasks, LayerMasks
from thoughtcache.cache.replay_cache import ReplayCache
from thoughtcache.cache.rotation import naive_turn
from thoughtcache.policy.continuations import begins_last, check_exact, rows_of_chains
from thoughtcache.policy.handle import PolicyHandle, open_policy
from thoughtcache.policy.limits import check_rollout_positions
from thoughtcache.policy.modes import GradientMode
from thoughtcache.policy.naive_eviction import NaiveEviction
from thoughtcache.policy.token_ids import check_rollouts
from thoughtcache.records import Rollout, SamplingSettings, TokenLogProbs
from thoughtcache.state.memory import NaiveToken

TokenKV = NaiveToken
"""Key, value, and the position at which the key stands."""
Turn = Callable[[Tensor, int], Tensor]


def naive_logprobs(
    model: nn.Module, rollouts: Sequence[Rollout], *, gradient: GradientMode = "exact", choose: bool = False
) -> TokenLogProbs:
    """Log-probabilities of the sampled tokens, by the definition; differentiable (keep it small).

    Args:
        model: the adapted model.
        rollouts: any rollouts; their settings and recorded slots are used, their states are not. A link that goes on
            from the cache of another one stands behind it.
        gradient: see `learner/replay.py`; each mode is defined here by where `.detach()` stands.
        choose: let the naive form of the eviction policy choose what leaves, instead of what was recorded
            (`naive_eviction.py`); for policies that score.

    Returns:
        One row per rollout, as `replay` gives them.

    Raises:
        ValueError: if `rollouts` is no list of rollouts of the model's tokens, if one is longer than the model's
            positions, or if a link stands alone.
    """
    policy = open_policy(model)
    check_rollouts(rollouts, policy)
    for rollout in rollouts:
        check_rollout_positions([rollout], rollout.settings, policy.reach)
    rows: list[tuple[Tensor, Tensor]] = []
    for chain in rows_of_chains(rollouts):
        left: Resident | None = None
        for row in chain:
            link = rollouts[row]
            entry = None if link.continues is None or left is None else fold(policy, left, link.continues.first_kept)
            if entry is not None:
                check_exact(gradient)
            logprobs, entropies, left = _one_sequence(policy, link, gradient, choose, entry)
            rows.append((logprobs, entropies))
    longest = max(len(row) for row, _ in rows)

    def pad(row: Tensor) -> Tensor:
        return nn.functional.pad(row, (0, longest - len(row)))

    lengths = torch.tensor([len(row) for row, _ in rows], device=policy.device)
    return TokenLogProbs(
        logprobs=torch.stack([pad(row) for row, _ in rows]),
        mask=torch.arange(longest, device=policy.device) < lengths[:, None],
        entropies=torch.stack([pad(entropy) for _, entropy in rows]),
    )


@dataclass(kw_only=True, slots=True)
class Resident:
    """The cache of one sequence after all but its last token were processed.

    Attributes:
        prompt: entries of every layer that never leave.
        thoughts: [layer][kv head][slot].
        S: the state of every layer; None where there is none.
        first: position of the first thought.
        position: position of the next token.
    """

    prompt: list[list[TokenKV]]
    thoughts: list[list[list[TokenKV]]]
    S: list[Tensor] | None
    first: int
    position: int


def fold(policy: PolicyHandle, cache: Resident, first_kept: int) -> Resident:
    """The cache of a link from that of the link before: thoughts in front of number `first_kept` leave, others stay.

    What leaves is absorbed at once. What stays is prompt from now on, at the positions at which it was written.
    """
    memory, prompt, S = policy.tuner.memory(), [], cache.S
    for layer, thoughts in enumerate(cache.thoughts):
        heads = range(len(thoughts))
        gone = [[slot for slot, kv in enumerate(held) if kv[2] < cache.first + first_kept] for held in thoughts]
        num_leaving = len(gone[0])
        assert all(len(slots) == num_leaving for slots in gone), "thoughts of a summary leave last, in every head"
        kept, leaving = _leave(thoughts, gone, num_leaving, list(heads))
        if S is not None and leaving:
            S = [*S[:layer], memory.naive_absorb(layer, S[layer], leaving), *S[layer + 1 :]]
        stay = [
            (torch.stack([kept[h][slot][0] for h in heads]), torch.stack([kept[h][slot][1] for h in heads]), position)
            for slot, (_, _, position) in enumerate(kept[0])
        ]
        prompt.append(cache.prompt[layer] + stay)
    empty: list[list[list[TokenKV]]] = [[[] for _ in thoughts] for thoughts in cache.thoughts]
    return Resident(prompt=prompt, thoughts=empty, S=S, first=cache.position + 1, position=cache.position)


def _one_sequence(
    policy: PolicyHandle, rollout: Rollout, gradient: GradientMode, choose: bool, entry: Resident | None
) -> tuple[Tensor, Tensor, Resident]:
    tuner, settings = policy.tuner, rollout.settings
    layers = range(tuner.num_layers)
    memory = tuner.memory()
    S: list[Tensor] | None = memory.naive_initial_states()
    prompt: list[list[TokenKV]] = [[] for _ in layers]
    heads = range(tuner.kv_shape[0])
    thoughts: list[list[list[TokenKV]]] = [[[] for _ in heads] for _ in layers]  # [layer][kv head][slot]
    inputs, begin, first = rollout.prompt_ids + rollout.token_ids[:-1], 0, len(rollout.prompt_ids)
    if entry is not None:
        prompt, S, begin, first = entry.prompt, entry.S, entry.position, entry.first
        inputs = inputs[len(rollout.prompt_ids) - 1 :]
    evictions = {event.before_token: (index + 1, event) for index, event in enumerate(rollout.evictions)}
    chooser = NaiveEviction(policy, settings, [_frequencies(policy, layer) for layer in layers]) if choose else None
    logprobs: list[Tensor] = []
    entropies: list[Tensor] = []
    for position, token in enumerate(inputs, begin):
        t = position - first
        if t in evictions:
            segment, event = evictions[t]
            cut = isinstance(gradient, int) and segment % gradient == 0
            if gradient == "detached" or cut:
                prompt = [[_cut(kv) for kv in layer] for layer in prompt]
                thoughts = [[[_cut(kv) for kv in held] for held in layer] for layer in thoughts]
            if cut and S is not None:
                S = [s.detach() for s in S]
            full = {
                layer: [h for h in heads if len(thoughts[layer][h]) == _budget(settings, layer, h)] for layer in layers
            }
            full = {layer: due for layer, due in full.items() if due}
            most = _most(thoughts)
            for place, (layer, due) in enumerate(full.items()):
                slots = None if event.slots is None else event.slots[place].tolist()
                if chooser is not None:
                    last = t - begins_last(rollout.token_ids[: t + 1], settings.leaves_last)
                    slots = chooser.choose(layer, segment - 1, prompt, thoughts, due, max(0, last))
                    chooser.leave(layer, slots)
                thoughts[layer], leaving = _leave(thoughts[layer], slots, event.num_tokens, due)
                if S is not None:
                    S[layer] = memory.naive_absorb(layer, S[layer], leaving)
            if settings.positions == "rolling":
                next_most = _most(thoughts)
                for layer, due in full.items():
                    frequencies = _frequencies(policy, layer)
                    turn = _stay if frequencies is None else partial(naive_turn, frequencies=frequencies)
                    for h in due:
                        following = len(rollout.prompt_ids) + next_most
                        thoughts[layer][h] = _side_by_side(thoughts[layer][h], following, turn)
                    if chooser is not None and most != next_most:
                        chooser.turn(layer, turn, next_most - most)
        rolls = settings.positions == "rolling" and t >= 0
        place = len(rollout.prompt_ids) + _most(thoughts) if rolls else position
        past = [_as_tensors(prompt[layer], thoughts[layer]) for layer in layers]
        cache = ReplayCache(
            tuner.num_layers,
            past if position else None,
            position,
            None if S is None else [s.unsqueeze(0) for s in S],
            memory.naive_reader(),
            num_prompt_columns=len(prompt[0]),
            masks=_masks(policy, len(prompt[0]), thoughts),
        )
        with nullcontext() if chooser is None else thought_attention(tuner.model.config):
            hidden = policy.backbone(
                input_ids=torch.tensor([[token]], device=policy.device),
                position_ids=torch.tensor([[place]], device=policy.device),
                use_cache=True,
                **cache_keyword(policy.backbone, cache),
                **({} if chooser is None else {QUERIES: chooser}),
            ).last_hidden_state[0, -1]
        for layer in layers:
            k, v = cache.layers[layer].keys[0, :, -1], cache.layers[layer].values[0, :, -1]  # [H, D]
            if t < 0:
                prompt[layer].append((k, v, place))
            else:
                for h in heads:
                    thoughts[layer][h].append((k[h], v[h], place))
        if chooser is not None and t >= 0:
            chooser.note_thought(prompt, thoughts)
        if t >= -1:
            logits = policy.head(hidden)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / settings.scoring_temperature
            p = logits.log_softmax(dim=-1)
            logprobs.append(p[rollout.token_ids[t + 1]])
            entropies.append(-(p.exp() * p).sum().detach())
    left = Resident(prompt=prompt, thoughts=thoughts, S=S, first=first, position=begin + len(inputs))
    return torch.stack(logprobs), torch.stack(entropies), left


def _cut(kv: TokenKV) -> TokenKV:
    return kv[0].detach(), kv[1].detach(), kv[2]


def _frequencies(policy: PolicyHandle, layer: int) -> Tensor | None:
    """Angle per position of the pairs of a key's entries; None in a layer without positions."""
    rotary: Any = policy.backbone.rotary_emb
    config = policy.tuner.model.config
    has_positions = (getattr(config, "no_rope_layers", None) or [1] * config.num_hidden_layers)[layer]
    frequencies: Tensor = rotary.inv_freq
    return frequencies if has_positions else None


def _budget(settings: SamplingSettings, layer: int, head: int) -> int | None:
    if settings.head_budgets is not None:
        return settings.head_budgets[layer][head]
    return settings.window if settings.budgets is None else settings.budgets[layer]


def _most(thoughts: list[list[list[TokenKV]]]) -> int:
    """Most thoughts that a head of any layer holds."""
    return max(len(held) for layer in thoughts for held in layer)


def _stay(key: Tensor, steps: int) -> Tensor:
    return key


def _leave(
    thoughts: list[list[TokenKV]], slots: list[list[int]] | None, num_tokens: int, due: list[int]
) -> tuple[list[list[TokenKV]], list[list[TokenKV | None]]]:
    """([H] thoughts that stay, [m][H] that leave); `slots[h]` leave in head h, or the oldest in every head of `due`."""
    heads = range(len(thoughts))
    gone = [[] if h not in due else list(range(num_tokens)) if slots is None else slots[h] for h in heads]
    leaving = [[thoughts[h][gone[h][m]] if gone[h] else None for h in heads] for m in range(num_tokens)]
    kept = [[kv for slot, kv in enumerate(thoughts[h]) if slot not in gone[h]] for h in heads]
    return kept, leaving


def _side_by_side(thoughts: list[TokenKV], following: int, turn: Turn) -> list[TokenKV]:
    """Thoughts of a head moved to the positions in front of the next token, which stands at `following`."""
    first = following - len(thoughts)
    return [_moved(kv, first + i, turn) for i, kv in enumerate(thoughts)]


def _moved(kv: TokenKV, position: int, turn: Turn) -> TokenKV:
    return turn(kv[0], position - kv[2]), kv[1], position


def _as_tensors(prompt: list[TokenKV], thoughts: list[list[TokenKV]]) -> tuple[Tensor, Tensor]:
    """[1, H, n, D] keys and values of one layer: the prompt, then the thoughts of each head.

    A head with fewer thoughts than others has something of its own in front of them, which `_masks` hides.
    """
    if not prompt:
        return torch.empty(0), torch.empty(0)
    longest = max(len(held) for held in thoughts)
    keys, values = [], []
    for h, held in enumerate(thoughts):
        missing = [torch.full_like(prompt[0][0][h], 3.0)] * (longest - len(held))
        keys.append(torch.stack([k[h] for k, _, _ in prompt] + missing + [k for k, _, _ in held]))
        values.append(torch.stack([v[h] for _, v, _ in prompt] + missing + [v for _, v, _ in held]))
    return torch.stack(keys).unsqueeze(0), torch.stack(values).unsqueeze(0)


def _masks(policy: PolicyHandle, num_prompt: int, thoughts: list[list[list[TokenKV]]]) -> LayerMasks | None:
    """What each query head sees of the columns of `_as_tensors` and of the new token; None if everything."""
    group = policy.tuner.query_heads // len(thoughts[0])
    masks: list[Tensor | None] = []
    for layer in thoughts:
        longest, seen = max(len(held) for held in layer), []
        for held in layer:
            row = [True] * num_prompt + [False] * (longest - len(held)) + [True] * (len(held) + 1)
            seen += [row] * group
        masks.append(None if all(map(all, seen)) else torch.tensor(seen, device=policy.device)[None, :, None])
    if all(mask is None for mask in masks):
        return None
    return GivenMasks(masks=masks)
