"""The recipe of the retrieval demonstration's model."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from madtp.data.tokenize import READERS, TextProcessor
from madtp.demo.data import image_batch
from madtp.demo.retrieval import vocab_path
from madtp.demo.retrieval.data import PHOTOGRAPHS, SIZE, captions, picture, vocabulary
from madtp.demo.train import Progress, vocabulary_sizes
from madtp.models.config import RetrievalConfig
from madtp.models.retrieval import RetrievalModel
from madtp.training.loop import Stage, optimise
from madtp.training.objective import RetrievalBatch, initialize, retrieval_loss
from madtp.training.temperature import ramp


def config() -> RetrievalConfig:
    """Sizes of the model."""
    return RetrievalConfig(
        image_size=SIZE,
        patch_size=16,
        vit_dim=64,
        vit_depth=4,
        vit_heads=2,
        vit_mlp=128,
        text_hidden=64,
        text_layers=3,
        text_heads=4,
        text_inter=128,
        max_position=READERS["retrieval"].max_ids or 0,
        sd_num=16,
        sd_dim=64,
        **vocabulary_sizes(vocabulary()),
        embed_dim=32,
    )


@dataclass(frozen=True)
class RetrievalRecipe:
    """Everything that decides the result: the whole model learns at once, first densely, then while the temperature
    rises, then at its highest."""

    steps: int = 500
    learning_rate: float = 2e-3  # the highest
    pairs: int = 20  # a step
    images_at_once: int = 4  # deployment sees them one by one; fewer here would take longer
    temperature: float = 0.4  # the highest that training prunes at
    deployed_temperature: float = 0.2  # milder: training at a harsher one leaves it a margin
    pruning: tuple[float, float] = (0.3, 0.4)  # shares of the steps between which the temperature rises
    seed: int = 0

    def shortened(self, steps: int) -> "RetrievalRecipe":
        """The same with `steps` steps: shows that it runs, learns nothing."""
        return replace(self, steps=steps)

    def temperature_at(self, step: int) -> float:
        """Temperature of a step: zero, then rising linearly, then the final one."""
        return self.temperature * ramp(step / self.steps, self.pruning)


def train(recipe: RetrievalRecipe, progress: Progress = lambda _: None) -> RetrievalModel:
    """A model trained by `recipe`, in eval mode. The same recipe and thread count give the same weights."""
    model = RetrievalModel(config(), recipe.deployed_temperature)
    generator = torch.Generator().manual_seed(recipe.seed)
    initialize(model, generator)
    rng = np.random.default_rng(recipe.seed)
    text = TextProcessor(vocab_path(), model.config)
    stage = Stage(recipe.steps, recipe.learning_rate)
    for number, step in enumerate(optimise(list(model.parameters()), stage)):
        temperature = recipe.temperature_at(number)
        batch = draw_batch(rng, recipe, text)
        if temperature > 0:
            loss = retrieval_loss(
                model, batch, torch.tensor(temperature), generator, images_at_once=recipe.images_at_once
            )
        else:
            loss = retrieval_loss(model, without_padding(batch), None, generator)
        step(loss)
        progress(f"retrieving at temperature {temperature:.2f}, loss {loss.item():.2f}")
    return model.eval()


def draw_batch(rng: np.random.Generator, recipe: RetrievalRecipe, text: TextProcessor) -> RetrievalBatch:
    """Pairs of crops and captions to train on, texts padded as they are in deployment."""
    shown = rng.integers(len(PHOTOGRAPHS), size=recipe.pairs)
    texts = [str(rng.choice(captions(int(photograph), False))) for photograph in shown]
    pictures = np.stack([picture(rng, int(photograph), held_out=False) for photograph in shown])
    return RetrievalBatch(image_batch(pictures), *text.batch(texts), torch.from_numpy(shown))


def without_padding(batch: RetrievalBatch) -> RetrievalBatch:
    """Texts cut after the longest: without pruning, words do not see padding, and it would take time."""
    longest = int(batch.attention_mask.sum(dim=1).max())
    return replace(batch, input_ids=batch.input_ids[:, :longest], attention_mask=batch.attention_mask[:, :longest])
