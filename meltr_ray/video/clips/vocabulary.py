"""Words to numbers: BERT's WordPiece (lower case), a thin layer over the `tokenizers` library."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import BertWordPieceTokenizer

from meltr_ray.errors import ConfigError, check

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LARGEST = 64 * 2**20
"""Bytes of a vocabulary file; BERT's has 0.2 MiB."""
LONG_WORD = re.compile(r"[^\s!-/:-@[-`{-~]{101,}")
"""Neither space nor ASCII punctuation for over 100 letters: WordPiece reads such a word as [UNK]."""


class Vocabulary:
    """A vocabulary file, one word piece a line, the line's number its id. BERT's own `vocab.txt` works too."""

    def __init__(self, path: str | Path):
        check(Path(path).is_file(), "data.vocabulary", path, "no such file; prepare the data set (workloads/prepare.py)")
        check(
            Path(path).stat().st_size <= LARGEST,
            "data.vocabulary",
            path,
            f"has more than {LARGEST // 2**20} MiB; give a file with one word piece a line",
        )
        try:
            pieces = set(Path(path).read_text(encoding="utf-8").split())
        except UnicodeDecodeError:
            raise ConfigError(f"data.vocabulary={path}: is no text in UTF-8; give a file with one word piece a line") from None
        check(
            pieces.issuperset(SPECIAL),
            "data.vocabulary",
            path,
            f"lacks some of {' '.join(SPECIAL)}; give a whole vocabulary, such as BERT's vocab.txt",
        )
        self._path = Path(path)
        self._tokenizer = BertWordPieceTokenizer(str(path), lowercase=True)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = map(self._tokenizer.token_to_id, SPECIAL)

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    @property
    def random_word_range(self) -> range:
        """Ids that may stand in for a word in masked-language batches: all behind the special ones."""
        return range(max(self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id) + 1, len(self))

    def encode(self, text: str, max_words: int) -> list[int]:
        """[CLS], the word pieces of `text`, [SEP]: at most `max_words` ids in all, cut at the end, not padded."""
        pieces = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [self.cls_id, *pieces[: max_words - 2], self.sep_id]

    def decode(self, ids: Iterable[int]) -> str:
        """The words of `ids` without special ones."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def __reduce__(self):
        return Vocabulary, (self._path,)


def build_vocabulary(captions: Iterable[str], path: Path, size: int = 4000, min_frequency: int = 2) -> Vocabulary:
    """Train WordPiece on `captions` (of the train split alone), write it to `path` and open it.

    A size of 4000 or less; pieces seen fewer than `min_frequency` times stay out and are read as smaller pieces.
    """
    tokenizer = BertWordPieceTokenizer(lowercase=True)
    captions = [tokenizer.normalize(text) for text in sorted(captions)]
    letters = sorted({letter for text in captions for letter in text if not letter.isspace()})
    # The trainer numbers "##x" in the order of a randomly seeded hash map and breaks ties by number, so that each run
    # gives another vocabulary. Naming those pieces first fixes their numbers.
    fixed = SPECIAL + [f"##{letter}" for letter in letters]
    tokenizer.train_from_iterator(
        (LONG_WORD.sub(" ", text) for text in captions),  # the time that one takes grows with the square of its length
        vocab_size=size, min_frequency=min_frequency, special_tokens=fixed, show_progress=False,
    )  # fmt: skip
    pieces = tokenizer.get_vocab()
    Path(path).write_text("\n".join(sorted(pieces, key=pieces.get)) + "\n", encoding="utf-8")
    return Vocabulary(path)


def list_words(captions: Iterable[Iterable[str]], path: Path, least_clips: int = 2) -> None:
    """Write the whole words that captions of at least so many clips have, to stand in for word pieces where data is small.

    `captions`: those of each clip. Words are what WordPiece splits first: letters and digits, lower case, without accents.
    """
    tokenizer = BertWordPieceTokenizer(lowercase=True)
    split = tokenizer._tokenizer.pre_tokenizer  # the wrapper doesn't hand it on
    counts: dict[str, int] = {}
    for texts in captions:
        words = {word for text in texts for word, _ in split.pre_tokenize_str(tokenizer.normalize(text))}
        for word in words:
            counts[word] = counts.get(word, 0) + 1
    chosen = sorted(word for word, count in counts.items() if count >= least_clips)
    Path(path).write_text("\n".join([*SPECIAL, *chosen]) + "\n", encoding="utf-8")
