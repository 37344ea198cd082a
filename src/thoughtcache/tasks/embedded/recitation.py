"""Decides what counts as right in the embedded tasks."""

from __future__ import annotations

from thoughtcache.tasks.verdict import Verdict

ANSWER_MARK = "#"


def recitation(text: str, answer: str) -> Verdict:
    """Judge whether a completion ends in `#` and exactly this answer.

    `text` is what was generated without the prompt; special tokens may have been skipped or not (what comes from the
    first `<eos>` on is ignored). What is recited is everything after the last `#`; a completion without `#` is wrong.
    Only the answer counts: the steps before it are not checked.
    """
    finished = text.split("<eos>", maxsplit=1)[0]
    _, mark, recited = finished.rpartition(ANSWER_MARK)
    is_there = mark == ANSWER_MARK
    if not is_there:
        return Verdict.of("no_answer", None)
    return Verdict.of("literal" if recited == answer else "different", recited)
