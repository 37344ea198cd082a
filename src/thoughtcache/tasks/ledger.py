"""Task *ledger*: small sums in words, worked out person by person, then all results listed together.

    prompt   Work out how many coins each person has ... Ann starts with 23 coins, finds 8, loses 5, finds 17. ...
    trace    Ann has 23 coins. 23 + 8 = 31. 31 - 5 = 26. 26 + 17 = 43. So Ann has 43 coins. ... # Ann 43, Bob 12, ...
    answer   Ann 43, Bob 12, ...

Why this task: the list at the end needs results that were worked out long before. With the full cache it is a look-up.
Under a window of a fifth of the trace the first results have left, and three sums of two digits are too many to redo
inside one forward pass. The question, which stays, does not tell the results.

With SmolLM2's tokenizer: prompt about 125 tokens, trace about 231.
"""

from __future__ import annotations

import random

from thoughtcache.tasks.embedded.problem import Problem
from thoughtcache.tasks.embedded.recitation import ANSWER_MARK
from thoughtcache.tasks.embedded.splits import require_split, split_of

NAMES = (
    "Ann", "Bob", "Carl", "Dan", "Emma", "Fred", "Gina", "Hugo", "Ivan", "Jack", "Kate", "Leo", "Mary", "Nick", "Olga",
    "Paul",
)  # fmt: skip
NUM_PEOPLE = 4
NUM_CHANGES = 3
LOWEST, HIGHEST = 10, 99
"""Every amount on the way lies between these."""
LARGEST_CHANGE = 29
INSTRUCTION = (
    "Work out how many coins each person has, one person after the other. Then write # and list every person with the "
    "result."
)


def draw_problem(rng: random.Random, *, num_people: int = NUM_PEOPLE, num_changes: int = NUM_CHANGES) -> Problem:
    """One random problem, from whichever split its prompt falls into.

    Args:
        rng: source of randomness.
        num_people: people, up to 16.
        num_changes: sums per person.
    """
    told, worked, results = [], [], []
    for name in rng.sample(NAMES, num_people):
        amount = rng.randint(LOWEST, HIGHEST)
        changes, steps = [f"{name} starts with {amount} coins"], [f"{name} has {amount} coins."]
        for _ in range(num_changes):
            least, most = max(LOWEST - amount, -LARGEST_CHANGE), min(HIGHEST - amount, LARGEST_CHANGE)
            change = rng.choice([change for change in range(least, most + 1) if change])
            sign, verb = ("+", "finds") if change > 0 else ("-", "loses")
            changes.append(f"{verb} {abs(change)}")
            steps.append(f"{amount} {sign} {abs(change)} = {amount + change}.")
            amount += change
        told.append(", ".join(changes) + ".")
        worked.append(" ".join([*steps, f"So {name} has {amount} coins."]))
        results.append(f"{name} {amount}")
    answer = f" {', '.join(results)}"
    return Problem(
        prompt="\n".join([INSTRUCTION, *told]), trace="\n".join([*worked, ANSWER_MARK + answer]), answer=answer
    )


def sample_ledgers(num: int, split: str, seed: int, **sizes: int) -> list[Problem]:
    """`num` random problems of one split, the same list for the same arguments; splits never share a prompt.

    Args:
        num: number of problems.
        split: "train", "val" or "test".
        seed: decides the list; the first ones do not depend on `num`.
        sizes: `num_people` and `num_changes`, see `draw_problem`.

    Raises:
        ValueError: for an unknown split.
    """
    wanted = require_split(split)
    rng = random.Random(f"ledger/{wanted}/{seed}/{sorted(sizes.items())}")
    problems: list[Problem] = []
    while len(problems) < num:
        problem = draw_problem(rng, **sizes)
        if split_of(problem.prompt) == wanted:
            problems.append(problem)
    return problems
