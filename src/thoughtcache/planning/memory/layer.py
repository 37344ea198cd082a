"""The bytes that one chunk of a replay allocates, in closed form: read off the layers of transformers and PEFT.

Letters: N = rows x columns of the chunk, d hidden size, I inner size, Q = query heads x head size, K = kv heads x head
size, R rank, G inputs of the second factor, V vocabulary; `base` and `adapter` are the bytes of one number of each.
PEFT keeps the adapter of a half-precision model in fp32, so that every adapted linear makes an fp32 copy of its input;
`mixed` says whether that is so.

Not covered: scratch memory inside kernels, rounding of an allocator. Proof: tests/unit/test_plan_trace.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from thoughtcache.config import ThoughtConfig
from thoughtcache.learner.chunk_plan import Chunk
from thoughtcache.planning.flops import linear_shapes, targeted_linears
from thoughtcache.planning.memory.attention_memory import (
    MemoryNumbers,
    read_running_bytes,
    read_saved_bytes,
    scaled_weights_bytes,
    share_running_bytes,
    share_saved_bytes,
    shared_bytes,
    write_saved_bytes,
)
from thoughtcache.planning.model_size import ModelSize, model_size
from thoughtcache.planning.setting import PlanSetting
from thoughtcache.policy.scores import CHUNK_ELEMENTS
from thoughtcache.state.rules import state_rule

FP32 = 4
ADAPTER_BYTES = FP32
SCORE_TENSORS = {"grpo": 2, "distill": 5}
"""fp32 tensors of the size of the logits at the highest point of scoring a chunk of them, forward and backward. The KL:
both distributions in logarithms, the teacher's own, their difference and the product."""
O_PROJ = "self_attn.o_proj"
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
UP, DOWN = "mlp.up_proj", "mlp.down_proj"


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerNumbers:
    """Everything about a setting that the closed form of one layer needs.

    Attributes:
        size: sizes of the model.
        shapes: (inputs, outputs) of each linear.
        targeted: targeted linears of every layer.
        base: bytes of a number of the base model.
        mixed: whether adapted linears copy their inputs to fp32.
        thought: the adapter.
        has_state: whether a thought state stands between the two factors.
        memory: the memory in attention space, None without.
        dense_masks: whether chunks with resident tokens get a dense mask.
        mask_heads: heads that have masks of their own: 1, or all query heads where budgets differ by head.
        repeats_kv: whether keys and values are repeated for every query head.
        unequal_prompts: whether even the first chunk gets a dense mask.
        score_bytes: bytes per logit while a chunk of logits is scored.
    """

    size: ModelSize
    shapes: dict[str, tuple[int, int]]
    targeted: list[list[str]]
    base: int
    mixed: bool
    thought: ThoughtConfig
    has_state: bool
    memory: MemoryNumbers | None
    dense_masks: bool
    mask_heads: int
    repeats_kv: bool
    unequal_prompts: bool
    score_bytes: int

    def linear(self, name: str) -> int:
        """Bytes per token while an adapted linear runs: its output and two adapter terms."""
        extra = 2 * ADAPTER_BYTES if name in self.targeted[-1] else 0
        return self.shapes[name][1] * (self.base + extra)

    def fp32_input(self, name: str) -> int:
        """Bytes per token of the fp32 copy of a linear's input, if it makes one."""
        return self.shapes[name][0] * ADAPTER_BYTES if self.mixed and name in self.targeted[-1] else 0


def layer_numbers(setting: PlanSetting) -> LayerNumbers:
    """Collect what the closed form needs."""
    base = setting.base_bytes
    on_cpu = setting.device_type == "cpu"
    size = model_size(setting.model)
    by_head = setting.cache.head_budgets is not None
    masks = setting.unequal_prompts or by_head
    return LayerNumbers(
        size=size,
        shapes=linear_shapes(setting.model),
        targeted=targeted_linears(setting.model, setting.thought.target_modules),
        base=base,
        mixed=base != ADAPTER_BYTES,
        thought=setting.thought,
        has_state=not setting.thought.has_plain_linears,
        memory=_memory_numbers(setting),
        dense_masks=on_cpu or masks,
        mask_heads=size.heads if by_head else 1,
        repeats_kv=masks and not on_cpu and size.heads * size.head_size != size.kv,
        unequal_prompts=setting.unequal_prompts,
        score_bytes=FP32 * SCORE_TENSORS[setting.objective],
    )


def _memory_numbers(setting: PlanSetting) -> MemoryNumbers | None:
    shape = setting.attention_memory
    if shape is None:
        return None
    turns = setting.thought.memory_keys == "content"
    return MemoryNumbers(shape=shape, turns=turns, chooses=setting.chooses, base=setting.base_bytes)


def adapter_bytes(setting: PlanSetting) -> int:
    """The adapter, or its gradient."""
    return setting.adapter_parameters * ADAPTER_BYTES


def factor_bytes(numbers: LayerNumbers, name: str) -> int:
    """Both factors of a linear of the last layer, or their gradients; 0 where it is not adapted."""
    inputs, outputs = numbers.shapes[name]
    thought = numbers.thought
    return (thought.r * inputs + thought.num_state_rows * outputs) * ADAPTER_BYTES * (name in numbers.targeted[-1])


def kv_bytes(numbers: LayerNumbers, rows: int, tokens: int) -> int:
    """Keys and values of all layers."""
    return 2 * numbers.size.layers * rows * tokens * numbers.size.kv * numbers.base


def saved_bytes(numbers: LayerNumbers, rows: int, chunk: Chunk) -> int:
    """Bytes that autograd keeps of a chunk in all decoder layers, without its resident keys and values (`kv_bytes`)."""
    total = sum(_saved_by_layer(numbers, rows, chunk, set(names)) for names in numbers.targeted)
    total += absorption_saved_bytes(numbers, rows, chunk) + memory_bytes(numbers, rows, chunk)
    return total - rows * chunk.columns * FP32 * numbers.size.hidden  # nothing below the first norm needs a gradient


def last_layer_bytes(numbers: LayerNumbers, rows: int, chunk: Chunk) -> int:
    """Bytes that autograd keeps of the last decoder layer alone: what one recomputed checkpoint needs."""
    return _saved_by_layer(numbers, rows, chunk, set(numbers.targeted[-1]))


def _saved_by_layer(numbers: LayerNumbers, rows: int, chunk: Chunk, targeted: set[str]) -> int:
    size, base, shapes = numbers.size, numbers.base, numbers.shapes
    per_token = 2 * FP32 * size.hidden + 2 * FP32  # both norms: their input in fp32, one scale per token
    if numbers.mixed:
        per_token += sum(shapes[name][0] * ADAPTER_BYTES for name in targeted)
    else:
        per_token += size.hidden * base * (bool(targeted & set(QKV)) + bool(targeted & set(GATE_UP)))
        per_token += size.inner * base * (DOWN in targeted)  # the input of o_proj is kept by attention anyway
    per_token += (
        len(targeted)
        * ADAPTER_BYTES
        * (numbers.thought.r + (numbers.thought.num_state_rows if numbers.has_state else 0))
    )
    per_token += 2 * size.query * base + size.heads * FP32  # queries, output, one log-sum-exp per head
    per_token += FP32 * (size.query + size.kv) if size.has_qk_norm else 0
    per_token += 3 * size.inner * base  # gate before and after its activation, up
    total = rows * chunk.columns * per_token
    if has_mask(numbers, chunk):
        total += rows * numbers.mask_heads * chunk.columns * chunk.leaving * base
        total += 2 * rows * chunk.leaving * size.query * base if numbers.repeats_kv else 0
    if reads_memory(numbers, chunk):
        assert numbers.memory is not None
        total += read_saved_bytes(numbers.memory, rows, chunk.columns)
        total += share_saved_bytes(numbers.memory, rows, chunk.columns, chunk.leaving)
        if not numbers.mixed and O_PROJ in targeted:  # its input is no longer what attention keeps
            total += rows * chunk.columns * size.query * base
    return total


def reads_memory(numbers: LayerNumbers, chunk: Chunk) -> bool:
    """Whether attention reads a memory in this chunk."""
    return numbers.memory is not None and not chunk.is_initial


def memory_bytes(numbers: LayerNumbers, rows: int, chunk: Chunk) -> int:
    """Bytes of a memory in attention space in a chunk that its layers share, and of its parameters as they are used."""
    if numbers.memory is None:
        return 0
    angles = shared_bytes(numbers.memory, rows, chunk.columns) if reads_memory(numbers, chunk) else 0
    return angles + numbers.size.layers * scaled_weights_bytes(numbers.memory)


def absorption_saved_bytes(numbers: LayerNumbers, rows: int, chunk: Chunk) -> int:
    """Bytes that the update of all states on entry to a chunk keeps: of keys and values that left."""
    saved = 0 if numbers.memory is None else write_saved_bytes(numbers.memory, rows, chunk.evicted)
    if numbers.has_state and numbers.thought.absorb:
        numbers_per_entry = state_rule(numbers.thought.state_rule).saved_per_entry
        saved += rows * chunk.evicted * numbers.size.kv * numbers_per_entry * FP32
    return numbers.size.layers * saved


def has_mask(numbers: LayerNumbers, chunk: Chunk) -> bool:
    """Whether attention gets a dense mask in this chunk."""
    return numbers.dense_masks and (numbers.unequal_prompts or (chunk.entry > 0 and chunk.columns > 1))


def graph_forward_bytes(numbers: LayerNumbers, tokens: int) -> int:
    """Bytes that the last layer needs over what it keeps to build its graph, at the end of `up_proj` or `down_proj`."""
    size, base = numbers.size, numbers.base
    local = size.hidden * base * (3 if numbers.mixed else 1)  # embeddings; residual and normalised input if not kept
    up = local + numbers.linear(UP) - _kept_by_down(numbers) - size.inner * base
    down = local + numbers.linear(DOWN) + (size.inner * base if numbers.mixed else 0)
    return tokens * max(up, down)


def graph_backward_bytes(numbers: LayerNumbers, tokens: int) -> int:
    """Bytes that the backward pass of the last layer needs over what it keeps.

    They hold either the fp32 gradient of the input of `down_proj`, or the gradients of both factors of the gated
    product.
    """
    size, base = numbers.size, numbers.base
    down = size.inner * (ADAPTER_BYTES if _adapted(numbers, DOWN) else base) + size.hidden * (
        base + (ADAPTER_BYTES if numbers.mixed else 0)
    )
    product = 3 * size.inner * base - _kept_by_down(numbers) + 2 * size.hidden * base
    return tokens * max(down, product)


def _adapted(numbers: LayerNumbers, name: str) -> bool:
    return name in numbers.targeted[-1]


def _kept_by_down(numbers: LayerNumbers) -> int:
    """Bytes per token of the input of `down_proj` that autograd keeps."""
    if not _adapted(numbers, DOWN):
        return 0
    return numbers.size.inner * (ADAPTER_BYTES if numbers.mixed else numbers.base)


def forward_transient_bytes(
    numbers: LayerNumbers, tokens: int, *, reads: bool = False, rows: int = 1, leaving: int = 0
) -> int:
    """Activations of one layer of a forward pass without a graph, at the end of `up_proj` or `down_proj`, or between.

    Four tensors of the size of the hidden states live all the while: embeddings, the layer's input, the residual and
    the normalised input of the MLP. With `reads`, attention reads a memory, when there is no residual yet; `leaving`
    are the resident tokens of each of the rows then.
    """
    size, base = numbers.size, numbers.base
    local = 4 * size.hidden * base
    up = local + numbers.fp32_input(UP) + size.inner * base + numbers.linear(UP)
    down = local + size.inner * base + numbers.fp32_input(DOWN) + numbers.linear(DOWN)
    product = local + 3 * size.inner * base
    read = 0
    if reads and numbers.memory is not None:
        read = read_running_bytes(numbers.memory, tokens)
        read = max(read, share_running_bytes(numbers.memory, rows, tokens // rows, leaving))
        read += tokens * (3 * size.hidden + 2 * size.kv) * base
    return max(tokens * max(up, down, product), read)


def score_rows(numbers: LayerNumbers, rows: int, chunk: Chunk) -> int:
    """Rows of logits that are formed at once."""
    return min(rows * chunk.scored, max(1, CHUNK_ELEMENTS // numbers.size.vocabulary))


def logits_bytes(numbers: LayerNumbers, rows: int, chunk: Chunk) -> int:
    """Logits and what is made of them, of one chunk of rows."""
    return numbers.score_bytes * score_rows(numbers, rows, chunk) * numbers.size.vocabulary


def final_norm_bytes(numbers: LayerNumbers, tokens: int) -> int:
    """The last norm's input in fp32 and its output, which the head reads."""
    return tokens * numbers.size.hidden * (FP32 + numbers.base)
