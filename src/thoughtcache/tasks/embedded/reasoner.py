"""The embedded reasoners: tiny Llamas and their tokenizer, packaged in the folders `tiny_reasoner` and `long_reasoner`.

Real transformers models (rotary positions, three layers, four heads of 16, SwiGLU) of 152k parameters. The first solves
the tasks *chains* and *multiplication* with a full cache, so that every experiment of this project runs end to end
on two CPU cores without network; the second solves *long_chains* of any number of operations, for curves over
the length. They know nothing else. `build_reasoner.py` makes them.

Text and tokens. One token per character; `<pad>`, `<bos>` and `<eos>` are distinct. `<bos>` is added in front by
default (`add_special_tokens=True`), `<eos>` never: a training sequence is `encode_prompt(...) + encode_trace(...)`.
Because every character is its own token, that concatenation is the only tokenisation of the joined text.

transformers is imported inside the functions: importing this module is cheap.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from thoughtcache.checks import one_of
from thoughtcache.ends import prompt_token_ids

if TYPE_CHECKING:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

REASONER_FOLDER = Path(__file__).parent / "tiny_reasoner"
LONG_REASONER_FOLDER = Path(__file__).parent / "long_reasoner"
FOLDERS = {"chains": REASONER_FOLDER, "multiplication": REASONER_FOLDER, "long_chains": LONG_REASONER_FOLDER}
"""Task -> folder of the packaged model that solves it."""
PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
CHARACTERS = "0123456789+-*=;#"
VOCABULARY: dict[str, int] = {token: index for index, token in enumerate((PAD, BOS, EOS, *CHARACTERS))}
MAX_POSITIONS = 512


def build_tokenizer(max_positions: int = MAX_POSITIONS) -> PreTrainedTokenizerFast:
    """A fast tokenizer with one token per character of `CHARACTERS`; padding is on the left.

    Text with any other character is refused by the tokenizers library with an exception (there is no unknown token).
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel(vocab=VOCABULARY))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, VOCABULARY[BOS])]
    )
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="left",
        model_max_length=max_positions,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def build_config(max_positions: int = MAX_POSITIONS) -> LlamaConfig:
    """The architecture (152,192 parameters). Masters both tasks; smaller ones were not tried."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        initializer_range=0.08,
        pad_token_id=VOCABULARY[PAD],
        bos_token_id=VOCABULARY[BOS],
        eos_token_id=VOCABULARY[EOS],
    )


def encode_prompt(tokenizer: PreTrainedTokenizerFast, prompt: str) -> list[int]:
    """Token ids of a prompt, `<bos>` in front: `len(prompt) + 1` tokens.

    Args:
        tokenizer: the reasoner's.
        prompt: what the model is asked, of characters in `CHARACTERS` only.
    """
    return prompt_token_ids(tokenizer, prompt)


def encode_trace(tokenizer: PreTrainedTokenizerFast, trace: str) -> list[int]:
    """Token ids of a trace, `<eos>` behind: `len(trace) + 1` tokens.

    Args:
        tokenizer: the reasoner's.
        trace: a worked solution, of characters in `CHARACTERS` only.
    """
    token_ids: list[int] = tokenizer(trace, add_special_tokens=False)["input_ids"]
    return [*token_ids, VOCABULARY[EOS]]


def load_reasoner(
    dtype: torch.dtype | None = None, task: str = "chains"
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The packaged model of a task, in eval mode and on the CPU, and its tokenizer.

    Args:
        dtype: dtype of the weights; None for float32.
        task: "chains", "multiplication" or "long_chains"; the first two have the same model.

    Returns:
        The model and the tokenizer.

    Raises:
        ValueError: if the task is unknown, or if the folder is missing from the installation.
    """
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    one_of("task", task, tuple(FOLDERS))
    folder = FOLDERS[task]
    if not (folder / "model.safetensors").is_file():
        raise ValueError(
            f"no model.safetensors in {folder}; reinstall the package, or build the reasoner with "
            f"`python -m thoughtcache.tasks.embedded.build_reasoner {folder.name} --output {folder}`."
        )
    model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype or torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model.eval()  # type: ignore[no-untyped-call]
    return model, tokenizer
