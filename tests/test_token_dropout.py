"""Hidden tokens: as many as asked for, never a special one, other ones in each epoch and the same again on resume."""

import pytest
import torch

from thaw.data.sampler import Transformed
from thaw.data.token_dropout import TokenDropout

FIRST, LAST, MASK = 1, 2, 3
SAMPLE = {"input_ids": [FIRST, *range(10, 2010), LAST], "word_ids": [-1, *range(2000), -1], "full_length": 2002}


def hidden(share: float, mask_id: int | None = MASK) -> dict:
    torch.manual_seed(0)
    return TokenDropout(share, mask_id, [FIRST, LAST, MASK])(SAMPLE)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_a_share_of_the_tokens_is_hidden_and_no_special_one(share: float) -> None:
    ids = hidden(share)["input_ids"]
    assert len(ids) == len(SAMPLE["input_ids"])
    assert (ids[0], ids[-1]) == (FIRST, LAST)
    assert int((ids == MASK).sum()) == pytest.approx(share * 2000, rel=0.15)
    kept = ids != MASK
    assert torch.equal(ids[kept], torch.tensor(SAMPLE["input_ids"])[kept])


def test_without_a_mask_token_they_are_left_out_with_all_that_belongs_to_them() -> None:
    found = hidden(0.5, mask_id=None)
    assert len(found["input_ids"]) == len(found["word_ids"]) < 1200
    assert (found["input_ids"][0], found["input_ids"][-1]) == (FIRST, LAST)
    pairs = zip(found["input_ids"][1:-1], found["word_ids"][1:-1], strict=True)
    assert all(token == word + 10 for token, word in pairs)


def test_a_text_never_loses_all_of_its_tokens() -> None:
    for seed in range(50):
        torch.manual_seed(seed)
        assert TokenDropout(0.99, None, [])({"input_ids": [7, 8]})["input_ids"]


def test_what_is_hidden_depends_on_seed_epoch_and_sample_alone() -> None:
    data = Transformed([(SAMPLE, 0)] * 2, TokenDropout(0.3, MASK, []), seed=5)
    first = data[(0, 0)][0]["input_ids"]
    torch.manual_seed(99)
    assert torch.equal(first, data[(0, 0)][0]["input_ids"])
    for other in ((1, 0), (0, 1)):
        assert not torch.equal(first, data[other][0]["input_ids"])
