"""Run folders: an older run is never touched by accident, and a finished phase is never repeated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from thoughtcache.recipes.run.folder import RunFolder

CONFIG: dict[str, Any] = {"seed": 1, "pair": (1, 2), "output_dir": "a"}


def work(log: list[bool], answer: int = 1) -> Any:
    def call(folder: Path, resume: bool) -> dict[str, Any]:
        log.append(resume)
        (folder / "checkpoint-1").mkdir(parents=True, exist_ok=True)
        (folder / "checkpoint-1" / "trainer_state.json").write_text("{}")
        return {"answer": answer}

    return call


def interrupted(folder: Path, resume: bool) -> dict[str, Any]:
    (folder / "checkpoint-1").mkdir(parents=True, exist_ok=True)
    (folder / "checkpoint-1" / "trainer_state.json").write_text("{}")
    raise KeyboardInterrupt


def open_folder(path: Path, config: dict[str, Any] = CONFIG, *, resume: bool = False, overwrite: bool = False) -> Any:
    return RunFolder(path, config, resume=resume, overwrite=overwrite)


def test_nothing_is_written_before_the_first_phase(tmp_path: Path) -> None:
    path = tmp_path / "run"
    folder = open_folder(path)
    assert not path.exists()
    folder.phase("first", work([]))
    assert json.loads((path / "run.json").read_text()) == {"seed": 1, "pair": [1, 2], "output_dir": "a"}
    assert json.loads((path / "phases" / "first.json").read_text()) == {"answer": 1}


def test_a_finished_phase_is_read_back(tmp_path: Path) -> None:
    log: list[bool] = []
    open_folder(tmp_path).phase("first", work(log))
    assert open_folder(tmp_path, resume=True).phase("first", work(log, answer=2)) == {"answer": 1}
    assert log == [False]


def test_an_interrupted_phase_goes_on_from_its_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        open_folder(tmp_path).phase("first", interrupted)
    log: list[bool] = []
    folder = open_folder(tmp_path, resume=True)
    folder.phase("first", work(log))
    folder.phase("second", work(log))
    assert log == [True, False], "the second phase has no checkpoint to go on from"


@pytest.mark.parametrize(
    ("config", "flags", "message"),
    [
        (CONFIG, {}, "already holds a run; add --resume to go on, or --overwrite"),
        ({**CONFIG, "seed": 2}, {"resume": True}, r"other settings \(seed\); choose another --output-dir"),
        ({**CONFIG, "new": 2}, {"resume": True}, r"other settings \(new\)"),
    ],
)
def test_another_run_is_refused(config: dict[str, Any], flags: dict[str, bool], message: str, tmp_path: Path) -> None:
    open_folder(tmp_path).phase("first", work([]))
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=message):
        open_folder(tmp_path, config, **flags)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_what_differs_is_named_with_both_values_wherever_it_stands(tmp_path: Path) -> None:
    open_folder(tmp_path, {**CONFIG, "thought": {"window": 4, "positions": "absolute"}}).phase("first", work([]))
    now = {**CONFIG, "seed": 2, "thought": {"window": 4, "positions": "rolling"}}
    with pytest.raises(
        ValueError, match=r"other settings \(seed, positions\); .* \(seed=1 then, seed=2 now; positions='ab"
    ):
        open_folder(tmp_path, now, resume=True)


def test_a_setting_that_went_back_to_its_default_differs(tmp_path: Path) -> None:
    open_folder(tmp_path, {**CONFIG, "thought": {"window": 4, "use_rslora": True}}).phase("first", work([]))
    with pytest.raises(ValueError, match=r"other settings \(use_rslora\)"):
        open_folder(tmp_path, {**CONFIG, "thought": {"window": 4}}, resume=True)


def test_a_run_without_a_setting_had_its_default(tmp_path: Path) -> None:
    """It was begun before there was the setting; where the default was no option then, what was done is named."""
    open_folder(tmp_path, {**CONFIG, "thought": {"window": 4}}).phase("first", work([]))
    defaults = {"temperature": 1.0, "held_out": 0, "pair": (3, 4), "thought": {"start": "random", "window": 9}}

    def reopen(thought: dict[str, Any], **changes: Any) -> None:
        now = {**CONFIG, **changes, "thought": {"window": 4, **thought}}
        RunFolder(tmp_path, now, resume=True, overwrite=False, defaults=defaults)

    reopen({"start": "random"}, temperature=1.0, held_out=0)
    with pytest.raises(ValueError, match=r"temperature=1.0 then, temperature=0.5 now; start='random' then, start='b"):
        reopen({"start": "base"}, temperature=0.5)
    with pytest.raises(ValueError, match=r"\(held_out=0 then, held_out=None now\)"):
        reopen({}, held_out=None)


def test_free_settings_may_differ_and_counts_may_grow(tmp_path: Path) -> None:
    before = {**CONFIG, "kv_log": "device", "steps": 3}
    open_folder(tmp_path, before).phase("first", work([]))

    def reopen(**changes: Any) -> Any:
        return RunFolder(
            tmp_path, {**before, **changes}, resume=True, overwrite=False, free=["kv_log"], growing=["steps"]
        )

    reopen(kv_log="host", steps=4).phase("first", work([]))
    assert json.loads((tmp_path / "run.json").read_text())["steps"] == 4
    with pytest.raises(ValueError, match=r"other settings \(steps\).*steps=4 then, steps=3 now"):
        reopen()


def test_what_is_known_later_is_compared_as_well(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    folder.describe({"data_digest": "a"})
    folder.phase("first", work([]))
    with pytest.raises(ValueError, match=r"other settings \(data_digest\)"):
        open_folder(tmp_path, resume=True).describe({"data_digest": "b"})


def test_a_finished_phase_goes_on_with_more_steps_only(tmp_path: Path) -> None:
    log: list[bool] = []
    open_folder(tmp_path).phase("first", work(log), num_steps=3)
    assert open_folder(tmp_path, resume=True).phase("first", work(log, answer=2), num_steps=3)["answer"] == 1
    assert open_folder(tmp_path, resume=True).phase("first", work(log, answer=2), num_steps=4)["answer"] == 2
    assert open_folder(tmp_path, resume=True).phase("first", work(log, answer=3), num_steps=4)["answer"] == 2
    assert log == [False, True]


def test_overwrite_forgets_kept_samples(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    folder.phase("first", work([]))
    folder.samples_file("teacher").write_bytes(b"old")
    open_folder(tmp_path, overwrite=True).phase("first", work([]))
    assert not folder.samples_file("teacher").exists()


def test_a_moved_folder_is_the_same_run(tmp_path: Path) -> None:
    open_folder(tmp_path / "a").phase("first", work([]))
    (tmp_path / "a").rename(tmp_path / "b")
    moved = {**CONFIG, "output_dir": str(tmp_path / "b")}
    assert open_folder(tmp_path / "b", moved, resume=True).phase("first", interrupted) == {"answer": 1}


def test_overwrite_forgets_phases_and_checkpoints_and_nothing_else(tmp_path: Path) -> None:
    open_folder(tmp_path).phase("first", work([]))
    (tmp_path / "notes.txt").write_text("mine")
    other = {**CONFIG, "seed": 2}
    with pytest.raises(KeyboardInterrupt):  # before the new run has a checkpoint of its own
        open_folder(tmp_path, other, overwrite=True).phase(
            "zeroth", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
    log: list[bool] = []
    assert open_folder(tmp_path, other, resume=True).phase("first", work(log, answer=2)) == {"answer": 2}
    assert log == [False], "the older run's checkpoint is gone"
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_overwrite_removes_no_checkpoint_from_a_folder_that_is_no_run(tmp_path: Path) -> None:
    state = tmp_path / "somebody" / "checkpoint-7" / "trainer_state.json"
    state.parent.mkdir(parents=True)
    state.write_text("{}")
    open_folder(tmp_path, overwrite=True).phase("first", work([]))
    assert state.is_file()


def test_wrong_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run to resume; leave out --resume"):
        open_folder(tmp_path, resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; choose another --output-dir"):
        open_folder(tmp_path / "file")
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is damaged .*--overwrite"):
        open_folder(tmp_path, resume=True)
