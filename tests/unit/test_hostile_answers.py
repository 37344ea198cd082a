"""Answers that are made to cost time or memory: each within its limit, all together in a minute, memory flat."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from thoughtcache.tasks.maths.answer_types import read_reference
from thoughtcache.tasks.maths.answers import check_math_answer
from thoughtcache.tasks.maths.workers.pool import POOL

NUM_ANSWERS = 650
LIMIT_SECONDS = 1.0
ALL_SECONDS = 60.0
MAX_GROWTH_BYTES = 64 * 2**20


def hostile_answers(num_answers: int) -> list[str]:
    """Different answers of all kinds that are known to be expensive, and random ones."""
    draw = random.Random(0)
    made = [
        lambda n: "9^" * (3 + n % 400) + "9",
        lambda n: "9^{" * (3 + n % 40) + "9" + "}" * (3 + n % 40),
        lambda n: f"{10**6 + n}!",
        lambda n: f"{n}!!!!!!",
        lambda n: "(" * (60 + n) + "1" + ")" * (60 + n),
        lambda n: r"\frac{" * (20 + n) + "1" + "}{2}" * (20 + n),
        lambda n: "7" * (1000 * (1 + n)),
        lambda n: "$" * (1000 * (1 + n)),
        lambda n: "a b " * (300 * (1 + n)),
        lambda n: "+".join([f"{5000 - n}!"] * 140),
        lambda n: "*".join([f"{5000 - n}!"] * 140),
        lambda n: r"\sin(10^{" + "9" * (1 + n % 100) + "})",
        lambda n: "x^{10^{" + "9" * (1 + n % 50) + "}}",
        lambda n: r"\sqrt{" * (1 + n % 100) + "2" + "}" * (1 + n % 100),
        lambda n: "1e" + "9" * (1 + n % 100),
        lambda n: "-" * (10 + n) + "1",
        lambda n: ",".join(str(k) for k in range(100 + n)),
        lambda n: "=".join(["x"] * (100 + n)),
        lambda n: "|" * (10 + n) + "x" + "|" * (10 + n),
        lambda n: r"\binom{5000}{2500}" * (1 + n % 50),
        lambda n: "x_{" * n + "1" + "}" * n,
        lambda n: r"\text{" * (1 + n % 40) + "a" + "}" * (1 + n % 40),
        lambda n: "a" + " a" * (n % 300) + "!",
        lambda n: "1,000" * (1 + n % 150),
        lambda n: "3" + "\u00b0" * (40 + 4 * n),
        lambda n: "3" + "!^1" * (40 + 4 * n),
        lambda n: r"\frac" * (60 + n) + "1",
        lambda n: "1" + "a." * (100 + 15 * n) + "1",
        lambda n: r"x\text{ cm} " * (5 + 2 * n) + "1",
        lambda n: r"\$" * (100 + 8 * n) + "5",
        lambda n: "(1/10^{" + str(4999 - n) + "})!",
        lambda n: "".join(draw.choices(r"0123456789+-*/^!(){}[]\,.=<>|_ xeπ½", k=5 + n)),
    ]
    return [made[index % len(made)](index // len(made)) for index in range(num_answers)]


def test_hostile_answers_are_refused_or_bounded() -> None:
    answers = hostile_answers(NUM_ANSWERS)
    assert len(set(answers)) > 0.95 * NUM_ANSWERS
    own = psutil.Process()
    check_math_answer(r"\boxed{\frac{22}{7} + \sqrt{2}}", r"\sqrt{3}")  # loads what is loaded once
    before = own.memory_info().rss
    started = time.perf_counter()
    seconds = []
    for index, answer in enumerate(answers):
        begun = time.process_time()
        reference = (r"\frac{355}{113}", r"\sqrt{2} + x", "3, 5")[index % 3]
        verdict = check_math_answer(rf"\boxed{{{answer}}}", reference, timeout_seconds=LIMIT_SECONDS)
        seconds.append((time.process_time() - begun, answer[:60], verdict.reason))
        assert not verdict.correct
    assert time.perf_counter() - started < ALL_SECONDS
    growth = own.memory_info().rss - before
    print(f"{time.perf_counter() - started:.1f} s together, the slowest {max(seconds)}")
    print(f"{sum(used for used, _, _ in seconds):.1f} s of processor time, {growth / 2**20:.1f} MiB")
    assert max(seconds)[0] < LIMIT_SECONDS  # of processor time here; the time of the workers is the pool's to bound
    assert growth < MAX_GROWTH_BYTES


MALFORMED = [
    r"x_{}", r"a_{}=3", r"\log_{}", r"\log_{} 8", r"x_{\text{}}", r"(-10^{5000})!", r"(1/10^{5000})!",
    "3" + "\u00b0" * 400, "3" + "!" * 900, "((" + "2" + "!" * 400 + ")" + "!" * 400 + ")",
    "3" + "^1" * 400, r"\frac" * 180, r"\binom" * 140,
    r"\sqrt" * 190 + "2", "\uff04" * 900 + "5", "\u20ac" * 900 + "5", "\uff08" * 300 + "1,2" + ",2\uff09" * 300,
    r"\lbrack " * 100 + "1" + r",2\rbrack " * 60, ")" * 300 + "(" * 300,
    r"\log_{\log_{" + "2^" * 45 + "2}}" + "2^" * 45 + "2",
    "1" + "a." * 498 + "1", r"1/\ln(0)", r"\{or\}", "or", "and, or", r"\text{ and }", r"\{,\}", "\ufdfa" * 900,
    "x" + r"\text{ cm} " * 90 + "1",
]  # fmt: skip


@pytest.mark.parametrize("reference", [r"\sqrt{2}", "x", "5", r"\emptyset", "1, 2"])
@pytest.mark.parametrize("answer", MALFORMED, ids=lambda answer: answer[:12])
def test_a_malformed_answer_is_a_result(answer: str, reference: str) -> None:
    begun = time.process_time()
    verdict = check_math_answer(rf"\boxed{{{answer}}}", reference, timeout_seconds=LIMIT_SECONDS)
    assert time.process_time() - begun < LIMIT_SECONDS
    assert not verdict.correct or (answer, reference) in [(r"x_{}", "x"), (r"x_{\text{}}", "x")]


def test_words_are_read_quickly() -> None:
    begun = time.process_time()
    assert not check_math_answer("no solutions exist for all integers greater than n=5", "no solutions").correct
    read_reference("no solutions exist for all integers greater than n=5")
    read_reference(r"\text{all the integers that are not smaller than} n=5")
    assert time.process_time() - begun < LIMIT_SECONDS


@pytest.mark.parametrize("reference", ["7" * 1001, "\ufdfa" * 900, "\uff08" * 300 + "1,2" + ",2\uff09" * 300])
def test_a_reference_that_no_answer_may_be_is_refused(reference: str) -> None:
    with pytest.raises(ValueError, match=r"allowed: .*1000"):
        check_math_answer("3", reference)


@pytest.mark.parametrize(
    "text", ["7" * 10**6, "$" * 10**6, "a b " * 10**5, r"\boxed{" * 10**5, "9^" * 10**5 + "9", "= " * 10**5]
)
def test_long_completions_without_a_box_are_read_quickly(text: str) -> None:
    started = time.perf_counter()
    assert not check_math_answer(text, "3").correct
    assert time.perf_counter() - started < 5


def test_endless_formulas_end_and_are_compared_side_by_side() -> None:
    endless = [rf"\boxed{{\int_0^1 \sum_{{k=1}}^{{\infty}} \frac{{x^k \sin(k x)}}{{k+x+{n}}} dx}}" for n in range(4)]
    started = time.perf_counter()
    with ThreadPoolExecutor(max_workers=4) as threads:
        verdicts = list(threads.map(lambda text: check_math_answer(text, "3", timeout_seconds=1.0), endless))
    assert {verdict.reason for verdict in verdicts} <= {"timed_out", "unreadable", "different"}
    assert time.perf_counter() - started < ALL_SECONDS
    assert len(POOL.process_ids()) <= POOL.num_workers
