"""Task *long_chains*: four chains of 1 to 16 operations each, under prompts that all have the same length.

    prompt   9*8=+3=-7=;1 4+4=-1=*0=;2 2-7=*7=*3=;3 1+1=+1=+1=;4 ======...   (206 tokens with `<bos>`, always)
    trace    9*82+35-78;1 4+48-17*00;2 2-75*75*35;3 1+12+13+14;4 #8054       (without the spaces, which are for eyes)
    answer   8054

The problems of *chains*, with changes that let one small model solve every number of operations. Where the trace has
a result the prompt has `=`, and behind its chains it is filled up with `=`: so everything that is copied stands at one
distance before the place where it is written, in every chain of every problem. And chains are numbered behind their
results, so that the recital can look for numbers; without them some numbers of operations were not learned. A model of
*chains* learns where to copy from for each number of operations anew (docs/lab-log.md).

Why this task: the prompt stays in the cache and is as long as ever, the trace grows from 30 to 210 tokens, and what
must be remembered does not grow: four digits. So accuracy over the number of operations says how far a memory reaches.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from thoughtcache.tasks.embedded.chains import NUM_CHAINS, draw_chain, work_out
from thoughtcache.tasks.embedded.problem import Problem

NUM_OPERATIONS = 1
"""Those of the shortest problems."""
MOST_OPERATIONS = 16
RESULT, FILLER = "=", "="


def worked_tokens(num_operations: int) -> int:
    """Tokens of four chains with results and numbers, without the recital."""
    return NUM_CHAINS * (3 * num_operations + 3)


def trace_tokens(num_operations: int) -> int:
    """Tokens of a trace whose chains have so many operations, `<eos>` included."""
    return worked_tokens(num_operations) + len("#") + NUM_CHAINS + 1


def most_tokens(num_operations: int) -> int:
    """A bound on the tokens of an answer: an eighth above those of a right one."""
    return trace_tokens(num_operations) * 9 // 8


PROMPT_TOKENS = 1 + worked_tokens(MOST_OPERATIONS) + len("=")
"""Tokens of every prompt, `<bos>` included."""


def draw_problem(rng: random.Random, num_operations: int = NUM_OPERATIONS) -> Problem:
    """One random problem, from whichever split its prompt falls into; its chains have so many operations each."""
    chains = [draw_chain(rng, num_operations) for _ in range(NUM_CHAINS)]
    worked = [work_out(chain) for chain in chains]
    answer = "".join(result for _, result in worked)
    return Problem(
        prompt=numbered(map(with_blanks, chains)).ljust(PROMPT_TOKENS - 1, FILLER),
        trace=numbered(steps for steps, _ in worked) + "#" + answer,
        answer=answer,
    )


def numbered(chains: Iterable[str]) -> str:
    """Chains one after the other, each with its number behind it."""
    return "".join(f"{chain};{number}" for number, chain in enumerate(chains, start=1))


def with_blanks(chain: str) -> str:
    """A chain such as `9*8+3-7` with a blank behind every operation: `9*8=+3=-7=`."""
    steps = (operator + operand + RESULT for operator, operand in zip(chain[1::2], chain[2::2], strict=True))
    return chain[0] + "".join(steps)
