"""A file of questions and a file of answers: a line of JSON each, written as soon as an answer is there."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from thoughtcache.chains.chain import Chain, links_of
from thoughtcache.checks import at_least_one, one_of
from thoughtcache.ends import stop_token_ids
from thoughtcache.evaluation.record_file import Record, RecordFile
from thoughtcache.evaluation.sampling import sample_seed
from thoughtcache.policy.handle import find_tuner
from thoughtcache.recipes.generate.asking import Asking, Speaker
from thoughtcache.recipes.load_adapter import WEIGHTS
from thoughtcache.recipes.prompts import encoded_by
from thoughtcache.recipes.run.settings import adapter_settings, data_identity, differences, model_identities
from thoughtcache.records import Rollout
from thoughtcache.report.files import replace_file, writing
from thoughtcache.report.progress import loading, plain_line, progress_bar
from thoughtcache.sampler.events import Event, Finished
from thoughtcache.tasks.data.bad_rows import BAD_ROWS
from thoughtcache.tasks.data.datasets import load_prompts

_REMEDY = "free some space or choose another --output; --resume goes on with what was written"


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered(Record):
    """One answer.

    Attributes:
        index: number of the question in its file, from 0, rows that were left out not counted.
        messages: the question as chat messages.
        text: the answer, special tokens left out.
        tokens: tokens that were sampled.
        finish_reason: "stop", or "length" if it was cut.
        evictions: evictions.
    """

    index: int
    messages: list[dict[str, str]]
    text: str
    tokens: int
    finish_reason: str
    evictions: int

    @property
    def key(self) -> tuple[str, int]:
        """Its number, which a file has once."""
        return "", self.index


@dataclass(frozen=True, kw_only=True, slots=True)
class Questions:
    """A file of questions and where its answers go.

    Attributes:
        questions: see `load_prompts`; answers in it are not looked at.
        output: the file of answers; beside it lies OUTPUT.run.json with the settings.
        prompt_column: column with the question; found by name if None.
        limit: the first rows only.
        batch_size: answers sampled at once.
        bad_rows: "refuse" or "drop" rows without a usable question.
        resume: go on with an output that is there.
        overwrite: replace an output that is there.
    """

    questions: str
    output: str
    prompt_column: str | None = None
    limit: int | None = None
    batch_size: int = 8
    bad_rows: str = "refuse"
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        at_least_one(self, "batch_size")
        one_of("bad_rows", self.bad_rows, BAD_ROWS)
        if self.resume and self.overwrite:
            raise ValueError("resume=True goes on with an output and overwrite=True replaces it; give one of them")


def answer_questions(
    asked: Questions,
    asking: Asking,
    console: Console,
    *,
    make_speaker: Callable[[Asking], Speaker] = Speaker,
) -> list[Answered]:
    """Answer a file of questions; what was answered before stays, under the same settings alone.

    An answer depends on the settings, its question and how many equal ones stand before it, not on what else is asked,
    or when; under `window="prompt"`, the length of the longest prompt of the file, on that length too.

    Args:
        asked: questions and answers.
        asking: how the adapter is asked.
        console: where progress goes.
        make_speaker: loads the adapter.

    Returns:
        All answers in the order of the questions, as they then lie in the file.

    Raises:
        ValueError: if the output is there and neither resumed nor overwritten, or was made with other settings, if the
            adapter cannot answer, or if a row has no usable question. Whatever is refused leaves an older output as it
            was.
    """
    output = Path(asked.output)
    marker = output.with_name(f"{output.name}.run.json")
    _check_output(asked, output, marker)
    report = partial(plain_line, console)
    examples = load_prompts(
        asked.questions,
        prompt_column=asked.prompt_column,
        limit=asked.limit,
        bad_rows=asked.bad_rows,
        report=report,
    )
    with loading(asking.model, console):
        speaker = make_speaker(asking)
    examples, prompts = encoded_by(speaker.encode, examples, bad_rows=asked.bad_rows, report=report)
    speaker.check(prompts)
    described = _described(speaker, prompts)
    if asked.resume:
        _check_settings(marker, described, output)
    seeds = question_seeds(asking.seed, prompts)
    with writing(output.parent, _REMEDY):
        if asked.overwrite:
            output.unlink(missing_ok=True)
        replace_file(marker, (json.dumps(described, indent=1) + "\n").encode())
        with RecordFile(output, Answered) as file:
            done = {one.index for one in file.found}
            todo = [row for row in range(len(prompts)) if row not in done]
            found = list(file.found)
            with progress_bar("answers", len(todo), console=console) as advance:

                def keep(place: int, trace: Rollout | Chain) -> None:
                    row = todo[place]
                    record = Answered(
                        index=row, messages=examples[row].messages, text=speaker.text(trace),
                        tokens=len(trace.token_ids), finish_reason=trace.finish_reason,
                        evictions=sum(len(link.evictions) for link in links_of([trace])),
                    )  # fmt: skip
                    file.add(record)
                    found.append(record)
                    advance(1, tokens=record.tokens)

                def hear(event: Event) -> None:
                    if asking.thinking is None and isinstance(event, Finished):
                        keep(event.request, event.rollout)

                if todo:
                    speaker.sample(
                        prompts, seeds=seeds, rows=todo, batch_size=asked.batch_size, on_event=hear, on_chain=keep
                    )
        found.sort(key=lambda one: one.index)
        lines = (json.dumps(asdict(one), ensure_ascii=True) + "\n" for one in found)
        replace_file(output, "".join(lines).encode())
    plain_line(
        console, f"answers: {output} ({len(found)}, {sum(one.finish_reason == 'length' for one in found)} of them cut)"
    )
    return found


def question_seeds(seed: int, prompts: Sequence[list[int]]) -> list[int]:
    """A seed for every prompt; equal ones are samples of one question, in their order.

    Args:
        seed: seed of the settings.
        prompts: token ids.
    """
    times: Counter[str] = Counter()
    seeds = []
    for prompt in map(json.dumps, prompts):
        seeds.append(sample_seed(seed, prompt, times[prompt]))
        times[prompt] += 1
    return seeds


def _described(speaker: Speaker, prompts: Sequence[list[int]]) -> dict[str, Any]:
    """All that answers depend on, as JSON data."""
    asking, tuner = speaker.asking, find_tuner(speaker.model)
    asked = {name: value for name, value in asdict(asking).items() if not name.startswith("eviction")}
    described = {
        **asked,
        "thought": adapter_settings(tuner.thought_config),  # with the eviction that was asked for, and scores of a file
        "end": stop_token_ids(tuner.model.generation_config.eos_token_id, speaker.tokenizer),
        **model_identities(tuner.model.config, asking.model, Path(asking.adapter) / WEIGHTS),
        "data_digest": data_identity(prompts),
    }
    return dict(json.loads(json.dumps(described)))


def _check_output(asked: Questions, output: Path, marker: Path) -> None:
    if output.is_dir():
        raise ValueError(f"{output} is a folder; give a file for the answers, such as {output / 'answers.jsonl'}")
    if output.exists() and not (asked.resume or asked.overwrite):
        raise ValueError(
            f"{output} exists already; add --resume to go on, --overwrite to replace it, or choose another"
        )
    if asked.resume and not marker.is_file():
        raise ValueError(f"there is nothing to resume: {marker} is missing; leave out --resume")


def _check_settings(marker: Path, described: dict[str, Any], output: Path) -> None:
    try:
        before = json.loads(marker.read_text())
    except ValueError as error:
        raise ValueError(f"{marker} is damaged ({error}); use --overwrite to start anew") from error
    found = differences(before, described)
    if found:
        changes = "; ".join(f"{name}={old!r} then, {name}={new!r} now" for name, old, new in found)
        raise ValueError(
            f"{output} was made with other settings ({changes:.300}); choose another --output, or --overwrite to "
            "start anew"
        )
