"""The parts of a model: what is traced, built and run one by one. Names are those of artifacts and manifests.

nlvr has one part, `model`. vqa and caption have an `encoder` and one step of their `decoder`; retrieval has `image`,
`text` and `match`; clip has `image` and `text`. `madtp/tasks/requests.py` puts requests together from them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from madtp.models.caption import CaptionModel
from madtp.models.clip import ClipModel, normalize
from madtp.models.config import BlipConfig, ClipConfig
from madtp.models.decoder import Source, TextDecoder
from madtp.models.nlvr import NlvrModel, NlvrOutput
from madtp.models.packed import unpad
from madtp.models.retrieval import ImageOutput, MatchOutput, PackedImageOutput, RetrievalModel, TextOutput
from madtp.models.vqa import VqaModel

# Dimensions that vary from call to call.
BATCH = "batch"  # requests, images, texts or pairs
TEXT = "text"  # ids of a request's text, special ones included
SOURCE = "source"  # tokens that an encoder left for what follows
TEXTS = "texts"  # texts that a decoder writes for each request at once: beams, or candidate answers
NEW = "new"  # ids that are new to a decoder: the prompt, then one
PAST = "past"  # ids that its cache holds

M = TypeVar("M", bound=nn.Module)
INT64, FLOAT = torch.int64, torch.float32


@dataclass(frozen=True)
class InputSpec:
    """An input: its dimensions are numbers, or names of what varies."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]

    def sized(self, sizes: Mapping[str, int]) -> list[int]:
        """The shape with what varies put in."""
        return [dim if isinstance(dim, int) else sizes[dim] for dim in self.shape]

    @property
    def varies(self) -> bool:
        """Whether any dimension does."""
        return any(isinstance(dim, str) for dim in self.shape)


@dataclass(frozen=True)
class Part:
    """One part of a model.

    Attributes:
        module: its `forward` takes `inputs` in order and returns a named tuple of `outputs`.
        inputs: `temperature` last where it prunes.
        encoders: the encoders that it prunes in the order in which they run, and their layers.
        limits: the most that a dimension which varies can be, where the model has such a limit. (A decoder's cache
            and new ids together have to fit its positions.)
    """

    name: str
    module: nn.Module
    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    encoders: dict[str, int] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)


class EncodedQuestion(NamedTuple):
    """`VqaOutput`, and keys and values [layers, 2, B, H, S, D] of the question states for the decoder."""

    question_states: Tensor
    source_cache: Tensor
    vision_token_counts: Tensor
    text_token_counts: Tensor


class EncodedImage(NamedTuple):
    """`CaptionOutput`, and keys and values [layers, 2, B, H, S, D] of the image states for the decoder."""

    image_states: Tensor
    source_cache: Tensor
    vision_token_counts: Tensor


class PackedQuestion(NamedTuple):
    """`EncodedQuestion` in the packed layout: of S states, the first `source_lengths` [B] int64 are a sample's."""

    question_states: Tensor
    source_cache: Tensor
    source_lengths: Tensor
    vision_token_counts: Tensor
    text_token_counts: Tensor


class PackedImage(NamedTuple):
    """`EncodedImage` in the packed layout: of S states, the first `source_lengths` [B] int64 are a sample's."""

    image_states: Tensor
    source_cache: Tensor
    source_lengths: Tensor
    vision_token_counts: Tensor


class Decoded(NamedTuple):
    """Logits [B, n, V] of the next id; cache [layers, 2, B, n, H, P + L, D]."""

    logits: Tensor
    present: Tensor


class ClipImage(NamedTuple):
    """Of B images: features [B, E], embeddings [B, E] of length one, tokens after each layer [B, layers] int32."""

    image_feature: Tensor
    image_embed: Tensor
    vision_token_counts: Tensor


class ClipText(NamedTuple):
    """Of B captions: as `ClipImage`; and where each feature was read, [B] int32 (`madtp.models.clip.TextFeatures`)."""

    text_feature: Tensor
    text_embed: Tensor
    text_token_counts: Tensor
    text_picked_position: Tensor


class PartModule(nn.Module, Generic[M]):
    """A part of a model as a module of its own."""

    def __init__(self, model: M) -> None:
        super().__init__()
        self.model = model


class QuestionEncoder(PartModule[VqaModel]):
    """Image and question -> states, and their keys and values, computed once a request."""

    def forward(
        self, image: Tensor, input_ids: Tensor, attention_mask: Tensor, temperature: Tensor | float
    ) -> EncodedQuestion | PackedQuestion:
        states, vision, text = self.model(image, input_ids, attention_mask, temperature)
        decoder = self.model.text_decoder
        if self.model.packed:
            lengths = text[:, -1].to(torch.int64)
            return PackedQuestion(states, _packed_cache(self.model, states, lengths), lengths, vision, text)
        return EncodedQuestion(states, decoder.source_cache(states), vision, text)


class ImageEncoder(PartModule[CaptionModel]):
    """Image -> states, and their keys and values, computed once a request."""

    def forward(self, image: Tensor, temperature: Tensor | float) -> EncodedImage | PackedImage:
        states, vision = self.model(image, temperature)
        decoder = self.model.text_decoder
        if self.model.packed:
            lengths = vision[:, -1].to(torch.int64)
            return PackedImage(states, _packed_cache(self.model, states, lengths), lengths, vision)
        return EncodedImage(states, decoder.source_cache(states), vision)


def _packed_cache(model: VqaModel | CaptionModel, states: Tensor, lengths: Tensor) -> Tensor:
    """Keys and values of states [B, S, C], of which `lengths` [B] are a sample's."""
    longest = states.shape[1] if model.sized else None
    return model.text_decoder.packed_source_cache(unpad(states, lengths, sized=model.sized), longest)


class DecoderPart(PartModule[TextDecoder]):
    """One step of a decoder; `source_lengths` in the packed layout."""

    def forward(
        self,
        input_ids: Tensor,
        rows: Tensor,
        past: Tensor,
        source_cache: Tensor,
        source_lengths: Tensor | None = None,
    ) -> Decoded:
        return Decoded(*self.model.step(input_ids, rows, past, Source(source_cache, source_lengths)))


class RetrievalImage(PartModule[RetrievalModel]):
    """`RetrievalModel.encode_image`."""

    def forward(self, image: Tensor, temperature: Tensor | float) -> ImageOutput | PackedImageOutput:
        return self.model.encode_image(image, temperature)


class RetrievalText(PartModule[RetrievalModel]):
    """`RetrievalModel.encode_text`."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, temperature: Tensor | float) -> TextOutput:
        return self.model.encode_text(input_ids, attention_mask, temperature)


class PackedRetrievalMatch(PartModule[RetrievalModel]):
    """`RetrievalModel.match` in the packed layout."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_tokens: Tensor,
        image_lengths: Tensor,
        temperature: Tensor | float,
    ) -> MatchOutput:
        return self.model.match(input_ids, attention_mask, image_tokens, temperature, image_lengths)


class RetrievalMatch(PartModule[RetrievalModel]):
    """`RetrievalModel.match`."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, image_tokens: Tensor, temperature: Tensor | float
    ) -> MatchOutput:
        return self.model.match(input_ids, attention_mask, image_tokens, temperature)


class ClipImagePart(PartModule[ClipModel]):
    """`ClipModel.encode_image`, and embeddings."""

    def forward(self, image: Tensor, temperature: Tensor | float) -> ClipImage:
        feature, counts = self.model.encode_image(image, temperature)
        return ClipImage(feature, normalize(feature), counts)


class ClipTextPart(PartModule[ClipModel]):
    """`ClipModel.encode_text`, and embeddings."""

    def forward(self, input_ids: Tensor, temperature: Tensor | float) -> ClipText:
        feature, counts, position = self.model.encode_text(input_ids, temperature)
        return ClipText(feature, normalize(feature), counts, position)


def parts_of(model: Any) -> dict[str, Part]:
    """The parts of a model (`madtp.checkpoint.loading.Model`) by name, in the order in which they first run."""
    parts = _PARTS[model.task](model)
    return {part.name: part for part in parts}


def _image(config: BlipConfig | ClipConfig, name: str = "image") -> InputSpec:
    return InputSpec(name, FLOAT, (BATCH, 3, config.image_size, config.image_size))


_TEXT = tuple(InputSpec(name, INT64, (BATCH, TEXT)) for name in ("input_ids", "attention_mask"))
_TEMPERATURE = InputSpec("temperature", FLOAT, ())


def _nlvr(model: NlvrModel) -> tuple[Part, ...]:
    config = model.config
    images = (_image(config, "image0"), _image(config, "image1"))
    encoders = {"vision": config.vit_depth, "text": config.text_layers}
    limits = {TEXT: config.max_position}
    return (Part("model", model, (*images, *_TEXT, _TEMPERATURE), NlvrOutput._fields, encoders, limits),)


def _vqa(model: VqaModel) -> tuple[Part, ...]:
    config = model.config
    inputs = (_image(config), *_TEXT, _TEMPERATURE)
    encoders = {"vision": config.vit_depth, "text": config.text_layers}
    outputs = PackedQuestion if model.packed else EncodedQuestion
    return (
        Part("encoder", QuestionEncoder(model), inputs, outputs._fields, encoders, {TEXT: config.max_position}),
        _decoder(model, config, config.max_position),
    )


def _caption(model: CaptionModel) -> tuple[Part, ...]:
    config = model.config
    inputs = (_image(config), _TEMPERATURE)
    outputs = PackedImage if model.packed else EncodedImage
    return (
        Part("encoder", ImageEncoder(model), inputs, outputs._fields, {"vision": config.vit_depth}),
        _decoder(model, config, config.vision_tokens),
    )


def _decoder(model: VqaModel | CaptionModel, config: BlipConfig, source: int) -> Part:
    layers, heads, size = config.text_layers, config.text_heads, config.text_hidden // config.text_heads
    inputs: tuple[InputSpec, ...] = (
        InputSpec("input_ids", INT64, (BATCH, TEXTS, NEW)),
        InputSpec("rows", INT64, (BATCH, TEXTS)),
        InputSpec("past", FLOAT, (layers, 2, BATCH, TEXTS, heads, PAST, size)),
        InputSpec("source_cache", FLOAT, (layers, 2, BATCH, heads, SOURCE, size)),
    )
    # The tracer, which takes 0 and 1 for constants, assumes two at least of each, and both share the positions.
    limits = {NEW: config.max_position - 2, PAST: config.max_position - 2, SOURCE: source}
    if model.packed:
        inputs = (*inputs, InputSpec("source_lengths", INT64, (BATCH,)))
    return Part("decoder", DecoderPart(model.text_decoder), inputs, Decoded._fields, {}, limits)


def _retrieval(model: RetrievalModel) -> tuple[Part, ...]:
    config = model.config
    tokens = InputSpec("image_tokens", FLOAT, (BATCH, SOURCE, config.vit_dim))
    image, text = {"vision": config.vit_depth}, {"text": config.text_layers}
    match, limits = {"match": config.text_layers}, {TEXT: config.max_position}
    pairs = {**limits, SOURCE: config.vision_tokens}
    outputs = PackedImageOutput if model.packed else ImageOutput
    lengths = (InputSpec("image_lengths", INT64, (BATCH,)),) if model.packed else ()
    matcher: nn.Module = PackedRetrievalMatch(model) if model.packed else RetrievalMatch(model)
    seen: tuple[InputSpec, ...] = (*_TEXT, tokens, *lengths, _TEMPERATURE)
    return (
        Part("image", RetrievalImage(model), (_image(config), _TEMPERATURE), outputs._fields, image),
        Part("text", RetrievalText(model), (*_TEXT, _TEMPERATURE), TextOutput._fields, text, limits),
        Part("match", matcher, seen, MatchOutput._fields, match, pairs),
    )


def _clip(model: ClipModel) -> tuple[Part, ...]:
    config = model.config
    ids = InputSpec("input_ids", INT64, (BATCH, config.context_length))
    image, text = {"vision": config.vision_layers}, {"text": config.text_layers}
    return (
        Part("image", ClipImagePart(model), (_image(config), _TEMPERATURE), ClipImage._fields, image),
        Part("text", ClipTextPart(model), (ids, _TEMPERATURE), ClipText._fields, text),
    )


_PARTS: dict[str, Any] = {"nlvr": _nlvr, "vqa": _vqa, "caption": _caption, "retrieval": _retrieval, "clip": _clip}


def encoder_layers(parts: Mapping[str, Part]) -> list[tuple[str, int]]:
    """(encoder, layer) of every pruned layer, in the order in which they run."""
    return [
        (encoder, layer)
        for part in parts.values()
        for encoder, depth in part.encoders.items()
        for layer in range(depth)
    ]
