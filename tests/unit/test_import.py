"""`import thoughtcache` is light and patches nothing."""

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


def test_import_is_light_and_patches_nothing():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    run = subprocess.run([sys.executable, "-c", CHECK], env=environment, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr


def test_registering_twice_changes_nothing():
    from thoughtcache.adapter.registration import register

    register()
    assert tc.ThoughtConfig(r=2).peft_type.value == "THOUGHT"


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tc.nothing  # noqa: B018
