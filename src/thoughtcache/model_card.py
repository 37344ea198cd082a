"""The model card of a saved adapter: what it is, its base, what must be imported, and how it is loaded.

PEFT writes its template of a card, "[More Information Needed]" in every section. This takes the place of that template;
a card that somebody has written keeps its text and gets the section once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

HEADING = "## A ThoughtCache adapter"
TEMPLATE_MARK = "[More Information Needed]"
ANYWHERE = "this folder or hub id"
BASE_TOKENIZER = 'model.peft_config["default"].base_model_name_or_path'
"""Stand in code for where the adapter lies, and its tokenizer."""
TAGS = ("thoughtcache", "progressive-thought-encoding")


def write_card(folder: Path, *, base: str | None, settings: dict[str, Any]) -> None:
    """Write `README.md` next to the adapter, or add to the one that is there.

    Args:
        folder: folder of the adapter; a card that lies there keeps its own metadata.
        base: folder or hub id of the base model, or None if it is not known.
        settings: settings of the adapter, name -> value, in the order in which they are shown.
    """
    file = folder / "README.md"
    card = ModelCard(file.read_text(encoding="utf-8")) if file.exists() else ModelCard.from_template(ModelCardData())
    card.data["library_name"] = "peft"
    card.data["tags"] = sorted({*(card.data.get("tags") or ()), *TAGS})
    if base and not card.data.get("base_model"):
        card.data["base_model"] = base
    if HEADING not in card.text:
        section = _section(base, settings)
        card.text = section if TEMPLATE_MARK in card.text else f"{card.text.rstrip()}\n\n{section}"
    card.save(file)


def loading_code(place: str = ANYWHERE, *, tokenizer: str = BASE_TOKENIZER, has_template: bool = False) -> str:
    """Python that loads an adapter and asks it something.

    Args:
        place: its folder or hub id.
        tokenizer: Python for where the tokenizer lies: "place", or that of the base model.
        has_template: whether its tokenizer has a chat template.
    """
    question = '"How many primes are below 30?"'
    inputs = (
        f"""messages = [{{"role": "user", "content": {question}}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")"""
        if has_template
        else f'inputs = tokenizer({question}, return_tensors="pt", return_token_type_ids=False)'
    )
    return f"""import thoughtcache  # makes the adapter's type known
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

place = "{place}"
model = AutoPeftModelForCausalLM.from_pretrained(place)
tokenizer = AutoTokenizer.from_pretrained({tokenizer})
{inputs}
output = model.generate(**inputs, max_new_tokens=256)  # under the window, with the state
print(tokenizer.decode(output[0], skip_special_tokens=True))"""


def _section(base: str | None, settings: dict[str, Any]) -> str:
    named = base or "the base model"
    cells = {name: repr(value).replace("|", r"\|") for name, value in settings.items()}
    shown = "\n".join(f"| `{name}` | `{value}` |" for name, value in cells.items())
    return f"""{HEADING}

This is a PEFT adapter of type `THOUGHT` (Progressive Thought Encoding, arXiv 2602.16839) for `{named}`. The model
generates under a key-value cache of fixed size, and a small state per sequence remembers the tokens that have left it.

It needs the package `thoughtcache` beside `peft` and `transformers`; without `import thoughtcache`, PEFT does not know
the type and refuses to load the adapter.

```python
{loading_code()}
```

or on a base that is loaded already: `peft.PeftModel.from_pretrained(base, "{ANYWHERE}")`. Call the loaded
model itself: the base inside of it, or an engine that knows plain LoRA only, would run without window and state.

| setting | value |
|---|---|
{shown}
"""
