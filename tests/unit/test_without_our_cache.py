"""Whoever runs the adapter without the cache that evicts and absorbs is told, as soon as it would be another policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import trl
from transformers import (
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    DynamicCache,
    GenerationConfig,
    StaticCache,
    pipeline,
)

import thoughtcache as tc
from support.caches import given
from support.compare import assert_close
from support.grpo import even_words, prompts, quick_arguments, word_tokenizer
from support.models import VOCABULARY, adapt, tiny_base, tiny_model
from support.rollouts import PROMPTS
from support.text_model import save_text_model
from thoughtcache.adapter.cache_argument import given_cache
from thoughtcache.records import CacheSettings

WINDOW = 5
REFUSED = "without the adapter's own cache"


def tokens(count: int) -> torch.Tensor:
    """[1, count] token ids."""
    return torch.arange(count).remainder(VOCABULARY).unsqueeze(0)


def steps(model: Any, prompt: int, count: int, cache: Any = None) -> torch.Tensor:
    """Logits [count + 1, V] of a loop as users write it: the prompt at once, then token by token into one cache."""
    ids = tokens(prompt + count)
    with torch.no_grad():
        out = model(input_ids=ids[:, :prompt], use_cache=True, logits_to_keep=1, **given(model, cache))
        found = [out.logits[0, -1]]
        for index in range(prompt, prompt + count):
            out = model(input_ids=ids[:, index : index + 1], use_cache=True, **given(model, given_cache(out)))
            found.append(out.logits[0, -1])
    return torch.stack(found)


def whole(model: Any, prompt: int, count: int) -> torch.Tensor:
    """The same logits under the adapter's own cache."""
    cache = model.base_model.new_cache(
        CacheSettings(window=WINDOW, num_evicted=1, eviction="sliding"), max_new_tokens=count
    )
    return steps(model.base_model.model, prompt, count, cache)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with a base, its tokenizer and an adapter."""
    save_text_model(tmp_path / "base")
    model = adapt(AutoModelForCausalLM.from_pretrained(tmp_path / "base"))
    model.save_pretrained(tmp_path / "adapter")
    word_tokenizer().save_pretrained(tmp_path / "adapter")
    return tmp_path


class TestLoadedByOthers:
    """transformers puts adapters into a model without PEFT's tuner around it: nobody could hold the states."""

    MESSAGE = r"peft.get_peft_model.*AutoPeftModelForCausalLM.from_pretrained"

    def test_auto_model_of_an_adapter(self, saved):
        with pytest.raises(ValueError, match=self.MESSAGE):
            AutoModelForCausalLM.from_pretrained(saved / "adapter")

    def test_load_adapter(self, saved):
        base = AutoModelForCausalLM.from_pretrained(saved / "base")
        before = base(tokens(3)).logits
        with pytest.raises(ValueError, match=self.MESSAGE):
            base.load_adapter(saved / "adapter")
        assert torch.equal(base(tokens(3)).logits, before)
        assert not [name for name, _ in base.named_parameters() if "lora" in name]

    def test_add_adapter(self):
        # transformers 5.24 asks for a newer PEFT than there is before it comes to the adapter.
        with pytest.raises(ValueError, match=f"{self.MESSAGE}|version of PEFT you are using is not compatible"):
            tiny_base().add_adapter(tc.ThoughtConfig(r=3, num_global_tokens=5))

    def test_inject_adapter_in_model(self):
        with pytest.raises(ValueError, match=self.MESSAGE):
            peft.inject_adapter_in_model(tc.ThoughtConfig(r=3, num_global_tokens=5), tiny_base())

    def test_pipeline_of_an_adapter(self, saved):
        with pytest.raises(ValueError, match=self.MESSAGE):
            pipeline("text-generation", model=str(saved / "adapter"))

    def test_pipeline_of_an_adapted_model(self, saved):
        model = peft.AutoPeftModelForCausalLM.from_pretrained(saved / "adapter")
        text = pipeline("text-generation", model=model, tokenizer=word_tokenizer())
        prompt = "w3 w4 w5 w6"
        found = text(prompt, max_new_tokens=14, do_sample=False, return_tensors=True)[0]["generated_token_ids"]
        ids = word_tokenizer()(prompt)["input_ids"]
        expected = tc.rollout(model, [ids], max_new_tokens=14, temperature=0.0)[0].token_ids
        assert found == ids + expected


class TestLoops:
    """A loop around the forward pass, with a cache of transformers."""

    @pytest.mark.parametrize("model_of", [lambda m: m, lambda m: m.base_model, lambda m: m.get_base_model()])
    @pytest.mark.parametrize("make", [lambda m: None, lambda m: DynamicCache(), lambda m: StaticCache(m.config, 40)])
    def test_goes_on_up_to_the_window_and_not_beyond(self, model_of, make):
        model = tiny_model()
        loop = model_of(model)
        assert_close(steps(loop, 7, WINDOW, make(model)), whole(model, 7, WINDOW))
        with pytest.raises(ValueError, match=rf"6 tokens behind its prompt of 7.*window of 5.*{REFUSED}.*full_cache"):
            steps(loop, 7, WINDOW + 1, make(model))

    def test_window_of_the_prompt(self):
        model = tiny_model(window="prompt")
        steps(model, 7, 7)
        with pytest.raises(ValueError, match="8 tokens behind its prompt of 7"):
            steps(model, 7, 8)

    def test_a_prompt_in_pieces_counts_as_thoughts_from_the_second_on(self):
        model, cache = tiny_model(), DynamicCache()
        with torch.no_grad():
            model(input_ids=tokens(8), logits_to_keep=1, **given(model, cache))
            with pytest.raises(ValueError, match="6 tokens behind its prompt of 8"):
                model(input_ids=tokens(6), **given(model, cache))

    def test_a_cache_that_began_elsewhere(self):
        model, cache = tiny_model(), DynamicCache()
        with torch.no_grad():
            with model.disable_adapter():
                model(input_ids=tokens(8), **given(model, cache))
            with pytest.raises(ValueError, match="8 tokens behind its prompt of 1"):
                model(input_ids=tokens(1), **given(model, cache))

    def test_several_caches_in_turn(self):
        model = tiny_model()
        first, second = DynamicCache(), DynamicCache()
        with torch.no_grad():
            for cache, prompt in ((first, 9), (second, 2)):
                model(input_ids=tokens(prompt), logits_to_keep=1, **given(model, cache))
            for _ in range(WINDOW):
                for cache in (first, second):
                    model(input_ids=tokens(1), **given(model, cache))
            for cache in (first, second):
                with pytest.raises(ValueError, match=REFUSED):
                    model(input_ids=tokens(1), **given(model, cache))

    @pytest.mark.parametrize("use_cache", [True, False])
    def test_generate_of_the_bare_model(self, use_cache):
        model = tiny_model()
        arguments = {"input_ids": torch.tensor([PROMPTS[0]]), "do_sample": False, "use_cache": use_cache}
        with pytest.raises(ValueError, match=REFUSED):
            model.get_base_model().generate(**arguments, max_new_tokens=14)

    def test_continuous_batching(self):
        model = tiny_model(dtype=torch.float32)
        config = GenerationConfig(do_sample=False, max_new_tokens=4, eos_token_id=VOCABULARY - 1)
        for call in (
            lambda: model.generate_batch(inputs=[[1, 2]], generation_config=config),
            lambda: model.init_continuous_batching(generation_config=config),
            lambda: model.continuous_batching_context_manager(generation_config=config),
        ):
            with pytest.raises(ValueError, match=r"continuous batching.*thoughtcache.rollout"):
                call()
        result = model.get_base_model().generate_batch(
            inputs=[[1, 2]],
            generation_config=config,
            continuous_batching_config=ContinuousBatchingConfig(num_blocks=4, max_batch_tokens=16),
        )
        # Older versions drop the request that raised, newer ones return it with its error and without tokens.
        assert all("continuous batching" in request.error for request in result.values())
        assert not any(request.generated_tokens for request in result.values())


class TestOnePass:
    """One pass over a whole text: right as a prompt, or as a prompt and at most `window` thoughts."""

    @pytest.mark.parametrize("grad", [True, False])
    def test_all_positions_up_to_the_window(self, grad):
        model = tiny_model()
        with torch.set_grad_enabled(grad):
            found = model(input_ids=tokens(1 + WINDOW)).logits
            assert_close(found[0].detach(), whole(model, 1, WINDOW))
            with pytest.raises(ValueError, match=rf"6 tokens behind its prompt of 1.*{REFUSED}.*logits_to_keep=1"):
                model(input_ids=tokens(2 + WINDOW))

    def test_the_last_position_of_any_prompt(self):
        model = tiny_model()
        assert_close(model(input_ids=tokens(30), logits_to_keep=1).logits[0].detach(), whole(model, 30, 0))

    def test_the_last_position_without_a_cache_may_be_a_loop_that_runs_everything_again(self):
        with pytest.raises(ValueError, match="29 tokens behind its prompt of 1"):
            tiny_model()(input_ids=tokens(30), logits_to_keep=1, use_cache=False)

    @pytest.mark.parametrize("kept", [1 + WINDOW, torch.arange(24, 30)], ids=["number", "places"])
    def test_scores_of_the_last_positions(self, kept):
        """As TRL's trainers score: the prompt ends where the first score begins."""
        model = tiny_model()
        found = model(input_ids=tokens(30), logits_to_keep=kept, use_cache=False).logits[0].detach()
        assert_close(found, whole(model, 25, WINDOW))
        more = kept + 1 if isinstance(kept, int) else torch.arange(23, 30)
        with pytest.raises(ValueError, match="6 tokens behind its prompt of 24"):
            model(input_ids=tokens(30), logits_to_keep=more, use_cache=False)

    def test_labels_say_where_the_prompt_ends(self):
        model, ids = tiny_model(), tokens(30)
        labels = ids.clone()
        labels[:, :25] = -100
        model(input_ids=ids, labels=labels).loss.backward()
        labels[:, 24] = ids[:, 24]
        with pytest.raises(ValueError, match="6 tokens behind its prompt of 24"):
            model(input_ids=ids, labels=labels)
        with pytest.raises(ValueError, match="29 tokens behind its prompt of 1"):
            model(input_ids=ids, labels=ids)

    def test_the_decoder_alone(self):
        decoder = tiny_model().get_base_model().get_decoder()
        decoder(input_ids=tokens(1 + WINDOW))
        with pytest.raises(ValueError, match=REFUSED):
            decoder(input_ids=tokens(2 + WINDOW))

    def test_what_one_pass_asks_for_does_not_hold_for_the_next(self):
        model = tiny_model()
        model(input_ids=tokens(30), logits_to_keep=1)
        with pytest.raises(ValueError, match=REFUSED):
            model.get_base_model().get_decoder()(input_ids=tokens(30))

    def test_window_of_the_prompt(self):
        model = tiny_model(window="prompt")
        model(input_ids=tokens(30), logits_to_keep=16)
        with pytest.raises(ValueError, match="16 tokens behind its prompt of 14 under a window of 14"):
            model(input_ids=tokens(30), logits_to_keep=17)

    def test_a_layer_of_its_own_has_no_state(self):
        model = tiny_model()
        with pytest.raises(ValueError, match="outside of a forward pass"):
            model.get_base_model().get_decoder().layers[0].mlp(torch.zeros(1, 2, 16, dtype=torch.float64))


class TestAllowed:
    """What has no window, and what says that it wants the full cache."""

    @pytest.mark.parametrize(
        "config",
        [{"window": None}, {"window": None, "initial_state": "identity", "absorb": False, "r": 5}],
        ids=["no window", "LoRA"],
    )
    def test_adapters_without_a_window(self, config):
        model = tiny_model(**config)
        steps(model, 3, 20)
        model(input_ids=tokens(30), labels=tokens(30), use_cache=False).loss.backward()
        inputs = {"input_ids": torch.tensor([PROMPTS[0]]), "do_sample": False, "max_new_tokens": 14}
        greedy = tc.rollout(model, [PROMPTS[0]], max_new_tokens=14, temperature=0.0)[0].token_ids
        for way in ({}, {"use_cache": False}, {"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 2}):
            assert model.generate(**inputs, **way)[0, len(PROMPTS[0]) :].tolist() == greedy

    def test_disabled_adapter(self):
        model = tiny_model()
        with model.disable_adapter():
            steps(model, 3, 20)
            model(input_ids=tokens(30))

    def test_full_cache_is_the_adapter_without_a_window(self):
        model, other = tiny_model(), tiny_model(window=None)
        ids = torch.tensor([PROMPTS[0]])
        with tc.full_cache(model), torch.no_grad():
            assert torch.equal(model(input_ids=tokens(30)).logits, other(input_ids=tokens(30)).logits)
            assert torch.equal(steps(model, 3, 20), steps(other, 3, 20))
            beams = [m.generate(input_ids=ids, max_new_tokens=14, num_beams=2) for m in (model, other)]
            assert torch.equal(*beams)
            assert tc.rollout(model, PROMPTS, max_new_tokens=9)[0].settings.window is None
        with pytest.raises(ValueError, match=REFUSED):
            model(input_ids=tokens(30))
        assert tc.rollout(model, PROMPTS, max_new_tokens=9)[0].settings.window == WINDOW

    def test_full_cache_ends_with_an_error_and_nests(self):
        model = tiny_model()
        with pytest.raises(KeyError), tc.full_cache(model):
            raise KeyError
        with tc.full_cache(model):
            with tc.full_cache(model):
                pass
            model(input_ids=tokens(30))
        with pytest.raises(ValueError, match=REFUSED):
            model(input_ids=tokens(30))


class TestPlainTRL:
    """`trl.GRPOTrainer` samples through `generate`, under the window, and scores with the full cache."""

    pytestmark = pytest.mark.filterwarnings(
        "ignore:`gradient_checkpointing`:FutureWarning"
    )  # the old name works in all versions

    @staticmethod
    def train(folder: Path, length: int) -> None:
        arguments = quick_arguments(folder, max_completion_length=length, max_steps=1, gradient_checkpointing=False)
        trl.GRPOTrainer(
            tiny_model(dtype=torch.float32),
            even_words,
            args=trl.GRPOConfig(**arguments),
            train_dataset=prompts(),
            processing_class=word_tokenizer(),
        ).train()

    def test_longer_than_the_window(self, tmp_path):
        with pytest.raises(ValueError, match=rf"{REFUSED}.*ThoughtGRPOTrainer"):
            self.train(tmp_path, WINDOW + 4)

    def test_within_the_window(self, tmp_path):
        self.train(tmp_path, WINDOW)
