"""Pages for users: every metric that is logged is named, messages are worded as in the code, and pages stay short."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
import torch
import trl.trainer.grpo_trainer

from support.grpo import base_with_eos, make_trainer
from support.models import adapt
from thoughtcache.evaluation.scores import SuiteScores
from thoughtcache.measuring.phase_timer import BRIEF, PHASES
from thoughtcache.recipes.before_after import HEADER as BEFORE_AFTER
from thoughtcache.recipes.evaluate.report import HEADER as EVALUATION
from thoughtcache.scale.backend import SampledBatch
from thoughtcache.tasks.verdict import REASONS
from thoughtcache.train.rewards import math_correctness
from thoughtcache.train.trl.ahead import backend_metrics
from thoughtcache.train.trl.chain_turns import chain_metrics
from thoughtcache.train.trl.policy_metrics import NUM_TOTALS, cache_metrics, gap_metrics

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SHORT = ("quickstart", "choose", "metrics", "out-of-memory", "troubleshooting", "limits")
"""Pages that answer one question of somebody in a hurry."""
MOST_LINES, FEWEST_MESSAGES, SHORTEST_QUOTE = 120, 25, 20
GAP = "\0"
"""Stands in a message of the code for a value that is put in."""


def section(page: str, title: str) -> str:
    """The text under a heading of the second level."""
    return (DOCS / page).read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]


def first_cells(text: str) -> list[str]:
    """The first cells of all rows of tables, without headers."""
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    return [cell for cell in rows if cell.startswith("`")]


def named(text: str) -> set[str]:
    """What stands in backticks in the first cells of tables."""
    return {name for cell in first_cells(text) for name in re.findall(r"`([^`]+)`", cell)}


def metrics_of_grpo() -> set[str]:
    """Names of what the trainer and the built-in reward log, from the functions that make them."""
    found = set(gap_metrics(torch.zeros(3), 0.2, 0.2))
    found |= set(cache_metrics(torch.ones(1, NUM_TOTALS))) | set(chain_metrics(torch.ones(1, 4)))
    found |= set(backend_metrics(SampledBatch(rollouts=[], adapter_version=1, num_redispatched=0), 0))
    found |= {f"time/{name}" for name in (*PHASES, "step")}
    found |= {f"memory/{name}_mib_max" for name in PHASES if name not in BRIEF}
    math_correctness(["#### 4"], ["4"], log_metric=lambda name, value: found.add(name))
    return found


def test_metrics_of_grpo_are_those_of_the_page() -> None:
    page = named(section("metrics.md", "GRPO: what ThoughtCache adds"))
    page |= named(section("metrics.md", "GRPO: time and memory"))
    assert page == metrics_of_grpo()


def test_every_name_of_a_metric_in_the_trainers_is_one_of_them() -> None:
    known = metrics_of_grpo()
    found = set()
    for file in (ROOT / "src" / "thoughtcache" / "train").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and re.fullmatch(r"[a-z_]+/\w*", str(node.value)):
                found.add(str(node.value))
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "log_metric":
                found |= {str(one.value) for one in node.args[:1] if isinstance(one, ast.Constant)}
    assert found
    for name in found:
        assert any(one.startswith(name) for one in known) if name.endswith("/") else name in known, name


def test_metrics_of_trl_exist_there() -> None:
    source = inspect.getsource(trl.trainer.grpo_trainer)
    for name in named(section("metrics.md", "GRPO: what comes from TRL")):
        assert f'"{name}"' in source or f'"{name.replace("NAME", "{reward_func_name}")}"' in source, name


def test_whatever_a_run_logs_is_on_the_page(tmp_path: Path) -> None:
    page = (DOCS / "metrics.md").read_text().replace("rewards/NAME/", "rewards/even_words/")
    trainer = make_trainer(adapt(base_with_eos(), evict_fraction=0.4), tmp_path, max_steps=1, beta=0.1)
    trainer.train()
    logged = set(trainer.state.log_history[0]) - {"step"}
    assert {"kl", "cache/evictions", "memory/reference_mib_max"} <= logged
    assert all(f"`{name}`" in page for name in logged), {name for name in logged if f"`{name}`" not in page}


def test_metrics_of_distillation_are_logged() -> None:
    job = (ROOT / "src" / "thoughtcache" / "recipes" / "embedded" / "job.py").read_text()
    assert named(section("metrics.md", "Distillation")) == {"loss", "eval_accuracy"}
    assert '"eval_accuracy"' in job


def test_figures_of_evaluations_are_those_of_the_page() -> None:
    text = section("metrics.md", "Evaluation")
    assert named(text) == {one.name for one in fields(SuiteScores)}
    for column in (*EVALUATION[1:], *BEFORE_AFTER[2:]):
        assert column in text, column


def test_every_reason_of_a_verdict_is_on_the_page() -> None:
    assert {f"answers/{reason}" for reason in REASONS} <= named(section("metrics.md", "GRPO: what ThoughtCache adds"))


@cache
def messages() -> tuple[str, ...]:
    """Every text of the source but for docstrings, with a mark where a value is put in."""
    return tuple(dict.fromkeys(text for file in (ROOT / "src").rglob("*.py") for text in texts_of(file)))


def texts_of(file: Path) -> Iterator[str]:
    tree = ast.parse(file.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values)


def is_worded_so(quote: str, texts: tuple[str, ...]) -> bool:
    """Whether a text has the words of a quotation in their order; `...` stands for anything."""
    words = re.compile(".*".join(re.escape(piece.strip()) for piece in quote.split("...")), re.DOTALL)
    return any(words.search(text) for text in texts)


QUOTES = first_cells((DOCS / "troubleshooting.md").read_text())


def test_troubleshooting_quotes_enough_messages() -> None:
    assert len(QUOTES) == len(set(QUOTES)) >= FEWEST_MESSAGES


@pytest.mark.parametrize("quote", QUOTES)
def test_messages_that_are_quoted_occur_in_the_source(quote: str) -> None:
    (text,) = re.findall(r"`([^`]+)`", quote)
    assert sum(len(piece.strip()) for piece in text.split("...")) >= SHORTEST_QUOTE, text
    assert is_worded_so(text, messages()), text


def test_a_message_that_is_not_there_is_found_out() -> None:
    assert is_worded_so("needs ... GiB of ...", (f"it needs {GAP} GiB of memory",))
    assert not is_worded_so("needs ... GiB", (f"it needs {GAP} MiB",))
    assert not is_worded_so("GiB ... needs", (f"it needs {GAP} GiB",))


def test_the_readme_and_the_pages_in_a_hurry_stay_short() -> None:
    for page in (ROOT / "README.md", *(DOCS / f"{name}.md" for name in SHORT)):
        assert len(page.read_text().splitlines()) <= MOST_LINES, page.name


REFERENCE = ("api", "cli", "design", "lab-log")
"""Pages to look something up in, which take the words from the others."""
READ = ("README", *sorted(page.stem for page in DOCS.glob("*.md") if page.stem not in REFERENCE))
WORDS = (
    "thoughts?", "windows?", "evictions?", "(?<!hidden )states?", "full cache", "replay", "records?", "nats?", "LoRA_c",
    "learner", "links?", "arms?", "joint tokens?", "KL",
)  # fmt: skip
"""Words of this project, each of which is explained where a page uses it for the first time."""


@pytest.mark.parametrize("name", READ)
def test_words_are_explained_at_their_first_use(name: str) -> None:
    text = (ROOT / "README.md" if name == "README" else DOCS / f"{name}.md").read_text()
    text = re.sub(r"^```.*?^```$|^#.*?$|`[^`]*`|!\[.*?\)|\]\(.*?\)", "", text, flags=re.MULTILINE | re.DOTALL)
    text = " ".join(text.split())
    for word in WORDS:
        first = re.search(rf"(\*?)\b{word}\b", text, re.IGNORECASE)
        assert first is None or first.group(1) == "*", text[first.start() - 60 : first.end() + 20]


def test_the_readme_leads_to_every_page() -> None:
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)", (ROOT / "README.md").read_text()))
    assert linked == {page.name for page in DOCS.glob("*.md")}
