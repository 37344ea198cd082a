"""The distillation loss as the work of a measuring child, see `recipes/plan/measure.py`."""

from __future__ import annotations

from peft import PeftModel

from thoughtcache.learner.options import learner_options
from thoughtcache.planning.setting import PlanSetting
from thoughtcache.recipes.plan.measure import Work, run_child
from thoughtcache.recipes.plan.trace import blank_rollouts

DISTILL_CHILD = "thoughtcache.recipes.plan.measure_distill"


def _run(model: PeftModel, setting: PlanSetting, work: Work) -> None:
    """The teacher's pass, and forward and backward pass of the student; or the teacher's sampling."""
    from thoughtcache.train.distill import distill_loss, sample_teacher
    from thoughtcache.train.distill_config import DistillConfig

    config = DistillConfig(
        output_dir="",
        max_new_tokens=setting.max_new_tokens,
        sample_batch_size=setting.decoded_at_once,
        teacher_cache=setting.teacher_cache,
        pack_weights=setting.pack_weights,
        **learner_options(setting),
    )
    if work == "rollout":
        prompts = [[1 + row] * setting.prompt_tokens for row in range(setting.decoded_at_once)]
        sample_teacher(model, prompts, config)
        return
    distill_loss(model, model, blank_rollouts(setting), config).backward()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    run_child(_run)
