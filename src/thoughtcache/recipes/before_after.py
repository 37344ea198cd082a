"""Did it help? Held-out questions, asked before and after every stage of a run, with and without the window.

The questions are chosen by a digest of their prompts, so that the same ones are held out whatever the order of the data
is and however many rows are read, and nothing is trained on them. Answers are greedy; accuracies have Wilson intervals,
and every row is compared with the base under the window, question by question.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

from peft import PeftModel
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from thoughtcache.chains.thinking import Thinking
from thoughtcache.config import ThoughtConfig
from thoughtcache.evaluation.generations import Generation
from thoughtcache.evaluation.paired import PairedDifference, compare
from thoughtcache.evaluation.sampling import Sampling, Task, sample_answers
from thoughtcache.evaluation.scores import SuiteScores, score
from thoughtcache.measuring.peak_memory import peak_memory_of
from thoughtcache.recipes.evaluate.table import percent, points, without_empty
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.recipes.run.folder import PhaseResult, RunFolder
from thoughtcache.recipes.run.reward_names import DEFAULT_REWARD, function_name
from thoughtcache.records import TokenFilters
from thoughtcache.report.files import replace_file
from thoughtcache.report.progress import plain_line, progress_bar
from thoughtcache.report.tables import markdown, print_cells
from thoughtcache.tasks.data.references import reference_fault
from thoughtcache.tasks.example import Example

Questions = tuple[list[Example], list[list[int]]]
"""Examples and the token ids of their prompts."""
MOST_HELD_OUT, SHARE_HELD_OUT = 32, 0.1
FULL, WINDOWED, START = "base, full cache", "base, window", "adapter at the start"
TABLE = "before_after.md"
HEADER = (
    "who is asked",
    "right (95 %)",
    "less base, window",
    "less LoRA_c",
    "cut",
    "tokens",
    "evictions",
    "seconds",
    "peak MiB",
)


def unjudged(run: RunConfig, examples: Sequence[Example]) -> str | None:
    """Why some answer cannot be judged, as a clause; None if all can, as where the reward compares with references."""
    if run.reward is None:
        return None
    return next((fault for one in examples if (fault := reference_fault(one.answer, run.answer_type))), None)


def num_held_out(run: RunConfig, num_questions: int, fault: str | None = None) -> int:
    """Questions that a run holds out: as many as it says, or a tenth of all, at most `MOST_HELD_OUT`.

    Args:
        run: its settings.
        num_questions: all questions.
        fault: see `unjudged`; with one nothing is held out by default.

    Raises:
        ValueError: if it says all of them, or more, or if they cannot be judged.
    """
    if fault is not None:
        if run.held_out:
            raise ValueError(
                f"held_out={run.held_out} questions are judged by reference answers, and a row has one {fault}; "
                "leave it out, or add answers"
            )
        return 0
    if run.held_out is not None:
        if run.held_out >= num_questions:
            raise ValueError(
                f"held_out={run.held_out} leaves nothing to train on: there are {num_questions} questions; hold out "
                "fewer, or give more"
            )
        return run.held_out
    return min(MOST_HELD_OUT, int(SHARE_HELD_OUT * num_questions))


def why_none_held_out(fault: str | None) -> str:
    """Why a run that did not say how many questions it holds out holds out none; `fault`: see `unjudged`."""
    if fault is not None:
        return f"they are judged by reference answers, and a row has one {fault}"
    return f"there are fewer than {round(1 / SHARE_HELD_OUT)}, of which a tenth is none; --held-out says another number"


def split_questions(
    examples: Sequence[Example], prompts: Sequence[list[int]], count: int
) -> tuple[Questions, Questions]:
    """(what is trained on, what is held out), each as examples and their prompts, in the order of the data.

    The questions with the smallest digests of their prompts are held out, equal prompts together.

    Args:
        examples: all questions.
        prompts: their token ids.
        count: questions that are held out; more, if the last of them has a prompt like others.
    """

    def digest(prompt: list[int]) -> bytes:
        return hashlib.blake2b(repr(prompt).encode(), digest_size=16).digest()

    digests = [digest(prompt) for prompt in prompts]
    bound = sorted(digests)[count - 1] if count else b""
    pairs = list(zip(examples, prompts, digests, strict=True))
    trained = [(example, prompt) for example, prompt, own in pairs if own > bound]
    held_out = [(example, prompt) for example, prompt, own in pairs if own <= bound]
    return _unzipped(trained), _unzipped(held_out)


def _unzipped(pairs: Sequence[tuple[Example, list[int]]]) -> Questions:
    return [example for example, _ in pairs], [prompt for _, prompt in pairs]


@dataclass(kw_only=True)
class BeforeAfter:
    """The rows of the table.

    Attributes:
        run: the settings of the run.
        thought: settings of its adapter.
        folder: keeps what was asked, so that a run that goes on asks nothing twice.
        examples: the held-out questions.
        prompts: their token ids.
        thinking: how the run thinks in links; None for one context.
        tokenizer: tokenizer of the model.
        console: where progress and the table go.
        prefix: text in front of the lines of the run's progress.
    """

    run: RunConfig
    thought: ThoughtConfig
    folder: RunFolder
    examples: list[Example]
    prompts: list[list[int]]
    thinking: Thinking | None
    tokenizer: PreTrainedTokenizerBase
    console: Console
    prefix: str = ""

    def __post_init__(self) -> None:
        self.rows: dict[str, PhaseResult] = {}
        self.beside: dict[str, str] = {}

    def stand_beside(self, rows: Mapping[str, PhaseResult], name: str) -> None:
        """Take in the rows of another run that was asked the same, each with what it is compared with here.

        Args:
            rows: its rows.
            name: what its rows are called, before their own names.
        """
        for row, found in rows.items():
            if row not in (FULL, WINDOWED, START):
                self.rows[f"{name}, {row}"] = found
                self.beside[row] = f"{name}, {row}"

    def ask_base(self, model: PeftModel, *, fits_in_full: bool) -> None:
        """Ask the base, with its full cache if its positions reach so far, and under the window of the run."""
        if not self.examples:
            return
        with model.disable_adapter():
            if fits_in_full:
                self._ask(FULL, model, None)
            else:
                plain_line(self.console, f"{FULL}: not asked, the lengths are beyond the positions of the model")
            window = self.thought.window_size(max(map(len, self.prompts)))
            if window is not None:
                self._ask(WINDOWED, model, window)

    def ask(self, name: str, model: PeftModel, num_steps: int | None = None) -> None:
        """Ask the adapter as it is now, under its own cache.

        Args:
            name: name of the row.
            model: the adapted model.
            num_steps: steps of the stage that it comes from; with another number it is asked again.
        """
        if self.examples:
            self._ask(name, model, self.thought.window_size(max(map(len, self.prompts))), num_steps)

    def _ask(self, name: str, model: PeftModel, window: int | None, num_steps: int | None = None) -> None:
        def work(path: Path, resume: bool) -> PhaseResult:
            return self._answers(name, model, window)

        self.rows[name] = self.folder.phase(row_phase(name), work, num_steps=num_steps)

    def _answers(self, name: str, model: PeftModel, window: int | None) -> PhaseResult:
        tasks = [
            Task(
                suite="held out", example=replace(example, identifier=str(number)), prompt_ids=prompt, sample=0,
                temperature=0.0, max_new_tokens=self.run.max_new_tokens,
            )
            for number, (example, prompt) in enumerate(zip(self.examples, self.prompts, strict=True))
        ]  # fmt: skip
        sampling = Sampling(
            window=window, num_slots=self.run.grpo_batch_size, seed=self.run.seed, filters=TokenFilters(),
            stop_strings=(), pack_weights=self.run.pack_weights, thinking=self.thinking,
        )  # fmt: skip
        memory = peak_memory_of(next(model.parameters()).device)
        found: list[Generation] = []
        started = monotonic()
        with (
            progress_bar(f"{self.prefix}held out: {name}", len(tasks), console=self.console) as advance,
            memory or nullcontext(),
        ):

            def keep(generation: Generation) -> None:
                found.append(generation)
                advance(1, tokens=generation.num_tokens)

            was_training = model.training
            model.eval()
            sample_answers(model, self.tokenizer, tasks, sampling, keep)
            model.train(was_training)
        return {
            "answers": [asdict(one) for one in sorted(found, key=lambda one: int(one.question))],
            "seconds": monotonic() - started,
            "peak_memory_mib": None if memory is None else memory.peak_mib,
        }

    @property
    def title(self) -> str:
        """What the table shows: how many questions, who judges their answers, and what GRPO maximises instead."""
        own = [function_name(name) for name in self.run.reward or () if name != DEFAULT_REWARD]
        maximised = f", while GRPO maximises {', '.join(own)}" if own else ""
        return f"did it help? n = {len(self.examples)}, greedy, judged by reference answers{maximised}"

    def report(self) -> dict[str, Any] | None:
        """Print and write the table; returns its numbers, or None if nothing was asked."""
        if not self.rows:
            return None
        compared = scores, less, beside = self._compared()
        body = [self._cells(name, own, less.get(name), beside.get(name)) for name, own in scores.items()]
        header, rows = without_empty(HEADER, body)
        print_cells(self.title, header, rows, self.console)
        table = replace_file(self.folder.path / TABLE, f"{self.title}\n\n{markdown(header, rows)}".encode())
        plain_line(self.console, f"before and after: {table}")
        return self._numbers(*compared)

    def numbers(self) -> dict[str, Any]:
        """The numbers of the table."""
        return self._numbers(*self._compared())

    def _numbers(
        self,
        scores: Mapping[str, SuiteScores],
        less: Mapping[str, PairedDifference],
        beside: Mapping[str, PairedDifference],
    ) -> dict[str, Any]:
        return {
            name: {
                "accuracy": asdict(own.accuracy),
                "truncated": own.truncated,
                "tokens_mean": own.tokens["mean"],
                "evictions_mean": own.evictions_mean,
                "reasons": own.reasons,
                "seconds": self.rows[name]["seconds"],
                "peak_memory_mib": self.rows[name]["peak_memory_mib"],
                "less_base_window": _as_json(less.get(name)),
                **({"less_lora": _as_json(beside[name])} if name in beside else {}),
            }
            for name, own in scores.items()
        }

    def _compared(self) -> tuple[dict[str, SuiteScores], dict[str, PairedDifference], dict[str, PairedDifference]]:
        """Scores of every row, and question by question what it is less.

        That is the base under the window, for every other row, and the baseline after the same stage, if there is one.
        """
        answers = {name: answers_of(row) for name, row in self.rows.items()}
        scores = {name: score(found) for name, found in answers.items()}
        right = {name: {one.question: float(one.correct) for one in found} for name, found in answers.items()}
        beside = {name: compare(right[other], right[name]) for name, other in self.beside.items() if name in right}
        window = right.pop(WINDOWED, None)
        less = {} if window is None else {name: compare(window, own) for name, own in right.items()}
        return scores, less, beside

    def _cells(
        self, name: str, own: SuiteScores, less: PairedDifference | None, beside: PairedDifference | None
    ) -> list[str]:
        peak = self.rows[name]["peak_memory_mib"]
        return [
            name,
            percent(own.accuracy),
            "" if less is None else points(less),
            "" if beside is None else points(beside),
            f"{100 * own.truncated:.1f} %",
            f"{own.tokens['mean']:,.0f}",
            f"{own.evictions_mean:.1f}" if own.evictions_mean else "",
            f"{self.rows[name]['seconds']:,.1f}",
            "" if peak is None else f"{peak:,.0f}",
        ]


def _as_json(found: PairedDifference | None) -> dict[str, Any] | None:
    return None if found is None else {**asdict(found), "difference": found.difference}


def row_phase(name: str) -> str:
    """The phase of a run folder that keeps the answers of a row."""
    return f"ask-{name.replace(', ', '-').replace(' ', '-')}"


def answers_of(row: PhaseResult) -> list[Generation]:
    """The answers that a phase has kept."""
    return [Generation(**one) for one in row["answers"]]
