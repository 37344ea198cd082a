"""What docs/api.md shows: names by group, in the order in which data flows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Group:
    """Names that belong together.

    Attributes:
        title: heading of the group.
        introduction: what a reader finds there, in a sentence or two.
        names: import paths without `thoughtcache.`; one without a dot is a name of `thoughtcache` itself.
    """

    title: str
    introduction: str
    names: tuple[str, ...]


FOR_THE_PACKAGE = frozenset(
    {
        "DistillResult.of",
        "Engine.expect",
        "Engine.tell",
        "EvalRun.asked",
        "EvalRun.limit_of",
        "EvalRun.named_paths",
        "EvalRun.packaged_model",
        "EvalRun.shows_length",
        "PlanSetting.replay_options",
        "RecallConfig.check_write_cost",
        "RecallConfig.longest",
        "RecallConfig.most_before",
        "RecallRun.teaching",
        "ThoughtConfig.behaviour",
        "ThoughtConfig.share_out_over",
        "ThoughtConfig.window_size",
        "ThoughtGRPOTrainer.get_batch_samples",
        "ThoughtGRPOTrainer.training_step",
        "Verdict.of",
    }
)
"""Members that only the package itself calls; they are not shown."""

GROUPS = (
    Group(
        title="Prompt",
        introduction="A prompt is a list of token ids. Questions come from files ([data.md](data.md)), and any "
        "tokenizer encodes them; the others belong to the tiny reasoner that comes with the package, which the "
        "examples of the pages use.",
        names=(
            "tasks.data.datasets.load_prompts",
            "tasks.example.Example",
            "tasks.embedded.reasoner.load_reasoner",
            "tasks.embedded.reasoner.encode_prompt",
            "tasks.embedded.reasoner.encode_trace",
            "tasks.embedded.problem.Problem",
            "tasks.embedded.problem.sample_problems",
        ),
    ),
    Group(
        title="Rollout",
        introduction="Sampling under the bounded cache. One call, or an engine that outlives calls; in one context, or "
        "in a *chain*, whose context is reset between its *links*. How to: [sampling.md](sampling.md), "
        "[folding.md](folding.md), [scale.md](scale.md).",
        names=(
            "rollout",
            "Rollout",
            "TokenFilters",
            "records.SamplingSettings",
            "records.CacheSettings",
            "Engine",
            "Request",
            "sampler.request.GoingOn",
            "sampler.events.Started",
            "sampler.events.Tokens",
            "sampler.events.Evicting",
            "sampler.events.Evicted",
            "sampler.events.Finished",
            "rollout_chains",
            "given_chains",
            "chains.given.split_trace",
            "Chain",
            "chains.thinking.Thinking",
            "MarkovianThinking",
            "StepFolding",
            "records.Continuation",
            "rollout_across_processes",
            "RayRollouts",
            "scale.backend.RolloutBackend",
            "scale.backend.SampledBatch",
        ),
    ),
    Group(
        title="Eviction",
        introduction="Which thoughts leave the window. How to choose: [eviction.md](eviction.md); how to add a policy: "
        "[CONTRIBUTING.md](../CONTRIBUTING.md).",
        names=(
            "Eviction",
            "headkv_budgets",
            "adakv_budgets",
            "cache.eviction.base.EvictionPolicy",
            "cache.eviction.scored.ScoredEviction",
            "cache.eviction.scored.AccumulatedEviction",
            "cache.eviction.view.EvictionView",
            "cache.budgets.base.BudgetAllocation",
        ),
    ),
    Group(
        title="State",
        introduction="What is kept of thoughts that left. The equations: [design.md](design.md); the memory inside "
        "attention: [memory.md](memory.md). These are interfaces for extensions of your own.",
        names=(
            "state.rules.base.StateRule",
            "state.rules.base.ExtraParameter",
            "state.rules.base.EncoderWeights",
            "state.attention.features.FeatureMap",
            "state.attention.writes.base.WriteRule",
        ),
    ),
    Group(
        title="Adapter",
        introduction="The PEFT method: LoRA that reads the state, and the cache that belongs to it. Which settings: "
        "[choose.md](choose.md).",
        names=("ThoughtConfig", "preset", "full_cache", "recipes.load_adapter.load_adapted"),
    ),
    Group(
        title="Replay",
        introduction="The learner's half: the same evictions again, with gradient. How it stays flat: "
        "[learner.md](learner.md).",
        names=("replay", "replay_chains", "TokenLogProbs", "naive_logprobs", "naive_chain_logprobs"),
    ),
    Group(
        title="Loss",
        introduction="What trains the adapter: distillation ([distill.md](distill.md)), GRPO ([trl.md](trl.md)) with "
        "its rewards ([answers.md](answers.md)), and the exercises for a memory ([memory.md](memory.md)).",
        names=(
            "distill",
            "train.distill.sample_teacher",
            "DistillConfig",
            "train.distill.DistillResult",
            "ThoughtGRPOTrainer",
            "ThoughtGRPOConfig",
            "train.rewards.math_correctness",
            "train.rewards.recited_answer",
            "train.rewards.exact_match",
            "folding_reward",
            "transfer_attention",
            "TransferConfig",
            "teach_recall",
            "RecallConfig",
        ),
    ),
    Group(
        title="Evaluation",
        introduction="Whether an answer is right, and what an adapter remembers. Benchmarks are a command, "
        "`thoughtcache eval` ([evaluation.md](evaluation.md)); the studies are described in [study.md](study.md).",
        names=(
            "tasks.maths.answers.check_math_answer",
            "tasks.verdict.Verdict",
            "probe_passcode",
            "studies.passcode.Recall",
            "probe_ages",
            "studies.ages.RecallAtAge",
            "probe_capacity",
            "studies.capacity.Capacity",
            "probe_families",
            "studies.families.FamilyRecall",
            "probe_state_use",
            "studies.state_use.StateUse",
            "probe_anatomy",
            "studies.anatomy.Anatomy",
            "studies.anatomy.StateAnatomy",
            "probe_attention_share",
            "studies.attention_share.AttentionShare",
            "probe_sinks",
            "studies.sinks.HeadMass",
            "probe_far_attention",
            "probe_pooled_attention",
            "harness.model.register",
        ),
    ),
    Group(
        title="Planning",
        introduction="How much memory a run needs, without running it: what `thoughtcache plan` calls. How to make a "
        "run fit: [out-of-memory.md](out-of-memory.md).",
        names=("planning.plan.make_plan", "planning.setting.PlanSetting", "planning.plan.Plan", "planning.plan.Phase"),
    ),
    Group(
        title="Recipes",
        introduction="What the commands do, as functions of their settings. Every field of these configurations is an "
        "option of a command ([cli.md](cli.md)).",
        names=(
            "recipes.real_model.run_real_model",
            "recipes.run.config.RunConfig",
            "recipes.distill.run.run_distill",
            "recipes.distill.config.DistillRun",
            "recipes.evaluate.run.run_eval",
            "recipes.evaluate.several.run_eval_caches",
            "recipes.evaluate.config.EvalRun",
            "recipes.recall.run_recall",
            "recipes.recall.RecallRun",
        ),
    ),
)
