"""A file of questions and a file of answers: a line of JSON each, written as soon as an answer is there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from thoughtcache.chains.chain import Chain, links_of
from thoughtcache.evaluation.record_file import Record, RecordFile
from thoughtcache.evaluation.sampling import sample_seed
from thoughtcache.recipes.generate.asking import Asking, Speaker
from thoughtcache.recipes.load_adapter import WEIGHTS
from thoughtcache.recipes.run.settings import data_identity, differences, file_identity
from thoughtcache.records import Rollout
from thoughtcache.report.files import replace_file, writing
from thoughtcache.report.progress import plain_line, progress_bar
from thoughtcache.sampler.events import Event, Finished
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
        resume: go on with an output that is there.
        overwrite: replace an output that is there.
    """

    questions: str
    output: str
    prompt_column: str | None = None
    limit: int | None = None
    batch_size: int = 8
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
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

    An answer depends on the settings and its question, not on what else is asked, or when.

    Args:
        asked: questions and answers.
        asking: how the adapter is asked.
        console: where progress goes.
        make_speaker: loads the adapter.

    Returns:
        All answers in the order of the questions, as they then lie in the file.

    Raises:
        ValueError: if the output is there and neither resumed nor overwritten, or was made with other settings.
    """
    output = Path(asked.output)
    marker = output.with_name(f"{output.name}.run.json")
    _check_output(asked, output, marker)
    examples = load_prompts(
        asked.questions,
        prompt_column=asked.prompt_column,
        limit=asked.limit,
        report=lambda text: plain_line(console, text),
    )
    speaker = make_speaker(asking)
    prompts = [speaker.encode(example.messages) for example in examples]
    digests = {"adapter_digest": file_identity(Path(asking.adapter) / WEIGHTS), "data_digest": data_identity(prompts)}
    described = json.loads(json.dumps({**asdict(asking), **digests}))
    if asked.resume:
        _check_settings(marker, described, output)
    seeds = [sample_seed(asking.seed, json.dumps(prompt), 0) for prompt in prompts]
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
                    advance(1)

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
