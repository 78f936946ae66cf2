"""A language model's trunk under a head that gives one number: the reward of a response.

Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", section 2.1, and OpenAI's code for the head's
beginning; Ouyang et al. 2022, "Training language models to follow instructions with human feedback", section 3.5.
"""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stemma import families
from stemma.alignment.reading import Batch, Reading, Sample, reading_of
from stemma.data.tokenizers import Tokenizer, load_tokenizer
from stemma.errors import InputError
from stemma.families.directory import (
    Backbone,
    StoredTensors,
    read_config,
    read_json,
    replace_checkpoint,
    resolve,
    write_json,
    write_weights,
)
from stemma.families.t5.model import T5
from stemma.layers.linear import Linear

REWARD = "reward.json"

# transformers' classes that read a prompt and a response in a row.
_CLASSES = {
    "openai-gpt": "OpenAIGPTForSequenceClassification",
    "gpt2": "GPT2ForSequenceClassification",
    "mistral": "MistralForSequenceClassification",
    "mixtral": "MixtralForSequenceClassification",
}


class RewardModel(nn.Module):
    """Trunk and head; `model(batch)` gives the rewards of the samples of a batch that `reading` made.

    The head begins with N(0, 1 / sqrt(hidden + 1)) and no bias.

    Args:
        trunk: a GPT, Mistral, Mixtral, GLM or T5. reading: how it reads prompts and responses.
    """

    def __init__(self, trunk: Any, reading: Reading) -> None:
        super().__init__()
        self.trunk, self.reading = trunk, reading
        self.head = Linear(trunk.config.hidden, 1)
        nn.init.normal_(self.head.weight, std=(trunk.config.hidden + 1) ** -0.5)
        nn.init.zeros_(self.head.bias)

    @property
    def config(self) -> Any:
        """The trunk's."""
        return self.trunk.config

    def forward(self, batch: Batch) -> Tensor:
        """Return the reward of each sample, float32 [samples]: the head of the state at its last real token."""
        last = batch["reads"].cumsum(0) - 1
        places = {**batch, "places": batch["places"][last]}
        states = self.reading.states(self.trunk, places)
        with torch.autocast(states.device.type, enabled=False):  # differences of rewards are small
            return self.head(states.float()).squeeze(1)

    @torch.no_grad()
    def score(self, samples: Sequence[Sample], batch: int = 64) -> Tensor:
        """Return the reward of each sample, float32 [samples] on the CPU, whatever else is in its batch."""
        device, training = self.head.weight.device, self.training
        self.eval()
        order = sorted(range(len(samples)), key=lambda number: len(samples[number]))
        scores = torch.zeros(len(samples))
        for start in range(0, len(order), batch):
            numbers = order[start : start + batch]
            scores[numbers] = self(self.reading.batch([samples[number] for number in numbers], device)).cpu()
        self.train(training)
        return scores

    def save(self, tokenizer: Tokenizer, directory: str | Path, *, centre: float = 0.0) -> None:
        """Write a directory that `load_reward_model` reads, and transformers where it has such a class.

        GPT, Mistral and Mixtral are its ...ForSequenceClassification with one label. These have no bias: it stands in
        reward.json, and what they give is less by it. They take the last token that is no padding.

        Args:
            centre: the reward that is written as 0.
        Raises:
            OSError: it could not be written; what was there is untouched.
        """
        config, tensors = families.family_of(self.trunk).to_published(self.trunk)
        if not isinstance(self.trunk, T5):  # whose decoder's scale goes with its output matrix
            tensors = ((name, tensor) for name, tensor in tensors if not name.startswith("lm_head."))
            config |= {key: True for key in ("tie_word_embeddings",) if key in config}
        config |= {
            "architectures": [_CLASSES.get(config["model_type"], f"{type(self.trunk).__name__}RewardModel")],
            "id2label": {"0": "reward"},
            "label2id": {"reward": 0},
            "pad_token_id": tokenizer.pad,
            "dtype": "float32",
        }
        with replace_checkpoint(Path(directory)) as staging:
            write_json(staging / "config.json", config)
            write_json(staging / REWARD, {"bias": float(self.head.bias.detach()) - centre})
            write_weights(chain(tensors, [("score.weight", self.head.weight)]), staging)
            tokenizer.save(staging)


def load_reward_model(path_or_hub_id: str | Path, *, device: Any = None) -> tuple[RewardModel, Tokenizer]:
    """Load what `RewardModel.save` wrote, or a sequence classifier of transformers with one label; in eval mode.

    Raises:
        InputError: no such directory, or no reward model in it.
    """
    directory = resolve(path_or_hub_id)
    config, stored = read_config(directory), StoredTensors(directory)
    if "score.weight" not in stored:
        raise InputError(f"{directory}: no tensor 'score.weight', so it is no reward model")
    branch = families.family(config["model_type"])
    if "tie_word_embeddings" in config and "lm_head.weight" not in stored:
        config["tie_word_embeddings"] = True
    trunk = branch.from_published(config, Backbone(stored, "", ["score.weight"]), device=device)
    tokenizer = load_tokenizer(directory)
    model = RewardModel(trunk, reading_of(trunk, tokenizer)).to(device or "cpu")
    with torch.no_grad():
        if stored["score.weight"].shape != model.head.weight.shape:
            found, wanted = list(stored["score.weight"].shape), list(model.head.weight.shape)
            raise InputError(f"{directory}: 'score.weight' is {found}, and a reward model's is {wanted}")
        model.head.weight.copy_(stored["score.weight"])
        if (directory / REWARD).is_file():
            model.head.bias.fill_(float(read_json(directory / REWARD)["bias"]))
    return model.eval(), tokenizer
