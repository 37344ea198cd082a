"""The texts of a distillation: pieces of a file, or the base's own answers to questions."""

from __future__ import annotations

from peft import PeftModel
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from thoughtcache.planning.teacher import texts_at_once
from thoughtcache.policy.handle import find_tuner
from thoughtcache.recipes.distill.config import DistillRun
from thoughtcache.recipes.run.folder import RunFolder
from thoughtcache.recipes.texts import TextSource, base_answers, encoded_file, pieces_of, questions_of
from thoughtcache.records import Rollout
from thoughtcache.report.progress import plain_line
from thoughtcache.sampler.given import given_text
from thoughtcache.tasks.data.bad_rows import Report
from thoughtcache.train.distill import under_window


def read_source(run: DistillRun, tokenizer: PreTrainedTokenizerBase, report: Report) -> TextSource:
    """Read the file, or the questions.

    Args:
        run: the settings.
        tokenizer: tokenizer of the model.
        report: gets sentences about what was dropped.

    Raises:
        ValueError: if there are too few texts.
    """
    if run.text is not None:
        ids = encoded_file(run.text, tokenizer)
        pieces = pieces_of(ids, run.prompt_tokens, run.max_new_tokens, run.num_texts)
        if len(pieces) <= run.held_out:
            raise ValueError(
                f"{run.text} has {len(ids)} tokens, {len(pieces)} pieces of "
                f"{run.prompt_tokens + run.max_new_tokens}, of which held_out={run.held_out} are measured; give a "
                "longer text, or a smaller max_new_tokens or held_out"
            )
        return TextSource(texts=pieces, prompts=[])
    assert run.dataset is not None
    prompts = questions_of(run, tokenizer, report)
    if len(prompts) <= run.held_out:
        raise ValueError(
            f"{run.dataset} has {len(prompts)} questions, of which held_out={run.held_out} are measured; give "
            "more, or a smaller held_out"
        )
    return TextSource(texts=[], prompts=prompts)


def texts_of(
    source: TextSource,
    run: DistillRun,
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: RunFolder,
    console: Console,
) -> list[Rollout]:
    """The texts, the held-out ones first; answers are sampled once and kept in the folder.

    Raises:
        ValueError: if fewer than three answers are evicted.
    """
    thought = find_tuner(model).thought_config
    cache = thought.resolve_window(None)
    if source.texts:
        return [given_text(*piece, cache, seed=run.seed + row) for row, piece in enumerate(source.texts)]
    drawn = base_answers(
        model,
        source.prompts,
        folder,
        tokenizer,
        console,
        max_new_tokens=run.max_new_tokens,
        seed=run.seed,
        batch_size=texts_at_once(run.teacher_batch_size),
        cache=run.teacher_cache,
    )
    answers = [row for row in drawn if row.token_ids]
    evicted = [bool(row.evictions) for row in under_window(answers, thought)]
    texts = [row for row, is_evicted in zip(answers, evicted, strict=True) if is_evicted]
    if len(texts) <= run.held_out:
        raise ValueError(
            f"only {len(texts)} of {len(drawn)} answers are longer than window={cache.window}, and "
            f"held_out={run.held_out} are measured; give more questions, a larger max_new_tokens, or a smaller window"
        )
    if len(texts) < len(drawn):
        plain_line(console, f"{len(drawn) - len(texts)} of {len(drawn)} answers fit into the window and are left out")
    return texts
