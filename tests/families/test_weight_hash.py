import hashlib

import torch
from torch import nn

from stemma.families.weight_hash import hash_of_weights


def test_names_and_bytes_decide():
    first = nn.Linear(2, 1)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, -2.0]]))
        first.bias.fill_(0.5)
    content = b"weight" + bytes.fromhex("0000803f000000c0") + b"bias" + bytes.fromhex("0000003f")
    assert hash_of_weights(first) == hashlib.sha256(content).hexdigest()
    assert hash_of_weights(nn.ModuleDict({"other": first})) != hash_of_weights(first)
    first.bias.data.neg_()
    assert hash_of_weights(first) != hashlib.sha256(content).hexdigest()
