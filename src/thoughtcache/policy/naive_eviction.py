"""The choice of a scored eviction policy, in loops over tokens and heads; the twin of the choice that is recorded.

Letters as in `naive.py`. Queries come from the attention of the model; all that is made of them here is this file's and
the policy's own naive form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from thoughtcache.cache.eviction import ScoredEviction, make_eviction_policy
from thoughtcache.cache.eviction.naive_view import NaiveHead
from thoughtcache.policy.handle import PolicyHandle
from thoughtcache.records import SamplingSettings
from thoughtcache.state.memory import NaiveToken

TokenKV = NaiveToken


class NaiveEviction:
    """The queries and running scores of one sequence.

    Args:
        policy: the parts of the model.
        settings: settings under which the sequence was sampled; its eviction policy scores.
        frequencies: angles of the rotary embedding, by layer; None in a layer without positions.

    Raises:
        ValueError: if the eviction policy does not score.
    """

    def __init__(self, policy: PolicyHandle, settings: SamplingSettings, frequencies: Sequence[Tensor | None]) -> None:
        eviction = make_eviction_policy(settings.eviction, dict(settings.eviction_options))
        if not isinstance(eviction, ScoredEviction) or settings.window is None:
            raise ValueError(
                f"eviction={settings.eviction!r} under window={settings.window} scores nothing, so that nothing can be "
                "chosen again; leave out choose=True"
            )
        self.eviction = eviction
        self.seed = settings.seed
        self.head_budgets = settings.head_budgets
        self.frequencies = frequencies
        self.num_evicted = settings.num_evicted or 0
        self.num_wanted = eviction.num_queries(settings.cache.smallest_budget or 0, self.num_evicted)
        layers: Any = policy.backbone.layers
        self.scaling = float(layers[0].self_attn.scaling)
        heads, _ = policy.tuner.kv_shape
        self.queries: list[list[list[list[Tensor]]]] = [[[] for _ in range(heads)] for _ in layers]
        self.scores: list[list[list[float]]] = [[[] for _ in range(heads)] for _ in layers]
        self._seen: dict[int, Tensor] = {}

    def observe(self, layer_index: int, queries: Tensor) -> None:
        """Told of the queries [1, Q, 1, D] of the token that is processed."""
        self._seen[layer_index] = queries[0, :, -1].detach()

    def note_thought(self, prompt: list[list[TokenKV]], thoughts: list[list[list[TokenKV]]]) -> None:
        """A thought was processed; its keys and values are the last of `thoughts`."""
        for layer, queries in enumerate(self.queries):
            seen, num_heads = self._seen[layer], len(queries)
            group = seen.shape[0] // num_heads
            for h in range(num_heads):
                queries[h].append([seen[h * group + i] for i in range(group)])
                queries[h] = queries[h][max(0, len(queries[h]) - self.num_wanted) :]
                self.scores[layer][h].append(0.0)
            for head in self._heads(layer, 0, prompt, thoughts):
                self.eviction.naive_step(head)

    def choose(
        self,
        layer: int,
        number: int,
        prompt: list[list[TokenKV]],
        thoughts: list[list[list[TokenKV]]],
        due: list[int],
        num_last: int = 0,
    ) -> list[list[int]]:
        """The slots that leave in every kv head of a layer, none in those not `due`; at eviction `number`, from 0.

        The newest `num_last` thoughts leave after all others, the oldest first.
        """
        heads = self._heads(layer, number, prompt, thoughts)
        for head in heads:
            head.num_last = num_last
        return [self.eviction.naive_select(head, self.num_evicted) if h in due else [] for h, head in enumerate(heads)]

    def leave(self, layer: int, chosen: list[list[int]]) -> None:
        """Scores leave with their thoughts."""
        for h, gone in enumerate(chosen):
            scores = self.scores[layer][h]
            self.scores[layer][h] = [score for slot, score in enumerate(scores) if slot not in gone]

    def turn(self, layer: int, turn: Callable[[Tensor, int], Tensor], steps: int) -> None:
        """With rolling positions queries move by as many positions as the next token does."""
        for h, queries in enumerate(self.queries[layer]):
            self.queries[layer][h] = [[turn(query, steps) for query in group] for group in queries]

    def _heads(
        self, layer: int, number: int, prompt: list[list[TokenKV]], thoughts: list[list[list[TokenKV]]]
    ) -> list[NaiveHead]:
        """All heads of a layer, each beside those of its own budget."""
        heads: list[NaiveHead] = []
        groups: dict[int, list[NaiveHead]] = {}  # by budget
        for h in range(len(self.queries[layer])):
            group = groups.setdefault(0 if self.head_budgets is None else self.head_budgets[layer][h], [])
            head = NaiveHead(
                scaling=self.scaling,
                prompt=[k[h].detach() for k, _, _ in prompt[layer]],
                keys=[kv[0].detach() for kv in thoughts[layer][h]],
                values=[kv[1].detach() for kv in thoughts[layer][h]],
                queries=self.queries[layer][h],
                scores=self.scores[layer][h],
                layer_index=layer,
                index=len(group),
                heads=group,
                first_head=group[0].first_head if group else h,
                num_evicted=self.num_evicted,
                event=(self.seed, number),
                frequencies=self.frequencies[layer],
            )
            heads.append(head)
            group.append(head)
        return heads
