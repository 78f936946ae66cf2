"""What the output layers are called on disk: as in transformers where it has such a class, in THUDM/GLM's code for GLM.

| | BERT | GPT-1, GPT-2 | T5 |
|---|---|---|---|
| classes, numbers | BertForSequenceClassification | ...ForSequenceClassification | ours |
| tagging | BertForTokenClassification | GPT2ForTokenClassification | T5ForTokenClassification |
| answering | BertForQuestionAnswering | GPT2ForQuestionAnswering | ours |
| choice | BertForMultipleChoice | ...ForSequenceClassification, of each option | ours |

BERT's relatives have classes of the same kinds; a RoBERTa's classifier has a pooler of its own. Those of an LSTM are
ours. A GPT that reads pairs in both orders adds what transformers' class gives for each.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from stemma.families.bert.layouts import LAYOUTS
from stemma.families.bert.model import BERT
from stemma.families.elmo.model import ELMo
from stemma.families.gpt.model import GPT
from stemma.families.t5.model import T5

_BEGIN = {
    "openai-gpt": "OpenAIGPT",
    "gpt2": "GPT2",
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "camembert": "Camembert",
    "distilbert": "DistilBert",
}
_CLASSES = {"tagging": "TokenClassification", "choice": "MultipleChoice", "answering": "QuestionAnswering"}
_OF_TEXTS = ("classification", "regression")


def published_config(backbone: Any, kind: str, label_names: Sequence[str], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what config.json says of a fine-tuned model beside what it says of its backbone."""
    names = label_names or ("score",)
    first = _BEGIN.get(config["model_type"], type(backbone).__name__)
    sequences = "SequenceClassification"
    task = sequences if kind == "choice" and isinstance(backbone, GPT) else _CLASSES.get(kind, sequences)
    published: dict[str, Any] = {
        "architectures": [f"{first}For{task}"],
        "dtype": "float32",
    }
    if kind != "answering":
        published["id2label"] = {str(index): name for index, name in enumerate(names)}
        published["label2id"] = {name: index for index, name in enumerate(names)}
    if kind in ("classification", "regression"):
        published["problem_type"] = "single_label_classification" if label_names else "regression"
    return published


def head_names(backbone: Any, kind: str, model_type: str) -> dict[str, str]:
    """Return our names of the new layers' parameters and the published ones.

    Args:
        backbone: a model, or its class. model_type: in its config.json.
    """
    branch = backbone if isinstance(backbone, type) else type(backbone)
    if kind == "answering":
        layers = {"output": "qa_outputs"}
    elif kind in _OF_TEXTS and pooler_of(model_type) == "classifier.dense":
        layers = {"output": "classifier.out_proj"}
    elif kind == "tagging" or issubclass(branch, BERT):
        layers = {"output": "classifier"}
    elif issubclass(branch, GPT):
        return {"output.weight": "score.weight"}
    else:
        layers = {"dense": "pool_layer", "output": "out_proj"}
    mix = ("mix.weights", "mix.gamma") if issubclass(branch, ELMo) else ()
    return dict(zip(mix, mix, strict=True)) | {
        f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in layers.items() for part in ("weight", "bias")
    }


def pooler_of(model_type: str) -> str:
    """Return the name of the pooler in transformers' classifiers of texts that begin with a BERT or its relative."""
    return LAYOUTS[model_type].pooler_of_classifiers if model_type in LAYOUTS else ""


def backbone_name(name: str, kind: str, model_type: str) -> str:
    """Return what a tensor of a BERT or its relative is called in transformers' class with an output layer."""
    if kind not in _OF_TEXTS or model_type not in LAYOUTS:
        return name
    return name.replace(LAYOUTS[model_type].pooler, pooler_of(model_type))


def backbone_prefix(backbone: Any, kind: str) -> str:
    """Return what stands before the names of the backbone's tensors; `backbone` is a model, or its class."""
    branch = backbone if isinstance(backbone, type) else type(backbone)
    return "transformer." if kind == "tagging" and issubclass(branch, T5) else ""
