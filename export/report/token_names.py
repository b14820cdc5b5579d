"""Names of the tokens of a text."""

from collections.abc import Sequence

from madtp.data.samples import Config, Processor, hashed_words
from madtp.data.tokenize import ID_TOKENS
from madtp.models.config import ClipConfig


def token_names(ids: Sequence[int], config: Config, processor: Processor | None, text: str) -> list[str]:
    """A name for each id of a request's text: its piece of the vocabulary, its word, or its number.

    `ids` include special ids and no padding. Without a processor they are hashes of the words of `text`, or random.
    """
    if isinstance(config, ClipConfig):
        special = {config.sot_token_id: "[start]", config.eot_token_id: "[end]"}
    else:
        special = {getattr(config, name): token for name, token in ID_TOKENS.items()}
    hashed = hashed_words(text, config) if processor is None and text else []
    names, words = [], 0
    for index in ids:
        name = special.get(index)
        if name is None:
            words += 1
            if processor is not None:
                name = processor.piece(index)
            else:
                name = hashed[words - 1] if words <= len(hashed) else f"word {words}"
        names.append(name)
    return names
