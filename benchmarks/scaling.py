"""How far does a memory reach? Distilled on short chains, asked for chains of up to 16 times as many operations.

    python -m benchmarks.scaling --output runs/scaling --seeds 0 1 2

The base is the packaged reasoner of long chains. For every seed all arms are distilled towards its full cache on the
same samples in the same order; then `thoughtcache scale --operations` asks base and arms under one window for the same
test problems.

Left behind: for every seed a folder of `thoughtcache scale`, and above them `table.md`, `scaling.png` and
`results.json`: right answers by number of operations, mean over seeds with their range. A call that was stopped goes on
when it is made again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from rich.console import Console

import thoughtcache as tc
from thoughtcache.recipes.builders import save_adapter
from thoughtcache.recipes.evaluate.config import EvalRun
from thoughtcache.recipes.run.settings import differences
from thoughtcache.recipes.scaling.operations import run_scale_operations
from thoughtcache.recipes.teacher_samples import kept_samples
from thoughtcache.records import Rollout
from thoughtcache.report.files import replace_file
from thoughtcache.report.plots import Panel, plot_curves
from thoughtcache.report.results import environment, write_results
from thoughtcache.report.tables import markdown, print_cells
from thoughtcache.report.trainer_progress import RichProgressCallback
from thoughtcache.tasks.embedded.long_chains import most_tokens
from thoughtcache.tasks.embedded.problem import sample_problems
from thoughtcache.tasks.embedded.reasoner import LONG_REASONER_FOLDER, encode_prompt, load_reasoner
from thoughtcache.train.distill import sample_teacher

TASK = "long_chains"
RANK = 8
ARMS: dict[str, dict[str, Any]] = {
    "LoRA_c": {"initial_state": "identity", "absorb": False},
    "global tokens only": {"initial_state": "global", "absorb": False},
    "PTE, paper's rule": {"state_rule": "linear"},
    "PTE, delta rule": {"state_rule": "delta", "state_norm": "none"},
    "h2o, delta rule": {"state_rule": "delta", "state_norm": "none", "eviction": "h2o"},
    "attention memory": {"memory": "attention", "memory_write": "delta"},
    "h2o, attention memory": {"memory": "attention", "memory_write": "delta", "eviction": "h2o"},
}
"""Arm -> its settings beside rank and window, which are those of all."""


TRAINING = ("window", "train_operations", "steps", "batch", "samples")
"""Options that decide what an adapter becomes."""


def problems_of(operations: Sequence[int], num: int, seed: int) -> list[Any]:
    """`num` training problems whose numbers of operations take turns."""
    each = [iter(sample_problems(TASK, num, "train", seed, num_operations=number)) for number in operations]
    return [next(each[index % len(each)]) for index in range(num)]


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Keep the settings that adapters in this folder are trained with.

    Raises:
        ValueError: if those that are kept are others.
    """
    file = folder / "settings.json"
    if file.is_file():
        others = differences(json.loads(file.read_text(encoding="utf-8")), settings)
        if others:
            text = ", ".join(f"{name}={was} then, {value} now" for name, was, value in others)
            raise ValueError(f"adapters in {folder} were trained with {text}; give another --output")
        return
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(file, json.dumps(settings).encode())


def teach(
    name: str, folder: Path, samples_file: Path, seed: int, options: argparse.Namespace, console: Console
) -> None:
    """Distil one arm; its adapter is saved to `folder/adapter`. Nothing is done where there is one."""
    if (folder / "adapter").is_dir():
        return
    base, tokenizer = load_reasoner(task=TASK)
    torch.manual_seed(seed)
    adapter = {} if ARMS[name].get("memory") == "attention" else {"num_global_tokens": RANK}
    config = tc.ThoughtConfig(r=RANK, lora_alpha=32, window=options.window, **adapter, **ARMS[name])
    model = peft.get_peft_model(base, config)
    settings = tc.DistillConfig(
        output_dir=str(folder), num_steps=options.steps, batch_size=options.batch, seed=seed, recompute=False,
        max_new_tokens=most_tokens(max(options.train_operations)),
    )  # fmt: skip
    prompts = [
        encode_prompt(tokenizer, problem.prompt)
        for problem in problems_of(options.train_operations, options.samples, seed)
    ]

    def draw(start: int, stop: int) -> list[Rollout]:
        return sample_teacher(model, prompts[start:stop], settings, tokenizer=tokenizer)

    samples = kept_samples(samples_file, len(prompts), draw)
    bar = RichProgressCallback(description=f"{name}, seed {seed}", console=console)
    tc.distill(model, (), settings, samples=samples, callbacks=[bar])
    save_adapter(model, folder / "adapter")


def ask(output: Path, adapters: dict[str, Path], options: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """The points of `thoughtcache scale` for the base and all arms."""
    caches: list[dict[str, Any]] = [{"window": None}, {"window": options.window}]
    caches.append({"window": options.window, "eviction": "h2o"})
    caches += [{"adapter": str(folder), "name": name} for name, folder in adapters.items()]
    run = EvalRun(
        suite=tuple(f"chains-{number}" for number in options.operations), model=str(LONG_REASONER_FOLDER),
        limit=options.problems, batch_size=64, output_dir=str(output), resume=(output / "run.json").is_file(),
    )  # fmt: skip
    points: list[dict[str, Any]] = run_scale_operations(run, caches, console=console)["points"]
    return points


def write_summary(output: Path, by_seed: Sequence[Sequence[dict[str, Any]]], options: Any, console: Console) -> None:
    """Mean and range over seeds: table, picture, numbers."""
    shares: dict[str, dict[int, list[float]]] = {}
    for points in by_seed:
        for point in points:
            own = shares.setdefault(point["cache"], {}).setdefault(point["length"], [])
            own.append(100 * point["accuracy"]["value"])
    operations = sorted({number for own in shares.values() for number in own})
    rows = [
        [name, *(_cell(own[number]) for number in operations)]
        for name, own in shares.items()
    ]  # fmt: skip
    header = ["right answers (%), mean (least to most over seeds)", *(f"{number} operations" for number in operations)]
    print_cells(None, header, rows, console)
    (output / "table.md").write_text(markdown(header, rows), encoding="utf-8")
    x, trained = [float(number) for number in operations], ", ".join(map(str, options.train_operations))
    panel = Panel(
        title=f"Window {options.window}, trained on {trained} operations per chain",
        x_label="operations per chain",
        y_label="right answers (%)",
        series={name: (x, [_mean(own[number]) for number in operations]) for name, own in shares.items()},
        intervals={
            name: ([min(own[number]) for number in operations], [max(own[number]) for number in operations])
            for name, own in shares.items()
        },
        from_zero=True,
        x_ticks={float(number): str(number) for number in operations},
        x_doubles=True,
    )
    plot_curves(output / "scaling.png", [panel])
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    by_name = {name: {str(number): each for number, each in own.items()} for name, own in shares.items()}
    payload = {"settings": settings, "environment": environment(), "right answers (%)": by_name}
    written = write_results(output / "results.json", payload)
    console.print(f"results: {written}", soft_wrap=True)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _cell(values: Sequence[float]) -> str:
    spread = f" ({min(values):.0f}-{max(values):.0f})" if max(values) > min(values) else ""
    return f"{_mean(values):.1f}{spread}"


def main(words: Sequence[str] | None = None) -> None:
    """The command line: see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/scaling"), help="folder for results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of adapters and training samples")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="what is distilled")
    parser.add_argument("--window", type=int, default=8, help="resident thoughts")
    parser.add_argument("--operations", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="what is asked for")
    parser.add_argument("--train-operations", type=int, nargs="+", default=[1], help="what is trained on, in turn")
    parser.add_argument("--steps", type=int, default=400, help="training steps of an arm")
    parser.add_argument("--batch", type=int, default=32, help="samples of a step")
    parser.add_argument("--samples", type=int, default=4096, help="of the teacher")
    parser.add_argument("--problems", type=int, default=200, help="test problems of each number of operations")
    options, console = parser.parse_args(words), Console()
    torch.set_num_threads(1)
    by_seed = []
    for seed in options.seeds:
        folder = options.output / f"seed-{seed}"
        check_settings(folder, {name: getattr(options, name) for name in TRAINING})
        adapters = {}
        for name in options.arms:
            own = folder / name.replace(" ", "-").replace(",", "").replace("'", "")
            teach(name, own, folder / "teacher.safetensors", seed, options, console)
            adapters[name] = own / "adapter"
        by_seed.append(ask(folder / "scale", adapters, options, console))
    write_summary(options.output, by_seed, options, console)


if __name__ == "__main__":
    main()
