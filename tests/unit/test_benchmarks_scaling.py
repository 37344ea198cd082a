"""The study of how far memories reach, at its smallest size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import scaling


def test_the_study_runs_goes_on_and_keeps_to_its_settings(tmp_path: Path) -> None:
    sizes = ["--steps", "1", "--batch", "2", "--samples", "2", "--problems", "1", "--operations", "1", "2"]
    arms = ["--arms", "LoRA_c", "attention memory", "--seeds", "0", "1"]
    command = ["--output", str(tmp_path), *sizes, *arms]
    scaling.main(command)
    shares = json.loads((tmp_path / "results.json").read_text())["right answers (%)"]
    assert set(shares) == {"full cache", "window 8", "window 8, h2o", "LoRA_c", "attention memory"}
    assert shares["full cache"] == {"1": [100.0, 100.0], "2": [100.0, 100.0]}, "one value per seed"
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    assert "| full cache | 100.0 | 100.0 |" in (tmp_path / "table.md").read_text()
    adapter = tmp_path / "seed-0" / "LoRA_c" / "adapter" / "adapter_model.safetensors"
    written = adapter.stat().st_mtime_ns
    scaling.main(command)
    assert adapter.stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="were trained with steps=1 then, 2 now; give another --output"):
        scaling.main([*command, "--steps", "2"])
