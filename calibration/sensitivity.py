"""Which weight products a low precision damages most, and the fewest that have to stay in a higher one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from calibration.agreement import Agreement, compare, observe
from calibration.fake_quantization import FakeQuantization
from calibration.products import Product, ProductMode
from madtp.models.weight_products import WeightProduct, weight_products

MOST_TOKENS = 0.01  # by which the mean number of tokens may differ from float32's
Inputs = Sequence[Mapping[str, Tensor]]
OnStep = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Goal:
    """What a proposal has to reach on the samples: least share of equal decisions, least mean Jaccard."""

    agreement: float = 0.995
    jaccard: float = 0.97

    def reached(self, found: Agreement) -> bool:
        return found.decisions >= self.agreement and found.jaccard >= self.jaccard and abs(found.tokens) <= MOST_TOKENS


@dataclass(frozen=True)
class Place:
    """What is tried alone: the products of one place (`vision.0.qkv`) or of a whole layer (`vision.0`).

    Attributes:
        share: of the multiply-adds of all weight products, at the tokens that survive.
        found: the run with these products in low precision and all others in float32.
    """

    name: str
    products: tuple[str, ...]
    share: float
    found: Agreement

    def to_json(self) -> dict[str, Any]:
        """Evidence for a file."""
        return {
            "place": self.name,
            "share": self.share,
            "damage": self.found.damage,
            "output_error": self.found.output_error,
            "jaccard": self.found.jaccard,
            "flips": self.found.flips,
            "tokens": self.found.tokens,
            "agreement": self.found.decisions,
        }


@dataclass(frozen=True)
class Proposal:
    """What sensitivity found.

    Attributes:
        places, layers: most damage first.
        everything: the run with all products in low precision.
        keep: products that stay in float32; `found` is the run with all others in low precision.
        kept_share: their share of the multiply-adds.
    """

    places: tuple[Place, ...]
    layers: tuple[Place, ...]
    everything: Agreement
    keep: tuple[str, ...]
    kept_share: float
    found: Agreement
    reached: bool

    def kept_places(self) -> list[str]:
        """Names of the places in `keep`."""
        return [place.name for place in self.places if set(place.products) <= set(self.keep)]

    def to_json(self) -> dict[str, Any]:
        """Evidence for a keep file."""
        return {
            "kept_places": self.kept_places(),
            "kept_share": self.kept_share,
            "reached": self.reached,
            "proposal": self.found.to_json(),
            "everything": self.everything.to_json(),
            "places": [place.to_json() for place in self.places],
            "layers": [place.to_json() for place in self.layers],
        }


@dataclass
class Trials:
    """Runs of one model over the same samples with some products in low precision.

    Args:
        model: in float32, what runs are compared with.
        quantization: of that model, or of one that computes the same (`calibration.smoothing`).
        probe: samples, the first ones, on which places are tried alone.
        never: names of products that stay in float32 anyway, and are in no keep file.

    Attributes:
        products: by name, those that low precision can be tried on.
    """

    model: Any
    inputs: Inputs
    temperature: float
    quantization: FakeQuantization
    labels: Sequence[int | None]
    probe: int
    never: frozenset[str]
    on_step: OnStep

    def __post_init__(self) -> None:
        self._adds, self._low = dict[str, int](), set[str]()
        watch = ProductMode(self.model, self._count)
        on_sample = self.counter("running in float32", len(self.inputs))
        self._reference = observe(self.model, self.inputs, self.temperature, watch, on_sample)
        self.products = {name: product for name, product in weight_products(self.model).items() if name in self._low}

    def _count(self, product: Product) -> None:
        self._adds[product.name] = self._adds.get(product.name, 0) + product.multiply_adds
        if product.name not in self.never and self.quantization.can_run(product):
            self._low.add(product.name)

    def counter(self, doing: str, total: int) -> Callable[[], None]:
        """Called after each of `total` samples, it says how far that is."""
        steps = iter(range(1, total + 1))
        return lambda: self.on_step(doing, next(steps), total)

    def share(self, names: Sequence[str]) -> float:
        """Their share of the multiply-adds of all weight products."""
        return sum(self._adds[name] for name in names) / sum(self._adds.values())

    def run(self, low: Sequence[str], on_sample: Callable[[], None], count: int | None = None) -> Agreement:
        """The run with the products `low` in low precision, over the first `count` samples."""
        inputs = self.inputs[:count]
        low_precision = self.quantization
        seen = observe(low_precision.model, inputs, self.temperature, low_precision.of(low), on_sample)
        return compare(self.model, self._reference[: len(inputs)], seen, self.labels[: len(inputs)])

    def alone(self, groups: Mapping[str, Sequence[str]], what: str) -> tuple[Place, ...]:
        """Every group of products tried alone, most damage first."""
        samples = min(self.probe, len(self.inputs))
        on_sample = self.counter(f"trying {what} alone", len(groups) * samples)
        found = [
            Place(name, tuple(products), self.share(products), self.run(products, on_sample, samples))
            for name, products in groups.items()
        ]
        return tuple(sorted(found, key=lambda place: -place.found.damage))


def rank_and_propose(trials: Trials, goal: Goal) -> Proposal:
    """Rank places and layers, and look for the smallest set to keep.

    Places are kept in the order of damage per multiply-add until the goal is reached with everything else in low
    precision; then each of them, the costliest first, is given up where the goal is reached without it.
    """
    places = trials.alone(_groups(trials.products, lambda product: product.place), "places")
    layers = trials.alone(_groups(trials.products, _layer_name), "layers")
    everything = list(trials.products)
    order = sorted(places, key=lambda place: -place.found.damage / max(place.share, 1e-9))

    def kept(chosen: Sequence[Place]) -> list[str]:
        return [name for place in chosen for name in place.products]

    def attempt(chosen: Sequence[Place]) -> Agreement:
        names = set(kept(chosen))
        on_sample = trials.counter(f"running all but {len(chosen)} places", len(trials.inputs))
        return trials.run([name for name in everything if name not in names], on_sample)

    whole = attempt(())
    chosen, found = list[Place](), whole
    if not goal.reached(whole):
        chosen, found = _fewest(order, attempt, goal)
        for place in sorted(chosen, key=lambda place: -place.share):
            fewer = [other for other in chosen if other is not place]
            without = attempt(fewer)
            if goal.reached(without):
                chosen, found = fewer, without
    names = kept(chosen)
    return Proposal(places, layers, whole, tuple(names), trials.share(names), found, goal.reached(found))


def _fewest(
    order: Sequence[Place], attempt: Callable[[Sequence[Place]], Agreement], goal: Goal
) -> tuple[list[Place], Agreement]:
    """The shortest beginning of `order` that reaches the goal, as if longer ones did too; all of it is float32."""
    least, most = 1, len(order)
    best: Agreement | None = None
    while least < most:
        middle = (least + most) // 2
        found = attempt(order[:middle])
        if goal.reached(found):
            most, best = middle, found
        else:
            least = middle + 1
    return list(order[:most]), best or attempt(order[:most])


def _groups(products: Mapping[str, WeightProduct], name: Callable[[WeightProduct], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for product in products.values():
        groups.setdefault(name(product), []).append(product.name)
    return groups


def _layer_name(product: WeightProduct) -> str:
    """`vision.0`; products outside the layers stay places of their own."""
    return product.place if product.layer is None else f"{product.encoder}.{product.layer}"
