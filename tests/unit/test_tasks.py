"""The embedded tasks and the packaged reasoner: splits, arithmetic, tokens, answers, and that it solves problems."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from thoughtcache.tasks.embedded import build_reasoner, long_chains, reasoner
from thoughtcache.tasks.embedded.problem import TASKS, Problem, sample_problems
from thoughtcache.tasks.embedded.splits import SPLITS, split_of
from thoughtcache.tasks.example import check

LENGTHS = {"chains": (34, 50), "multiplication": (9, 41), "long_chains": (206, 30)}
"""Task -> (prompt tokens with bos, trace tokens with eos)."""

PINNED_SPLITS = [*["tr"] * 5, "va", *["tr"] * 7, "va", "tr", "tr"]
"""First letters of the split of `103*108=` to `103*123=`."""

task_names = st.sampled_from(sorted(TASKS))
split_names = st.sampled_from(SPLITS)
seeds = st.integers(min_value=0, max_value=2**40)


@pytest.fixture(scope="module")
def tokenizer():
    return reasoner.build_tokenizer()


# --- splits -----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.text())
def test_every_prompt_has_one_split_for_ever(prompt):
    assert split_of(prompt) in SPLITS
    assert split_of(prompt) == split_of(prompt)


def test_split_of_fixed_prompts_is_pinned():
    # A change of the hash would leak validation problems into the training set of the packaged model.
    prompts = [f"103*{right}=" for right in range(108, 124)]
    assert [split_of(prompt)[:2] for prompt in prompts] == PINNED_SPLITS


def test_splits_have_the_stated_shares():
    counts = dict.fromkeys(SPLITS, 0)
    for left in range(100, 200):
        for right in range(100, 300):
            counts[split_of(f"{left}*{right}=")] += 1
    # 20000 draws: the standard deviation of a 5 % share is 0.15 points; allow five of them.
    assert abs(counts["val"] / 20000 - 0.05) < 0.008
    assert abs(counts["test"] / 20000 - 0.05) < 0.008


@settings(max_examples=25, deadline=None)
@given(task_names, seeds)
def test_splits_are_disjoint_and_repeatable(task, seed):
    drawn = {split: sample_problems(task, 8, split, seed) for split in SPLITS}
    for split, problems in drawn.items():
        assert problems == sample_problems(task, 8, split, seed)
        assert problems[:3] == sample_problems(task, 3, split, seed)
        assert {split_of(problem.prompt) for problem in problems} == {split}
    prompts = [{problem.prompt for problem in problems} for problems in drawn.values()]
    assert sum(map(len, prompts)) == len(set.union(*prompts))


def test_seeds_and_empty_samples():
    assert sample_problems("chains", 4, "train", 0) != sample_problems("chains", 4, "train", 1)
    assert sample_problems("chains", 0, "train", 0) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sums", 1, "train", 0), "task is 'sums', allowed: 'chains', 'long_chains', 'multiplication'"),
        (("chains", 1, "dev", 0), "split is 'dev', allowed: 'train', 'val', 'test'"),
        (("chains", -1, "train", 0), "num is -1, allowed: 0 or more"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample_problems(*arguments)


def test_step_markers_summarise_every_chain_and_change_no_problem():
    plain, marked = (sample_problems("chains", 5, "val", 0, step_markers=flag) for flag in (False, True))
    for one, other in zip(plain, marked, strict=True):
        assert (one.prompt, one.answer) == (other.prompt, other.answer)
        *steps, recital = other.trace.split(";")
        assert recital == f"#{one.answer}"
        assert [step[-2:] for step in steps] == [f"={digit}" for digit in one.answer]
        assert "".join(f"{step[:-2]};" for step in steps) + recital == one.trace
        assert check(other.example, other.trace).correct
    with pytest.raises(ValueError, match="task 'multiplication' has no step markers, allowed: 'chains'"):
        sample_problems("multiplication", 1, "val", 0, step_markers=True)


@settings(max_examples=25, deadline=None)
@given(split_names, seeds, st.integers(1, long_chains.MOST_OPERATIONS))
def test_long_chains_are_correct_and_copied_from_one_distance(split, seed, num_operations):
    (problem,) = sample_problems("long_chains", 1, split, seed, num_operations=num_operations)
    assert split_of(problem.prompt) == split
    assert len(problem.prompt) + 1 == long_chains.PROMPT_TOKENS == 206
    assert long_chains.trace_tokens(num_operations) == len(problem.trace) + 1
    worked, recital = problem.trace.split("#")
    assert recital == problem.answer
    results = ""
    size = 3 * num_operations + 3
    for number in range(4):
        chain, own = worked[number * size : (number + 1) * size].split(";")
        assert own == str(number + 1)
        value = int(chain[0])
        for step in range(num_operations):
            operator, operand, result = chain[3 * step + 1 : 3 * step + 4]
            value = eval(f"{value}{operator}{operand}") % 10
            assert str(value) == result
        results += str(value)
        assert len(chain) == 3 * num_operations + 1
    assert results == recital
    # Every token of the trace that is not a result is the prompt's at the same place; `#` answers the first filler.
    for asked, written in zip(problem.prompt, worked, strict=False):
        assert asked in (written, "=")
    blanks = [step for step in range(len(worked)) if step % size % 3 == 0 and 0 < step % size < size - 1]
    assert [place for place, asked in enumerate(problem.prompt[: len(worked)]) if asked == "="] == blanks
    assert set(problem.prompt[len(worked) :]) == {"="}


def test_the_number_of_operations():
    shortest = sample_problems("long_chains", 5, "test", 0)
    assert sample_problems("long_chains", 5, "test", 0, num_operations=1) == shortest
    assert {problem.answer for problem in shortest}.isdisjoint(
        problem.answer for problem in sample_problems("long_chains", 5, "test", 0, num_operations=2)
    )
    for task in ("multiplication", "chains"):
        with pytest.raises(ValueError, match=f"task '{task}' has no number of operations, allowed: 'long_chains'"):
            sample_problems(task, 1, "val", 0, num_operations=3)
    for number in (0, 17):
        with pytest.raises(ValueError, match=f"num_operations is {number}, allowed: 1 to 16"):
            sample_problems("long_chains", 1, "val", 0, num_operations=number)


# --- arithmetic, recomputed with other means --------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(split_names, seeds)
def test_chains_are_correct(split, seed):
    (problem,) = sample_problems("chains", 1, split, seed)
    chains, empty = problem.prompt.split(";")[:4], problem.prompt.split(";")[4:]
    assert empty == ["="]
    *traces, recital = problem.trace.replace("#", "").split(";")
    results = ""
    for chain, trace in zip(chains, traces, strict=True):
        a, op1, b, op2, c, op3, d = chain
        first = eval(f"{a}{op1}{b}") % 10
        second = eval(f"({a}{op1}{b}){op2}{c}") % 10
        third = eval(f"(({a}{op1}{b}){op2}{c}){op3}{d}") % 10
        assert trace == f"{a}{op1}{b}{first}{op2}{c}{second}{op3}{d}{third}"
        results += str(third)
    assert recital == problem.answer == results


@settings(max_examples=50, deadline=None)
@given(split_names, seeds)
def test_multiplications_are_correct(split, seed):
    (problem,) = sample_problems("multiplication", 1, split, seed)
    left, right = map(int, problem.prompt.removesuffix("=").split("*"))
    assert 100 <= left <= 999
    assert 100 <= right <= 999
    *blocks, first_sum, last = problem.trace.split(";")
    total, recital = last.split("#")
    partial_products = []
    for block in blocks:
        digits, carries = block[0::2], block[1::2]
        partial_products.append(int(carries[-1] + digits[::-1]))
        for place in range(3):  # carry after place k: what the k + 1 lowest digits of the factor overflow by
            digit = int(str(right)[-len(partial_products)])
            assert int(carries[place]) == (left % 10 ** (place + 1)) * digit // 10 ** (place + 1)
    assert partial_products == [left * int(digit) for digit in reversed(str(right))]
    assert int(first_sum[::-1]) == partial_products[0] + 10 * partial_products[1]
    assert int(total[::-1]) == int(recital) == left * right
    assert recital == problem.answer
    assert len(problem.answer) == 6


def test_worked_examples_of_the_docstrings():
    from thoughtcache.tasks.embedded import chains, long_chains, multiplication

    prompt = "9*8+3-7;4+4-1*0;2-7*7*3;1+1+1+1;="
    assert "".join(f"{chains.work_out(chain)[0]};" for chain in prompt.split(";")[:4]) + "#8054" in chains.__doc__
    assert "".join(chains.work_out(chain)[1] for chain in prompt.split(";")[:4]) == "8054"
    blanks = long_chains.numbered(map(long_chains.with_blanks, prompt.split(";")[:4]))
    trace = long_chains.numbered(chains.work_out(chain)[0] for chain in prompt.split(";")[:4])
    without_spaces = long_chains.__doc__.replace(" ", "")
    assert f"{blanks}=" in without_spaces
    assert f"{trace}#8054" in without_spaces
    assert multiplication.work_out("347", "682") == ("419060;657372;248202;45482;456632", "236654")
    assert "419060;657372;248202;45482;456632#236654" in multiplication.__doc__
    with pytest.raises(ValueError, match="operator is '/'"):
        chains.apply_operator("/", 1, 2)


# --- answers ----------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(task_names, seeds, st.data())
def test_check_answer_accepts_the_right_one_only(task, seed, data):
    (problem,) = sample_problems(task, 1, "train", seed)
    assert check(problem.example, problem.trace).correct
    assert check(problem.example, problem.trace + "<eos>").correct
    assert check(problem.example, problem.trace + "<eos><pad><pad>").correct
    place = data.draw(st.integers(0, len(problem.answer) - 1))
    wrong = data.draw(st.sampled_from([digit for digit in "0123456789" if digit != problem.answer[place]]))
    corrupted = problem.answer[:place] + wrong + problem.answer[place + 1 :]
    assert not check(problem.example, problem.trace.replace(f"#{problem.answer}", f"#{corrupted}")).correct


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("#12", True),
        ("9#12", True),
        ("#99#12", True),
        ("#12#99", False),
        ("12", False),
        ("", False),
        ("#", False),
        ("#1", False),
        ("#123", False),
        ("#12;", False),
        ("#1<eos>2", False),
        ("9<eos>#12", False),
    ],
)
def test_check_answer_reads_what_follows_the_last_mark(completion, expected):
    assert check(Problem(prompt="3*4=", trace="#12", answer="12").example, completion).correct is expected


# --- tokens -----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(text=st.text(alphabet=reasoner.CHARACTERS, max_size=60))
def test_tokens_round_trip(tokenizer, text):
    token_ids = tokenizer(text)["input_ids"]
    assert len(token_ids) == len(text) + 1
    assert token_ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(token_ids, skip_special_tokens=True) == text
    assert tokenizer.decode(token_ids) == "<bos>" + text


@pytest.mark.parametrize("text", ["1 2", "1a", "\n", "1+1?"])
def test_unknown_characters_are_refused(tokenizer, text):
    with pytest.raises(Exception, match="UNK"):
        tokenizer(text)


def test_special_tokens(tokenizer):
    special = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert special == [0, 1, 2]
    assert len(tokenizer) == len(reasoner.VOCABULARY) == reasoner.build_config().vocab_size
    padded = tokenizer(["1+1", "2"], padding=True)
    assert padded["attention_mask"] == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert set(padded) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("task", sorted(TASKS))
def test_prompt_and_trace_lengths(tokenizer, task):
    problems = sample_problems(task, 20, "train", seed=3)
    batch, num_prompt_tokens = build_reasoner.encode_batch(problems)
    for problem, row in zip(problems, batch.tolist(), strict=True):
        prompt_ids = reasoner.encode_prompt(tokenizer, problem.prompt)
        trace_ids = reasoner.encode_trace(tokenizer, problem.trace)
        assert (len(prompt_ids), len(trace_ids)) == LENGTHS[task]
        # what is generated from is a prefix of what was trained on, and joint text has no other tokenisation
        assert prompt_ids + trace_ids == row
        assert tokenizer(problem.prompt + problem.trace)["input_ids"] == row[:-1]
    assert num_prompt_tokens == LENGTHS[task][0]


# --- building ---------------------------------------------------------------------------------------------------


def test_steps_take_turns_with_the_operations():
    settings = build_reasoner.BuildSettings(num_steps=3, num_chains=0, num_multiplications=2, num_long_tokens=500)
    assert settings.batches(0)["long_chains"] == (2, 1)
    assert settings.batches(15)["long_chains"] == (1, 16)
    assert settings.batches(16)["long_chains"] == (2, 1)
    assert build_reasoner.REASONERS["long_reasoner"].batches(3) == {"long_chains": (7680 // 272, 4)}
    assert list(build_reasoner.REASONERS["tiny_reasoner"].evaluated()) == ["chains", "multiplication"]
    lengths: list[int] = []
    loss = build_reasoner.trace_loss
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            build_reasoner,
            "trace_loss",
            lambda model, ids, num_prompt: (lengths.append(ids.shape[1]), loss(model, ids, num_prompt))[1],
        )
        torch.manual_seed(0)
        list(build_reasoner.train(LlamaForCausalLM(reasoner.build_config()), settings))
    assert lengths == [50, 206 + 30, 50, 206 + 42, 50, 206 + 54]


def test_learning_rate_schedule():
    settings = build_reasoner.BuildSettings(num_steps=10, num_warmup_steps=4)
    factors = [build_reasoner.learning_rate_factor(step, settings) for step in range(11)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[7] == pytest.approx(0.5)
    assert factors[10] == pytest.approx(0.0)


def test_trace_loss_ignores_the_prompt_and_counts_eos():
    torch.manual_seed(0)
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(reasoner.build_config())
    token_ids, num_prompt_tokens = build_reasoner.encode_batch(sample_problems("multiplication", 3, "train", 0))
    loss = build_reasoner.trace_loss(model, token_ids, num_prompt_tokens)
    logprobs = model(token_ids).logits.log_softmax(-1)
    expected = [
        -logprobs[row, place - 1, token_ids[row, place]]
        for row in range(3)
        for place in range(num_prompt_tokens, token_ids.shape[1])
    ]
    assert len(expected) == 3 * 41
    torch.testing.assert_close(loss, torch.stack(expected).mean(), rtol=1e-5, atol=1e-6)


def test_build_settings_are_checked():
    with pytest.raises(ValueError, match="num_steps is 0, allowed: 1 or more"):
        build_reasoner.BuildSettings(num_steps=0)
    with pytest.raises(ValueError, match="num_chains is -1, allowed: 0 or more; 0 leaves the task out"):
        build_reasoner.BuildSettings(num_chains=-1)
    with pytest.raises(ValueError, match="no task has any problems; give at least one of"):
        build_reasoner.BuildSettings(num_chains=0, num_multiplications=0)


def test_building_is_reproducible_and_training_lowers_the_loss():
    from transformers import LlamaForCausalLM

    settings = build_reasoner.BuildSettings(
        num_steps=12, num_chains=2, num_multiplications=2, num_warmup_steps=2, num_eval_problems=1
    )
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        model = LlamaForCausalLM(reasoner.build_config())
        runs.append([losses for _, losses in build_reasoner.train(model, settings)])
    assert runs[0] == runs[1]
    assert runs[0][-1]["chains"] < runs[0][0]["chains"]


# --- the packaged model -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "number"), [("chains", None), ("multiplication", None), *(("long_chains", n) for n in (1, 5, 16))]
)
def test_packaged_reasoners_solve_validation_problems(task, number):
    model, tokenizer = reasoner.load_reasoner(task=task)
    problems = sample_problems(task, 20, "val", seed=11, num_operations=number)
    # Measured on 1000: see build.json. At 98 % fewer than 18 of 20 happens in 1 of 140 samples; this one is fixed.
    assert build_reasoner.accuracy(model, tokenizer, problems, temperature=0.0) >= 0.9


@pytest.mark.parametrize("task", ["chains", "long_chains"])
def test_packaged_folders(task):
    model, tokenizer = reasoner.load_reasoner(task=task)
    folder = reasoner.FOLDERS[task]
    assert not model.training
    assert model.dtype == torch.float32
    assert tokenizer.get_vocab() == reasoner.VOCABULARY
    assert tokenizer.padding_side == "left"
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "build.json"} <= set(files)
    assert sum(files.values()) < 3 * 2**20
    record = json.loads((folder / "build.json").read_text(encoding="utf-8"))
    assert record["num_parameters"] == sum(parameter.numel() for parameter in model.parameters())
    evaluated = build_reasoner.REASONERS[folder.name].evaluated()
    assert list(record["val_accuracy_full_cache"]) == list(evaluated)
    assert min(shares["greedy"] for shares in record["val_accuracy_full_cache"].values()) >= 0.98


def test_load_in_double_precision_and_from_a_missing_folder(monkeypatch, tmp_path):
    model, _ = reasoner.load_reasoner(dtype=torch.float64)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    monkeypatch.setitem(reasoner.FOLDERS, "chains", tmp_path)
    with pytest.raises(ValueError, match=r"no model.safetensors in .*; reinstall the package"):
        reasoner.load_reasoner()


def test_a_task_without_a_reasoner_is_refused():
    with pytest.raises(ValueError, match=r"task='chess' is not known; choose one of .*'long_chains'"):
        reasoner.load_reasoner(task="chess")
