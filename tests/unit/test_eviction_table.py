"""How a name becomes an eviction policy: the table, its options, and policies that other packages register."""

from __future__ import annotations

import sys
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

import thoughtcache as tc
from support.compare import assert_close, padded
from support.models import tiny_model
from support.registered_policies import install_policies
from support.text_model import save_text_model
from thoughtcache.cache.eviction import EVICTION_POLICIES, default_options, make_eviction_policy
from thoughtcache.recipes.load_adapter import load_adapted, settings_to_start_from


@pytest.fixture
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_policies(tmp_path, monkeypatch)


@pytest.mark.usefixtures("_installed")
def test_a_registered_policy_is_loaded_when_its_name_is_asked_for() -> None:
    tc.ThoughtConfig(eviction="snapkv")
    with pytest.raises(
        ValueError, match=r"eviction='oldest' is not known; choose one of .*'largest-values'.*'sliding'"
    ):
        tc.ThoughtConfig(eviction="oldest")
    assert "thought_policies" not in sys.modules
    model = tiny_model(eviction="largest-values", eviction_options={"order": 1}, window=6, evict_fraction=0.4)
    assert "thought_policies" in sys.modules
    rollouts = tc.rollout(model, [[3, 1, 4], [1]], max_new_tokens=19, seed=4, ignore_eos=True)
    assert rollouts[0].settings.eviction_options == (("order", 1.0),)
    with torch.no_grad():
        assert_close(tc.naive_logprobs(model, rollouts, choose=True).logprobs, padded(rollouts))
        assert_close(tc.replay(model, rollouts).logprobs, padded(rollouts))


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other-name", "is no subclass of EvictionPolicy with name='other-name'"),
        ("a-function", "is no subclass of EvictionPolicy with name='a-function'"),
        ("not-there", r"thought_policies:Nothing, which cannot be loaded \(.*Nothing.*\); repair or remove"),
        ("not-installed", r"cannot be loaded \(No module named 'no_such_thought_policies'\)"),
    ],
)
def test_what_is_no_policy_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tc.ThoughtConfig(eviction=name)


@pytest.mark.usefixtures("_installed")
def test_a_policy_of_this_package_is_taken_first() -> None:
    assert type(make_eviction_policy("sliding")) is EVICTION_POLICIES["sliding"]


def test_every_policy_says_what_stays_and_every_option_has_a_plain_default() -> None:
    for name, policy in EVICTION_POLICIES.items():
        assert policy.name == name
        assert policy.summary
        assert all(type(value) in (int, float, bool, str) for value in default_options(policy).values())


@pytest.mark.parametrize(
    ("eviction", "options", "message"),
    [
        (
            "snapkv",
            {"kernal": 3},
            r"eviction_options kernal=3 is not known to eviction='snapkv'; it has max_queries=32,",
        ),
        ("sliding", {"sinks": 3}, r"sinks=3 is not known to eviction='sliding', which has no options; leave it out"),
        ("snapkv", {"kernel": 2.5}, r"kernel=2\.5 of eviction='snapkv' is not an integer; its default is 5"),
        ("snapkv", {"kernel": True}, "kernel=True of eviction='snapkv' is not an integer"),
        ("snapkv", {"kernel": 4}, "eviction_options of eviction='snapkv': kernel must be odd and at least 1, got 4"),
        ("snapkv", {"max_queries": 0}, "max_queries must be at least 1, got 0"),
        ("random", {"shared": "yes"}, "shared='yes' of eviction='random' is not true or false"),
        ("r-kv", {"threshold": 2}, r"threshold must be a cosine in \[-1, 1\], got 2\.0"),
        ("r-kv", {"importance": -1}, r"importance must be in \[0, 1\], got -1\.0"),
        ("streaming", {"sinks": -1}, "sinks must be at least 0, got -1"),
        ("expected-attention", {"future": 0}, "future must be at least 1, got 0"),
    ],
)
def test_options_are_checked(eviction: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tc.ThoughtConfig(eviction=eviction, eviction_options=options)


def test_options_are_saved_recorded_and_those_at_their_defaults_left_out(tmp_path: Path) -> None:
    options = {"max_queries": 3, "kernel": 5}
    model = tiny_model(eviction="snapkv", eviction_options=options, window=8, evict_fraction=0.25)
    model.save_pretrained(str(tmp_path))
    loaded = settings_to_start_from(str(tmp_path), {})
    assert loaded.eviction_options == {"max_queries": 3}
    assert loaded.resolve_window(None).eviction_options == (("max_queries", 3),)
    assert loaded.behaviour() != tc.ThoughtConfig(eviction="snapkv").behaviour()
    (rollout,) = tc.rollout(model, [[3]], max_new_tokens=9, ignore_eos=True)
    assert rollout.settings.cache == loaded.resolve_window(None)
    assert model.base_model.window_rules(rollout.settings.cache, model.base_model.memory()).num_queries == 3


def test_another_policy_starts_with_its_defaults_and_the_same_one_keeps_its_options(tmp_path: Path) -> None:
    tiny_model(eviction="snapkv", eviction_options={"max_queries": 3}).save_pretrained(str(tmp_path / "snapkv"))
    tiny_model(window=None).save_pretrained(str(tmp_path / "full"))

    def start(folder: str, **changes: object) -> tc.ThoughtConfig:
        return settings_to_start_from(str(tmp_path / folder), changes)

    assert start("snapkv", eviction="h2o").eviction_options == {}
    assert start("snapkv", eviction_options={"kernel": 3}).eviction_options == {"kernel": 3, "max_queries": 3}
    assert start("snapkv", eviction="snapkv", window=7).eviction_options == {"max_queries": 3}
    assert start("snapkv", eviction="streaming", eviction_options={"sinks": 1}).eviction_options == {"sinks": 1}
    with pytest.raises(ValueError, match=r"eviction='h2o' changes nothing with window=None.*leave it out"):
        start("full", eviction="h2o")
    assert start("full", eviction="h2o", window=5).eviction == "h2o"


def test_a_saved_adapter_runs_under_another_policy(tmp_path: Path) -> None:
    """As `thoughtcache generate --eviction streaming --eviction-option sinks=1` and `thoughtcache probe` have it."""
    base = str(save_text_model(tmp_path / "base"))
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), tc.ThoughtConfig(r=4, window=6))
    model.save_pretrained(str(tmp_path / "adapter"))
    options = {"eviction": "streaming", "eviction_options": {"sinks": 1}}
    loaded, _ = load_adapted(base, str(tmp_path / "adapter"), "float32", **options)
    (rollout,) = tc.rollout(loaded, [[3, 4]], max_new_tokens=9, ignore_eos=True)
    assert rollout.settings.eviction == "streaming"
    assert rollout.settings.eviction_options == (("sinks", 1),)
    assert rollout.evictions[0].slots is not None
    assert set(rollout.evictions[0].slots.flatten().tolist()) == {1, 2}


def test_rotary_frequencies_that_change_are_refused_by_a_policy_that_turns_queries() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    model = tiny_model(base={"rope_parameters": rope}, eviction="expected-attention")
    with pytest.raises(ValueError, match="rope type 'dynamic'; use another eviction policy"):
        tc.rollout(model, [[1, 2]], max_new_tokens=2)
