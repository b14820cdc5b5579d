"""The samples that stand in where the user gives none: what the demo draws, read without what the demo needs."""

import subprocess
import sys

import numpy as np
import pytest

from export.bench.calls import DEMO_SAMPLES
from madtp.data.datasets import TASKS
from madtp.data.default_samples import demo_samples
from madtp.demo.default_samples import default_samples
from tests.helpers.paths import ROOT

DEMO_ONLY = ("sklearn", "skimage")


def test_digits_are_those_that_the_demo_draws() -> None:
    for stored, drawn in zip(demo_samples("nlvr", 24), default_samples(), strict=True):
        assert (stored.text, stored.label) == (drawn.text, drawn.label)
        assert all(map(np.array_equal, stored.images, drawn.images))


def test_photographs_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_sample_image

    first = demo_samples("caption", 1)[0]
    assert np.array_equal(first.images[0], load_sample_image("china.jpg")[20:244, 94:318])


def test_a_bench_of_digits_repeats_no_sample() -> None:
    samples = demo_samples("nlvr", DEMO_SAMPLES)
    assert len({b"".join(image.tobytes() for image in sample.images) for sample in samples}) == DEMO_SAMPLES


@pytest.mark.parametrize("task", TASKS)
def test_samples_begin_anew_after_the_last(task: str) -> None:
    number = 24 if task == "nlvr" else 16
    samples = demo_samples(task, number + 1)
    assert samples[number] == samples[0] != samples[1]
    assert all(len(sample.images) == (2 if task == "nlvr" else 1) for sample in samples)


def test_an_install_without_the_demo_has_samples() -> None:
    stubs = "".join(f"sys.modules[{name!r}] = None; " for name in DEMO_ONLY)
    script = (
        f"import sys; {stubs}import export.build.pipeline, export.evaluate.run, export.report.run, export.bench.run; "
        "from madtp.data.default_samples import demo_samples; print(len(demo_samples('nlvr', 3)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "3"
