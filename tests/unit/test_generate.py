"""`thoughtcache generate`: pieces of a text, prompts, histories, chats, and files of questions."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
from rich.console import Console
from tests.support.text_model import save_questions, save_text_model
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import thoughtcache as tc
from thoughtcache.recipes.generate import many
from thoughtcache.recipes.generate.answer import answer
from thoughtcache.recipes.generate.asking import Asking, Speaker
from thoughtcache.recipes.generate.chat import chat, read_messages
from thoughtcache.recipes.generate.many import Questions, answer_questions
from thoughtcache.recipes.generate.text_stream import TextStream
from thoughtcache.tasks.saved_prompt import save_prompt_format
from thoughtcache_cli import main

QUIET = Console(quiet=True)
MARKOVIAN = {"context": "6", "keep_first": "1", "keep_last": "2", "max_links": "4"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speaker")
    save_text_model(folder / "model")
    save_questions(folder / "questions.jsonl")
    base = AutoModelForCausalLM.from_pretrained(folder / "model")
    config = tc.ThoughtConfig(r=4, num_global_tokens=4, window=4, init_lora_weights=False)
    peft.get_peft_model(base, config).save_pretrained(folder / "adapter")
    save_prompt_format(folder / "adapter", instruction="w20")
    return folder


def asking(place: Path, **changes: Any) -> Asking:
    settings = {"model": str(place / "model"), "adapter": str(place / "adapter"), "max_new_tokens": 12}
    return Asking(**{**settings, "temperature": 1.0, "seed": 3, **changes})


def test_pieces_are_told_while_they_come_and_make_the_answer(place: Path) -> None:
    pieces: list[str] = []
    text = answer(
        prompt="w3 w4", tell=pieces.append, model=str(place / "model"), adapter=str(place / "adapter"),
        max_new_tokens=12, temperature=1.0, dtype="float32",
    )  # fmt: skip
    assert len(pieces) > 3
    assert "".join(pieces) == text
    assert text == answer(
        prompt="w3 w4", model=str(place / "model"), adapter=str(place / "adapter"), max_new_tokens=12, temperature=1.0
    )
    links: list[str] = []
    one = Speaker(asking(place, thinking="markovian", thinking_options=MARKOVIAN))
    assert one.answer([{"role": "user", "content": "w3"}], links.append) == "".join(links)


def test_bytes_that_are_no_character_yet_are_kept_back() -> None:
    """Two tokens make one character, and half of one ends the text."""
    vocabulary = {"<eos>": 0, "a": 1, "Ã": 2, "©": 3}
    made = Tokenizer(BPE(vocabulary, []))
    made.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>")
    pieces: list[str] = []
    stream = TextStream(tokenizer, pieces.append)
    for token in (1, 2, 3, 1, 0, 2):
        stream.add([token])
    assert pieces == ["a", "é", "a"]
    whole = str(tokenizer.decode([1, 2, 3, 1, 0, 2], skip_special_tokens=True))
    stream.end(whole)
    assert "".join(pieces) == whole == "aéa\ufffd"


BYTES = {"<eos>": 0, "b": 1, "<0x41>": 2, "<0x80>": 3, "<0xC3>": 4, "<0xA9>": 5, " .": 6}
# tokens, what is told while they come, and what is told at the end
TAKEN_BACK = {
    "a byte that makes no character of the one before": ([1, 2, 3, 1, 1], "bA", "\ufffd\ufffdbb"),
    "the same at the end": ([1, 2, 3], "bA", "\ufffd\ufffd"),
    "after a character of two bytes": ([1, 4, 5, 3, 1], "bé", "\ufffd\ufffd\ufffdb"),
    "nothing": ([1, 2, 4, 5, 1, 6], "bAéb .", ""),
}


@pytest.mark.parametrize("case", TAKEN_BACK)
@pytest.mark.parametrize("cleans", [False, True])
def test_bytes_that_change_what_was_told_are_told_at_the_end(case: str, cleans: bool) -> None:
    tokens, while_they_come, at_the_end = TAKEN_BACK[case]
    made = Tokenizer(BPE(BYTES, [], byte_fallback=True))
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", clean_up_tokenization_spaces=cleans)
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = cleans
    assert tokenizer.decode([1, 6]) == ("b." if cleans else "b .")
    pieces: list[str] = []
    stream = TextStream(tokenizer, pieces.append)
    stream.add(tokens)
    assert "".join(pieces) == while_they_come
    stream.end(str(tokenizer.decode(tokens, skip_special_tokens=True)))
    assert "".join(pieces) == while_they_come + at_the_end


def test_instruction_and_system_message_are_in_the_prompt(place: Path) -> None:
    def prompt(**changes: Any) -> str:
        speaker = Speaker(asking(place, **changes))
        return str(speaker.tokenizer.decode(speaker.encode([{"role": "user", "content": "w3"}])))

    saved, none, own = prompt(), prompt(instruction=""), prompt(instruction="w21 w22")
    assert ("w20" in saved, "w20" in none, "w20" in own, "w21 w22" in own) == (True, False, False, True)
    assert "w25" in prompt(system="w25")
    assert "w25" not in saved


def never(text: str) -> None:
    raise AssertionError(text)


def test_a_question_at_the_end_of_a_history_is_answered_first(place: Path) -> None:
    speaker, pieces, asked = Speaker(asking(place)), list[str](), list[str]()
    history = [{"role": "user", "content": "w3"}]

    def typed() -> Iterator[str]:
        asked.append("".join(pieces))
        yield "w4 w5"

    said = chat(speaker, typed(), pieces.append, never, history=history)
    assert [message["role"] for message in said] == ["user", "assistant", "user", "assistant"]
    assert said[1]["content"] == speaker.answer(history)
    assert asked == [said[1]["content"] + "\n"], "it is answered before anything is typed"
    assert chat(speaker, [], pieces.append, never, history=history) == said[:2]


def test_a_turn_that_is_refused_is_told_and_the_chat_goes_on_without_it(place: Path) -> None:
    speaker, pieces, complaints = Speaker(asking(place)), list[str](), list[str]()
    said = chat(speaker, ["w3", "w4 " * 300, "w5"], pieces.append, complaints.append)
    assert [message["content"] for message in said[::2]] == ["w3", "w5"]
    assert len(complaints) == 1
    assert "positions of the model" in complaints[0]
    with pytest.raises(ValueError, match="positions of the model"):
        chat(speaker, ["w3"], pieces.append, never, history=[{"role": "user", "content": "w4 " * 300}])


def test_the_command_goes_on_after_a_turn_that_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("w3\n" + "w4 " * 300 + "\nw5\n"))
    common = ["--model", str(place / "model"), "--adapter", str(place / "adapter"), "--max-new-tokens", "4"]
    assert main(["generate", "--chat", *common]) == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 2
    assert shown.err.startswith("thoughtcache: error: ")
    assert "--max-new-tokens is 4" in shown.err


def test_a_chat_has_all_turns_before_it_in_its_prompt(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    speaker = Speaker(asking(place))
    encode = Speaker.encode

    def watched(self: Speaker, messages: Any) -> list[int]:
        seen.append([message["role"] for message in messages])
        return encode(self, messages)

    monkeypatch.setattr(Speaker, "encode", watched)
    pieces: list[str] = []
    said = chat(speaker, ["w3", " ", "w4 w5"], pieces.append, never, history=[{"role": "system", "content": "w6"}])
    assert seen == [["system", "user"], ["system", "user", "assistant", "user"]]
    assert [message["role"] for message in said] == [*seen[1], "assistant"]
    assert "".join(pieces) == f"{said[2]['content']}\n{said[4]['content']}\n"


BAD_MESSAGES = {
    "no JSON": ("{", r"is no JSON .*allowed is a list"),
    "empty": ("[]", "holds no messages"),
    "a text": ('["w3"]', r"message 0 of .* is 'w3'"),
    "no content": ('[{"role": "user"}]', "message 0 of"),
}


@pytest.mark.parametrize("case", BAD_MESSAGES)
def test_messages_that_are_none_are_refused(tmp_path: Path, case: str) -> None:
    text, message = BAD_MESSAGES[case]
    (tmp_path / "history.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_messages(tmp_path / "history.json")
    with pytest.raises(ValueError, match="cannot be read"):
        read_messages(tmp_path / "none.json")


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize(
    "thinking", [{}, {"thinking": "markovian", "thinking_options": MARKOVIAN}], ids=["one", "links"]
)
def test_a_file_of_questions_goes_on_where_it_stopped_with_the_same_answers(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, thinking: dict[str, Any]
) -> None:
    asked = Questions(questions=str(place / "questions.jsonl"), output=str(tmp_path / "out" / "a.jsonl"), batch_size=2)
    settings = asking(place, **thinking)
    whole = answer_questions(asked, settings, QUIET)
    file = tmp_path / "out" / "a.jsonl"
    written = lines(file)
    assert [line["index"] for line in written] == list(range(6))
    assert [line["text"] for line in written] == [one.text for one in whole]
    assert all(line["messages"][0]["role"] == "user" and line["tokens"] <= 12 for line in written)
    assert len({line["text"] for line in written}) > 1

    kept = [line for number, line in enumerate(file.read_text().splitlines(keepends=True)) if number not in (1, 4)]
    file.write_text("".join(kept) + '{"index": 1, "te')
    sampled: list[list[int]] = []
    sample = Speaker.sample

    def watched(self: Speaker, *arguments: Any, **given: Any) -> Any:
        sampled.append(given["rows"])
        return sample(self, *arguments, **given)

    monkeypatch.setattr(Speaker, "sample", watched)
    again = Questions(**{**{name: getattr(asked, name) for name in Questions.__slots__}, "resume": True})
    answer_questions(again, settings, QUIET)
    assert sampled == [[1, 4]]
    assert lines(file) == written
    with pytest.raises(ValueError, match=r"other settings \(seed=3 then, seed=4 now\)"):
        answer_questions(again, asking(place, seed=4, **thinking), QUIET)
    with pytest.raises(ValueError, match="exists already; add --resume to go on, --overwrite to replace it"):
        answer_questions(asked, settings, QUIET)
    assert lines(file) == written


def test_wrong_files_are_refused_before_the_adapter_is_loaded(place: Path, tmp_path: Path) -> None:
    def never(settings: Asking) -> Speaker:
        raise AssertionError("loaded")

    def ask(**changes: Any) -> None:
        settings = {"questions": str(place / "questions.jsonl"), "output": str(tmp_path / "a.jsonl"), **changes}
        many.answer_questions(Questions(**settings), asking(place), QUIET, make_speaker=never)

    for changes, message in (
        ({"questions": "none.jsonl"}, "does not exist"),
        ({"output": str(tmp_path)}, "is a folder"),
        ({"resume": True}, "nothing to resume"),
        ({"batch_size": 0}, "at least 1"),
        ({"resume": True, "overwrite": True}, "give one of them"),
    ):
        with pytest.raises(ValueError, match=message):
            ask(**changes)
    assert list(tmp_path.iterdir()) == []


def test_the_command_takes_one_way_of_asking(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--model", str(place / "model"), "--adapter", str(place / "adapter"), "--max-new-tokens", "4"]
    (tmp_path / "h.json").write_text('{"messages": [{"role": "user", "content": "w3 w4"}]}')
    assert main(["generate", "w3 w4", *common]) == 0
    alone = capsys.readouterr().out
    assert main(["generate", "--messages", str(tmp_path / "h.json"), *common]) == 0
    assert capsys.readouterr().out == alone
    monkeypatch.setattr("sys.stdin", io.StringIO("w3 w4\nw5\n"))
    assert main(["generate", "--chat", *common]) == 0
    assert capsys.readouterr().out.splitlines()[0] == alone.strip()
    output = tmp_path / "answers.jsonl"
    assert main(["generate", "--questions", str(place / "questions.jsonl"), "--output", str(output), *common]) == 0
    assert len(lines(output)) == 6
    for arguments, message in (
        ([], "got none of them"),
        (["w3", "--chat"], "got prompt and chat"),
        (["--questions", "q.jsonl"], "add --output FILE"),
    ):
        capsys.readouterr()
        assert main(["generate", *arguments, *common]) == 2
        assert message in capsys.readouterr().err


def test_an_interruption_keeps_what_was_answered_and_says_how_to_go_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add = many.RecordFile.add
    written: list[int] = []

    def interrupted(self: Any, record: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(record.index)
        add(self, record)

    output = tmp_path / "answers.jsonl"
    command = [
        "generate", "--model", str(place / "model"), "--adapter", str(place / "adapter"), "--max-new-tokens", "4",
        "--questions", str(place / "questions.jsonl"), "--output", str(output), "--batch-size", "1",
    ]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(many.RecordFile, "add", interrupted)
        assert main(command) == 130
    assert "this goes on:\n  thoughtcache generate " in capsys.readouterr().err
    assert [line["index"] for line in lines(output)] == written == [0, 1]
    assert main([*command, "--resume"]) == 0
    assert [line["index"] for line in lines(output)] == list(range(6))
