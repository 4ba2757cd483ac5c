"""One tokenizer from pretraining to release: byte-level BPE, with `<think>` and the turn marks as single ids.

Digits are split singly; text is not normalised, so that decode(encode(text)) == text for any Unicode.
Special tokens written out in a user's text are *not* turned into their ids (`encode` treats them as plain
characters): only the chat template makes turns.  `ChatTokenizer` wraps any Hugging Face tokenizer folder
behind the few calls that stages need.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from onebase.errors import UserError

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
USER, ASSISTANT, SYSTEM, END = "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"
THINK, END_THINK = "<think>", "</think>"
SPECIAL = [BOS, EOS, PAD, USER, ASSISTANT, SYSTEM, END, THINK, END_THINK]

# The thoughts of earlier turns are dropped; an assistant turn that is not the last message keeps only its
# answer.
CHAT_TEMPLATE = (
    "{{- '<|bos|>' -}}"
    "{%- for m in messages -%}"
    "{%- if m.role == 'assistant' -%}"
    "{%- set text = m.content -%}"
    "{%- if not loop.last and '</think>' in text -%}"
    "{%- set text = text.split('</think>')[-1] -%}"
    "{%- endif -%}"
    "{{- '<|assistant|>' + text + '<|end|>' -}}"
    "{%- else -%}{{- '<|' + m.role + '|>' + m.content -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{- '<|assistant|>' -}}"
    "{%- if think_open -%}{{- '<think>' -}}{%- endif -%}"
    "{%- endif -%}"
)
Think = Literal["free", "open"]
Message = Mapping[str, str]


def train(texts: Iterable[str], vocab_size: int) -> ChatTokenizer:
    """Train a byte-level BPE of at most `vocab_size` entries, special tokens included."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            # words with their leading blank, runs of punctuation, white space
            pre_tokenizers.Split(Regex(r" ?\p{L}+|\d| ?[^\s\p{L}\d]+|\s+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    hf = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=END,  # a turn's end is where generation stops; documents end with EOS
        pad_token=PAD,
        additional_special_tokens=[EOS, USER, ASSISTANT, SYSTEM, THINK, END_THINK],
        clean_up_tokenization_spaces=False,
    )
    hf.chat_template = CHAT_TEMPLATE
    return ChatTokenizer(hf)


class ChatTokenizer:
    """A Hugging Face tokenizer with the ids that onebase needs looked up once."""

    def __init__(self, hf: Any) -> None:
        self.hf = hf
        self.size: int = len(hf)
        if hf.eos_token_id is None:
            raise UserError(f"{hf.name_or_path}: the tokenizer has no end-of-sequence token; set eos_token")
        self.eos_id: int = hf.eos_token_id
        self.bos_id: int = hf.bos_token_id if hf.bos_token_id is not None else self.eos_id
        self.pad_id: int = hf.pad_token_id if hf.pad_token_id is not None else self.eos_id
        self.think_id, self.end_think_id = self._single(THINK), self._single(END_THINK)
        document_end = self._single(EOS)
        self.document_end_id: int = self.eos_id if document_end is None else document_end
        """What closes a document of plain text."""
        self._own = hf.chat_template == CHAT_TEMPLATE
        self._marks = {t: hf.convert_tokens_to_ids(t) for t in SPECIAL} if self._own else {}
        self._plain = copy.deepcopy(hf.backend_tokenizer) if self._own else None
        if self._plain is not None:
            self._plain.encode_special_tokens = True
        self.stop_ids: tuple[int, ...] = tuple({self.eos_id, self.document_end_id})

    def _single(self, token: str) -> int | None:
        """The id of a token that is one entry of the vocabulary, else None."""
        found = self.hf.convert_tokens_to_ids(token)
        return None if found is None or found == self.hf.unk_token_id else int(found)

    @classmethod
    def load(cls, origin: str) -> ChatTokenizer:
        from transformers import AutoTokenizer

        try:
            return cls(AutoTokenizer.from_pretrained(origin))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            lines = str(e).strip().splitlines() or [type(e).__name__]
            raise UserError(f"{origin}: no tokenizer can be loaded from there: {lines[0]}") from e

    def save(self, folder: Path) -> None:
        self.hf.save_pretrained(folder)

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; special tokens written in it are characters, not marks."""
        if self._plain is not None:
            return self._plain.encode(text, add_special_tokens=False).ids
        return self.hf.encode(text, add_special_tokens=False, split_special_tokens=True)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        if self._plain is not None:
            return [e.ids for e in self._plain.encode_batch_fast(list(texts), add_special_tokens=False)]
        return self.hf(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        return self.hf.decode(list(ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)

    def text(self, completion_ids: Sequence[int]) -> str:
        """A completion as verifiers see it: without the mark that ended it, thought tags kept."""
        ids = list(completion_ids)
        if ids and ids[-1] in self.stop_ids:
            ids.pop()
        return self.decode(ids)

    def prompt_ids(self, messages: Sequence[Message], think: Think = "free") -> list[int]:
        """Ids of a conversation up to where the assistant speaks."""
        if self._own:
            ids = self._turns(messages, whole_last=False)
            return [*ids, self._id(ASSISTANT), *([self._id(THINK)] if think == "open" else [])]
        return self._template(messages, add_generation_prompt=True, think_open=think == "open")

    def conversation(self, messages: Sequence[Message], think: Think = "free") -> tuple[list[int], list[int]]:
        """(ids, mask) of a conversation that ends with the assistant; mask is 1 where the token is trained:
        the last assistant turn's text and its end mark; with think='open' not the opening tag, which the
        prompt then holds."""
        assert messages and messages[-1]["role"] == "assistant", "a conversation ends with the assistant"
        prompt = self.prompt_ids(messages[:-1], think)
        if self._own:
            whole = self._turns(messages, whole_last=True)
        else:
            whole = self._template(messages, add_generation_prompt=False, think_open=False)
        if whole[: len(prompt)] != prompt:
            raise UserError(
                f"{self.hf.name_or_path}: the prompt is not a prefix of the conversation"
                + (" (think: open, but the answer does not begin with <think>)" if think == "open" else "")
            )
        return whole, [0] * len(prompt) + [1] * (len(whole) - len(prompt))

    def _turns(self, messages: Sequence[Message], whole_last: bool) -> list[int]:
        """What CHAT_TEMPLATE renders, put together from ids: marks come from the template alone, so that a
        user's text cannot forge a turn, and the assistant's think tags are the single ids."""
        ids = [self.bos_id]
        for i, m in enumerate(messages):
            role, text = m["role"], m["content"]
            if role not in ("user", "assistant", "system"):
                raise UserError(f"message {i}: role {role!r} is unknown; allowed: user, assistant, system")
            ids.append(self._id(f"<|{role}|>"))
            if role != "assistant":
                ids += self.encode(text)
                continue
            if not (whole_last and i == len(messages) - 1) and END_THINK in text:
                text = text.split(END_THINK)[-1]
            for part in re.split(f"({THINK}|{END_THINK})", text):
                ids += [self._id(part)] if part in (THINK, END_THINK) else self.encode(part) if part else []
            ids.append(self.eos_id)
        return ids

    def _id(self, token: str) -> int:
        return self._marks[token]

    def _template(self, messages: Sequence[Message], **options: bool) -> list[int]:
        if self.hf.chat_template is None:
            raise UserError(
                f"{self.hf.name_or_path}: no chat template; add chat_template.jinja to the folder"
            )
        return self.hf.apply_chat_template(list(messages), tokenize=True, return_dict=False, **options)
