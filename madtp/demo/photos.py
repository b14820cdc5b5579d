"""Pieces of the two photographs that scikit-learn ships, with what is to be seen: real samples for every task."""

from typing import NamedTuple

from PIL import Image

from madtp.data.preprocess import Sample

SIZE = 224  # pixels along one side of a piece


class Piece(NamedTuple):
    """A square of a photograph (427 x 640 pixels): its left and top edge, and two texts that fit it."""

    photograph: str
    left: int
    top: int
    caption: str
    question: str


PIECES = (
    Piece("china.jpg", 94, 20, "the roof of a pagoda under a blue sky", "what colour is the sky"),
    Piece("flower.jpg", 190, 110, "the red middle of an orange dahlia", "what flower is this"),
    Piece("china.jpg", 70, 150, "a red pagoda with orange roofs by a lake", "what colour is the pagoda"),
    Piece("flower.jpg", 0, 40, "a dark green leaf out of focus", "is the leaf in focus"),
    Piece("china.jpg", 330, 180, "a lake with small boats and an island behind trees", "what is on the lake"),
    Piece("flower.jpg", 100, 60, "the left half of an orange flower before dark green leaves", "is the flower orange"),
    Piece("china.jpg", 416, 203, "trees on the shore of a lake", "how many trees are there"),
    Piece("flower.jpg", 280, 80, "the right half of an orange flower", "what is behind the flower"),
    Piece("china.jpg", 360, 0, "a pale blue sky with thin clouds", "are there clouds in the sky"),
    Piece("flower.jpg", 416, 0, "blurred dark green leaves", "what colour are the leaves"),
    Piece("china.jpg", 0, 203, "green trees before a pagoda", "what is behind the trees"),
    Piece("flower.jpg", 240, 203, "two orange dahlias, one of them cut off by the edge", "how many flowers are there"),
    Piece("china.jpg", 200, 203, "the corner of a pagoda above the trees", "what is above the trees"),
    Piece("flower.jpg", 416, 203, "a small bud before a dark background", "is the background dark"),
    Piece("china.jpg", 160, 60, "three roofs of a pagoda with a lake behind them", "how many roofs are there"),
    Piece("flower.jpg", 150, 10, "petals of an orange flower", "what is in the picture"),
)


def photo_samples(count: int, task: str) -> list[Sample]:
    """`count` pieces with their question (vqa) or caption; after the last piece they begin anew."""
    from sklearn.datasets import load_sample_image  # takes a second to import

    photographs = {name: load_sample_image(name) for name in sorted({piece.photograph for piece in PIECES})}
    samples = []
    for index in range(count):
        piece = PIECES[index % len(PIECES)]
        pixels = photographs[piece.photograph][piece.top : piece.top + SIZE, piece.left : piece.left + SIZE]
        samples.append(Sample((Image.fromarray(pixels),), piece.question if task == "vqa" else piece.caption))
    return samples
