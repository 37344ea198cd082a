"""Prompts with and without a chat template, on a tokenizer of one token per character."""

from __future__ import annotations

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from thoughtcache.tasks.chat import REASONING_INSTRUCTION, encode_prompt, plain_prompt

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[go]{% endif %}"
)
USER = {"role": "user", "content": "What is 2+2?"}


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    characters = ["<bos>", "<unk>", "\n", *map(chr, range(32, 127))]
    backend = Tokenizer(models.WordLevel({token: index for index, token in enumerate(characters)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", unk_token="<unk>")


def test_template_decides(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = TEMPLATE
    ids = encode_prompt(tokenizer, [USER], system="Be brief.")
    assert tokenizer.decode(ids) == "<bos>[system]Be brief.[user]What is 2+2?[go]"
    assert ids[0] == 0
    assert ids.count(0) == 1  # the template's <bos> and not the tokenizer's as well


def test_plain_format(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = encode_prompt(tokenizer, [USER], instruction=REASONING_INSTRUCTION)
    assert tokenizer.decode(ids) == (
        "<bos>Question: What is 2+2?\n\nPlease reason step by step, and put your final answer within \\boxed{}."
        "\n\nAnswer:"
    )


def test_plain_format_of_a_conversation() -> None:
    messages = [
        {"role": "system", "content": "Use {braces}."},
        USER,
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "Sure?"},
    ]
    assert plain_prompt(messages) == (
        "Use {braces}.\n\nQuestion: What is 2+2?\n\nAnswer: 4\n\nQuestion: Sure?\n\nAnswer:"
    )


def test_messages_are_left_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [dict(USER)]
    encode_prompt(tokenizer, messages, system="s", instruction="i")
    assert messages == [USER]


def test_own_system_message_stays(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = TEMPLATE
    ids = encode_prompt(tokenizer, [{"role": "system", "content": "own"}, USER], system="other")
    assert "other" not in tokenizer.decode(ids)
    assert "[system]own" in tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages is empty"),
        ([USER, {"role": "assistant", "content": "4"}], "the last role is 'assistant', allowed: 'user'"),
        ([{"role": "human", "content": "hi"}], "role is 'human', allowed: system, user, assistant"),
    ],
)
def test_refused_messages(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_prompt(tokenizer, messages)


def test_a_template_that_refuses_a_role_says_so(tokenizer: PreTrainedTokenizerFast) -> None:
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    tokenizer.chat_template = refusing + TEMPLATE
    assert encode_prompt(tokenizer, [USER])[0] == 0
    with pytest.raises(ValueError, match=r"\(System role not supported\); the roles are system, user; leave out"):
        encode_prompt(tokenizer, [USER], system="Be brief.")
