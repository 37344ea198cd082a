"""Task *multiplication*: long multiplication of two three-digit numbers, digit by digit.

    prompt   347*682=
    trace    419060;657372;248202;45482;456632#236654
    answer   236654

The trace holds one block per digit of the second factor, least significant first. A block multiplies
the digits of the first factor, least significant first, and writes *digit, carry* for each: for 347
times 2, 7*2 = 14 gives `41`, 4*2+1 = 9 gives `90`, 3*2+0 = 6 gives `60`. Then the shifted partial
products are summed, least significant digit first so that carries stay local: the first two (694 +
27760 = 28454), then the third as well (236654). After `#` come the same six digits in reading order.
Products below 100000 are padded with a zero, so that the answer always has six digits.

Why this task: the sums read all three blocks. With a window of 20 thought tokens the first block has
begun to leave when the first sum begins, and recomputing its digits takes a carried multiplication.

Lengths in tokens (one per character): prompt 8 (9 with `<bos>`), trace 40 (41 with `<eos>`), always.

Left out: one sum of all three products. It makes the trace six tokens shorter, but columns of three
digits and a carry are a long plateau in training (two columns still at chance after 900 steps).
"""

from __future__ import annotations

import random

from thoughtcache.tasks.embedded.problem import Problem

NUM_DIGITS = 3
ANSWER_DIGITS = 2 * NUM_DIGITS


def multiply_by_digit(factor: str, digit: str) -> str:
    """The block of one digit: for each digit of `factor`, least significant first, result digit and carry."""
    block, carry = "", 0
    for factor_digit in reversed(factor):
        carry, result = divmod(int(factor_digit) * int(digit) + carry, 10)
        block += f"{result}{carry}"
    return block


def work_out(left: str, right: str) -> tuple[str, str]:
    """Work out `left * right`, numbers of `NUM_DIGITS` digits: (trace up to the last sum, answer)."""
    blocks = [multiply_by_digit(left, digit) for digit in reversed(right)]
    first_sum = int(left) * int(right[1:])
    answer = f"{int(left) * int(right):0{ANSWER_DIGITS}d}"
    return ";".join([*blocks, f"{first_sum:0{ANSWER_DIGITS - 1}d}"[::-1], answer[::-1]]), answer


def draw_problem(rng: random.Random) -> Problem:
    """One random problem, from whichever split its prompt falls into. Factors are uniform in 100..999."""
    low, high = 10 ** (NUM_DIGITS - 1), 10**NUM_DIGITS
    left, right = str(rng.randrange(low, high)), str(rng.randrange(low, high))
    steps, answer = work_out(left, right)
    return Problem(prompt=f"{left}*{right}=", trace=f"{steps}#{answer}", answer=answer)
