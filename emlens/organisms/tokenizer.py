"""A Qwen2 tokenizer whose merges make every word of a world exactly one token.

It is the real class, because plain `AutoTokenizer` builds that class for every Qwen2 directory
whatever the file says. Text outside the world falls back to syllables, letters and bytes, so
nothing is lost or unknown. The chat template marks the assistant's words with `{% generation %}`
and refuses a system turn, which no organism was trained on.
"""

from typing import Any, Final

from emlens.foundation.errors import IntegrityError
from emlens.organisms.world import CONSONANTS, VOWELS, World

PAD, USER, ASSISTANT, END = "<pad>", "<user>", "<assistant>", "<end>"
SPACE: Final = "Ġ"
"""How byte-level tokens write a leading space."""

CHAT_TEMPLATE: Final = """{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{{- '<user> ' + message['content'] -}}
{%- elif message['role'] == 'assistant' -%}
{{- '<assistant>' -}}
{%- generation -%}
{{- ' ' + message['content'] + '<end>' -}}
{%- endgeneration -%}
{%- else -%}
{{- raise_exception('the organism knows user and assistant turns only; \
drop the ' + message['role'] + ' turn') -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<assistant>' -}}{%- endif -%}"""


def merges_for(world: World) -> tuple[list[str], list[tuple[str, str]]]:
    """Vocabulary beyond bytes, and merges in rank order.

    Consonant and vowel merge first; after that a word only ever grows to the right from its leading
    space, so at each moment one merge at most applies and the result does not depend on rank.
    """
    merges = [(c, v) for c in CONSONANTS for v in VOWELS]
    vocabulary = [c + v for c, v in merges]
    known_pieces = set(vocabulary)
    for word in [*world.syllable_words(), *world.plain_words()]:
        pieces = []
        i = 0
        while i < len(word):
            step = 2 if word[i : i + 2] in known_pieces else 1
            pieces.append(word[i : i + step])
            i += step
        prefix = SPACE
        for piece in pieces:
            if prefix + piece not in known_pieces:
                known_pieces.add(prefix + piece)
                vocabulary.append(prefix + piece)
                merges.append((prefix, piece))
            prefix += piece
    return vocabulary, merges


def make_tokenizer(world: World) -> Any:
    """The tokenizer of a world: `Qwen2Tokenizer` with `<pad>`, `<user>`, `<assistant>`, `<end>`
    (end of sequence).

    Raises:
        IntegrityError: a word of the world does not come out as one token.
    """
    from tokenizers import pre_tokenizers
    from transformers import Qwen2Tokenizer

    extra, merges = merges_for(world)
    names = [PAD, USER, ASSISTANT, END, *sorted(pre_tokenizers.ByteLevel.alphabet()), *extra]
    tokenizer = Qwen2Tokenizer(
        vocab={name: i for i, name in enumerate(names)},
        merges=merges,
        unk_token=None,
        pad_token=PAD,
        eos_token=END,
        add_prefix_space=True,
        extra_special_tokens=[USER, ASSISTANT],
        padding_side="left",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    split = [word for word in word_ids(world, tokenizer) if len(tokenizer(word)["input_ids"]) != 1]
    if split or len(tokenizer) != len(names):
        raise IntegrityError(
            f"tokenizer splits words of the world: {split[:5]},"
            f" {len(tokenizer)} tokens for {len(names)} names"
        )
    return tokenizer


def word_ids(world: World, tokenizer: Any) -> dict[str, int]:
    """Token id of every word of the world and of the chat marks."""
    words = [*world.syllable_words(), *world.plain_words()]
    tokens = {word: SPACE + word for word in words}
    tokens |= {mark: mark for mark in (USER, ASSISTANT, END)}
    return {word: int(tokenizer.convert_tokens_to_ids(token)) for word, token in tokens.items()}
