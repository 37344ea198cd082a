"""The cache reaches backbone, layers and `generate` under the name that the installed transformers uses."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from support.models import adapt, tiny_base
from thoughtcache.adapter.cache_argument import CACHE_ARGUMENTS, cache_argument, cache_keyword, given_cache
from thoughtcache.adapter.support import SUPPORTED_MODEL_TYPES
from thoughtcache.cache.replay_cache import ReplayCache
from thoughtcache.policy.handle import find_tuner


class Older(nn.Module):
    def forward(self, input_ids, past_key_values=None, use_cache=None): ...


class Newer(nn.Module):
    def forward(self, input_ids, cache=None, use_cache=None): ...


class Without(nn.Module):
    def forward(self, input_ids, mems=None): ...


def test_the_name_is_read_off_the_signature():
    assert (cache_argument(Older()), cache_argument(Newer())) == ("past_key_values", "cache")


def test_a_module_without_a_known_name_is_refused_with_its_arguments():
    with pytest.raises(ValueError, match=r"Without.*mems"):
        cache_argument(Without())


@pytest.mark.parametrize("kind", SUPPORTED_MODEL_TYPES)
def test_backbone_and_layers_of_every_supported_model_have_the_argument(kind):
    base = tiny_base(kind)
    for module in (base, base.get_decoder(), base.get_decoder().layers[0]):
        assert cache_argument(module) in inspect.signature(module.forward).parameters


@pytest.mark.parametrize("name", CACHE_ARGUMENTS)
def test_a_cache_is_found_under_either_name(name):
    cache = object()
    assert given_cache({"input_ids": None, name: cache}) is cache
    assert given_cache({**dict.fromkeys(CACHE_ARGUMENTS), name: cache}) is cache


def test_no_cache_is_none():
    assert given_cache({"input_ids": 3, **dict.fromkeys(CACHE_ARGUMENTS)}) is None


def test_a_cache_given_to_the_backbone_lends_its_states_and_is_written():
    model = adapt(tiny_base("llama"), window=4)
    tuner = find_tuner(model)
    cache = ReplayCache(tuner.num_layers, None, 0, tuner.initial_states(), tuner.memory().reader())
    lent = []
    hook = tuner.backbone.layers[0].register_forward_pre_hook(lambda *_: lent.append(tuner.binding.states))
    with torch.no_grad():
        tuner.backbone(input_ids=torch.tensor([[3, 4, 5]]), use_cache=True, **cache_keyword(tuner.backbone, cache))
    hook.remove()
    assert lent[0] is cache.states
    assert cache.physical_length == 3
