"""CLIP's tokenizer, from the files of a checkpoint, without transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError, UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_TOKENIZER_BYTES = 64 * 2**20
_HINT = "it needs the tokenizer.json, or the vocab.json and merges.txt, of a CLIP tokenizer"


class ClipTokenizer:
    """Turns a prompt into a fixed number of token ids.

    Reads tokenizer.json (transformers 5) or vocab.json and merges.txt (transformers 4), and the padding token
    from tokenizer_config.json or special_tokens_map.json.
    """

    def __init__(self, folder: Path, max_tokens: int) -> None:
        files = [p for p in folder.glob("*") if p.is_file()]
        if sum(p.stat().st_size for p in files) > MAX_TOKENIZER_BYTES:
            raise BundleError(f"the tokenizer in '{folder}' is over {MAX_TOKENIZER_BYTES} bytes", hint=_HINT)
        try:
            padding = _padding_token(folder)
            self._tokenizer = _load(folder, padding)
        except Exception as error:  # the tokenizers package raises bare Exception for a damaged file
            raise BundleError(f"the tokenizer in '{folder}' can't be read: {error}", hint=_HINT) from error
        self.max_tokens = max_tokens
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._end = self._id("<|endoftext|>", folder)
        self._start = self._id("<|startoftext|>", folder)
        self._pad = self._id(padding, folder)

    def _id(self, token: str, folder: Path) -> int:
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise BundleError(f"the tokenizer in '{folder}' has no token '{token}'", hint=_HINT)
        return int(found)

    @property
    def vocabulary_size(self) -> int:
        """One more than the largest token id."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def count(self, prompt: str) -> int:
        """How many tokens the prompt has, without the two that mark its start and end."""
        return len(self._words(prompt))

    def encode(self, prompt: str) -> NDArray[np.int64]:
        """Token ids of shape (1, max_tokens): start, the prompt (cut if too long), end, padding."""
        ids = [self._start, *self._words(prompt)[: self.max_tokens - 2], self._end]
        return np.array([ids + [self._pad] * (self.max_tokens - len(ids))], np.int64)

    def _words(self, prompt: str) -> list[int]:
        try:
            prompt.encode()
        except UnicodeEncodeError as error:  # bytes of another encoding on a command line become lone surrogates
            raise UserError(f"the prompt is not valid text: {error}", hint="write it in UTF-8") from error
        ids: list[int] = self._tokenizer.encode(prompt, add_special_tokens=False).ids
        return ids


def _load(folder: Path, padding: str) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    if (folder / "tokenizer.json").is_file():
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    vocab, merges = models.BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, end_of_word_suffix="</w>", continuing_subword_prefix="", unk_token="<|endoftext|>")
    )
    words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    # a special token is one wherever it stands in a prompt: SD2 pads with "!", so its prompts have no "!</w>"
    special = [token for token in ("<|startoftext|>", "<|endoftext|>", padding) if token in vocab]
    tokenizer.add_special_tokens(special)
    return tokenizer


def _padding_token(folder: Path) -> str:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            token: Any = json.loads((folder / name).read_text("utf-8")).get("pad_token")
            if token:
                return str(token["content"] if isinstance(token, dict) else token)
    return "<|endoftext|>"
