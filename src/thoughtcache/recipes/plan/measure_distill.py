"""The distillation loss as the work of a measuring child, see `recipes/plan/measure.py`."""

from __future__ import annotations

from dataclasses import replace
from tempfile import TemporaryDirectory

from peft import PeftModel

from thoughtcache.learner.options import learner_options
from thoughtcache.planning.setting import PlanSetting
from thoughtcache.recipes.plan.measure import Work, run_child
from thoughtcache.recipes.plan.trace import blank_rollouts

DISTILL_CHILD = "thoughtcache.recipes.plan.measure_distill"


def _run(model: PeftModel, setting: PlanSetting, work: Work) -> None:
    """The teacher's pass, and the student's forward and backward pass; or the teacher's sampling.

    A step that is split runs all of its micro-batches.
    """
    from thoughtcache.train.arguments import training_arguments
    from thoughtcache.train.distill import DistillTrainer, RolloutRows, distill_loss, sample_teacher
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
    if setting.micro_batches == 1:
        distill_loss(model, model, blank_rollouts(setting), config).backward()  # type: ignore[no-untyped-call]
        return
    rows = blank_rollouts(replace(setting, batch=setting.completions, generation_batch=None))
    with TemporaryDirectory() as folder:
        config = replace(config, output_dir=folder, micro_batch_size=setting.batch)
        trainer = DistillTrainer(
            distill_config=config,
            evaluator=None,
            model=model,
            args=training_arguments(config),
            train_dataset=RolloutRows(rows),
        )
        trainer.accelerator.backward(trainer.compute_loss(model, {"rollouts": rows}))


if __name__ == "__main__":
    run_child(_run)
