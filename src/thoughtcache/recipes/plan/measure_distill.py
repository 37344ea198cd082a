"""The distillation loss as the work of a measuring child, see `recipes/plan/measure.py`."""

from __future__ import annotations

from peft import PeftModel

from thoughtcache.planning.setting import PlanSetting
from thoughtcache.recipes.plan.measure import Work, run_child
from thoughtcache.recipes.plan.trace import blank_rollouts

DISTILL_CHILD = "thoughtcache.recipes.plan.measure_distill"


def _run(model: PeftModel, setting: PlanSetting, work: Work) -> None:
    """The teacher's pass, and forward and backward pass of the student."""
    from thoughtcache.train.distill import distill_loss
    from thoughtcache.train.distill_config import DistillConfig

    config = DistillConfig(
        output_dir="",
        gradient=setting.gradient,
        recompute=setting.recompute,
        chunk_tokens=setting.chunk_tokens,
        kv_log=setting.kv_log,
    )
    distill_loss(model, model, blank_rollouts(setting), config).backward()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    run_child(_run)
