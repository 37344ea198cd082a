"""The card beside a saved adapter tells a stranger what it is and how it is loaded."""

from __future__ import annotations

import re
import subprocess
import sys

from huggingface_hub import ModelCard

import thoughtcache as tc
from support.grpo import word_tokenizer
from support.models import adapt, tiny_base, tiny_model
from thoughtcache.model_card import _section


def saved(folder):
    """An adapter in a folder, beside the folder of its base."""
    base = tiny_base()
    base.save_pretrained(folder / "base")
    base.name_or_path = str(folder / "base")
    model = adapt(base, window=7)
    model.config._name_or_path = str(folder / "base")
    model.peft_config["default"].base_model_name_or_path = str(folder / "base")
    model.save_pretrained(folder / "adapter")
    return model


def test_a_saved_adapter_says_what_it_is_and_how_to_load_it(tmp_path):
    saved(tmp_path)
    card = ModelCard.load(tmp_path / "adapter" / "README.md")
    assert "More Information Needed" not in card.text
    for part in (
        "type `THOUGHT`",
        f"for `{tmp_path / 'base'}`",
        "import thoughtcache",
        "| `window` | `7` |",
        "| `r` | `3` |",
    ):
        assert part in card.text, part
    assert card.data["library_name"] == "peft"
    assert card.data["base_model"] == str(tmp_path / "base")
    assert card.data["pipeline_tag"] == "text-generation"
    assert {"thoughtcache", "transformers"} <= set(card.data["tags"])


def test_the_code_on_the_card_loads_the_adapter(tmp_path):
    saved(tmp_path)
    text = (tmp_path / "adapter" / "README.md").read_text()
    word_tokenizer().save_pretrained(tmp_path / "base")
    block = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    code = block.replace("this folder or hub id", str(tmp_path / "adapter")).replace("=256", "=3")
    check = "assert type(model.peft_config['default']).__name__ == 'ThoughtConfig' and output.shape[1] > 3"
    subprocess.run([sys.executable, "-c", f"{code}\n{check}"], check=True, timeout=120)


def test_a_bar_in_a_setting_stays_in_its_cell():
    text = _section(None, {"target_modules": "q_proj|v_proj"})
    assert r"| `target_modules` | `'q_proj\|v_proj'` |" in text


def test_a_card_that_somebody_wrote_keeps_its_text(tmp_path):
    model = tiny_model()
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# My adapter\n\nIt is good.\n")
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.text.index("It is good.") < card.text.index("## A ThoughtCache adapter")
    assert card.text.count("## A ThoughtCache adapter") == 1
    assert card.data["license"] == "mit"
    assert "thoughtcache" in card.data["tags"]


def test_every_adapter_of_a_model_has_its_card(tmp_path):
    model = tiny_model()
    model.add_adapter("second", tc.ThoughtConfig(r=3, num_global_tokens=5, window=None))
    model.save_pretrained(tmp_path)
    assert "| `window` | `5` |" in (tmp_path / "README.md").read_text()
    assert "| `window` | `None` |" in (tmp_path / "second" / "README.md").read_text()
