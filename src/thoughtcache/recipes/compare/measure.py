"""What is measured of one policy under one window: divergence, lost attention output, seconds, bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from time import monotonic

from peft import PeftModel

from thoughtcache.cache.eviction import EVICTION_POLICIES
from thoughtcache.policy.handle import find_tuner
from thoughtcache.policy.other_cache import changes_nothing
from thoughtcache.recipes.compare.config import CompareRun
from thoughtcache.recipes.run.folder import PhaseResult
from thoughtcache.records import Rollout
from thoughtcache.sampler.given import given_text, with_own_evictions
from thoughtcache.studies.arms import Arm
from thoughtcache.studies.attention_share import FullCache, squared_distances
from thoughtcache.studies.decode_cost import DecodeCost, policy_bytes, timed_evictions
from thoughtcache.studies.held_out import HeldOut, summary
from thoughtcache.studies.passes import Text, texts_under

SLIDING = "sliding"


class Measurement:
    """Measures policies on the same texts.

    Args:
        run: the settings.
        model: the base with an adapter that changes nothing.
        texts: pairs of a prompt and thoughts.
    """

    def __init__(self, run: CompareRun, model: PeftModel, texts: Sequence[Text]) -> None:
        self.run, self.model, self.texts = run, model.eval(), texts
        self._held_out: HeldOut | None = None
        self._full: FullCache | None = None

    def arm(self, policy: str, slots: int) -> Arm:
        """The base under a policy."""
        cache = {"evict_fraction": self.run.evict_fraction, "positions": self.run.positions}
        return Arm(name=policy, config=changes_nothing(window=slots, eviction=policy, **cache))

    def usable(self, policies: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """The policies that work with this model, "sliding" first, and why the others do not.

        Args:
            policies: names; empty for all of the package.

        Raises:
            ValueError: if one that is named does not work.
        """
        found, refused = [SLIDING], {}
        for policy in policies or EVICTION_POLICIES:
            if policy == SLIDING:
                continue
            try:
                with self.arm(policy, self.run.window[0]).active(self.model):
                    policy_bytes(self.model, find_tuner(self.model).thought_config.resolve_window(None))
            except ValueError as error:
                if policies:
                    raise
                refused[policy] = str(error)
            else:
                found.append(policy)
        return found, refused

    def lost(self, window: int) -> PhaseResult:
        """The attention output that the newest `window` thoughts lose, by text and layer.

        Returns:
            full: squared output of the full cache; error: squared distance from it.
        """
        full = self._full_cache()
        with self.arm(SLIDING, window).active(self.model):
            rollouts = self._rollouts(self.texts[: self.run.share_texts])
            start = full.prompt_columns + rollouts[0].evictions[0].before_token
            error = squared_distances(self.model, rollouts, full.inputs, full.outputs, start, None)
        return {"full": full.squares(start).tolist(), "error": error.tolist(), "start": start}

    def policy(self, policy: str, window: int, lost: PhaseResult) -> PhaseResult:
        """Everything about one policy.

        Args:
            policy: its name.
            window: resident thoughts, to which the extra slots are added.
            lost: what `lost` says of that window.

        Returns:
            before: KL to the full cache before the first eviction of `window`, nats per token.
            by_text: the same after it, for every text.
            error: squared distance from the full cache's attention output, by text and layer.
            costs: `DecodeCost` of every pass over the first batch.
            of_sliding: the same of "sliding", each pass right before one of this policy.
            bytes: what the policy keeps, per sequence.
        """
        begun, slots, run = monotonic(), window + self.run.extra_tokens, self.run
        arm = self.arm(policy, slots)
        costs: list[DecodeCost] = []
        of_sliding: list[DecodeCost] = []
        first = self.texts[: run.batch_size]
        for _ in range(max(1, run.repeats)):
            if run.repeats:
                with self.arm(SLIDING, slots).active(self.model):
                    of_sliding.append(timed_evictions(self.model, self._rollouts(first))[1])
            with arm.active(self.model):
                rows, cost = timed_evictions(self.model, self._rollouts(first))
            costs.append(cost)
        with arm.active(self.model):
            for start in range(len(first), len(self.texts), run.batch_size):
                batch = self.texts[start : start + run.batch_size]
                rows += with_own_evictions(self.model, self._rollouts(batch, start))
            self._held_out = self._held_out or HeldOut(self.model, rows)
            found = summary(self._held_out.under(self.model, rows), window)
            full = self._full_cache()
            error = squared_distances(
                self.model, rows[: run.share_texts], full.inputs, full.outputs, lost["start"], None
            )
            kept = policy_bytes(self.model, find_tuner(self.model).thought_config.resolve_window(None))
        return {
            "before": found.before,
            "by_text": found.by_text,
            "error": error.tolist(),
            "costs": [asdict(one) for one in costs],
            "of_sliding": [asdict(one) for one in of_sliding],
            "bytes": kept,
            "elapsed_seconds": monotonic() - begun,
        }

    def _rollouts(self, texts: Sequence[Text], first: int = 0) -> list[Rollout]:
        """Texts under the active adapter's cache; `first` is the number of the first one."""
        cache = find_tuner(self.model).thought_config.resolve_window(None)
        return texts_under(texts, cache, seed=self.run.seed + first)

    def _full_cache(self) -> FullCache:
        if self._full is None:
            cache = find_tuner(self.model).thought_config.resolve_window(None)
            texts = [given_text(*text, cache, seed=0) for text in self.texts[: self.run.share_texts]]
            self._full = FullCache.of(self.model, texts)
        return self._full
