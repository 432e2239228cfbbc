import numpy as np
import torch

from lra.batches import TRIM, Batches
from lra.tasks import Split


def split_of(lengths: list[int], sequences: int = 1) -> Split:
    tokens = [np.full(length, index % 200, np.uint8) for index, length in enumerate(lengths)]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    labels = np.arange(len(lengths) // sequences, dtype=np.int64)
    return Split(np.concatenate(tokens), offsets, labels)


def batches_of(split: Split, trim: bool = True, truncate: int = 100, shift: int = 1) -> Batches:
    return Batches(
        split,
        padded_length=128,
        truncate=truncate,
        id_shift=shift,
        trim=trim,
        device=torch.device("cpu"),
    )


def test_an_epoch_holds_every_example_once_and_batches_extend_into_the_next() -> None:
    batches = batches_of(split_of([3] * 10))
    labels = [batches.shuffled(step, 4, seed=5).labels.tolist() for step in range(10)]
    stream = sum(labels, [])
    epochs = [stream[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert {len(batch) for batch in labels} == {4}


def test_a_batch_larger_than_the_split_spans_several_epochs() -> None:
    labels = batches_of(split_of([3] * 4)).shuffled(0, 10, seed=5).labels.tolist()
    assert sorted(labels[:4]) == sorted(labels[4:8]) == [0, 1, 2, 3]


def test_a_batch_depends_on_seed_and_step_only() -> None:
    split = split_of(list(range(1, 40)))
    early, late = batches_of(split), batches_of(split)
    expected = [early.shuffled(step, 7, seed=3).tokens for step in range(20)]
    assert torch.equal(late.shuffled(19, 7, seed=3).tokens, expected[19])
    assert torch.equal(late.shuffled(2, 7, seed=3).tokens, expected[2])
    assert not torch.equal(late.shuffled(2, 7, seed=4).labels, early.shuffled(2, 7, seed=3).labels)


def test_ids_are_shifted_and_padding_is_zero_under_the_mask() -> None:
    batch = next(batches_of(split_of([2, 5, 3]), shift=4).once(3))
    assert batch.mask is not None
    assert batch.tokens.shape == batch.mask.shape == (3, TRIM)
    assert batch.mask.sum(1).tolist() == [2, 3, 5]
    assert batch.tokens[:, 0].tolist() == [4, 6, 5]
    assert batch.tokens[~batch.mask].unique().tolist() == [0]
    assert batch.num_tokens == 10


def test_zeros_within_a_sequence_are_masked_only_if_they_stand_for_padding() -> None:
    split = Split(np.array([7, 0, 9], np.uint8), np.array([0, 3]), np.array([0]))
    masks = {}
    for zero_is_padding in (False, True):
        batches = Batches(
            split,
            padded_length=4,
            truncate=4,
            id_shift=0,
            zero_is_padding=zero_is_padding,
            trim=False,
            device=torch.device("cpu"),
        )
        masks[zero_is_padding] = next(batches.once(1)).mask.tolist()
    assert masks[False] == [[True, True, True, False]]
    assert masks[True] == [[True, False, True, False]]


def test_trimming_rounds_the_longest_length_up() -> None:
    batch = next(batches_of(split_of([TRIM + 1, 4])).once(2))
    assert batch.tokens.shape == (2, 2 * TRIM)
    assert next(batches_of(split_of([5, 4]), trim=False).once(2)).tokens.shape == (2, 128)


def test_long_sequences_are_cut_on_the_right() -> None:
    split = Split(np.arange(50, dtype=np.uint8), np.array([0, 50]), np.array([0]))
    batch = next(batches_of(split, truncate=9, shift=0).once(1))
    assert batch.tokens[0, :10].tolist() == [*range(9), 0]


def test_a_batch_without_padding_has_no_mask() -> None:
    assert next(batches_of(split_of([TRIM, TRIM])).once(2)).mask is None


def test_pairs_keep_their_order_and_their_own_masks() -> None:
    batch = batches_of(split_of([2, 7, 4, 3], sequences=2)).shuffled(0, 2, seed=0)
    assert batch.tokens.shape == (2, 2, TRIM)
    assert batch.mask is not None
    for label, tokens, mask in zip(batch.labels.tolist(), batch.tokens, batch.mask, strict=True):
        assert tokens[:, 0].tolist() == [2 * label + 1, 2 * label + 2]
        assert mask.sum(1).tolist() == ([2, 7], [4, 3])[label]


def test_once_yields_every_example_once_sorted_by_length() -> None:
    lengths = [9, 1, 60, 33, 2, 33, 8]
    labels = torch.cat([batch.labels for batch in batches_of(split_of(lengths)).once(3)])
    assert sorted(labels.tolist()) == list(range(7))
    assert [lengths[label] for label in labels] == sorted(lengths)


def test_the_majority_rate_is_the_share_of_the_most_frequent_label() -> None:
    split = Split(np.zeros(4, np.uint8), np.arange(5), np.array([2, 0, 2, 2]))
    assert split.majority_rate == 0.75
