"""`import thoughtcache` is light, patches nothing, and registers the PEFT method and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import thoughtcache as tc

CHECK = """
import sys
import peft, transformers
from peft.utils.peft_types import PeftType
before = {name: vars(module).copy() for name, module in list(sys.modules.items())
          if name.split(".")[0] in ("torch", "transformers", "peft") and module is not None}
import thoughtcache
heavy = [name for name in ("trl", "datasets", "matplotlib", "math_verify") if name in sys.modules]
assert not heavy, f"imported: {heavy}"
# Only functions and classes: a lazy module fills itself when it is used, and tables may be registered in.
patched = [f"{name}.{key}" for name, old in before.items() for key, value in old.items()
           if callable(value) and vars(sys.modules[name]).get(key, value) is not value]
assert not patched, f"patched: {patched}"
assert PeftType("THOUGHT").value == "THOUGHT" and PeftType.THOUGHT is PeftType["THOUGHT"]
assert PeftType("LORA") is PeftType.LORA
"""

TABLES = """
import sys
import peft, transformers
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, PreTrainedTokenizerBase

def tables():
    "Every dict, list and set that a module, a class or an instance of transformers or peft holds, and its entries."
    found = {}
    def note(name, value):
        if isinstance(value, (dict, list, set)):
            # As a dict, whatever a subclass makes of a look-up.
            entries = list(dict.items(value)) if isinstance(value, dict) else [(item, None) for item in value]
            found[name] = value, entries
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] not in ("transformers", "peft") or module is None:
            continue
        for key, value in list(vars(module).items()):
            if key.startswith("__"):
                continue
            note(f"{name}.{key}", value)
            if isinstance(value, type) or type(value).__module__.split(".")[0] in ("transformers", "peft"):
                for inner, content in list(getattr(value, "__dict__", {}).items()):
                    note(f"{name}.{key}.{inner}", content)
    return found

before = tables()
import thoughtcache
after, changed = tables(), {}
for name, (_, old) in before.items():
    new = after[name][1]
    kept = {id(value) for entry in old for value in entry}
    differs = [str(key) for key, value in new if id(key) not in kept or id(value) not in kept]
    if len(new) != len(old) or differs:
        changed[name] = sorted(differs)
assert len(before) > 1000, "few tables were looked at"
assert "transformers.AttentionInterface._global_mapping" in before
assert "peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING" in changed
others = {n: c for n, c in changed.items() if n.split(".")[0] != "peft" or not {*c} <= {"THOUGHT", "PeftType.THOUGHT"}}
assert not others, f"registered: {others}"
"""


def run_alone(code: str) -> None:
    """In an interpreter of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr


def test_import_is_light_and_patches_nothing():
    run_alone(CHECK)


def test_import_registers_the_peft_method_and_nothing_else():
    """In no table of transformers or peft does an entry come, go or change, but those of `ThoughtConfig`."""
    run_alone(TABLES)


def test_registering_twice_changes_nothing():
    from thoughtcache.adapter import register

    register()
    assert tc.ThoughtConfig(r=2).peft_type.value == "THOUGHT"


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tc.nothing  # noqa: B018


def test_every_public_name_is_listed_and_there():
    assert set(tc.__all__) <= set(dir(tc))
    for name in tc.__all__:
        assert getattr(tc, name).__name__ == name
    assert tc.DistillConfig(output_dir="a").num_steps > 0
