"""One learner step in a process of its own: forward, all log-probabilities and entropies, backward.

`python -m benchmarks.learner_case '{"shape": "smollm2_slice", "learner": "reverse", ...}'` prints one JSON object. The
weights are random: neither time nor memory depends on their values. See learner.py for the comparison.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from dataclasses import asdict, dataclass

import peft
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig, Qwen2Config, Qwen2ForCausalLM

import thoughtcache as tc
from thoughtcache.cache.eviction.policies.sliding import sliding_evictions
from thoughtcache.cache.schedule import evict_count
from thoughtcache.learner.chunk import Boundary, batch_chunks, join_scores, run_chunk
from thoughtcache.learner.kv_log import KVLog, Place
from thoughtcache.measuring.peak_memory import MIB, PeakMemory
from thoughtcache.policy.batch import batch_rollouts
from thoughtcache.policy.handle import open_policy
from thoughtcache.policy.token_logprobs import token_logprobs
from thoughtcache.records import Rollout, SamplingSettings

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LEARNERS = ("reverse", "layers", "reuse", "plain", "checkpoint", "trl", "trl_tiles")
TRL_LEARNERS = ("trl", "trl_tiles")
TRL_TILE_TOKENS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What one process measures.

    Attributes:
        shape: "smollm2", "smollm2_slice" (4 layers), "qwen3b_slice" (4 layers), "0.5b" (Qwen2.5-0.5B) or "tiny".
        learner: "reverse" (ours), "layers" (ours, with checkpoints of layers), "reuse" (ours, on records such as
            sampling leaves, here of random numbers, instead of a forward pass), "plain" (autograd through our
            segments), "checkpoint" (one checkpoint per segment), "trl" (full cache, TRL's fused head and gradient
            checkpointing) or "trl_tiles" (the same, but its head in tiles of `TRL_TILE_TOKENS` tokens, which is no
            option of TRL's).
        tokens: thought tokens.
        window: resident thoughts.
        prompt: prompt tokens.
        rank: r and G.
        chunk_tokens: of the reverse replay, with checkpoints of layers as well.
        kv_log: where the reverse replay keeps keys and values.
        dtype: of base and activations.
        device: of the model.
        threads: of PyTorch.
        repeats: timed steps; the fastest counts.
    """

    shape: str
    learner: str
    tokens: int
    window: int
    prompt: int = 64
    rank: int = 16
    chunk_tokens: int | None = 256
    kv_log: Place = "host"
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 1
    repeats: int = 1


def build_config(shape: str, *, layers: int | None = None) -> PretrainedConfig:
    """Real shapes; slices have 4 layers, and any shape has `layers` if they are given."""
    if shape.startswith("smollm2"):
        return LlamaConfig(
            vocab_size=49152, hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3,
            num_hidden_layers=layers or (4 if shape.endswith("slice") else 30), max_position_embeddings=65536,
            tie_word_embeddings=True,
        )  # fmt: skip
    if shape == "qwen3b_slice":
        return Qwen2Config(
            vocab_size=151936, hidden_size=2048, intermediate_size=11008, num_attention_heads=16, num_key_value_heads=2,
            num_hidden_layers=layers or 4, max_position_embeddings=65536, tie_word_embeddings=True,
        )  # fmt: skip
    if shape == "0.5b":
        return Qwen2Config(
            vocab_size=151936, hidden_size=896, intermediate_size=4864, num_attention_heads=14, num_key_value_heads=2,
            num_hidden_layers=layers or 24, max_position_embeddings=65536, tie_word_embeddings=True,
        )  # fmt: skip
    if shape == "tiny":
        return LlamaConfig(
            vocab_size=61, hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2,
            num_hidden_layers=layers or 2, max_position_embeddings=65536, tie_word_embeddings=True,
            initializer_range=0.1,
        )  # fmt: skip
    raise ValueError(f"shape {shape!r} is not known")


def build_model(case: Case) -> peft.PeftModel:
    """Base and adapter: PTE for our learners, PEFT's LoRA of the same rank for TRL's."""
    torch.manual_seed(0)
    config = build_config(case.shape)
    kind = LlamaForCausalLM if isinstance(config, LlamaConfig) else Qwen2ForCausalLM
    with torch.device(case.device):
        base = kind(config).to(getattr(torch, case.dtype))
    lora = {"r": case.rank, "lora_alpha": 2 * case.rank, "target_modules": TARGETS}
    if case.learner in TRL_LEARNERS:
        return peft.get_peft_model(base, peft.LoraConfig(**lora))
    thought = tc.ThoughtConfig(**lora, num_global_tokens=case.rank, window=case.window, state_rule="delta")
    return peft.get_peft_model(base, thought)


def build_rollout(case: Case, tokens: int) -> Rollout:
    """Random tokens with the record that sampling under the window would have left; states and K/V for "reuse"."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randint(4, build_config(case.shape).vocab_size, (case.prompt + tokens,), generator=generator).tolist()
    evicted = evict_count(case.window, 0.25)
    evictions = sliding_evictions(tokens - 1, case.window, evicted)
    records: dict[str, Tensor] = {}
    if case.learner == "reuse":
        config, dtype = build_config(case.shape), getattr(torch, case.dtype)
        layers, heads = config.num_hidden_layers, config.num_key_value_heads
        size = config.hidden_size // config.num_attention_heads
        columns = case.prompt + tokens - 1
        records = {
            "keys_values": torch.randn(layers, 2, heads, columns, size, generator=generator).to(dtype),
            "entropies": torch.zeros(tokens),
        }
        if evictions:
            records["states"] = torch.randn(len(evictions), layers, case.rank, case.rank, generator=generator)
    return Rollout(
        prompt_ids=drawn[: case.prompt],
        token_ids=drawn[case.prompt :],
        logprobs=torch.zeros(tokens),
        evictions=evictions,
        **records,
        finish_reason="length",
        settings=SamplingSettings(
            temperature=1.0, max_new_tokens=tokens, window=case.window, num_evicted=evicted, eviction="sliding",
            seed=0, ignore_eos=True,
        ),
    )  # fmt: skip


def prepare(model: peft.PeftModel, case: Case) -> None:
    """TRL's learner sets its model up once."""
    model.train()
    if case.learner in TRL_LEARNERS:
        import trl.kernels.chunked_logprob
        from trl.trainer.utils import add_fused_lm_head

        if case.learner == "trl_tiles":
            trl.kernels.chunked_logprob.TOKEN_CHUNK_SIZE = TRL_TILE_TOKENS
        add_fused_lm_head(model.get_base_model(), temperature=1.0, outputs=("log_probs", "entropy"))
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()


def logprobs_of(model: peft.PeftModel, rollout: Rollout, case: Case) -> Tensor:
    """[1, T] log-probabilities with gradient."""
    if case.learner in TRL_LEARNERS:
        ids = torch.tensor([rollout.prompt_ids + rollout.token_ids], device=case.device)
        labels = ids.clone()
        labels[:, : len(rollout.prompt_ids)] = -100
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, fused_lm_head=True)
        scored: Tensor = output.log_probs[:, -len(rollout.token_ids) :]
        return scored
    if case.learner == "checkpoint":
        return _checkpointed(model, rollout)
    return tc.replay(
        model,
        [rollout],
        anchored=case.learner == "reuse",
        reuse=case.learner == "reuse",
        recompute=case.learner in ("reverse", "layers", "reuse"),
        checkpoint_layers=case.learner == "layers",
        chunk_tokens=case.chunk_tokens,
        kv_log=case.kv_log,
    ).logprobs


def _checkpointed(model: nn.Module, rollout: Rollout) -> Tensor:
    """One torch checkpoint per segment: what most people would write first."""
    policy = open_policy(model)
    batch = batch_rollouts([rollout], policy.device)

    def score(hidden: Tensor, start: int, stop: int, known: object) -> tuple[Tensor, ...]:
        return token_logprobs(hidden, batch.token_ids[:, start:stop], policy.head, 1.0)

    def request(tuner: object) -> Tensor:
        entry, scores = Boundary(), []
        for chunk in batch_chunks(batch):
            found, entry = checkpoint(
                lambda chunk, entry: run_chunk(policy, batch, chunk, entry, score, anchored=False),
                chunk,
                entry,
                use_reentrant=False,
            )
            scores.append(found)
        return join_scores(scores, 1)[0]

    result: Tensor = model(thought_request=request)
    return result


def step(model: peft.PeftModel, rollout: Rollout, case: Case) -> tuple[Tensor, int]:
    """One step. Returns the log-probabilities and the bytes of the K/V log between forward and backward."""
    scored = logprobs_of(model, rollout, case)
    log_bytes = sum(thing.num_bytes for thing in gc.get_objects() if isinstance(thing, KVLog))
    scored.mean().backward()
    return scored.detach(), log_bytes


def measure(case: Case) -> dict[str, float]:
    """Peak over the model at rest, and the fastest of the timed steps."""
    torch.set_num_threads(case.threads)
    model = build_model(case)
    prepare(model, case)
    step(model, build_rollout(case, min(case.tokens, case.window + 64)), case)  # warm up; gradients exist from here on
    rollout, times = build_rollout(case, case.tokens), []
    log_bytes, peak = 0, 0.0
    for _ in range(case.repeats):
        with PeakMemory(case.device) as memory:
            started, cpu_started = time.perf_counter(), time.process_time()
            _, log_bytes = step(model, rollout, case)
            times.append((time.perf_counter() - started, time.process_time() - cpu_started))
        peak = max(peak, memory.peak_mib)
    seconds, cpu_seconds = (min(column) for column in zip(*times, strict=True))
    return {"peak_mib": peak, "log_mib": log_bytes / MIB, "seconds": seconds, "cpu_seconds": cpu_seconds}


def main() -> None:
    """Run the case that the command line describes."""
    case = Case(**json.loads(sys.argv[1]))
    print(json.dumps({"case": asdict(case), **measure(case)}))


if __name__ == "__main__":
    main()
