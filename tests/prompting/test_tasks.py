"""Task files: what they say, and what is refused by its name."""

import json

import pytest

from stemma.errors import InputError
from stemma.prompting.filters import filtered, is_exact
from stemma.prompting.task_files import Filter, Metric
from stemma.prompting.tasks import load_task

from .conftest import CHOICE, COMMON, WRITING


def test_questions_of_templates_fields_and_lists(task):
    first = load_task(task(CHOICE)).questions[0]
    assert (first.id, first.text, first.target, first.gold, first.index) == ("test-0", "Q: 2 plus 3\nA:", "5", "5", 0)
    assert first.choices == ("5", "6", "the dog")
    drawn = "task: t\noutput_type: multiple_choice\ndoc_to_choice: '{{[answer, q]}}'\ndoc_to_target: '{{gold + 1}}'\n"
    second = load_task(task(drawn), most=2).questions[1]
    assert second.choices == ("7", "2 plus 5") and second.index == 1
    writing = load_task(task(WRITING), most=1)
    assert len(writing.questions) == 1 and len(writing.examples) == 14
    assert writing.questions[0].reasoning == "2 and 3 make 5." and writing.questions[0].gold == "5"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("doc_to_txt: x\n", r"task.yaml:5: doc_to_txt: unknown key \(did you mean 'doc_to_text'\?\)"),
        ("process_docs: !function utils.f\n", "!function"),
        ("stemma: {answr: number}\n", "stemma.answr: unknown key"),
        ("task: t\n", "doc_to_target: is missing"),
        ("task: t\ndoc_to_target: gold\noutput_type: multiple_choice\n", "doc_to_choice: is missing"),
        ("task: t\ndoc_to_target: gold\noutput_type: loglikelihood_rolling\n", "stemma evaluate MODEL CORPUS"),
        ("include: ../other.yaml\n", "another file of the same folder"),
        ("task: t\ndoc_to_target: '{{nothing}}'\n", "t: doc_to_target of row 1: 'nothing' is undefined"),
        ("task: t\ndoc_to_target: '{{'\n", "t: doc_to_target: "),
        (CHOICE.replace(": gold", ": 7"), "choice: doc_to_target of row 1: 7, expected one of the choices"),
        (CHOICE.replace(": choices", ": gold"), "choice: doc_to_choice of row 1: 0, expected a list"),
        (
            CHOICE + "metric_list: [{metric: acc_mutual_info}]\n",
            "metric_list: acc_mutual_info; of multiple_choice each",
        ),
        (CHOICE + "metric_list: [{metric: exact_match}]\n", "metric_list: exact_match; of multiple_choice each of acc"),
        (WRITING + "metric_list: [{metric: bleu}]\n", "metric_list: bleu; of generate_until each of exact_match is"),
        (WRITING + "metric_list: [{metric: exact_match}, {metric: exact_match}]\n", "exact_match twice; of"),
        (WRITING + "metric_list: [{metric: exact_match, regexes_to_ignore: ['(']}]\n", "no regular expression"),
        (
            WRITING + "filter_list: [{name: x, filter: [{function: regex, regex_pattern: '['}]}]\n",
            "'\\['.* is no regular",
        ),
        (WRITING.replace("answer: number", "answer: choice, choices: a-c"), "stemma.choices: "),
        ("task: t\ndoc_to_target: gold\ntest_split: other\n", "expected a file for the split 'other'"),
    ],
)
def test_what_is_refused(task, text, message):
    common = COMMON.replace("test_split: test\n", "") if "test_split" in text else COMMON
    with pytest.raises(InputError, match=message):
        load_task(task(text, common))


def test_templates_run_in_a_sandbox(task):
    with pytest.raises(InputError, match="unsafe"):
        load_task(task("task: t\ndoc_to_target: '{{q.__class__.__mro__}}'\n"))


def test_an_included_file_and_one_json_list(task, tmp_path):
    rows = [{"q": "1", "answer": "2"}, {"q": "3", "answer": "4"}]
    (tmp_path / "data.json").write_text(json.dumps({"examples": rows}, indent=1))
    kwargs = "dataset_kwargs: {data_files: {test: data.json}, field: examples}\n"
    (tmp_path / "base.yaml").write_text(COMMON + "task: base\ndoc_to_target: answer\n")
    found = load_task(task("include: base.yaml\ntask: mine\n" + kwargs, ""))
    assert found.file.task == "mine" and [question.target for question in found.questions] == ["2", "4"]
    with pytest.raises(InputError, match="No such file"):
        load_task(tmp_path / "none.yaml")


def test_filters_and_exact_match_of_the_harness():
    strict = Filter(function="regex", regex_pattern=r"The answer is (\-?[0-9\.\,]+).")
    loose = Filter(function="regex", regex_pattern="(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1)
    first = Filter(function="take_first")
    second = Filter(function="regex", regex_pattern="[0-9]+", group_select=1)
    assert filtered(["1 2", "1"], [second]) == ["2", "[invalid]"]
    assert filtered(["The answer is 12", "x"], [strict]) == ["1", "[invalid]"]  # as it has it
    assert filtered(["72 clips, altogether ..."], [loose, first]) == ["..."]
    assert filtered([" A", "b ", "b"], [Filter(function="lowercase"), Filter(function="remove_whitespace"),
                    Filter(function="majority_vote")]) == ["b"]  # fmt: skip
    assert filtered(["a", "b", "c"], [Filter(function="take_first_k", k=2)]) == ["a", "b"]
    metric = Metric(metric="exact_match", regexes_to_ignore=[",", r"\$"], ignore_case=True, ignore_punctuation=True)
    assert is_exact("$1,000", "1000", metric) and is_exact("No!", "no", metric)
    assert not is_exact("No", "no", Metric(metric="exact_match"))
