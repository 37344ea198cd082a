"""The paper's memory figures (arXiv 2602.16839) beside ours, with everything that had to be assumed.

Nothing here is fitted. The paper states model, GPU, new tokens, rank, targets and the window rule; it does not state
what is listed in `ASSUMPTIONS`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from thoughtcache.config import ThoughtConfig
from thoughtcache.planning.model_configs import load_config
from thoughtcache.planning.plan import GIB, make_plan, resident_parts
from thoughtcache.planning.setting import SYSTEMS, Logits, PlanSetting, side_by_side

GPU_BYTES = 40 * GIB
NEW_TOKENS = 3072
PROMPT_TOKENS = 512
GROUP = 8
BATCHES = (1, 2, 4, 8)
LENGTHS = (3072, 8192, 32768, 65536)
LENGTHS_BATCH = 4
CHUNK_TOKENS = 256
ASSUMPTIONS = (
    "base weights in bfloat16, the adapter with its gradients and both Adam moments in float32, one GPU, no sharding",
    f"{PROMPT_TOKENS} prompt tokens: the length of the longest question in a micro-batch is not stated, and it is the "
    "paper's training window as well",
    f"groups of {GROUP} completions, decoded at once; micro-batches of {', '.join(map(str, BATCHES))} rows are shown "
    "because the paper's is not stated",
    "LoRA: one checkpoint per layer, no attention mask; logits in tiles (TRL 1.16) or materialised (earlier versions)",
    "PTE: our learner with an exact gradient, in whole segments with keys and values on the device, and in chunks of "
    f"{CHUNK_TOKENS} tokens with keys and values on the host; how the paper's learner keeps activations is not stated",
    "no KL reference, a gradient accumulated over micro-batches, 1 GiB for CUDA context and fragmentation",
    "no engine that allocates its cache in advance: with vLLM on the same GPU, the paper's shares would contain what "
    "it was told to take rather than what it needs",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperFigure:
    """Peak GPU memory that the paper reports, in per cent of an A100-40GB.

    Attributes:
        model: bundled name.
        lora_percent: LoRA with its full cache.
        pte_percent: progressive thought encoding.
    """

    model: str
    lora_percent: float
    pte_percent: float


FIGURES = (
    PaperFigure(model="Qwen/Qwen2.5-3B-Instruct", lora_percent=82.8, pte_percent=45.3),
    PaperFigure(model="Qwen/Qwen2.5-7B-Instruct", lora_percent=85.8, pte_percent=67.2),
    PaperFigure(model="deepseek-ai/DeepSeek-R1-Distill-Llama-8B", lora_percent=88.7, pte_percent=59.8),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperRow:
    """Our prediction for one model and micro-batch, in per cent of the GPU.

    Attributes:
        figure: what the paper reports.
        batch: rows of a micro-batch.
        new_tokens: length of the thoughts.
        lora_percent: LoRA with logits in tiles.
        lora_materialised_percent: LoRA with materialised logits.
        pte_percent: ours, whole segments, keys and values on the device.
        pte_chunked_percent: ours in chunks of `CHUNK_TOKENS`, keys and values of all tokens on the host.
        weights_percent: the base alone.
        within_positions: whether the model has a position for every token.
    """

    figure: PaperFigure
    batch: int
    new_tokens: int
    lora_percent: float
    lora_materialised_percent: float
    pte_percent: float
    pte_chunked_percent: float
    weights_percent: float
    within_positions: bool

    def is_close(self, points: float) -> bool:
        """Whether LoRA and PTE lie within so many points of the paper, each in the closer of its two predictions."""
        lora = min(abs(x - self.figure.lora_percent) for x in (self.lora_percent, self.lora_materialised_percent))
        pte = min(abs(x - self.figure.pte_percent) for x in (self.pte_percent, self.pte_chunked_percent))
        return max(lora, pte) <= points


def paper_settings(figure: PaperFigure, batch: int, new_tokens: int = NEW_TOKENS) -> PlanSetting:
    """The paper's run with what had to be assumed."""
    return PlanSetting(
        model=load_config(figure.model),
        thought=ThoughtConfig(window="prompt"),
        prompt_tokens=PROMPT_TOKENS,
        max_new_tokens=new_tokens,
        batch=batch,
        group=GROUP,
    )


def paper_rows() -> list[PaperRow]:
    """Every model and micro-batch at the paper's length."""
    return [_row(figure, batch, NEW_TOKENS) for figure in FIGURES for batch in BATCHES]


def length_rows() -> list[PaperRow]:
    """Every model at growing lengths and one micro-batch."""
    return [_row(figure, LENGTHS_BATCH, length) for figure in FIGURES for length in LENGTHS]


def _row(figure: PaperFigure, batch: int, new_tokens: int) -> PaperRow:
    setting = paper_settings(figure, batch, new_tokens)
    chunked = replace(setting, chunk_tokens=CHUNK_TOKENS, kv_log="host")

    def percent(chosen: PlanSetting, system: str, logits: Logits = "chunked") -> float:
        plan = make_plan(replace(side_by_side(chosen)[system], logits=logits))
        return 100 * plan.total_bytes / GPU_BYTES

    return PaperRow(
        figure=figure,
        batch=batch,
        new_tokens=new_tokens,
        lora_percent=percent(setting, SYSTEMS[0]),
        lora_materialised_percent=percent(setting, SYSTEMS[0], "materialised"),
        pte_percent=percent(setting, SYSTEMS[2]),
        pte_chunked_percent=percent(chunked, SYSTEMS[2]),
        weights_percent=100 * resident_parts(setting)["weights"] / GPU_BYTES,
        within_positions=setting.max_positions is None or setting.positions_needed <= setting.max_positions,
    )
