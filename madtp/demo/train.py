"""The recipe of the demonstration's model."""

import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from madtp.data.tokenize import ADDED_TOKENS, ID_TOKENS, TextProcessor
from madtp.demo import vocab_path
from madtp.demo.data import CANVAS, WORDS, Scenes, image_batch, load_split, statements, vocabulary
from madtp.models.config import NlvrConfig
from madtp.models.nlvr import NlvrModel
from madtp.models.retrieval import RetrievalModel
from madtp.training.loop import Stage, optimise
from madtp.training.objective import NlvrBatch, initialize, nlvr_loss
from madtp.training.temperature import ramp

Progress = Callable[[str], None]  # called after every step with a few words about it


def config() -> NlvrConfig:
    """Sizes of the model."""
    return NlvrConfig(
        image_size=CANVAS,
        patch_size=8,
        vit_dim=64,
        vit_depth=4,
        vit_heads=2,
        vit_mlp=128,
        text_hidden=64,
        text_layers=4,
        text_heads=4,
        text_inter=128,
        max_position=16,
        sd_num=16,
        sd_dim=64,
        merge_from=2,
        **vocabulary_sizes(vocabulary()),
    )


def vocabulary_sizes(pieces: Sequence[str]) -> dict[str, Any]:
    """The fields of a configuration that follow from `vocab.txt`."""
    ids = {name: pieces.index(token) for name, token in ID_TOKENS.items() if token in pieces}
    size = len(pieces)
    return {"vocab_size": size + ADDED_TOKENS, **ids, "bos_token_id": size, "enc_token_id": size + 1}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result.

    First the vision encoder learns to name the digit of a single image, as BLIP's starts from one that was trained
    alone. Then the whole model learns to judge statements, densely at first, while the temperature rises.
    """

    naming: Stage = field(default_factory=lambda: Stage(steps=1000, learning_rate=3e-3))
    images: int = 64  # a step of the first stage
    judging: Stage = field(default_factory=lambda: Stage(steps=1300, learning_rate=1e-3))
    pairs: int = 16  # a step of the second stage
    questions: int = 8  # statements about each pair
    temperature: float = 0.4  # the highest that training prunes at
    deployed_temperature: float = 0.08  # milder: training at a harsher one leaves it a margin
    pruning: tuple[float, float] = (0.25, 0.5)  # shares of the second stage between which the temperature rises
    seed: int = 0

    @property
    def steps(self) -> int:
        """Steps of both stages."""
        return self.naming.steps + self.judging.steps

    def shortened(self, steps: int) -> "Recipe":
        """The same with `steps` steps a stage: shows that it runs, learns nothing."""
        return replace(self, naming=replace(self.naming, steps=steps), judging=replace(self.judging, steps=steps))


def train(recipe: Recipe, progress: Progress = lambda _: None) -> NlvrModel:
    """A model trained by `recipe`, in eval mode. The same recipe and thread count give the same weights."""
    model = NlvrModel(config(), recipe.deployed_temperature)
    initialize(model, torch.Generator().manual_seed(recipe.seed))
    rng = np.random.default_rng(recipe.seed)
    scenes = Scenes(load_split(held_out=False), recipe.seed)
    _learn_names(model, scenes, recipe, rng, progress)
    _learn_statements(model, scenes, recipe, rng, progress)
    return model.eval()


def _learn_names(
    model: NlvrModel, scenes: Scenes, recipe: Recipe, rng: np.random.Generator, progress: Progress
) -> None:
    """Match the class token of an image with the word of its digit."""
    vision, text = model.visual_encoder, model.text_encoder.embeddings
    pieces = vocabulary()
    words = torch.tensor([pieces.index(word) for word in WORDS])
    parameters = [*vision.parameters(), *text.parameters()]
    for step in optimise(parameters, recipe.naming):
        digits = rng.integers(10, size=recipe.images)
        tokens, _ = vision(image_batch(scenes.render(rng, digits)), model.space_dict, None)
        names = text.LayerNorm(text.word_embeddings(words))
        logits = tokens[:, 0] @ names.mT / names.shape[1] ** 0.5
        loss = F.cross_entropy(logits, torch.from_numpy(digits))
        step(loss)
        progress(f"naming digits, loss {loss.item():.2f}")


def _learn_statements(
    model: NlvrModel, scenes: Scenes, recipe: Recipe, rng: np.random.Generator, progress: Progress
) -> None:
    """Judge statements, L_task + 0.1 * L_sim."""
    ids, mask = TextProcessor(vocab_path(), model.config).batch([entry.sentence for entry in statements()])
    for number, step in enumerate(optimise(list(model.parameters()), recipe.judging)):
        drawn = scenes.batch(rng, recipe.pairs, recipe.questions)
        chosen = torch.from_numpy(drawn.statements.reshape(-1))
        labels = torch.from_numpy(drawn.labels.reshape(-1)).long()
        left, right = map(image_batch, drawn.images)
        batch = NlvrBatch(left, right, ids[chosen], mask[chosen], labels)
        temperature = temperature_at(number, recipe)
        loss = nlvr_loss(model, batch, torch.tensor(temperature) if temperature > 0 else None)
        step(loss)
        progress(f"judging statements at temperature {temperature:.2f}, loss {loss.item():.2f}")


def temperature_at(step: int, recipe: Recipe) -> float:
    """Temperature of a step of the second stage: zero, then rising linearly, then the final one."""
    return recipe.temperature * ramp(step / recipe.judging.steps, recipe.pruning)


def save(model: NlvrModel | RetrievalModel, path: Path) -> None:
    """Write a checkpoint that `madtp.load` reads."""
    content = {
        "model": model.state_dict(),
        "epoch": 0,
        "temperature": model.temperature,
        "config": asdict(model.config),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.write_bytes(buffer.getvalue())  # of a full disk torch raises an error that does not say so
