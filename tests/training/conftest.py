"""Fixtures of the training tests; the tiny model and its text are in small_runs.py."""

import pytest
import torch
from small_runs import LENGTH, VOCABULARY, Sentences, Uneven, held_out, make_model, make_recipe, make_trainer


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny():
    """The functions above, as attributes."""

    class Tiny:
        vocabulary, length = VOCABULARY, LENGTH
        sentences, uneven = Sentences, Uneven
        model, recipe, trainer, held_out = (
            staticmethod(make_model),
            staticmethod(make_recipe),
            staticmethod(make_trainer),
            staticmethod(held_out),
        )

    return Tiny
