"""The model `thoughtcache` of lm-evaluation-harness: an adapter or a base under a bounded cache.

A context is the prompt, which stays in the cache, and a continuation or generation is the thoughts. So the window does
nothing to short answers. `prompt_tokens` makes it bound the context as well: its first tokens are the prompt then, and
the others leave like thoughts. A text of `loglikelihood_rolling` has the prefix token as its prompt.

Not covered: several processes, "auto" batch sizes, settings of an eviction policy, tasks with images or audio.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import model_registry
from lm_eval.models.utils import has_bos_prefix, normalize_gen_kwargs, postprocess_generated_text

from thoughtcache.adapter.positions import position_reach
from thoughtcache.config import OWN_WINDOW
from thoughtcache.evaluation.continuations import Continuation, score_continuations
from thoughtcache.harness.generation import asked, request_of
from thoughtcache.policy.handle import find_tuner
from thoughtcache.recipes.bounded import BoundedModel
from thoughtcache.records import CacheSettings
from thoughtcache.report.progress import progress_bar
from thoughtcache.sampler.engine import Engine
from thoughtcache.sampler.events import Finished

NAME = "thoughtcache"
MAX_GEN_TOKENS, UNKNOWN_LENGTH = 256, 2048
"""What the harness's own backend takes where nothing is said."""
Encoded = tuple[Any, list[int], list[int]]
"""Key of a request, its context and its continuation."""


def register() -> None:
    """Make the model known to the harness of this process."""
    import lm_eval.models  # noqa: F401  # or the harness would find a registry that is not empty, and not fill it

    if NAME not in model_registry:
        model_registry.register(NAME)(ThoughtCacheLM)


class ThoughtCacheLM(TemplateLM):  # type: ignore[misc]
    """A model of the harness. Its arguments are those of `--model_args`.

    Args:
        pretrained: folder or hub id of the base model.
        adapter: folder of an adapter; None for the base alone.
        dtype: dtype of the base model.
        tokenizer: folder or hub id of another tokenizer.
        window: resident thoughts: an integer, "prompt" (the longest one of a call) or None for the full cache; that of
            the adapter if it is left out, and the full cache for the base.
        evict_fraction: see `BoundedModel`, as the next two.
        positions: "absolute" or "rolling".
        eviction: eviction policy.
        prompt_tokens: first tokens of a context that stay in the cache; None for all.
        batch_size: texts that are passed or sampled at once.
        max_length: most tokens that are passed through the model. None takes one less than its positions, because the
            token that is predicted last counts as well here. With rolling positions it may be any number.
        add_bos_token: begin every text with the tokenizer's first token, or do not; None leaves it to the tokenizer.
        max_gen_toks: bound on a generation whose task has none.
        seed: seed of samplings, and of eviction policies that draw.
        device: where the model is; it is on the GPU if there is one.
        max_batch_size: not used, because no batch size is looked for.

    Raises:
        ValueError: if the model, the adapter or the cache cannot be used, or an argument is out of range.
    """

    def __init__(
        self,
        pretrained: str,
        adapter: str | None = None,
        dtype: str = "float32",
        tokenizer: str | None = None,
        window: int | str | None = OWN_WINDOW,
        evict_fraction: float | None = None,
        positions: str | None = None,
        eviction: str | None = None,
        prompt_tokens: int | None = None,
        batch_size: int | str = 8,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        max_gen_toks: int = MAX_GEN_TOKENS,
        seed: int = 0,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(f"batch_size must be a number of texts from 1 on, got {batch_size!r}")
        if max_batch_size is not None:
            raise ValueError(f"max_batch_size={max_batch_size} is for batch_size=auto; leave it out")
        if prompt_tokens is not None and prompt_tokens < 1:
            raise ValueError(
                f"prompt_tokens must be at least 1 token, or left out for whole contexts, got {prompt_tokens}"
            )
        bounded = BoundedModel(
            model=pretrained,
            adapter=adapter,
            dtype=dtype,
            tokenizer=tokenizer,
            window=window,
            evict_fraction=evict_fraction,
            positions=positions,
            eviction=eviction,
        )
        self.window, self.prompt_tokens, self.seed = window, prompt_tokens, seed
        self.texts_at_once, self.add_bos_token, self.max_gen_toks = int(batch_size), add_bos_token, max_gen_toks
        self.model, self.tokenizer, self.thought = bounded.load()
        base: Any = find_tuner(self.model).model
        self._device = base.device
        if device is not None and base.device.type != device.partition(":")[0]:
            raise ValueError(f"device={device!r} was asked for, and the model is on {base.device}; leave device out")
        self.max_length = max_length or (position_reach(base.config).positions or UNKNOWN_LENGTH + 1) - 1

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token that a text without a context is conditioned on."""
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else int(first)

    @property
    def tokenizer_name(self) -> str:
        """Name under which the harness keeps requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    @property
    def batch_size(self) -> int:
        """Texts that are passed at once."""
        return self.texts_at_once

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the text of a prompt."""
        text = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return str(text)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Tokens of a text, with special tokens where the tokenizer or `add_bos_token` says so, and never twice."""
        wanted = self.add_bos_token if add_special_tokens is None else add_special_tokens
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            wanted = False
        options = {} if wanted is None else {"add_special_tokens": wanted}
        return list(self.tokenizer.encode(string, **options))

    def _loglikelihood_tokens(
        self, requests: Sequence[Encoded], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """(sum of log-probabilities, whether greedy decoding would give it) of every continuation."""
        if not requests:
            return []
        texts = [self._split(context, continuation) for _, context, continuation in requests]
        cache = self._cache([text.prompt_ids for text in texts])
        with progress_bar("texts", len(texts)) as advance:
            scores = score_continuations(
                self.model,
                texts,
                cache,
                batch_size=self.texts_at_once,
                seed=self.seed,
                progress=None if disable_tqdm else advance,
            )
        found = [(score.logprob, score.is_greedy) for score in scores]
        for (key, _, _), answer in zip(requests, found, strict=True):
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, answer)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts. One that is longer than the model's positions is cut into windows of them."""
        encoded: list[Encoded] = []
        owners = []
        for number, request in enumerate(requests):
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            own = [(None, *utils.make_disjoint_window(one)) for one in windows]
            encoded += own
            owners += [number] * len(own)
        sums = [0.0] * len(requests)
        for number, (logprob, _) in zip(owners, self._loglikelihood_tokens(encoded, disable_tqdm), strict=True):
            sums[number] += logprob
        for request, total in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """A text for every context, up to the first stop string or end-of-sequence token."""
        if not requests:
            return []
        wanted = [asked(normalize_gen_kwargs(request.args[1], self.max_gen_toks)) for request in requests]
        contexts = []
        for own, request in zip(wanted, requests, strict=True):
            room = self.max_length - own.max_new_tokens
            if room < 1:
                raise ValueError(
                    f"a generation of {own.max_new_tokens} tokens leaves no room for a context in max_length="
                    f"{self.max_length}; lower max_gen_toks"
                )
            contexts.append((self.tok_encode(request.args[0]) or [self.prefix_token_id])[-room:])
        prompts = [self._num_prompt(context) for context in contexts]
        cache = self._cache([context[:count] for context, count in zip(contexts, prompts, strict=True)])
        engine = Engine(
            self.model,
            num_slots=min(self.texts_at_once, len(requests)),
            window=cache.window,
            tokenizer=self.tokenizer,
            max_prompt_tokens=max(prompts),
            anchors=False,
        )
        numbers = {
            engine.add(request_of(own, context, count, self.seed + number)): number
            for number, (own, context, count) in enumerate(zip(wanted, contexts, prompts, strict=True))
        }
        texts = [""] * len(requests)
        engine.drain()
        with engine, progress_bar("generations", len(requests)) as advance:
            while not engine.is_idle:
                for event in engine.step():
                    if isinstance(event, Finished):
                        number = numbers[event.request]
                        begun = len(contexts[number]) - prompts[number]
                        texts[number] = self._text(event.rollout.token_ids[begun:], wanted[number].stop_strings)
                        self.cache_hook.add_partial("generate_until", requests[number].args, texts[number])
                        if not disable_tqdm:
                            advance()
        return texts

    def _text(self, token_ids: list[int], stop_strings: Sequence[str]) -> str:
        """A generation without special tokens, stop strings, and what stands behind them."""
        text = str(self.tokenizer.decode(token_ids, skip_special_tokens=True))
        return str(postprocess_generated_text(text, stop=list(stop_strings), think_end_token=None))

    def _split(self, context: list[int], continuation: list[int]) -> Continuation:
        """A context and its continuation, cut on the left as the harness's own backend cuts it."""
        kept = context[-max(1, self.max_length + 1 - len(continuation)) :]
        count = self._num_prompt(kept)
        return Continuation(
            prompt_ids=kept[:count], thought_ids=kept[count:] + continuation, num_scored=len(continuation)
        )

    def _num_prompt(self, context: Sequence[int]) -> int:
        return len(context) if self.prompt_tokens is None else min(self.prompt_tokens, len(context))

    def _cache(self, prompts: Sequence[Sequence[int]]) -> CacheSettings:
        return self.thought.resolve_window(max(map(len, prompts)), self.window)
