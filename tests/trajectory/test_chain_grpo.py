"""GRPO with chains: one row and one advantage per chain, the loss over the whole trace, fold and unfold in turn."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import thoughtcache as tc
from support.compare import GRADIENT_TOLERANCE, TOLERANCE, gradient_error, gradients, max_difference
from support.grpo import EOS, base_with_eos, even_words, prompts, quick_arguments, word_tokenizer
from support.models import adapt
from thoughtcache.chains.chain import Chain
from thoughtcache.train.folding_reward import folding_reward, has_whole_steps
from thoughtcache.train.trl.chain_turns import chain_metrics, chain_totals, check_turns, generation_number

MARKOVIAN = tc.MarkovianThinking(context=6, keep_first=1, keep_last=2, max_links=4)
FOLDING = tc.StepFolding(opening=[7], closing=[11], max_steps=3, step_tokens=14, unfold_tokens=14)
KEPT = tc.StepFolding(opening=[7], closing=[11], keep="written", max_steps=3, step_tokens=14, summary_tokens=9)
ROWS = [{"prompt": text} for text in ("w3 w4", "w3 w4", "w5", "w9 w8 w7")]


def make_trainer(
    folder: Path, thinking: Any, *, dtype: torch.dtype = torch.float32, reward: Any = even_words, **changes: Any
) -> tc.ThoughtGRPOTrainer:
    return tc.ThoughtGRPOTrainer(
        adapt(base_with_eos(dtype=dtype), window=3, evict_fraction=0.4),
        reward,
        tc.ThoughtGRPOConfig(**quick_arguments(folder, **changes)),
        train_dataset=prompts(),
        processing_class=word_tokenizer(),
        thinking=thinking,
    )


def generate(trainer: tc.ThoughtGRPOTrainer) -> dict[str, Any]:
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer._generate_and_score_completions([dict(row) for row in ROWS])


def loss_and_gradients(trainer: tc.ThoughtGRPOTrainer, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    losses: list[Tensor] = []

    def loss() -> Tensor:
        losses.append(trainer._compute_loss(trainer.model, inputs))
        return losses[0]

    found = gradients(trainer.model, loss)
    return losses[0].detach(), found


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_iterations": 2, "beta": 0.04},
        {"steps_per_generation": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        {"reuse_rollout": True, "loss_type": "grpo", "scale_rewards": "none"},
        {"mask_truncated_completions": True},
    ],
    ids=["plain", "two iterations, reference", "split", "reused", "masked"],
)
def test_three_steps(settings: dict[str, Any], tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, MARKOVIAN, **settings)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 3
    assert all(math.isfinite(entry["loss"]) for entry in logged)
    assert max(entry.get("policy/gap_max", 0.0) for entry in logged) < TOLERANCE[torch.float32]
    assert max(entry["chains/links"] for entry in logged if "chains/links" in entry) > 1
    assert logged[0]["completions/max_length"] > 6, "longer than one context"
    assert logged[0]["cache/evictions"] > 0
    after = dict(trainer.model.named_parameters())
    assert not [name for name, value in before.items() if "lora_B" in name and torch.equal(after[name], value)]


def test_the_loss_is_that_of_whole_traces_by_the_definition(tmp_path: Path) -> None:
    """Delethink's: the tokens of all links are summed and divided by the length of the trace, then averaged."""
    trainer = make_trainer(tmp_path, MARKOVIAN, dtype=torch.float64, loss_type="grpo")
    inputs = generate(trainer)
    inputs["advantages"] = torch.tensor([1.0, -0.5, 0.25, -0.75])
    chains = trainer._run.generations["train"].rollouts
    assert all(isinstance(chain, Chain) for chain in chains)
    assert max(len(chain.links) for chain in chains) > 2
    assert inputs["completion_ids"].shape[0] == len(chains), "one row per chain"

    def naive() -> Tensor:
        out = tc.naive_chain_logprobs(trainer.model, chains)
        total = torch.zeros((), dtype=torch.float64)
        for advantage, row, chain in zip(inputs["advantages"], out.logprobs, chains, strict=True):
            length = len(chain.token_ids)
            ratios = (row[:length] - row[:length].detach()).exp()
            total = total - advantage * ratios.sum() / length
        return total / len(chains)

    loss, found = loss_and_gradients(trainer, inputs)
    assert max_difference(loss, naive().detach()) < TOLERANCE[torch.float64]
    error = gradient_error(found, gradients(trainer.model, naive))
    print(f"gradient error {error:.1e}")
    assert error < GRADIENT_TOLERANCE


def test_links_that_keep_keys_and_values_train_by_the_definition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One gradient from a reward of whole traces to what was written in front of the last fold."""

    def given(model: Any, prompt_ids: Any, thinking: Any, **options: Any) -> Any:
        traces = [[4, 7, 5, 11, 3, 7, 11, 6, EOS], [7, 4, 11, 5, EOS], [3, 5, 4, 5, 4, 7, 9, 8, 11, EOS], [9, EOS]]
        return tc.given_chains(model, thinking, prompt_ids, traces)

    monkeypatch.setattr("thoughtcache.train.trl.chain_turns.rollout_chains", given)
    trainer = make_trainer(tmp_path, KEPT, dtype=torch.float64, loss_type="grpo")
    inputs = generate(trainer)
    inputs["advantages"] = torch.tensor([1.0, -0.5, 0.25, -0.75])
    chains = trainer._run.generations["train"].rollouts
    assert [len(chain.links) for chain in chains] == [3, 2, 2, 1]

    def naive() -> Tensor:
        out = tc.naive_chain_logprobs(trainer.model, chains)
        total = torch.zeros((), dtype=torch.float64)
        for advantage, row, chain in zip(inputs["advantages"], out.logprobs, chains, strict=True):
            length = len(chain.token_ids)
            total = total - advantage * (row[:length] - row[:length].detach()).exp().sum() / length
        return total / len(chains)

    loss, found = loss_and_gradients(trainer, inputs)
    assert max_difference(loss, naive().detach()) < TOLERANCE[torch.float64]
    assert gradient_error(found, gradients(trainer.model, naive)) < GRADIENT_TOLERANCE
    assert trainer._metrics["train"]["policy/gap_max"][-1] < TOLERANCE[torch.float64]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reuse_rollout": True}, "reuse_rollout=True starts from recorded keys and values"),
        ({"gradient": "detached"}, "gradient='detached' is not defined for links"),
        ({"beta": 0.1, "reference": "full"}, 'reference="full" with beta=0.1'),
    ],
)
def test_what_links_that_keep_cannot_be_trained_with(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, [FOLDING, KEPT], **settings)


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
def test_chains_of_one_link_train_as_rollouts_do(loss_type: str, tmp_path: Path) -> None:
    found = []
    for thinking in (None, FOLDING.unfolded()):
        trainer = make_trainer(tmp_path, thinking, dtype=torch.float64, loss_type=loss_type)
        inputs = generate(trainer)
        found.append((inputs, *loss_and_gradients(trainer, inputs)))
    (ours, our_loss, our_gradients), (chains, chain_loss, chain_gradients) = found
    for name in ("completion_ids", "advantages", "sampling_per_token_logps"):
        assert torch.equal(ours[name], chains[name])
    assert torch.equal(our_loss, chain_loss)
    assert all(torch.equal(value, chain_gradients[name]) for name, value in our_gradients.items())


def test_rows_follow_their_chains_through_shuffling(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, MARKOVIAN, num_iterations=2)
    inputs = generate(trainer)
    real = inputs["completion_mask"].bool()
    assert max_difference(inputs["old_per_token_logps"][real], inputs["sampling_per_token_logps"][real]) < 1e-5
    order = torch.tensor([2, 0, 3, 1])
    shuffled = {k: v[order] if isinstance(v, Tensor) and v.ndim else v for k, v in inputs.items()}
    loss = trainer._compute_loss(trainer.model, inputs)
    assert torch.allclose(trainer._compute_loss(trainer.model, shuffled), loss, atol=1e-6)


def test_fold_and_unfold_take_turns_and_evaluation_folds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    sample = tc.rollout_chains

    def watched(model: Any, prompt_ids: Any, thinking: Any, **options: Any) -> Any:
        asked.append(thinking.fold)
        return sample(model, prompt_ids, thinking, **options)

    monkeypatch.setattr("thoughtcache.train.trl.chain_turns.rollout_chains", watched)
    trainer = make_trainer(tmp_path, [FOLDING.unfolded(), FOLDING], max_steps=4, save_strategy="steps", save_steps=3)
    trainer.train()
    assert asked == [False, True, False, True]
    trainer.evaluate(prompts(1))
    assert asked[-1] is True
    del asked[:]
    resumed = make_trainer(tmp_path / "resumed", [FOLDING.unfolded(), FOLDING], max_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert asked == [True], "the fourth generation, as in the uninterrupted run"


def test_generations_are_counted_by_optimiser_steps() -> None:
    # Two micro-steps per optimiser step, a generation every four: steps 0 and 1 share the first one.
    found = [generation_number(step, 2 * step + micro, 2, 4) for step in range(4) for micro in range(2)]
    assert found == [0, 0, 0, 0, 1, 1, 1, 1]
    # A generation for every micro-step.
    assert [generation_number(step, 2 * step + micro, 2, 1) for step in range(2) for micro in range(2)] == [0, 1, 2, 3]
    assert generation_number(3, 0, 2, 2) == 3, "a resumed run counts micro-steps anew"


def test_numbers_about_chains(tmp_path: Path) -> None:
    model = adapt(base_with_eos(dtype=torch.float32))
    chain = tc.given_chains(model, FOLDING, [[3], [3]], [[4, 7, 5, 11, 6, 2], [4, 11, 6]])
    assert [one.end for one in chain] == ["stop", "invalid"]
    totals = chain_totals(chain)
    assert totals.tolist() == [2, 3, 1, 1]
    metrics = chain_metrics(torch.stack([totals, totals]))
    assert metrics == {"chains/links": 1.5, "chains/unfinished": 0.5, "chains/invalid": 0.5}
    assert chain_metrics(chain_totals([])[None]) == {}


def test_evictions_are_those_of_whole_traces(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, MARKOVIAN)
    generate(trainer)
    chains = trainer._run.generations["train"].rollouts
    evictions = sum(len(link.evictions) for chain in chains for link in chain.links)
    assert evictions > 0
    assert trainer._metrics["train"]["cache/evictions"] == [evictions / len(chains)]


def test_a_question_without_room_for_a_second_link_ends_no_training(tmp_path: Path) -> None:
    short = tc.StepFolding(opening=[7], closing=[11], max_steps=3, step_tokens=14, max_prompt_tokens=3)
    trainer = make_trainer(tmp_path, short)
    generate(trainer)
    chains = trainer._run.generations["train"].rollouts
    assert [len(chain.links) for chain in chains if len(chain.prompt_ids) > 2] == [1]


def test_a_right_answer_counts_if_steps_are_whole_and_the_chain_ended() -> None:
    def right(completions: list[str], **columns: Any) -> list[float | None]:
        return [None if text == "?" else 1.0 for text in completions]

    reward = folding_reward(right, FOLDING, [EOS])
    traces = [[4, 7, 5, 11, 6, EOS], [4, 7, 6, EOS], [4, 7, 5, 11, 6], [5, EOS], [4, 11, 7, EOS], [5, EOS], [7, 11]]
    texts = ["yes", "no closing", "no end", "no steps", "equal numbers", "?", "?"]
    assert reward(completions=texts, completion_ids=traces) == [1.0, 0.0, 0.0, 1.0, 1.0, None, None]
    assert reward.__name__ == "right"
    assert has_whole_steps([7, 11, 7, 11], FOLDING)
    assert not has_whole_steps([7, 7, 11], FOLDING)


@pytest.mark.parametrize(
    ("stop_ids", "asynchronous", "message"),
    [([], False, "stop_ids is empty"), ([EOS], True, "is a coroutine function")],
)
def test_rewards_that_would_all_be_nothing_are_refused(stop_ids: list[int], asynchronous: bool, message: str) -> None:
    async def later(**columns: Any) -> list[float]:
        return []

    with pytest.raises(ValueError, match=message):
        folding_reward(later if asynchronous else even_words, FOLDING, stop_ids)


@pytest.mark.parametrize("thinking", ["markovian", [None, FOLDING], 3])
def test_what_is_no_way_of_thinking_is_refused(thinking: Any) -> None:
    with pytest.raises(ValueError, match=r"is no way of thinking; pass a MarkovianThinking or .*make_thinking makes"):
        check_turns(thinking, None, 60)


@pytest.mark.parametrize(
    ("thinking", "changes", "message"),
    [
        (MARKOVIAN, {"max_completion_length": 6}, "no chain has a boundary.*max_completion_length here"),
        ((), {}, "names no way of thinking"),
    ],
)
def test_settings_without_a_second_link_are_refused(
    thinking: Any, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, thinking, **changes)
