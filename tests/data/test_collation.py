import numpy as np
import torch

from stemma.data.collation import stack


def test_examples_become_int64_tensors():
    examples = [{"tokens": np.array([n, n + 1], dtype=np.uint16), "label": np.array(n)} for n in range(3)]
    batch = stack(examples)
    assert torch.equal(batch["tokens"], torch.tensor([[0, 1], [1, 2], [2, 3]]))
    assert torch.equal(batch["label"], torch.tensor([0, 1, 2]))
    assert batch["tokens"].dtype == batch["label"].dtype == torch.int64
