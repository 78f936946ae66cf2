"""What is dropped: the same at every step of a sequence, or at every occurrence of a token."""

import torch

from stemma.layers.dropout import TypeDropout, VariationalDropout


def test_a_sequence_has_one_mask_for_all_steps() -> None:
    torch.manual_seed(0)
    dropped = VariationalDropout(0.4)(torch.ones(200, 7, 50))
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    kept = dropped[:, 0] != 0
    torch.testing.assert_close(dropped[:, 0][kept], torch.full((int(kept.sum()),), 1 / 0.6))
    assert abs(float(kept.float().mean()) - 0.6) < 5 * (0.24 / 10_000) ** 0.5  # of 10,000 draws
    assert not torch.equal(kept[0], kept[1])


def test_a_token_is_dropped_wherever_it_stands() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(1000, (20, 300))
    dropped = TypeDropout(0.3)(torch.ones(20, 300, 4), tokens, 1000)
    assert torch.equal(dropped, dropped[..., :1].expand_as(dropped))
    values = [dropped[..., 0][tokens == token].unique() for token in tokens.unique()]
    assert all(len(value) == 1 for value in values)
    seen = torch.cat(values)
    kept = seen > 0
    torch.testing.assert_close(seen[kept], torch.full((int(kept.sum()),), 1 / 0.7))
    assert abs(float(kept.float().mean()) - 0.7) < 5 * (0.21 / len(seen)) ** 0.5


def test_nothing_is_dropped_in_evaluation() -> None:
    x, tokens = torch.randn(2, 3, 4), torch.tensor([[0, 1, 1], [2, 0, 1]])
    assert torch.equal(VariationalDropout(0.5).eval()(x), x)
    assert torch.equal(TypeDropout(0.5).eval()(x, tokens, 3), x)
