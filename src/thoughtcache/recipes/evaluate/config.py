"""Everything that an evaluation is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from thoughtcache.adapter.support import DTYPES
from thoughtcache.cache.eviction import OptionValue
from thoughtcache.chains.table import check_thinking
from thoughtcache.checks import at_least_one, one_of
from thoughtcache.config import OWN_WINDOW
from thoughtcache.evaluation.suites import SAMPLED_TEMPERATURE, SUITES, Suite, find_suite, own_suite
from thoughtcache.evaluation.thinking.definition import DeepThinking
from thoughtcache.evaluation.thinking.selection import NUM_SAMPLES, ThinkAtN
from thoughtcache.records import TokenFilters
from thoughtcache.sampler.draw.stop_strings import check_stop_strings
from thoughtcache.sampler.request import check_temperature
from thoughtcache.tasks.embedded.reasoner import FOLDERS
from thoughtcache.tasks.maths.answer_types import ANSWER_TYPES

THINK = "think@n"


@dataclass(frozen=True, kw_only=True)
class EvalRun:
    r"""Settings of an evaluation. Each field is an option of `thoughtcache eval`.

    Attributes:
        suite: suites, each a name of `SUITES`, or `name=PATH` with a file, folder or hub id; another name than those of
            `SUITES` is a suite of one's own.
        data: folder with a folder for each suite, instead of the hub.
        model: folder or hub id of a transformers model; None for the packaged reasoner, which knows its own suites.
        adapter: folder of an adapter; None asks the base model alone.
        dtype: dtype of the base model.
        tokenizer: folder or hub id of another tokenizer and chat template than those of the adapter or the model.
        instruction: text after each question, "" for none; None takes what the adapter was trained with, else what the
            suite says.
        system: system message before each question, or None.
        samples: answers per question; None for what the suite says, 48 with `select`, and 1 at temperature 0.
        temperature: temperature of the sampling, 0 for greedy; None for what the suite says, and 0.6 for several
            samples.
        top_p: see `thoughtcache.rollout`.
        top_k: see there.
        max_new_tokens: bound on the tokens of an answer; None for what the suite says.
        stop: texts that end an answer, which ends with them.
        limit: use the first questions of each suite only; by name, of those that are named; None for all.
        prompt_column: column with the question; found by name if None.
        answer_column: column with the answer; found by name if None.
        answer_type: how answers are compared; None for what the suite says.
        bad_rows: "refuse" or "drop" rows without a usable question or answer.
        window: resident thoughts: an integer, "prompt" (the longest prompt of the run) or None for the full cache;
            `OWN_WINDOW` is the adapter's own, and the full cache for the base model.
        evict_fraction: share of the window that leaves when it is full; None for the adapter's own, 0.25 for the base.
        positions: "absolute" or "rolling"; None for the adapter's own, "absolute" for the base.
        eviction: eviction policy; None for the adapter's own, "sliding" for the base.
        eviction_options: settings of that policy.
        eviction_budgets: thoughts of every layer; see `BoundedModel`.
        thinking: answer in links, "markovian" or "folding" (`chains/table.py`); `max_new_tokens` then bounds all links
            together. None for one context.
        thinking_options: its settings as texts, by name.
        select: "think@n" finishes the answers that think deepest and lets them vote; None finishes all.
        think_prefix: with it, tokens that every answer is begun with.
        think_keep: share of the answers to a question that are finished.
        think_threshold: divergence from the last layer at which a token has settled; `DeepThinking` has this and the
            next four.
        think_depth: which of the layers count as late.
        think_reading: "equation" or "algorithm".
        think_norm: apply the final norm to the outputs of layers.
        think_log_base: "2" or "e".
        think_finish_rest: finish the other answers as well, for maj@n on the same samples.
        batch_size: answers that are sampled at once.
        pack_weights: sample from a faster copy of the weights on a CPU.
        seed: every answer's own seed is made of this, the question and the number of the sample.
        output_dir: folder of the run: generations.jsonl, table.md, eval.png, results.json.
        resume: go on where the run in the folder stopped, or with more samples.
        overwrite: start anew in a folder that holds another run.

    Raises:
        ValueError: for a value that is unknown or out of range, or a combination without a meaning.
    """

    suite: Sequence[str]
    data: str | None = None
    model: str | None = None
    adapter: str | None = None
    dtype: str = "float32"
    tokenizer: str | None = None
    instruction: str | None = None
    system: str | None = None
    samples: int | None = None
    temperature: float | None = None
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int | None = None
    stop: Sequence[str] = ()
    limit: int | Mapping[str, int] | None = None
    prompt_column: str | None = None
    answer_column: str | None = None
    answer_type: str | None = None
    bad_rows: str = "refuse"
    window: int | str | None = OWN_WINDOW
    evict_fraction: float | None = None
    positions: str | None = None
    eviction: str | None = None
    eviction_options: Mapping[str, OptionValue] | None = None
    eviction_budgets: str | list[int] | list[list[int]] | None = None
    thinking: str | None = None
    thinking_options: Mapping[str, str] | None = None
    select: str | None = None
    think_prefix: int = 50
    think_keep: float = 0.5
    think_threshold: float = 0.5
    think_depth: float = 0.85
    think_reading: str = "equation"
    think_norm: bool = True
    think_log_base: str = "2"
    think_finish_rest: bool = False
    batch_size: int = 32
    pack_weights: bool = True
    seed: int = 0
    output_dir: str = "runs/eval"
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        one_of("dtype", self.dtype, DTYPES)
        one_of("bad_rows", self.bad_rows, ("refuse", "drop"))
        at_least_one(self, "batch_size")
        at_least_one(self, "samples", "max_new_tokens", optional=True)
        if self.answer_type is not None:
            one_of("answer_type", self.answer_type, ANSWER_TYPES)
        check_thinking(self.thinking, self.thinking_options, self.stop)
        check_stop_strings(self.stop)
        TokenFilters(top_p=self.top_p, top_k=self.top_k)  # refuses what is out of range
        if self.temperature is not None:
            check_temperature(self.temperature)
        if self.temperature == 0 and self.samples is not None and self.samples > 1:
            raise ValueError(
                f"samples={self.samples} would all be the same at temperature=0; leave out one of them, "
                "or set a temperature"
            )
        if self.resume and self.overwrite:
            raise ValueError("resume=True goes on with a run and overwrite=True forgets it; give one of them")
        if not self.suite:
            raise ValueError(f"suite names no suite; choose from {', '.join(SUITES)}, or give name=PATH")
        names = [name for name, _ in self.named_paths()]
        if len(set(names)) < len(names):
            raise ValueError(f"suite names one several times ({', '.join(names)}); name each one once")
        for name, path in self.named_paths():
            if path is None and find_suite(name) is None:
                raise ValueError(
                    f"suite={name!r} is not known; choose from {', '.join(SUITES)}, chains-N, or give {name}=PATH for "
                    "questions of your own"
                )
            embedded = suite_of(name).embedded is not None
            if embedded and path is not None:
                raise ValueError(f"suite={name!r} makes its questions itself and takes no path; leave out {path!r}")
            if not embedded and self.model is None:
                raise ValueError(f"suite={name!r} needs a model: add --model with a folder or hub id")

        if self.model is None:
            self.packaged_model()
        self._check_limits(names)
        self._refuse_without_effect()
        self._check_selection()

    def packaged_model(self) -> Path:
        """Folder of the embedded reasoner that solves the suites of this run.

        Raises:
            ValueError: if no single one does.
        """
        tasks = [str(suite_of(name).embedded) for name, _ in self.named_paths()]
        folders = {task: FOLDERS[task] for task in tasks}
        if len(set(folders.values())) > 1:
            raise ValueError(
                f"suite names tasks of several packaged models ({', '.join(folders)}); ask them in runs of their own, "
                "or give a model"
            )
        return next(iter(folders.values()))

    def _check_limits(self, names: Sequence[str]) -> None:
        """Refuse a number that leaves no question, and one for a suite that is not asked."""
        limits = self.limit if isinstance(self.limit, Mapping) else {None: self.limit}
        for name, number in limits.items():
            if name is not None and name not in names:
                raise ValueError(f"limit must be of suites of this run ({', '.join(names)}), got one of {name!r}")
            if number is not None and number < 1:
                of = "" if name is None else f" of {name}"
                raise ValueError(f"limit{of} must be at least 1 question or None, got {number}")

    def limit_of(self, name: str) -> int | None:
        """Questions of a suite, the first ones; None for what the suite says, or all."""
        return self.limit.get(name) if isinstance(self.limit, Mapping) else self.limit

    def _check_selection(self) -> None:
        """Refuse a selection that has nothing to choose from, and settings of one without it."""
        if self.select is None:
            for field in fields(self):
                value = getattr(self, field.name)
                if field.name.startswith("think_") and value != field.default:
                    raise ValueError(f'{field.name}={value!r} changes nothing without select="{THINK}"; give both')
            return
        one_of("select", self.select, (THINK,))
        if self.thinking is not None:
            raise ValueError(
                f"select={self.select} chooses by the beginnings of answers, and of an answer in links, "
                f"thinking={self.thinking}, a beginning is not defined; leave out one of them"
            )
        selection = self.selection
        assert selection is not None
        for name, _ in self.named_paths():
            samples, temperature, max_new_tokens = self.asked(suite_of(name))
            selection.num_kept(samples)
            if temperature == 0:
                raise ValueError(f"suite {name}: {THINK} chooses among samples, and temperature=0 draws none; raise it")
            if max_new_tokens <= self.think_prefix:
                raise ValueError(
                    f"suite {name}: think_prefix={self.think_prefix} must be below max_new_tokens={max_new_tokens}, or "
                    "no answer is left to finish"
                )

    @property
    def selection(self) -> ThinkAtN | None:
        """Which answers are finished; None for all.

        Raises:
            ValueError: if a setting is out of range.
        """
        if self.select is None:
            return None
        definition = DeepThinking(
            threshold=self.think_threshold,
            depth=self.think_depth,
            reading=self.think_reading,
            norm=self.think_norm,
            log_base=self.think_log_base,
        )
        return ThinkAtN(
            definition=definition,
            prefix_tokens=self.think_prefix,
            keep=self.think_keep,
            finish_rest=self.think_finish_rest,
        )

    def _refuse_without_effect(self) -> None:
        """Refuse settings that no suite of the run reads."""
        suites = [(suite_of(name), path) for name, path in self.named_paths()]
        of_text = [(suite, path) for suite, path in suites if suite.embedded is None]
        if self.data is not None and all(path is not None for _, path in of_text):
            raise ValueError(f"data={self.data!r} changes nothing, because no suite is looked for there; leave it out")
        for name in ("instruction", "system", "prompt_column", "answer_column", "answer_type"):
            value = getattr(self, name)
            if value is not None and not of_text:
                raise ValueError(
                    f"{name}={value!r} is for questions of text, which embedded suites are not; leave it out"
                )
        greedy = all(self.asked(suite)[1] == 0 for suite, _ in suites)
        for name, value, off in (("top_p", self.top_p, 1.0), ("top_k", self.top_k, 0)):
            if greedy and value != off:
                raise ValueError(
                    f"{name}={value} changes nothing in greedy decoding; leave it out, or set a temperature"
                )

    def named_paths(self) -> list[tuple[str, str | None]]:
        """(name, path or None) of each suite."""
        pairs = [text.partition("=") for text in self.suite]
        return [(name.strip(), path.strip() if equals else None) for name, equals, path in pairs]

    def asked(self, suite: Suite) -> tuple[int, float, int]:
        """Samples per question, temperature and bound on the tokens for a suite."""
        usual = NUM_SAMPLES if self.select == THINK else suite.samples
        samples = self.samples if self.samples is not None else (1 if self.temperature == 0 else usual)
        temperature = self.temperature if self.temperature is not None else suite.temperature
        if self.temperature is None and samples > 1 and temperature == 0:
            temperature = SAMPLED_TEMPERATURE
        return samples, temperature, self.max_new_tokens or suite.max_new_tokens


def suite_of(name: str) -> Suite:
    """The suite of this name, or one of the user's own."""
    return find_suite(name) or own_suite(name)
