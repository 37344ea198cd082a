"""The model card of an exported adapter: what is known of it, and what is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from thoughtcache.config import ThoughtConfig
from thoughtcache.model_card import TAGS
from thoughtcache.recipes.export.measured import measured_rows
from thoughtcache.recipes.export.run_record import RunRecord
from thoughtcache.recipes.export.training import training_rows
from thoughtcache.recipes.run.settings import adapter_settings
from thoughtcache.report.tables import markdown

MARK = "A ThoughtCache adapter (PEFT type `THOUGHT`)"
"""Stands in every card that is made here, and in no other."""
_TEMPLATE = """\
---
{{ card_data }}
---

# {{ title }}

{{ mark }} for `{{ base }}`. The model thinks under a key-value cache of fixed size:
{{ cache }} {{ memory }}

## How to load it
It needs the package `thoughtcache` beside `peft` and `transformers`; without the import PEFT does not know its type.

```python
{{ code }}
```

On the command line: `thoughtcache generate --model {{ base }} --adapter FOLDER "..."`, where FOLDER is this repository,
downloaded.

## Settings

{{ settings }}

## How it was trained

{{ training }}

## Measured

{{ measured }}

## Limits

{{ limits }}
"""
UNKNOWN_TRAINING = "Not known: the adapter was exported without the folder of a training run."
UNMEASURED = "No figures of this adapter came with it. Measure it with `thoughtcache eval`."


def make_card(
    config: ThoughtConfig,
    *,
    base: str,
    title: str,
    record: RunRecord | None,
    code: str,
    license_name: str | None = None,
) -> ModelCard:
    """The card.

    Args:
        config: settings of the adapter.
        base: hub id of the base model.
        title: name of the adapter.
        record: the run that made it, if it is known.
        code: Python that loads the adapter, see `loading_code`.
        license_name: licence of the adapter, by the hub's name; None leaves it open.
    """
    data = ModelCardData(
        base_model=base,
        library_name="peft",
        pipeline_tag="text-generation",
        license=license_name,
        tags=sorted({*TAGS, "transformers"}),
    )
    settings = [[f"`{name}`", f"`{_shown(value)!r}`"] for name, value in adapter_settings(config).items()]
    rows = [] if record is None else training_rows(record)
    found = None if record is None else measured_rows(record)
    card: ModelCard = ModelCard.from_template(
        data,
        template_str=_TEMPLATE,
        title=title,
        mark=MARK,
        base=base,
        cache=cache_sentence(config),
        memory=memory_sentence(config),
        code=code,
        settings=markdown(["setting", "value"], settings),
        training=markdown(["", "value"], [list(row) for row in rows]) if rows else UNKNOWN_TRAINING,
        measured=UNMEASURED if found is None else f"{found[0]}.\n\n{markdown(found[1], found[2])}",
        limits="\n".join(f"- {line}" for line in limits(config, record)),
    )
    return card


def cache_sentence(config: ThoughtConfig) -> str:
    """The window and who leaves it, in a sentence."""
    if config.window is None:
        return "it keeps the full cache, so that the cache grows with the thoughts."
    size = "as many thoughts as it has tokens" if config.window == "prompt" else f"{config.window} thoughts"
    return (
        f"the prompt stays, and with it {size} (eviction policy `{config.eviction}`, "
        f"{config.evict_fraction:.0%} leave at once, {config.positions} positions)."
    )


def memory_sentence(config: ThoughtConfig) -> str:
    """What remembers the thoughts that left, in a sentence."""
    if config.window is None or not config.absorb:
        return "Nothing remembers what leaves it: this is LoRA under that cache."
    state = f"a state that modulates LoRA (rule `{config.state_rule}`)"
    attention = f"a memory inside attention (`{config.memory_write}` writes)"
    kept = {"adapter": state, "attention": attention, "both": f"{state} and {attention}"}[config.memory]
    return f"What leaves is written to {kept}."


def _shown(value: Any) -> Any:
    """A setting as it is, but layers that are named one by one by the last part of their names."""
    named = isinstance(value, list) and value and isinstance(value[0], str)
    return sorted({name.rsplit(".", 1)[-1] for name in value}) if named else value


def limits(config: ThoughtConfig, record: RunRecord | None) -> Sequence[str]:
    """What a user of the adapter should not expect."""
    found = [
        "An engine that knows plain LoRA only would run it without window and state; it is another model then, and no "
        "figure here holds for it. It cannot be merged into the base where its state changes with the text.",
    ]
    if config.window is not None:
        found.append(
            "What left the window is gone but for what the adapter keeps of it; whether that is enough depends on the "
            "task."
        )
    if record is None:
        return [*found, "Nothing is known of data, seeds or lengths of its training."]
    longest = None if record.is_embedded else record.run.get("max_new_tokens")
    if longest:
        found.append(f"It was trained on thoughts of at most {longest} tokens; the run looked at no longer ones.")
    if record.is_embedded and record.run.get("quick"):
        found.append("The job that made it was shortened: its figures say nothing about the method.")
    if measured_rows(record) is None:
        return [
            *found,
            "The card has no figures of the run, so that nothing here says that it is better than its base.",
        ]
    return [
        *found,
        "The figures are those of one run and one seed, on held-out questions or texts like those that it was trained "
        "on: they say little about other tasks.",
    ]
