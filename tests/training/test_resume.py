"""A run that was killed and resumed ends bit for bit where the undisturbed one does; a broken disk destroys nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stemma.errors import InputError
from stemma.training.pretrain import publisher
from stemma.training.run_directory import claim, locked
from stemma.training.state import newest_state, require_space

HERE = Path(__file__).parent
TIMINGS = {"seconds", "tokens_per_second", "utilisation"}


def killed_run(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    command = [sys.executable, str(HERE / "killed_run.py"), *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def everything(directory):
    """All that a run leaves behind, without the times."""
    saved, damaged = newest_state(directory / "training_state")
    assert not damaged
    progress = saved.record["progress"]
    progress.pop("seconds"), progress["window"].pop("seconds", None)
    metrics = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in metrics]
    assert steps == sorted(set(steps)), "a step appears twice"
    tensors = {"state": load_file(saved.path / "tensors.safetensors")}
    tensors |= {name: load_file(directory / name / "model.safetensors") for name in (".", "best")}
    leftovers = [path.name for path in directory.rglob(".*") if path.name != ".lock"]
    logged = [{key: value for key, value in line.items() if key not in TIMINGS} for line in metrics]
    return {"progress": progress, "metrics": logged, "leftovers": leftovers}, tensors


def assert_same_end(one, other):
    (facts, tensors), (other_facts, other_tensors) = everything(one), everything(other)
    assert facts == other_facts
    for name, group in tensors.items():
        assert group.keys() == other_tensors[name].keys()
        assert all(torch.equal(group[key], other_tensors[name][key]) for key in group), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the undisturbed run in "whole"."""
    path = tmp_path_factory.mktemp("runs")
    killed_run(path)
    return path


def test_killed_at_random_moments(folder):
    killed_run(folder, "times", 6)
    assert_same_end(folder / "killed", folder / "whole")


def test_killed_at_file_operations(folder):
    assert int(killed_run(folder, "events", 37)) > 100  # so many operations there are
    for directory in folder.glob("killed-*"):
        assert_same_end(directory, folder / "whole")


@pytest.mark.slow
def test_killed_at_many_file_operations(tmp_path, folder):
    killed_run(tmp_path, "events", 5)
    for directory in tmp_path.glob("killed-*"):
        assert_same_end(directory, folder / "whole")


def begin(tiny, directory, recipe, **options):
    directory.mkdir(exist_ok=True)
    saved = claim(directory, recipe, say=options.pop("say", lambda message: None))
    model = tiny.model()
    publish = options.pop("publish", None) or publisher(model, None)
    return tiny.trainer(directory, recipe, model=model, publish=publish, saved=saved, **options)


def test_a_signal_ends_the_run_after_the_update_and_it_goes_on_from_there(tiny, tmp_path):
    recipe = tiny.recipe()
    begin(tiny, tmp_path / "whole", recipe).run()
    for number in (signal.SIGINT, signal.SIGTERM):
        directory = tmp_path / str(number)
        trainer = begin(tiny, directory, recipe)
        update = trainer._update
        trainer._update = lambda *batch, number=number, trainer=trainer, update=update: (
            trainer.progress.step == 4 and os.kill(os.getpid(), number),
            update(*batch),
        )
        outcome = trainer.run()
        assert (outcome.reason, outcome.signal, outcome.progress.step) == ("interrupted", number, 5)
        assert begin(tiny, directory, recipe).run().reason == "finished"
        assert_same_end(directory, tmp_path / "whole")


def test_a_second_signal_ends_it_at_once(tiny, tmp_path):
    trainer = begin(tiny, tmp_path / "run", tiny.recipe())
    trainer._update = lambda *batch: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)]
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    trainer = begin(tiny, tmp_path / "run", tiny.recipe())
    trainer._update = lambda *batch: [os.kill(os.getpid(), signal.SIGTERM) for _ in range(2)]
    with pytest.raises(SystemExit) as caught:
        trainer.run()
    assert caught.value.code == 143


def test_a_finished_run_stays_as_it_is(tiny, tmp_path):
    begin(tiny, tmp_path / "run", tiny.recipe()).run()
    before = everything(tmp_path / "run")
    outcome = begin(tiny, tmp_path / "run", tiny.recipe()).run()
    assert outcome.reason == "finished" and outcome.progress.step == 8
    assert everything(tmp_path / "run")[0] == before[0]


def test_checkpoints_beyond_the_limit_are_deleted(tiny, tmp_path):
    recipe = tiny.recipe(output={"save_every": 2, "keep": 2})
    begin(tiny, tmp_path / "run", recipe).run()
    names = sorted(path.name for path in (tmp_path / "run" / "training_state").iterdir())
    assert names == ["step-00000006", "step-00000008"]


def test_a_damaged_checkpoint_is_passed_over(tiny, tmp_path):
    recipe = tiny.recipe(output={"save_every": 3, "keep": 2})
    begin(tiny, tmp_path / "run", recipe).run()
    begin(tiny, tmp_path / "whole", recipe).run()
    newest = tmp_path / "run" / "training_state" / "step-00000008" / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    said = []
    trainer = begin(tiny, tmp_path / "run", recipe, say=said.append)
    assert trainer.progress.step == 6
    assert len(said) == 1 and "step-00000008" in said[0] and "damaged" in said[0]
    trainer.run()
    assert_same_end(tmp_path / "run", tmp_path / "whole")


def test_another_recipe_is_refused_and_overwriting_must_be_asked_for(tiny, tmp_path):
    begin(tiny, tmp_path / "run", tiny.recipe()).run()
    other = tiny.recipe(training={"batch": 8}, seed=2)
    with pytest.raises(InputError, match=r"training\.batch: 8, 4; seed: 2, 1.*--overwrite"):
        claim(tmp_path / "run", other)
    assert newest_state(tmp_path / "run" / "training_state")[0].step == 8
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert claim(tmp_path / "run", other, overwrite=True) is None
    left = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert left == ["notes.txt", "recipe.yaml"]


def test_a_run_that_came_to_nothing_leaves_the_directory_for_the_corrected_recipe(tiny, tmp_path):
    claim(tmp_path, tiny.recipe())
    other = tiny.recipe(training={"batch": 8})
    with pytest.raises(InputError, match=r"training\.batch: 8, 4"):
        claim(tmp_path, other, resume=True)
    assert claim(tmp_path, other) is None
    assert "batch: 8" in (tmp_path / "recipe.yaml").read_text()


def test_other_data_is_refused(tiny, tmp_path):
    begin(tiny, tmp_path / "run", tiny.recipe()).run()
    saved, _ = newest_state(tmp_path / "run" / "training_state")
    saved.record["fingerprints"]["data"] = "another"
    with pytest.raises(InputError, match="another data.*another, now sentences"):
        tiny.trainer(tmp_path / "run", tiny.recipe(), saved=saved)


def test_more_steps_prolong_a_run_with_a_constant_rate(tiny, tmp_path):
    begin(tiny, tmp_path / "long", tiny.recipe(training={"steps": 12})).run()
    begin(tiny, tmp_path / "run", tiny.recipe(training={"steps": 8})).run()
    begin(tiny, tmp_path / "run", tiny.recipe(training={"steps": 12})).run()
    long, run = (load_file(tmp_path / name / "model.safetensors") for name in ("long", "run"))
    assert all(torch.equal(long[name], run[name]) for name in long)


def test_other_conditions_are_said(tiny, tmp_path):
    said = []

    class Display:
        say = said.append

    begin(tiny, tmp_path / "run", tiny.recipe()).run()
    saved, _ = newest_state(tmp_path / "run" / "training_state")
    saved.record["environment"] |= {"threads": 64, "workers": 2}
    tiny.trainer(tmp_path / "run", tiny.recipe(), saved=saved, display=Display)
    assert len(said) == 1 and "threads 64 then, 1 now" in said[0] and "workers 2 then, 1 now" in said[0]
    said.clear()
    claim(tmp_path / "run", tiny.recipe(execution={"micro_batch": 1}), say=said.append)
    assert len(said) == 1 and "execution.micro_batch: 1, None" in said[0]


def test_a_foreign_directory_is_left_alone(tiny, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"holds 'thesis.tex' but no recipe.yaml"):
            claim(tmp_path, tiny.recipe(), overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="no run to resume"):
        claim(tmp_path, tiny.recipe(), resume=True)


def test_two_processes_do_not_write_to_one_directory(tmp_path):
    with locked(tmp_path), pytest.raises(InputError, match="another process"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_disk_that_fills_up_destroys_no_checkpoint(tmp_path, folder):
    said = killed_run(tmp_path, "full")
    assert "could not write the checkpoint of step 4" in said and "File too large" in said
    assert "OSError" in said.splitlines()[-1]  # the last checkpoint of a run must be written
    saved, damaged = newest_state(tmp_path / "broken" / "training_state")
    assert saved.step == 2 and not damaged
    assert set(load_file(saved.path / "tensors.safetensors")) == set(everything(folder / "whole")[1]["state"])
    assert load_file(tmp_path / "broken" / "model.safetensors")
    assert_same_end(tmp_path / "full", folder / "whole")


def test_a_directory_without_room_is_refused_before_training(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    require_space(tmp_path / "new", free // 2)
    with pytest.raises(InputError, match=r"GB free, but the checkpoints need"):
        require_space(tmp_path, free * 2)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written to"):
        require_space(tmp_path / "file" / "below", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "new"]
