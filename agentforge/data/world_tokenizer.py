"""The built-in world's vocabulary: its words whole, digits single, every ASCII text writable."""

from __future__ import annotations

import string

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from agentforge.data.tokenizers import TextTokenizer
from agentforge.data.world import words

_BLANK = "\u2581"


def world_tokenizer() -> TextTokenizer:
    """Build it: at most 512 entries, the twelve thinking tokens last, lower case.

    A unigram model whose scores prefer whole words (-1) over letters (-10); as no piece holds two
    digits, numbers are read digit by digit. What is not ASCII becomes ``<unk>``.
    """
    letters = [c for c in string.printable if c.isprintable() and c not in string.ascii_uppercase]
    pieces: list[tuple[str, float]] = [("<unk>", 0.0), ("\n", -10.0), (_BLANK, -10.0)]
    pieces += [("q:", -1.0), ("\na:", -1.0), ("\nq:", -1.0)]
    pieces += [(_BLANK + d, -1.0) for d in string.digits]
    pieces += [(blank + w, -1.0) for w in words() for blank in (_BLANK, "")]
    pieces += [(c, -10.0) for c in letters if c != " " and c not in words()]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement=_BLANK, prepend_scheme="never", split=True
    )
    tokenizer.decoder = decoders.Metaspace(replacement=_BLANK, prepend_scheme="never")
    tokenizer.add_special_tokens(["<pad>", "<end>"])
    return TextTokenizer(tokenizer, name="world", eos="<end>", pad="<pad>")
