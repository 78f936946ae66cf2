"""A training that is killed again and again; run by test_resume.py in a process of its own.

    python killed_run.py FOLDER            trains FOLDER/whole undisturbed
    python killed_run.py FOLDER times 9    FOLDER/killed: SIGKILL after a random time, 9 times, then to the end
    python killed_run.py FOLDER events 7   FOLDER/killed-<n>: SIGKILL at the n-th file operation, for every 7th n
    python killed_run.py FOLDER full       FOLDER/full: the disk fills up before update 4 of 6; a copy to FOLDER/broken;
                                           with room again, to the end

The process imports everything once and forks a child for every attempt.
"""

import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
import torch._dynamo  # which torch's optimizers import, at length
from small_runs import make_model, make_recipe, make_trainer

from stemma.training.pretrain import publisher
from stemma.training.run_directory import claim, locked

EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}


def train(directory, before_update=None):
    """Begin or go on, as `pretrain` does."""
    torch.set_num_threads(1)
    recipe = make_recipe(
        training={"steps": 6, "ema": 0.9},
        execution={"micro_batch": 3},
        evaluation={"every": 2},
        output={"save_every": 2, "keep": 1, "log_every": 4},
    )
    with locked(directory):
        saved = claim(directory, recipe)
        model = make_model(dropout=0.1)
        trainer = make_trainer(directory, recipe, model=model, publish=publisher(model, None), saved=saved)
        trainer.saver.say = print
        update = trainer._update
        trainer._update = lambda *batch: (before_update and before_update(trainer.progress.step), update(*batch))
        trainer.run()


def fill_disk(step):
    """Let no file grow beyond 20 kB from update 4 on; a checkpoint has more than 90, the published weights 31."""
    if step == 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))


def kill_at_event(directory, number):
    """Have this process killed at its `number`-th operation on a file of the directory."""
    seen = [0]

    def hook(event, arguments):
        if event in EVENTS and str(directory) in str(arguments[0]):
            seen[0] += 1
            if seen[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def attempt(directory, seconds=None, event=None, before_update=None):
    """Train in a child process; kill it; return whether it came to the end, unless it should break."""
    child = os.fork()
    if not child:
        status = 1
        try:
            if event is not None:
                kill_at_event(directory, event)
            train(directory, before_update)
            status = 0
        except BaseException:
            traceback.print_exc(file=sys.stdout)
        finally:
            sys.stdout.flush()
            os._exit(status)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status) and not before_update:
        sys.exit(f"{directory}: the training failed instead of being killed")
    return not os.WIFSIGNALED(status)


def main():
    folder = Path(sys.argv[1])
    start = time.monotonic()
    if len(sys.argv) == 2:
        attempt(folder / "whole")
        return
    if sys.argv[2] == "full":
        attempt(folder / "full", before_update=fill_disk)
        shutil.copytree(folder / "full", folder / "broken")
        attempt(folder / "full")
        return
    if sys.argv[2] == "times":
        attempt(folder / "measured")
        duration = time.monotonic() - start
        generator = random.Random(5)
        for _ in range(int(sys.argv[3])):
            attempt(folder / "killed", seconds=generator.uniform(0.0, duration))
        attempt(folder / "killed")
        return
    number = 1
    while not attempt(folder / f"killed-{number}", event=number):
        attempt(folder / f"killed-{number}")
        number += int(sys.argv[3])
    print(number)


if __name__ == "__main__":
    main()
