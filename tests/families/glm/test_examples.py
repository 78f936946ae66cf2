"""The sequences that the model reads: the worked example of the authors' code, and its variants."""

import numpy as np
import torch

from stemma.families.glm.examples import collate, continuation_example, infilling_example

CLS, MASK, SOP, EOP, END = 101, 103, 30522, 30523, 0
SAMPLE = np.array([CLS, 1, 2, 3, 4, 5, 6, END])


def example(spans: list[tuple[int, int]], **options: object) -> dict[str, list]:
    many = len(spans)
    found = infilling_example(SAMPLE, spans, [MASK] * many, [SOP] * many, EOP, **options)
    return {name: array.tolist() for name, array in found.items()}


def test_the_authors_worked_example() -> None:
    """What `make_block_data` returns for spans (3, 4) and (5, 7), the second first."""
    assert example([(5, 7), (3, 4)]) == {
        "tokens": [101, 1, 2, 103, 4, 103, 0, 30522, 5, 6, 30522, 3],
        "targets": [-100] * 7 + [5, 6, 30523, 3, 30523],
        "positions": [
            [0, 1, 2, 3, 4, 5, 6, 5, 5, 5, 3, 3],
            [0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 1, 2],
        ],
        "context_length": 7,
    }
    assert SAMPLE.tolist() == [CLS, 1, 2, 3, 4, 5, 6, END]  # untouched


def test_lengths_are_those_of_the_formula() -> None:
    found = example([(1, 3), (4, 7)])
    assert found["context_length"] == 8 - 5 + 2
    assert len(found["tokens"]) == 8 + 2 * 2
    assert found["tokens"][5:] == [SOP, 1, 2, SOP, 4, 5, 6]
    assert found["positions"][0][5:] == [1, 1, 1, 3, 3, 3, 3]


def test_spans_may_touch_and_reach_the_end() -> None:
    """Sentences may; short spans never do."""
    found = example([(4, 8), (1, 4)])
    assert found["tokens"] == [CLS, MASK, MASK, SOP, 4, 5, 6, END, SOP, 1, 2, 3]
    assert found["targets"][3:] == [4, 5, 6, END, EOP, 1, 2, 3, EOP]
    assert found["positions"][0] == [0, 1, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1]


def test_ablations() -> None:
    plain, flat = example([(5, 7), (3, 4)]), example([(5, 7), (3, 4)], block_positions=False)
    assert flat["positions"][1] == [0] * 7 + [1] * 5
    assert {**flat, "positions": 0} == {**plain, "positions": 0} and flat["positions"][0] == plain["positions"][0]
    numbered = infilling_example(SAMPLE, [(5, 7), (3, 4)], [MASK, 200], [SOP, 300], EOP, written_at=512)
    assert numbered["tokens"].tolist() == [101, 1, 2, 200, 4, 103, 0, 30522, 5, 6, 300, 3]
    assert numbered["positions"].tolist() == [[0, 1, 2, 3, 4, 5, 6] + [512] * 5, plain["positions"][1]]


def test_no_spans() -> None:
    found = example([])
    assert found["tokens"] == SAMPLE.tolist() and set(found["targets"]) == {-100} and found["context_length"] == 8


def test_continuation() -> None:
    """source [gMASK] [sop] target without its last; no end of piece; positions stand still from the blank on."""
    found = continuation_example(SAMPLE, 3, 30524, SOP)
    assert found["tokens"].tolist() == [101, 1, 2, 30524, SOP, 3, 4, 5, 6]
    assert found["targets"].tolist() == [-100] * 4 + [3, 4, 5, 6, END]
    assert found["positions"].tolist() == [[0, 1, 2, 3, 3, 3, 3, 3, 3], [0, 0, 0, 0, 1, 2, 3, 4, 5]]
    assert found["context_length"] == 4
    several = np.array([CLS, 1, 2, END, CLS, 3, END])
    found = continuation_example(several, 2, 30524, SOP, silent=CLS, block_positions=False)
    assert found["targets"].tolist() == [-100] * 3 + [2, END, -100, 3, END]
    assert found["positions"][1].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]


def test_collate_pads_at_the_end_to_a_multiple_of_8() -> None:
    first = infilling_example(SAMPLE, [(5, 7), (3, 4)], [MASK] * 2, [SOP] * 2, EOP)
    second = continuation_example(SAMPLE, 3, 30524, SOP)
    batch = collate([first, second], padding=END)
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {
        "tokens": (2, 16),
        "targets": (2, 16),
        "positions": (2, 2, 16),
        "context_lengths": (2,),
    }
    assert batch["context_lengths"].tolist() == [7, 4]
    assert batch["tokens"][0].tolist() == [*first["tokens"].tolist(), END, END, END, END]
    assert batch["targets"][1].tolist() == second["targets"].tolist() + [-100] * 7
    assert torch.equal(batch["positions"][1, :, :9], torch.from_numpy(second["positions"]))
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
