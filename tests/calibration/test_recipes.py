"""Default recipes: one for every task and precision, of places that there are."""

from pathlib import Path

import pytest

import madtp
from calibration.keep import PRECISIONS
from calibration.recipes import recipe
from madtp.data.datasets import TASKS
from madtp.models.weight_products import weight_products
from tests.helpers.checkpoints import TINY, save_checkpoint, state_of, write_task_checkpoint


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_recipe_whose_patterns_name_something(task: str, precision: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.pt"
    checkpoint = save_checkpoint(path, state_of(TINY)) if task == "nlvr" else write_task_checkpoint(task, path)
    products = weight_products(madtp.load(checkpoint)).values()
    found = recipe(task, precision)
    assert found.origin
    for pattern in found.keep:
        assert any(product.matches(pattern) for product in products), pattern
    assert 0 < len(found.kept(products)) < len(products)
