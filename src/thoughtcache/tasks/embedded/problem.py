"""The form of a problem, and the interface that all embedded tasks share.

    problems = sample_problems("chains", num=8, split="train", seed=0)
    check(problems[0].example, problems[0].trace).correct     # True

A task is a module with one function, `draw_problem(rng: random.Random) -> Problem`. To add one: write the module
and name it in `TASKS`. A task in `STEPPED_TASKS` also has `mark_steps(problem: Problem) -> Problem`, and `draw_problem`
of one in `GROWING_TASKS` takes the number of operations, from `NUM_OPERATIONS`, which is meant without one, to
`MOST_OPERATIONS`.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from thoughtcache.tasks.embedded.splits import require_split, split_of
from thoughtcache.tasks.example import Example

TASKS: dict[str, str] = {
    "chains": "thoughtcache.tasks.embedded.chains",
    "long_chains": "thoughtcache.tasks.embedded.long_chains",
    "multiplication": "thoughtcache.tasks.embedded.multiplication",
}
"""Task name -> module that draws its problems (by name: the task modules import `Problem` from here)."""
STEPPED_TASKS = ("chains",)
"""Tasks whose traces can have step markers."""
GROWING_TASKS = ("long_chains",)
"""Tasks whose problems can have another number of operations."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One problem with its worked solution, as text of one token per character.

    Attributes:
        prompt: what the model is given, without `<bos>`; ends in `=`.
        trace: the worked solution the model was pre-trained on, without `<eos>`; ends in `#` and the answer.
        answer: what is recited after the last `#`.
    """

    prompt: str
    trace: str
    answer: str

    @property
    def example(self) -> Example:
        """The question alone, as rewards and evaluation see it."""
        return Example(prompt=self.prompt, answer=self.answer, identifier=self.prompt, kind="recitation")


def sample_problems(
    task: str, num: int, split: str, seed: int, *, step_markers: bool = False, num_operations: int | None = None
) -> list[Problem]:
    """`num` random problems of one split: the same list for the same arguments, on every machine.

    Problems are drawn independently, so a small task may repeat one. The first `n` problems do not depend on `num`.
    Different seeds, tasks and splits give unrelated lists.

    Args:
        task: "chains", "long_chains" or "multiplication".
        num: number of problems.
        split: "train", "val" or "test"; no problem is in two of them.
        seed: seed of the list.
        step_markers: close every step of a trace with a summary; the problems are the same.
        num_operations: more operations make longer traces; None, and the task's own number, are the same.

    Raises:
        ValueError: for an unknown task or split, a negative `num`, step markers or operations of a task that has none,
            or a number of operations that it does not have.
    """
    draw_problem, of = _function(task, "draw_problem"), task
    if num_operations is not None:
        if task not in GROWING_TASKS:
            raise ValueError(
                f"task {task!r} has no number of operations, allowed: {', '.join(map(repr, GROWING_TASKS))}"
            )
        fewest, most = operations_of(task)
        if not fewest <= num_operations <= most:
            raise ValueError(f"num_operations is {num_operations}, allowed: {fewest} to {most}")
        if num_operations != fewest:
            draw_problem, of = partial(draw_problem, num_operations=num_operations), f"{task}-{num_operations}"
    if step_markers and task not in STEPPED_TASKS:
        raise ValueError(f"task {task!r} has no step markers, allowed: {', '.join(map(repr, STEPPED_TASKS))}")
    wanted = require_split(split)
    if num < 0:
        raise ValueError(f"num is {num}, allowed: 0 or more; pass the number of problems to draw.")
    rng = random.Random(f"{of}/{wanted}/{seed}")
    problems: list[Problem] = []
    while len(problems) < num:
        problem = draw_problem(rng)
        if split_of(problem.prompt) == wanted:
            problems.append(problem)
    return [*map(_function(task, "mark_steps"), problems)] if step_markers else problems


def operations_of(task: str) -> tuple[int, int]:
    """The smallest and the largest number of operations of a task in `GROWING_TASKS`."""
    module = importlib.import_module(TASKS[task])
    return module.NUM_OPERATIONS, module.MOST_OPERATIONS


def _function(task: str, name: str) -> Callable[..., Problem]:
    if task not in TASKS:
        raise ValueError(f"task is {task!r}, allowed: {', '.join(map(repr, TASKS))}; pass one of these.")
    found: Callable[..., Problem] = getattr(importlib.import_module(TASKS[task]), name)
    return found
