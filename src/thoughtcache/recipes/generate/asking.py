"""A loaded adapter that is asked: settings, and one answer to messages, as a whole and while it is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from thoughtcache.adapter.positions import check_positions
from thoughtcache.cache.eviction import OptionValue
from thoughtcache.chains.chain import Chain
from thoughtcache.chains.lengths import check_links
from thoughtcache.chains.sample import check_chain_filters, rollout_chains
from thoughtcache.chains.table import check_thinking, make_thinking
from thoughtcache.checks import at_least_one
from thoughtcache.policy.handle import find_tuner, open_policy
from thoughtcache.policy.token_ids import check_prompts
from thoughtcache.recipes.generate.text_stream import TextStream
from thoughtcache.recipes.load_adapter import load_adapted
from thoughtcache.records import Rollout, TokenFilters
from thoughtcache.sampler.draw.inverse_cdf import row_seeds
from thoughtcache.sampler.draw.stop_strings import check_stop_strings
from thoughtcache.sampler.events import Event, Tokens
from thoughtcache.sampler.going_on import check_goes_on
from thoughtcache.sampler.request import check_filters
from thoughtcache.sampler.rollout import rollout
from thoughtcache.sampler.sequence import check_leaves_last
from thoughtcache.tasks.chat import encode_prompt
from thoughtcache.tasks.saved_prompt import saved_instruction

Messages = Sequence[dict[str, str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Asking:
    """How a saved adapter is asked.

    Tokenizer and chat template are those that training saved with the adapter; without a saved tokenizer the base's
    is taken. Answers end where completions ended in training (`thoughtcache/ends.py`).

    Attributes:
        model: folder or hub id of the base model.
        adapter: folder of the adapter.
        max_new_tokens: length of the thoughts.
        temperature: 0 decodes greedily.
        dtype: dtype of the base model.
        top_k: see `thoughtcache.rollout`, as the next five.
        top_p: see there.
        min_p: see there.
        repetition_penalty: see there.
        min_new_tokens: see there.
        seed: see there.
        stop: texts that end the completion, which ends with them.
        eviction: another eviction policy than the adapter's.
        eviction_options: settings of that policy.
        eviction_budgets: other budgets than the adapter's, as in `ThoughtConfig`, or "even".
        thinking: think in links, "markovian" or "folding"; None for one context. `max_new_tokens` bounds all links.
        thinking_options: its settings as texts (`chains/table.py`).
        instruction: text after the last message; None for the one of training, "" for none.
        system: system message, unless the messages begin with one; None for none.

    Raises:
        ValueError: for values that are out of range or have no meaning together.
    """

    model: str
    adapter: str
    max_new_tokens: int = 512
    temperature: float = 0.0
    dtype: str = "float32"
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    min_new_tokens: int = 0
    seed: int = 0
    stop: Sequence[str] = ()
    eviction: str | None = None
    eviction_options: Mapping[str, OptionValue] | None = None
    eviction_budgets: str | list[int] | list[list[int]] | None = None
    thinking: str | None = None
    thinking_options: Mapping[str, str] | None = None
    instruction: str | None = None
    system: str | None = None

    def __post_init__(self) -> None:
        check_thinking(self.thinking, self.thinking_options, self.stop)
        if self.thinking is not None:
            check_chain_filters(self.filters)
        check_stop_strings(self.stop)
        row_seeds(self.seed, 1)
        at_least_one(self, "max_new_tokens")
        check_filters(self.filters, self.temperature, self.max_new_tokens)

    @property
    def filters(self) -> TokenFilters:
        """What makes the distribution that is drawn from another than the model's."""
        return TokenFilters(
            top_k=self.top_k, top_p=self.top_p, min_p=self.min_p, repetition_penalty=self.repetition_penalty,
            min_new_tokens=self.min_new_tokens,
        )  # fmt: skip


class Speaker:
    """The adapter of an `Asking`, loaded once.

    Args:
        asking: how it is asked.

    Raises:
        ValueError: if the folder holds no adapter, a damaged one, or one for another base model.
    """

    def __init__(self, asking: Asking) -> None:
        self.asking = asking
        self.model: PeftModel
        self.tokenizer: PreTrainedTokenizerBase
        self.model, self.tokenizer = load_adapted(
            asking.model, asking.adapter, asking.dtype, eviction=asking.eviction,
            eviction_options=asking.eviction_options, cache={"eviction_budgets": asking.eviction_budgets},
        )  # fmt: skip
        own = asking.instruction
        self._instruction = saved_instruction(asking.adapter) if own is None else own or None
        self._thinking = (
            None if asking.thinking is None else make_thinking(asking.thinking, asking.thinking_options, self.tokenizer)
        )

    def encode(self, messages: Messages) -> list[int]:
        """Token ids of the prompt that messages make.

        Raises:
            ValueError: as `encode_prompt`.
        """
        return encode_prompt(self.tokenizer, messages, system=self.asking.system, instruction=self._instruction)

    def check(self, prompts: Sequence[list[int]]) -> None:
        """Refuse prompts that `sample` could not answer to their end, before anything is written.

        Raises:
            ValueError: if an answer could come beyond the model's positions, links have no room for a second one
                behind the longest prompt, or cannot keep what was written under the cache.
        """
        policy, most = open_policy(self.model), self.asking.max_new_tokens
        check_prompts(prompts, policy)
        longest = max(map(len, prompts))
        cache = policy.tuner.thought_config.resolve_window(longest)
        if self._thinking is None:
            check_positions(longest, most, policy.reach, rolling_window=cache.rolling_window)
            return
        self._thinking.check(longest, most)
        if self._thinking.keeps_written:
            check_goes_on(cache)
        if self._thinking.leaves_last:
            check_leaves_last(cache)
        check_links(self._thinking, longest, most, policy.reach, rolling_window=cache.rolling_window)

    def text(self, trace: Rollout | Chain) -> str:
        """The text of an answer, special tokens left out."""
        return str(self.tokenizer.decode(trace.token_ids, skip_special_tokens=True))

    def answer(self, messages: Messages, tell: Callable[[str], None] | None = None) -> str:
        """The answer to messages.

        Args:
            messages: "role" and "content" of each; the last one is the user's.
            tell: gets every new piece of the text as soon as it is there; an answer in links comes as one piece.

        Raises:
            ValueError: if the messages make no prompt, and as `check`.
        """
        prompt_ids = self.encode(messages)
        self.check([prompt_ids])
        stream = TextStream(self.tokenizer, (lambda piece: None) if tell is None else tell)

        def hear(event: Event) -> None:
            if isinstance(event, Tokens):
                stream.add(event.token_ids)

        trace = self.sample([prompt_ids], on_event=hear, stream=tell is not None)[0]
        text = self.text(trace)
        stream.end(text)
        return text

    def sample(
        self,
        prompts: Sequence[list[int]],
        *,
        seeds: Sequence[int] | None = None,
        rows: Sequence[int] | None = None,
        batch_size: int | None = None,
        on_event: Callable[[Event], None] | None = None,
        stream: bool = False,
        on_chain: Callable[[int, Chain], None] | None = None,
    ) -> list[Rollout] | list[Chain]:
        """Answers to prompts, one each.

        Args:
            prompts: token ids of all prompts, which decide on a window of their length.
            seeds: a seed for each; None draws all of them from the seed of the settings.
            rows: sample only these of them.
            batch_size: answers sampled at once, all of them by default.
            on_event: see `rollout`.
            stream: see there.
            on_chain: see `rollout_chains`, by the place in `rows`.
        """
        own = self.asking
        chosen = list(range(len(prompts))) if rows is None else list(rows)
        if self._thinking is None:
            return rollout(
                self.model, prompts, max_new_tokens=own.max_new_tokens, temperature=own.temperature,
                **asdict(own.filters),
                seed=own.seed if seeds is None else list(seeds), stop_strings=own.stop, tokenizer=self.tokenizer,
                anchors=False, rows=chosen, batch_size=batch_size, on_event=on_event, stream=stream,
            )  # fmt: skip
        longest = max(map(len, prompts))
        window = find_tuner(self.model).thought_config.window_size(longest)
        return rollout_chains(
            self.model, [prompts[row] for row in chosen], self._thinking, max_new_tokens=own.max_new_tokens,
            temperature=own.temperature, filters=own.filters, window=window,
            seed=own.seed if seeds is None else [seeds[row] for row in chosen], tokenizer=self.tokenizer, anchors=False,
            batch_size=batch_size, on_event=on_event, on_chain=on_chain,
        )  # fmt: skip
