"""Answers out of outputs."""

import torch

from madtp.tasks.decisions import decisions, texts_equal

# Generated texts: 9 is a word, 2 [SEP], 0 padding.


def test_padding_behind_a_text_makes_no_difference() -> None:
    expected = torch.tensor([[1, 9, 2], [1, 9, 9]])
    padded = torch.tensor([[1, 9, 2, 0, 0], [1, 9, 9, 0, 0]])
    assert texts_equal(expected, padded, pad_id=0).tolist() == [True, True]


def test_one_longer_text_of_a_batch_is_the_only_one_that_differs() -> None:
    expected = torch.tensor([[1, 9, 2], [1, 9, 2], [1, 2, 0]])
    actual = torch.tensor([[1, 9, 2, 0], [1, 9, 9, 2], [1, 2, 0, 0]])
    assert texts_equal(expected, actual, pad_id=0).tolist() == [True, False, True]


def test_texts_of_different_ids_differ() -> None:
    assert texts_equal(torch.tensor([[1, 9, 2]]), torch.tensor([[1, 8, 2]]), pad_id=0).tolist() == [False]


def test_an_answer_is_the_largest_column_or_the_text_without_padding() -> None:
    logits = torch.tensor([[0.1, 0.2], [0.4, 0.3]])
    texts = torch.tensor([[1, 9, 2], [1, 2, 0]])
    alone = torch.tensor([[0.3], [0.7]])  # what one text scores decides nothing
    found = decisions({"logits": logits, "sim": alone, "caption_ids": texts, "image_embed": logits}, pad_id=0)
    assert found == {"logits": [1, 0], "caption_ids": [(1, 9, 2), (1, 2)]}
