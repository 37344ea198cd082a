"""Task *chains*: four chains of three digit operations (mod 10), worked out one by one, then recited together.

    prompt   9*8+3-7;4+4-1*0;2-7*7*3;1+1+1+1;=
    trace    9*82+35-78;4+48-17*00;2-75*75*35;1+12+13+14;#8054
    answer   8054

Chains are evaluated strictly from left to right and every result is taken mod 10 (so 2 - 7 is 5). In the trace,
a step is `digit operator digit` followed by its result; the result is the first digit of the next step, so
`9*82+35-78` reads 9*8 = 2, 2+3 = 5, 5-7 = 8. After `#` come the four results in the order of the chains.

Why this task: with a full cache the recital is a look-up of four earlier tokens. With a window of 16 thought
tokens the results of the first chains have left the cache when the recital comes, and three operations with
multiplications among them are too many to redo inside one forward pass. What left must have been remembered.

Lengths in tokens (one per character): prompt 33 (34 with `<bos>`), trace 49 (50 with `<eos>`), always.

With step markers every chain is a step with its result as its summary, between `=` and `;`:

    trace    9*82+35-78=8;4+48-17*00=0;2-75*75*35=5;1+12+13+14=4;#8054

so that the summaries alone (`=8;=0;=5;=4;`) hold what the recital needs. The packaged reasoner does not write them.
"""

from __future__ import annotations

import random
from dataclasses import replace

from thoughtcache.tasks.embedded.problem import Problem

NUM_CHAINS = 4
NUM_OPERATIONS = 3
OPERATORS = "+-*"
STEP_OPENING, STEP_CLOSING = "=", ";"
"""Around the summary of a step; no other part of a trace has an `=`."""


def apply_operator(operator: str, left: int, right: int) -> int:
    """`left operator right` mod 10, in 0..9."""
    if operator == "+":
        return (left + right) % 10
    if operator == "-":
        return (left - right) % 10
    if operator == "*":
        return (left * right) % 10
    raise ValueError(f"operator is {operator!r}, allowed: one of {OPERATORS!r}; use one of these.")


def work_out(chain: str) -> tuple[str, str]:
    """Work out one chain such as `9*8+3-7`: (trace of its steps, digit of its result)."""
    value = chain[0]
    steps = [value]
    for operator, operand in zip(chain[1::2], chain[2::2], strict=True):
        value = str(apply_operator(operator, int(value), int(operand)))
        steps.append(operator + operand + value)
    return "".join(steps), value


def draw_chain(rng: random.Random, num_operations: int = NUM_OPERATIONS) -> str:
    """One random chain: uniform digits and uniform operators."""
    chain = str(rng.randrange(10))
    for _ in range(num_operations):
        chain += OPERATORS[rng.randrange(len(OPERATORS))] + str(rng.randrange(10))
    return chain


def draw_problem(rng: random.Random) -> Problem:
    """One random problem, from whichever split its prompt falls into."""
    chains = [draw_chain(rng) for _ in range(NUM_CHAINS)]
    worked = [work_out(chain) for chain in chains]
    answer = "".join(result for _, result in worked)
    return Problem(
        prompt="".join(f"{chain};" for chain in chains) + "=",
        trace="".join(f"{steps};" for steps, _ in worked) + "#" + answer,
        answer=answer,
    )


def mark_steps(problem: Problem) -> Problem:
    """The same problem with a summary behind every chain of the trace: its result, between the step markers."""
    worked, recital = problem.trace.split("#")
    steps = [f"{steps}{STEP_OPENING}{steps[-1]}{STEP_CLOSING}" for steps in worked.split(";")[:-1]]
    return replace(problem, trace="".join(steps) + "#" + recital)
