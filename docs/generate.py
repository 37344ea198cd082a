"""Writes docs/cli.md from the parser's help, docs/trl.md from the table of TRL's options, docs/api.md from docstrings,
and the lines about eviction policies in that help from the table of policies.

`python docs/generate.py --check` fails if a page is not current.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import fields
from pathlib import Path

from api_page import api_page

from thoughtcache.cache.budgets import ALLOCATIONS
from thoughtcache.cache.budgets.scored import settings_of
from thoughtcache.cache.budgets.table import SCORED
from thoughtcache.cache.eviction import EVICTION_POLICIES, EvictionPolicy, default_options
from thoughtcache.train.trl.options import NO_MEANING, REFUSED, REFUSED_BY_OTHER_NAME, WORKS
from thoughtcache_cli.arguments import build_parser
from thoughtcache_cli.options import eviction_help

ROOT = Path(__file__).parents[1]
EVICTION_HELP = "src/thoughtcache_cli/options/eviction_help.py"


def command_line_page() -> str:
    """The help of `thoughtcache` and of every command, at a fixed width."""
    os.environ["COLUMNS"] = "100"
    eviction_help.POLICIES, eviction_help.BUDGETS, eviction_help.SCORED = policies(), allocations(), scored()
    parser = build_parser()
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    parts = ["# Command line", "", "Generated from `--help` by `make docs`.", ""]
    for title, page in (("thoughtcache", parser), *((f"thoughtcache {n}", p) for n, p in commands.choices.items())):
        parts += [f"## {title}", "", "```text", page.format_help().rstrip(), "```", ""]
    return "\n".join(parts)


def policies() -> tuple[tuple[str, str, str], ...]:
    """(name, what stays, settings with their defaults) of every eviction policy."""
    return tuple((name, policy.summary, settings(policy)) for name, policy in EVICTION_POLICIES.items())


def allocations() -> tuple[tuple[str, str, str], ...]:
    """(name, what is large, settings with their defaults) of every allocation of budgets."""
    return tuple(
        (name, one.summary, " ".join(f"{field.name}={field.default}" for field in fields(one)))  # type: ignore[arg-type]
        for name, one in ALLOCATIONS.items()
    )


def scored() -> tuple[tuple[str, str, str], ...]:
    """(name, where heads of higher scores keep more, settings with their defaults) of every rule by scores of heads."""
    return tuple(
        (name, rule.source, " ".join(f"{key}={default:g}" for key, default in settings_of(rule).items()))
        for name, rule in SCORED.items()
    )


def settings(policy: type[EvictionPolicy]) -> str:
    """The settings of a policy as they are written on the command line."""
    return " ".join(f"{key}={str(value).lower()}" for key, value in default_options(policy).items())


def eviction_module() -> str:
    """The source of `eviction_help.py`."""
    lines = [(ROOT / EVICTION_HELP).read_text().split("POLICIES")[0].rstrip("\n"), ""]
    for name, table in (("POLICIES", policies()), ("BUDGETS", allocations()), ("SCORED", scored())):
        rows = [["    (", *(f'        "{text}",' for text in row), "    ),"] for row in table]
        lines += [f"{name} = (", *(line for row in rows for line in row), ")"]
    return "\n".join([*lines, ""])


OPTIONS_INTRODUCTION = """\
# From TRL to ThoughtCache

Three names change, and everything else of your script stays: data, rewards, tokenizer, callbacks, options.

**Words.** A *window* of the generated tokens (*thoughts*) stays in the KV cache; when it is full some leave
(*eviction*) and are folded into a *state*. With the *full cache* nothing leaves. The *learner* repeats a sampled answer
with its evictions and with gradients (*replay*).

```diff
-from peft import LoraConfig
-from trl import GRPOConfig, GRPOTrainer
+from thoughtcache import ThoughtConfig, ThoughtGRPOConfig, ThoughtGRPOTrainer

-args, peft_config = GRPOConfig(...), LoraConfig(r=32)
+args, peft_config = ThoughtGRPOConfig(...), ThoughtConfig(r=32, window=1024)
-trainer = GRPOTrainer(model, rewards, args, train_dataset=data, peft_config=peft_config)
+trainer = ThoughtGRPOTrainer(model, rewards, args, train_dataset=data, peft_config=peft_config)
 trainer.train()
```

1. Take out `bf16=True`, `gradient_checkpointing=True`, `use_vllm=True` and sampling filters, if you have them: they are
   refused, and the refusal says what to use instead. `model_init_kwargs={"dtype": "bfloat16"}` loads the model in
   bfloat16; `checkpoint_layers` is gradient checkpointing here.
2. Choose a `window`, the number of generated tokens that stay in the cache: smaller than `max_completion_length`
   ([choose.md](choose.md)).
3. A new adapter under a small window answers few questions rightly, and GRPO learns nothing from that. Distil it first
   with `tc.distill` ([distill.md](distill.md)), and give the trainer that model without `peft_config`.
4. The log gains metrics of the cache, the state and the distance of sampling and learner ([metrics.md](metrics.md)).

`tc.preset("lora", window=None)` is LoRA with its full cache, `tc.preset("lora", window=1024)` the control under the
window. A whole script is in the [README](../README.md). Below the trainer are three calls that work by themselves:
```python
import peft
import thoughtcache as tc
from thoughtcache.tasks.embedded.reasoner import encode_prompt, load_reasoner

base, tokenizer = load_reasoner()  # any Llama, Qwen2/2.5/3, SmolLM2/3, R1 distill, or Mistral without sliding layers
model = peft.get_peft_model(base, tc.ThoughtConfig(r=8, num_global_tokens=8, window=16))

prompts = [encode_prompt(tokenizer, "347*682=")]
rollouts = tc.rollout(model, prompts, max_new_tokens=40)  # sampled under the bounded cache
scored = tc.replay(model, rollouts)  # the same log-probabilities, with gradient
print((scored.logprobs[0] - rollouts[0].logprobs).abs().max())  # rounding only

inputs = tokenizer("347*682=", return_tensors="pt")
model.generate(**inputs, max_new_tokens=40)  # bounded cache and state, like any PEFT model
```

## Options
`tc.ThoughtGRPOConfig` is `trl.GRPOConfig` (TRL 1.16, with all fields of transformers' `TrainingArguments`) and some
fields of its own. Generated from `train/trl/options.py` by `make docs`; a test fails when TRL adds an option.

A model's own `generation_config` is looked at as well (`train/trl/model_generation.py`): what would shape TRL's samples
and is not scored here (`suppress_tokens`, `no_repeat_ngram_size`, `min_p` and their kind) is refused when the trainer
is made. Temperature, `top_k`, `top_p` and the repetition penalty come from TRL's options, as in TRL.

## Refused
Some values of these options are refused when the configuration is made.
"""


def options_page() -> str:
    """What becomes of every option of TRL's."""
    parts = [OPTIONS_INTRODUCTION, "| option | refused values | why | use instead |", "|---|---|---|---|"]
    parts += [f"| `{n}` | {r.values} | {r.reason} | {r.remedy} |" for n, r in REFUSED.items()]
    for name, other in REFUSED_BY_OTHER_NAME.items():
        parts.append(f"| `{name}` | on | {f'see `{other}`' if other in REFUSED else other} | off |")
    parts += ["", "## Works", "| options | test |", "|---|---|"]
    parts += [f"| {_listed(names)} | {test} |" for test, names in WORKS.items()]
    parts += ["", "## Has no meaning here", "| options | why |", "|---|---|"]
    parts += [f"| {_listed(names)} | {reason} |" for reason, names in NO_MEANING.items()]
    return "\n".join([*parts, ""])


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


PAGES = {
    EVICTION_HELP: eviction_module,
    "docs/api.md": api_page,
    "docs/cli.md": command_line_page,
    "docs/trl.md": options_page,
}


def main() -> int:
    """Write the pages, or compare them."""
    stale = []
    for name, render in PAGES.items():
        page, text = ROOT / name, render()
        if "--check" not in sys.argv[1:]:
            page.write_text(text)
        elif not page.is_file() or page.read_text() != text:
            stale.append(name)
    if stale:
        sys.stderr.write(f"not current: {', '.join(stale)}; run `make docs`\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
