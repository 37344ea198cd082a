"""Which checkpoints are whole: by number, to their end, every file; and a run that has taken all its steps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from support.grpo import make_trainer
from support.models import tiny_model, trainable
from support.rollouts import PROMPTS
from thoughtcache.train.checkpoints import checkpoints, damage, history_at_end, newest_whole
from thoughtcache.train.distill import distill
from thoughtcache.train.distill_config import DistillConfig


def config(folder: Path, **changes: Any) -> DistillConfig:
    settings = {
        "output_dir": str(folder),
        "num_steps": 11,
        "batch_size": 1,
        "warmup_steps": 1,
        "max_new_tokens": 7,
        "log_every": 1,
        "save_every": 1,
    }
    return DistillConfig(**{**settings, **changes})


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints 10 and 11 of a distillation, the newest as they are kept."""
    folder = tmp_path_factory.mktemp("distilled")
    distill(tiny_model(window=3), PROMPTS[:2], config(folder))
    return folder


@pytest.fixture(scope="module")
def rewarded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rewarded")
    model = tiny_model(window=3).float()
    make_trainer(model, folder, save_strategy="steps", save_steps=1, max_steps=2).train()
    return folder


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "copy"))


def cut(name: str) -> Callable[[Path], None]:
    def shorten(checkpoint: Path) -> None:
        file = checkpoint / name
        file.write_bytes(file.read_bytes()[:-30])

    return shorten


def removed(name: str) -> Callable[[Path], None]:
    return lambda checkpoint: (checkpoint / name).unlink()


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "killed before the state": (removed("trainer_state.json"), "no trainer_state.json, which is written last"),
    "state": (cut("trainer_state.json"), "trainer_state.json is cut short"),
    "weights": (cut("adapter_model.safetensors"), "adapter_model.safetensors is cut short"),
    "no weights": (removed("adapter_model.safetensors"), "no adapter_model.safetensors"),
    "settings": (cut("adapter_config.json"), "adapter_config.json is cut short"),
    "optimizer": (cut("optimizer.pt"), "optimizer.pt is cut short"),
    "no optimizer": (removed("optimizer.pt"), "no optimizer.pt"),
    "scheduler": (cut("scheduler.pt"), "scheduler.pt is cut short"),
    "random numbers": (cut("rng_state.pth"), "rng_state.pth is cut short"),
    "no random numbers": (removed("rng_state.pth"), "no rng_state"),
}


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("trainer", ["distilled", "rewarded"])
def test_a_checkpoint_that_was_cut_short_is_skipped_and_named(
    name: str, trainer: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = copy(request.getfixturevalue(trainer), tmp_path)
    older, newer = checkpoints(folder)
    said: list[str] = []
    assert newest_whole(folder, said.append) == newer
    assert said == []
    DAMAGES[name][0](newer)
    assert newest_whole(folder, said.append) == older
    (text,) = said
    assert str(newer) in text
    assert DAMAGES[name][1] in text


def test_the_newest_is_the_one_of_the_largest_number(distilled: Path, tmp_path: Path) -> None:
    folder = copy(distilled, tmp_path)
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-10", "checkpoint-11"]
    (folder / "checkpoint-11").rename(folder / "checkpoint-9")  # by name the last one
    state = folder / "checkpoint-9" / "trainer_state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "global_step": 9}))
    (folder / "checkpoint-backup").mkdir()
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-9", "checkpoint-10"]
    assert newest_whole(folder, pytest.fail) == folder / "checkpoint-10"


def test_a_renamed_checkpoint_is_not_taken_for_a_newer_one(distilled: Path, tmp_path: Path) -> None:
    folder = copy(distilled, tmp_path)
    (folder / "checkpoint-11").rename(folder / "checkpoint-12")
    assert damage(folder / "checkpoint-12") == "trainer_state.json is of step 11"


def test_distillation_goes_on_from_the_newest_whole_checkpoint(distilled: Path, tmp_path: Path) -> None:
    folder = copy(distilled, tmp_path)
    cut("optimizer.pt")(folder / "checkpoint-11")
    model = tiny_model(window=3, seed=5)
    with pytest.warns(UserWarning, match="checkpoint-11 was not written to its end"):
        result = distill(model, PROMPTS[:2], config(folder, resume=True, num_steps=12))
    assert [record["step"] for record in result.history if "loss" in record] == list(range(1, 13))


def test_distillation_without_a_whole_checkpoint_says_so(distilled: Path, tmp_path: Path) -> None:
    folder = copy(distilled, tmp_path)
    for checkpoint in checkpoints(folder):
        removed("optimizer.pt")(checkpoint)
    with (
        pytest.warns(UserWarning, match="not written to its end"),
        pytest.raises(ValueError, match="holds no whole checkpoint"),
    ):
        distill(tiny_model(window=3), PROMPTS[:2], config(folder, resume=True))


def test_a_distillation_that_took_its_steps_takes_no_further_one(distilled: Path, tmp_path: Path) -> None:
    folder = copy(distilled, tmp_path)
    trained, resumed = tiny_model(window=3), tiny_model(window=3, seed=5)
    first = distill(trained, PROMPTS[:2], config(tmp_path / "other"))
    again = distill(resumed, PROMPTS[:2], config(folder, resume=True))
    losses = [[record["loss"] for record in result.history if "loss" in record] for result in (first, again)]
    assert losses[0] == losses[1]
    assert len(losses[1]) == 11
    for name, parameter in trainable(trained).items():
        assert torch.equal(parameter, trainable(resumed)[name]), name


def test_steps_that_are_missing_are_taken(distilled: Path) -> None:
    last = distilled / "checkpoint-11"
    assert history_at_end(None, 1) is None
    assert history_at_end(last, 12) is None
    history = history_at_end(last, 11)
    assert history is not None
    assert history[-1]["step"] == 11
