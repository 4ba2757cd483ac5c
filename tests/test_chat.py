"""Chat at its boundary: lines in, what is on the screen out, with an engine whose replies are known."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from onebase import chat
from onebase.chat import Conversation, Splitter
from onebase.errors import UserError
from onebase.rollout.engine import Request, Rollout
from onebase.tokenizer import ChatTokenizer, train


class Speaker:
    """Goes on with the reply that `say(prompt text)` gives, from wherever the request's ids have come to."""

    def __init__(self, tokenizer: ChatTokenizer, say: Callable[[str], str]) -> None:
        self.tokenizer, self.say = tokenizer, say
        self.requests: list[Request] = []

    def generate(self, requests: list[Request], on_done: Any = None) -> list[Rollout]:
        (r,) = requests
        self.requests.append(r)
        prompt, _, so_far = self.tokenizer.decode(r.prompt_ids).rpartition("<|assistant|>")
        asked, text = {"role": "user", "content": "x"}, self.say(prompt)
        opened = so_far.startswith("<think>") and not text.startswith("<think>")
        reply = [asked, {"role": "assistant", "content": text}]
        whole = self.tokenizer.conversation(reply)[0][len(self.tokenizer.prompt_ids([asked])) :]
        mark = self.tokenizer.prompt_ids([])[-1]
        before = r.prompt_ids[::-1].index(mark) - opened
        ids = whole[before : before + r.max_tokens]
        stop = ids[-1] in r.stop_ids
        return [Rollout(r.prompt_ids, ids, [0.0] * len(ids), "stop" if stop else "length", 0, r.seed)]

    def load_weights(self, version: int, tensors: Any) -> None: ...

    def fingerprint(self) -> dict[str, float]:
        return {}


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    return train(["what is one and two", "the answer is three"], 300)


def conversation(tokenizer: ChatTokenizer, say: Callable[[str], str], **settings: Any) -> Conversation:
    given = {"longest": 2000, "max_tokens": 300, "temperature": 0.6} | settings
    return Conversation(Speaker(tokenizer, say), tokenizer, **given)  # type: ignore[arg-type]


def talked(talk: Conversation, *lines: str) -> str:
    """What is on the screen after these lines, without colours."""
    screen = Console(file=io.StringIO(), width=200, force_terminal=False)
    left = iter(lines)

    def read() -> str:
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    chat.talk(talk, screen, read)
    return screen.file.getvalue()  # type: ignore[attr-defined]


def test_a_reply_longer_than_one_piece_comes_whole(tokenizer: ChatTokenizer) -> None:
    said = "the answer is three, and über [bold]that[/bold] 日本語 🙂 " * 3
    talk = conversation(tokenizer, lambda prompt: said)
    pieces = list(talk.reply("what"))
    assert "".join(pieces) == said and len(pieces) > 3
    assert not any("\N{REPLACEMENT CHARACTER}" in p for p in pieces)
    assert talk.messages[-1] == {"role": "assistant", "content": said} and not talk.cut
    seeds = [r.seed for r in talk.engine.requests]  # type: ignore[attr-defined]
    assert len(set(seeds)) == len(seeds), "each piece has its own seed"


def test_thought_and_answer_stand_apart(tokenizer: ChatTokenizer) -> None:
    screen = Console(file=io.StringIO(), width=80, force_terminal=True, color_system="standard")
    chat.show(iter(["<thi", "nk>one and", " two</think>", "\nthree [red]"]), screen)
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "think>" not in text
    thought, _, answer = text.partition("three")
    assert "\x1b[2;3mone and" in thought and thought.rstrip(" ").endswith("\n")
    assert "\x1b[2;3m" not in "three" + answer and "[red]" in answer, "a model's text is no markup"


def test_earlier_thoughts_are_not_in_later_prompts(tokenizer: ChatTokenizer) -> None:
    prompts = []

    def say(prompt: str) -> str:
        prompts.append(prompt)
        return "<think>secret</think>three"

    talk = conversation(tokenizer, say)
    talked(talk, "one", "two")
    assert "secret" not in prompts[-1] and "three" in prompts[-1] and "one" in prompts[-1]
    assert "secret" in talk.messages[1]["content"], "the turn itself is kept whole"


def test_commands(tokenizer: ChatTokenizer) -> None:
    talk = conversation(tokenizer, lambda prompt: "so it is</think>three")
    screen = talked(talk, "one", "/reset", "/think on", "two", "/thnik off", "/help", "/quit", "never read")
    assert len(talk.messages) == 2 and talk.messages[0]["content"] == "two"
    assert talk.messages[1]["content"] == "<think>so it is</think>three"
    assert "did you mean: /think off" in screen and "leave (also Ctrl-D)" in screen
    assert talk.think == "open"
    talked(talk, "/think off")
    assert talk.think == "free"


def test_limits_are_told(tokenizer: ChatTokenizer) -> None:
    talk = conversation(tokenizer, lambda prompt: "the answer is three " * 20, max_tokens=20)
    assert "cut off" in talked(talk, "one") and talk.cut
    talk = conversation(tokenizer, lambda prompt: "three", longest=40)
    assert "/reset begins anew" in talked(talk, "one and " * 40) and talk.messages == []


def test_a_thought_that_was_cut_off_is_dropped_later_too(tokenizer: ChatTokenizer) -> None:
    prompts = []

    def say(prompt: str) -> str:
        prompts.append(prompt)
        return "<think>one and two and " * 9

    talk = conversation(tokenizer, say, max_tokens=20)
    talked(talk, "what", "again")
    assert "one and two" not in prompts[-1] and "what" in prompts[-1]


def test_stopping_a_reply_keeps_what_was_said(tokenizer: ChatTokenizer) -> None:
    def say(prompt: str) -> str:
        said.append(prompt)
        if len(said) == 3:
            raise KeyboardInterrupt  # as Ctrl-C does, in the middle of the third piece
        return "the answer is three " * 20

    said: list[str] = []
    talk = conversation(tokenizer, say)
    screen = talked(talk, "one")
    assert "(stopped)" in screen and "the answer" in screen
    assert talk.messages[0]["content"] == "one" and "the answer" in talk.messages[1]["content"]
    assert "(forgotten)" in talked(talk, "/reset") and talk.messages == []


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<", "think", ">", "</", "a", " b\n", "é"])), st.data()
)
def test_splitting_does_not_depend_on_where_the_text_is_cut(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    whole = Splitter()
    expected = _merged([*whole.feed(text), *whole.end()])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    splitter = Splitter()
    found = [part for piece in pieces for part in splitter.feed(piece)]
    assert _merged([*found, *splitter.end()]) == expected
    assert len("".join(p for _, p in expected)) >= len(text) - 8 * text.count("think>")


def _merged(parts: list[tuple[Any, str]]) -> list[tuple[Any, str]]:
    out: list[tuple[Any, str]] = []
    for kind, text in parts:
        if out and out[-1][0] == kind:
            out[-1] = (kind, out[-1][1] + text)
        else:
            out.append((kind, text))
    return out


# -- folders


def test_folders_are_found_and_wrong_ones_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stage = Path("runs/laptop/r1")
    (stage / "checkpoint").mkdir(parents=True)
    (stage / "checkpoint/config.json").write_text("{}")
    assert chat.find(stage) == str(stage / "checkpoint") == chat.find(stage / "checkpoint")
    with pytest.raises(UserError, match=r"did you mean: runs/laptop/r1"):
        chat.find("runs/laptop/r2")
    with pytest.raises(UserError, match=r"a run's folder; .*\n  allowed: runs/laptop/r1"):
        chat.find("runs/laptop")
    with pytest.raises(UserError, match="a file"):
        chat.find(stage / "checkpoint/config.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no checkpoint there"):
        chat.find("empty")
    assert chat.find("someone/some-model") == "someone/some-model", "a hub id"


def test_one_question_is_answered_on_standard_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real way: a tiny model from its folder."""
    from onebase.model import checkpoint
    from onebase.model.config import ModelConfig
    from onebase.model.transformer import Transformer, init_weights

    model = Transformer(
        ModelConfig(vocab_size=304, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    )
    init_weights(model, 0, None)
    checkpoint.save(tmp_path / "checkpoint", model, train(["one two"], 300))
    texts = []
    for _ in range(2):
        chat.main(tmp_path, temperature=0.0, max_tokens=20, device="cpu", ask="one?")
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and texts[0].strip()
    monkeypatch.setattr("sys.stdin", io.StringIO("one?\n"))
    chat.main(tmp_path, temperature=0.0, max_tokens=20, device="cpu")
    assert capsys.readouterr().out == texts[0]
    monkeypatch.setattr("sys.stdin", io.StringIO(" \n"))
    with pytest.raises(UserError, match="no question"):
        chat.main(tmp_path, device="cpu")
