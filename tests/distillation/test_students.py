"""Students made of a teacher's layers, and of other widths."""

import pytest
import torch
import transformers
from tiny_models import directory_of, model_of

from stemma import families
from stemma.distillation.students import kept_layers, make_student, smaller
from stemma.errors import InputError


def test_layers_are_distilberts():
    assert kept_layers(12, 6) == [0, 2, 4, 7, 9, 11]  # huggingface/transformers, scripts/extract_distilbert.py
    assert kept_layers(6, 6) == [0, 1, 2, 3, 4, 5] and kept_layers(12, 1) == [0]
    for layers in (0, 13):
        with pytest.raises(InputError, match=f"layers={layers}: the teacher has 12; expected 1 to 12"):
            kept_layers(12, layers)


@pytest.mark.parametrize("family", ["bert", "gpt", "mistral", "mixtral", "glm", "t5"])
def test_a_student_is_the_teacher_without_a_layer(family):
    teacher = model_of(family)
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            if "blocks.1." in name:
                parameter.zero_()  # with residuals, a layer of zeros does nothing
    student, kept = smaller(teacher, {"layers": 1})
    assert kept == [0]
    for name, parameter in student.named_parameters():
        assert torch.equal(parameter, teacher.get_parameter(name))
    if family in ("gpt", "mistral", "mixtral"):
        tokens = torch.arange(12).view(2, 6)
        torch.testing.assert_close(student(tokens), teacher(tokens))


def test_another_width_has_random_weights_and_is_written(tmp_path):
    directory_of("gpt", tmp_path)
    student, kept = make_student(str(tmp_path / "gpt"), {"layers": 1, "hidden": 16}, tmp_path / "small")
    assert kept is None and student.config.hidden == 16 and student.config.layers == 1
    loaded = families.load(tmp_path / "small")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    tokens = torch.arange(5).view(1, 5)
    torch.testing.assert_close(loaded(tokens), theirs(tokens).logits, atol=1e-5, rtol=1e-5)


def test_wrong_fields():
    with pytest.raises(InputError, match=r"layrs: no field of a GPT \(did you mean 'layers'\?\)"):
        smaller(model_of("gpt"), {"layrs": 1})
