"""Every option of transformers' `generate` means what it means there, or is refused, wherever it was set."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import GenerationConfig, GenerationMixin, PreTrainedTokenizerFast, WatermarkingConfig

import thoughtcache as tc
from support.compare import assert_close
from support.models import POSITIONS, tiny_base, tiny_model
from support.rollouts import PROMPTS
from thoughtcache.adapter.generation import ARGUMENTS, OPTIONS, Use, merged_options

PROMPT = PROMPTS[0]
NEW_TOKENS = 14
WAYS = ("keyword", "positional configuration", "configuration", "model", "model beside a configuration")

REFUSED: dict[str, Any] = {
    "num_beams": 2,
    "num_beam_groups": 2,
    "constraints": [1],
    "force_words_ids": [[1]],
    "penalty_alpha": 0.6,
    "dola_layers": "low",
    "prompt_lookup_num_tokens": 2,
    "assistant_early_exit": 1,
    "use_mtp": True,
    "speculation_type": "dflash",
    "is_assistant": True,
    "use_cache": False,
    "cache_implementation": "static",
    "prefill_chunk_size": 2,
    "guidance_scale": 1.5,
    "token_healing": True,
}
"""A value that is refused, of every option that is."""

PROCESSORS: dict[str, Any] = {
    "repetition_penalty": 1.5,
    "encoder_repetition_penalty": 1.5,
    "no_repeat_ngram_size": 1,
    "encoder_no_repeat_ngram_size": 1,
    "bad_words_ids": [[7], [9, 3]],
    "sequence_bias": [[[7], -5.0], [[11], 4.0]],
    "suppress_tokens": [7, 9, 11],
    "begin_suppress_tokens": [7, 9, 11],
    "forced_bos_token_id": 4,
    "forced_eos_token_id": 4,
    "min_length": 15,
    "min_new_tokens": 8,
    "exponential_decay_length_penalty": (3, 1.5),
    "renormalize_logits": True,
    "remove_invalid_values": True,
    "watermarking_config": WatermarkingConfig(bias=3.0),
}
"""Options that change the scores of a greedy generation."""


def generation(**options: Any) -> GenerationConfig:
    """A greedy configuration; options that transformers checks together are set behind its back."""
    config = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
    for name, value in options.items():
        setattr(config, name, value)
    return config


def generate(model: Any, way: str = "configuration", prompt: list[int] = PROMPT, **options: Any) -> Any:
    """Generate with options that are said in one of these ways."""
    ids, own = torch.tensor([prompt]), model.generation_config
    shared = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0, "return_dict_in_generate": True}
    shared |= {"output_logits": True, "output_scores": True}
    shared = {name: value for name, value in shared.items() if name not in options}
    before = {name: getattr(own, name, None) for name in (*options, *shared)}  # older versions lack some
    try:
        if way == "keyword":
            return model.generate(ids, **shared, **options)
        if way == "configuration":
            return model.generate(ids, generation_config=generation(**shared, **options))
        if way == "positional configuration":
            return model.generate(ids, generation(**shared, **options))
        for name, value in options.items():
            setattr(own, name, value)
        if way == "model":
            return model.generate(ids, **shared)
        return model.generate(ids, generation_config=generation(**shared))
    finally:
        for name, value in before.items():
            setattr(own, name, value)


def length(model: Any, prompt: list[int] = PROMPT, **arguments: Any) -> int:
    """How many tokens a greedy generation adds."""
    out = model.generate(torch.tensor([prompt]), **arguments)
    return out.shape[1] - len(prompt)


class TestCompleteness:
    """A new option of transformers is a failing test, not a silent one."""

    def test_every_field_of_a_generation_config_has_its_use(self):
        assert set(vars(GenerationConfig())) <= set(OPTIONS)  # older versions lack some

    def test_every_argument_of_generate_has_its_use(self):
        named = set(inspect.signature(GenerationMixin.generate).parameters) - {"self", "kwargs"}
        assert named <= set(ARGUMENTS)

    def test_every_refused_option_is_tried(self):
        assert set(REFUSED) == {name for name, use in OPTIONS.items() if use is Use.REFUSED}

    def test_every_option_that_changes_the_scores_is_tried(self):
        of_sampling = {"temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"}
        assert {name for name, use in OPTIONS.items() if use is Use.SCORES} == set(PROCESSORS) | of_sampling


class TestRefused:
    """Options that would sample another policy than the adapter's."""

    @pytest.mark.filterwarnings("ignore::UserWarning")  # of transformers' own checks of single options
    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("name", REFUSED)
    def test_wherever_it_is_set(self, name, way):
        model = tiny_model()
        with pytest.raises(ValueError, match=rf"{name}={re.escape(repr(REFUSED[name]))}.*thought state"):
            generate(model, way, **{name: REFUSED[name]})

    def test_a_keyword_takes_back_what_a_configuration_says(self):
        model = tiny_model()
        model.generation_config.num_beams = 3
        expected = generate(tiny_model()).sequences
        assert torch.equal(generate(model, "keyword", num_beams=1).sequences, expected)
        with pytest.raises(ValueError, match="num_beams=3"):
            generate(model)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"assistant_model": object()}, "assistant_model"),
            ({"custom_generate": "someone/loop"}, "custom_generate"),
            ({"custom_generate": lambda *a, **k: None}, "custom_generate"),
            ({"past_key_values": object()}, "past_key_values"),
            ({"cache": object()}, "cache"),
            ({"negative_prompt_ids": torch.tensor([[1]])}, "negative_prompt_ids"),
            ({"inputs_embeds": torch.zeros(1, 2, 16)}, "inputs_embeds"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            tiny_model().generate(input_ids=torch.tensor([PROMPT]), max_new_tokens=4, **arguments)

    def test_an_assistant_by_position(self):
        with pytest.raises(ValueError, match="assistant_model"):
            tiny_model().generate(torch.tensor([PROMPT]), generation(), None, None, None, None, object())

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, "prompt 0 is empty"),
            (
                {"input_ids": torch.tensor([[3, 4], [0, 0]]), "attention_mask": torch.tensor([[1, 1], [0, 0]])},
                "prompt 1 is empty",
            ),
            ({"input_ids": torch.zeros(0, 3, dtype=torch.long)}, "no prompts"),
            ({"input_ids": torch.tensor([3, 4])}, r"\[batch, length\]"),
            ({}, "input_ids"),
        ],
        ids=["no tokens", "all padding", "no rows", "one dimension", "nothing"],
    )
    def test_prompts(self, inputs, message):
        with pytest.raises(ValueError, match=message):
            tiny_model().generate(**inputs, max_new_tokens=4)


class TestScores:
    """Options that change the scores: the adapter's logits, and what transformers makes of such logits."""

    @pytest.mark.filterwarnings("ignore::UserWarning")
    @pytest.mark.parametrize("name", PROCESSORS)
    def test_logits_are_those_of_the_policy(self, name):
        """Whatever a processor chooses: the logits before it are the naive ones of these tokens."""
        model = tiny_model()
        value = PROCESSORS[name]
        out = generate(model, "keyword", eos_token_id=5, **{name: value})
        assert_policy(model, out)
        with model.disable_adapter():
            base = generate(model, "keyword", eos_token_id=5, **{name: value})
        # The same processors as of the base model, which is not ours.
        assert type(out.scores) is type(base.scores)

    def test_a_suppressed_token_of_the_model_never_comes(self):
        model = tiny_model()
        usual = generate(model).sequences[0, len(PROMPT) :].tolist()
        changed = generate(model, "model", suppress_tokens=usual).sequences[0, len(PROMPT) :].tolist()
        assert not set(usual) & set(changed)

    @pytest.mark.parametrize(
        "options",
        [
            {"temperature": 0.7},
            {"top_k": 3},
            {"top_p": 0.5},
            {"min_p": 0.2},
            {"top_h": 0.4},
            {"typical_p": 0.5},
            {"epsilon_cutoff": 0.05},
            {"eta_cutoff": 0.05},
        ],
        ids=str,
    )
    def test_sampled_tokens(self, options):
        model = tiny_model()
        out = generate(model, "keyword", **{"do_sample": True, "top_k": 0, **options})
        assert_policy(model, out)

    def test_several_samples_per_prompt(self):
        model = tiny_model()
        out = model.generate(
            torch.tensor([PROMPT]),
            generation_config=generation(
                do_sample=True, top_k=0, num_return_sequences=3, return_dict_in_generate=True, output_logits=True
            ),
        )
        assert len({tuple(row) for row in out.sequences.tolist()}) == 3
        for row in range(3):
            assert_policy(model, out, row)


def letter_tokenizer() -> PreTrainedTokenizerFast:
    """One letter per token; transformers finds stop strings only where tokens join without a space."""
    letters = {letter: index for index, letter in enumerate("abcdefghijklmnopqrstuvwxyz012")}
    tokenizer = Tokenizer(WordLevel(letters, unk_token="2"))
    tokenizer.pre_tokenizer = Split("", "isolated")
    tokenizer.decoder = Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def assert_policy(model: Any, out: Any, row: int = 0, prompt: list[int] = PROMPT) -> None:
    """The logits of a generation are, as log-probabilities of its tokens, what the naive loop finds."""
    tokens = out.sequences[row, len(prompt) :].tolist()
    sampled = tc.rollout(model, [prompt], max_new_tokens=NEW_TOKENS)[0]
    assert sampled.evictions
    count = len(out.logits)
    points = tuple(e for e in sampled.evictions if e.before_token < count)
    rollout = replace(sampled, token_ids=tokens[:count], evictions=points, states=None)
    found = torch.stack([step[row] for step in out.logits]).log_softmax(-1)
    found = found.gather(1, torch.tensor(tokens[:count])[:, None])[:, 0]
    # transformers forms scores in fp32 whatever the model's dtype.
    assert_close(found, tc.naive_logprobs(model, [rollout]).logprobs[0].detach().float(), torch.float32)


class TestLength:
    """How long, said in each way that transformers knows."""

    @pytest.mark.filterwarnings("ignore:Using the model-agnostic default:UserWarning")
    @pytest.mark.parametrize("window", [1, 5, 16, 64, "prompt", None])
    def test_nothing_said_means_twenty_new_tokens(self, window):
        assert length(tiny_model(window=window), do_sample=False) == 20

    @pytest.mark.filterwarnings("ignore:Using the model-agnostic default:UserWarning")
    def test_nothing_said_near_the_last_position(self):
        prompt = [index % 29 for index in range(POSITIONS - 8)]
        assert length(tiny_model(window=64), prompt, do_sample=False) == 8

    @pytest.mark.parametrize("window", [5, 64])
    @pytest.mark.parametrize(
        ("own", "given", "keywords", "expected"),
        [
            ({"max_new_tokens": 30}, None, {}, 30),
            ({"max_new_tokens": 30}, {}, {}, 30),
            ({"max_new_tokens": 30}, {"max_new_tokens": 25}, {}, 25),
            ({"max_length": len(PROMPT) + 28}, None, {}, 28),
            ({"max_length": len(PROMPT) + 28}, {"max_length": len(PROMPT) + 26}, {}, 26),
            ({"max_new_tokens": 9}, None, {"max_new_tokens": 31}, 31),
            ({}, {"max_new_tokens": 9}, {"max_new_tokens": 31}, 31),
            ({"max_new_tokens": 30}, None, {"max_length": 9}, 30),
            ({"max_length": 9}, {"max_new_tokens": 30}, {}, 30),
        ],
        ids=str,
    )
    def test_said_by_the_model_by_a_configuration_or_by_keyword(self, own, given, keywords, expected, window):
        model = tiny_model(window=window)
        for name, value in own.items():
            setattr(model.generation_config, name, value)
        arguments = dict(keywords)
        if given is not None:
            arguments["generation_config"] = GenerationConfig(do_sample=False, **given)
        assert length(model, **arguments) == expected

    def test_a_prompt_that_is_too_long_is_left_to_transformers(self):
        with pytest.raises(ValueError, match="max_length"):
            length(tiny_model(), max_length=len(PROMPT))

    def test_stop_strings_and_time(self):
        model, tokenizer = tiny_model(), letter_tokenizer()
        tokens = generate(model).sequences[0, len(PROMPT) :].tolist()
        word = tokenizer.decode(tokens[3])
        expected = tokens.index(tokens[3]) + 1
        assert length(model, max_new_tokens=14, do_sample=False, stop_strings=[word], tokenizer=tokenizer) == expected
        assert length(model, max_new_tokens=14, do_sample=False, max_time=0.0) == 1


class TestMerging:
    """The merged options are those that transformers itself comes to."""

    @pytest.mark.parametrize(
        "keywords", [{}, {"num_beams": 2}, {"max_new_tokens": None}, {"use_cache": False}], ids=str
    )
    @pytest.mark.parametrize("given", [None, {}, {"num_beams": 4}, {"max_new_tokens": 3, "top_k": 7}], ids=str)
    @pytest.mark.parametrize("own", [{}, {"num_beams": 5, "max_new_tokens": 6}, {"prefill_chunk_size": 8}], ids=str)
    def test_as_transformers_merges(self, own, given, keywords):
        base = tiny_base()
        for name, value in own.items():
            setattr(base.generation_config, name, value)
        config = None if given is None else GenerationConfig(**given)
        theirs, _ = base._prepare_generation_config(config, **keywords)
        defaults = GenerationConfig._get_default_generation_params()
        ours = merged_options(base.generation_config, config, keywords)
        for name, value in ours.items():
            if name in vars(theirs) and name not in ("transformers_version", "_from_model_config"):
                expected = defaults.get(name) if value is None and name not in keywords else value
                assert getattr(theirs, name) == expected, name

    def test_use_cache_of_the_model_configuration_is_not_read(self):
        """Trainers set it to False; transformers' `generate` goes by the generation configuration alone."""
        model = tiny_model()
        expected = generate(model).sequences
        model.base_model.model.config.use_cache = False
        assert torch.equal(generate(model).sequences, expected)


class TestRollingPositions:
    """Kept keys are moved and positions shifted in `generate` as in a rollout."""

    @pytest.mark.parametrize("eviction", ["sliding", "random"])
    @pytest.mark.parametrize("family", ["llama", "smollm3"])
    def test_logits_over_many_evictions(self, family, eviction):
        model = tiny_model(family, positions="rolling", eviction=eviction, window=7, evict_fraction=0.4)
        absolute = tiny_model(family, eviction=eviction, window=7, evict_fraction=0.4)
        prompts = PROMPTS if eviction == "sliding" else PROMPTS[:1]
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        options = generation(max_new_tokens=40, return_dict_in_generate=True, output_logits=True)
        rollouts = tc.rollout(model, prompts, max_new_tokens=40, temperature=0.0, ignore_eos=True)
        assert len(rollouts[0].evictions) == 11
        out = model.generate(input_ids=ids, attention_mask=mask, generation_config=options)
        other = absolute.generate(input_ids=ids, attention_mask=mask, generation_config=options)
        for row, rollout in enumerate(rollouts):
            found = torch.stack([step[row] for step in out.logits]).log_softmax(-1)
            assert out.sequences[row, width:].tolist() == rollout.token_ids
            tokens = torch.tensor(rollout.token_ids)[:, None]
            expected = tc.replay(model, [rollout]).logprobs[0].detach().float()
            assert_close(found.gather(1, tokens)[:, 0], expected, torch.float32)
            far = torch.stack([step[row] for step in other.logits]).log_softmax(-1)
            assert (far - found)[8:].abs().max() > 0.05, "absolute positions would be the same"
