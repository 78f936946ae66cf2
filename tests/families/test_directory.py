"""Reading and replacing checkpoint directories: what is broken is named, and a crash never leaves a wrong one."""

import json
import pickle
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from itertools import count
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from stemma.errors import InputError
from stemma.families import load, save
from stemma.families.directory import StoredTensors, read_config, replace_checkpoint, resolve, write_weights
from stemma.families.gpt.model import GPT, GPTConfig

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(5), "c": torch.zeros(4, 4), "d": torch.full((3,), 7.0)}


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# Reading


@pytest.mark.parametrize("shard_bytes", [10**9, 64, 30, 1])
def test_weights_survive_a_round_trip_however_they_are_sharded(shard_bytes: int, tmp_path: Path) -> None:
    write_weights(iter(TENSORS.items()), tmp_path, shard_bytes)
    files = {path.name for path in tmp_path.iterdir()}
    # 24, 20, 64 and 12 bytes: cut where the next tensor would not fit.
    shards = {10**9: 1, 64: 3, 30: 4, 1: 4}[shard_bytes]
    if shards == 1:
        assert files == {"model.safetensors"}
    else:
        names = {f"model-{index:05d}-of-{shards:05d}.safetensors" for index in range(1, shards + 1)}
        assert files == {*names, "model.safetensors.index.json"}
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == 120
        assert set(index["weight_map"]) == set(TENSORS)
    for path in tmp_path.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
    stored = StoredTensors(tmp_path)
    assert set(stored) == set(TENSORS)
    assert all(torch.equal(stored[name], tensor) for name, tensor in TENSORS.items())


def test_tensors_are_read_where_they_are_touched(tmp_path: Path) -> None:
    """A memory-mapped tensor shows what is written to its file after it was opened; a copy would not."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        directory = tmp_path / name.split(".")[1]
        directory.mkdir()
        if name.endswith("bin"):
            torch.save({"a": torch.zeros(5000)}, directory / name)
        else:
            save_file({"a": torch.zeros(5000)}, directory / name)
        tensor = StoredTensors(directory)["a"]
        content = (directory / name).read_bytes()
        start = content.index(bytes(20000))
        with open(directory / name, "r+b") as file:
            file.seek(start)
            file.write(torch.ones(5000).numpy().tobytes())
        assert tensor.sum() > 4000


def test_pickled_shards(tmp_path: Path) -> None:
    torch.save({"a": TENSORS["a"]}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": TENSORS["b"]}, tmp_path / "pytorch_model-00002-of-00002.bin")
    weight_map = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    stored = StoredTensors(tmp_path)
    assert {name: stored.file(name).name for name in stored} == weight_map
    assert torch.equal(stored["b"], TENSORS["b"])


def test_safetensors_are_preferred_to_pickles(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    assert StoredTensors(tmp_path)["a"].tolist() == [1.0]


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no weights, expected one of model\.safetensors") as error:
        StoredTensors(tmp_path)
    one_line(error)


def test_missing_shard(tmp_path: Path) -> None:
    write_weights(iter(TENSORS.items()), tmp_path, 30)
    (tmp_path / "model-00003-of-00004.safetensors").unlink()
    with pytest.raises(InputError, match=r"1 shard\(s\) missing: model-00003-of-00004\.safetensors"):
        StoredTensors(tmp_path)


def test_index_that_promises_in_vain(tmp_path: Path) -> None:
    write_weights(iter(TENSORS.items()), tmp_path, 30)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["z"] = "model-00001-of-00004.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"places tensor 'z' in model-00001-of-00004\.safetensors"):
        StoredTensors(tmp_path)
    path.write_text("{}")
    with pytest.raises(InputError, match='no "weight_map"'):
        StoredTensors(tmp_path)


@pytest.mark.parametrize("kept", [0, 3, 7, 40, -1])
@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin", "old pytorch_model.bin"])
def test_truncated_file(form: str, kept: int, tmp_path: Path) -> None:
    path = tmp_path / form.removeprefix("old ")
    if form.endswith("bin"):
        torch.save(TENSORS, path, _use_new_zipfile_serialization=not form.startswith("old"))
    else:
        save_file(TENSORS, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=str(path)) as error:
        StoredTensors(tmp_path)
    one_line(error)


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def test_a_pickle_with_code_is_refused_unexecuted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Malicious()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="other than tensors") as error:
        StoredTensors(tmp_path)
    one_line(error)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Malicious(), protocol=2))
    with pytest.raises(InputError):
        StoredTensors(tmp_path)
    assert not (tmp_path / "executed").exists()
    torch.save([1, 2], tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="expected a dictionary of tensors"):
        StoredTensors(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no config.json"),
        (b'{\n "model_type": gpt2}', "line 2 column 16: not JSON"),
        (b"[1]", "expected a JSON object, found list"),
        (b'{"a": 1}', 'no "model_type"'),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
    ],
)
def test_broken_config(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_config(tmp_path)
    assert str(tmp_path) in one_line(error)


MEMORY = """
import re, sys, torch, stemma.families
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
before = peak()
model = stemma.families.load(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads peak memory from /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_held_once(dtype: str, tmp_path: Path) -> None:
    """At most the file's pages (the system may take them back) and the parameters; never a second copy of either."""
    save(GPT(GPTConfig(vocabulary=20000, context=64, layers=4, hidden=768, heads=12)), None, tmp_path)
    file = (tmp_path / "model.safetensors").stat().st_size
    command = [sys.executable, "-c", MEMORY, str(tmp_path), dtype]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    parameters = file if dtype == "float32" else file // 2
    assert parameters < grown < file + 1.15 * parameters


# Finding


def test_resolve_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    (tmp_path / "run").mkdir()
    (tmp_path / "file").touch()
    assert resolve(tmp_path / "run") == tmp_path / "run"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/run") == tmp_path / "run"
    with pytest.raises(InputError, match="this is a file"):
        resolve(tmp_path / "file")


@pytest.mark.parametrize("name", ["rusn", "runs/tyni", "/nowhere/at/all", "a/b/c", "owner/name"])
def test_nothing_there_and_offline(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    with pytest.raises(InputError, match=f"no checkpoint folder '{name}'") as error:
        resolve(name)
    hint = {"rusn": "did you mean 'runs'", "runs/tyni": "did you mean 'tiny'"}.get(name)
    assert ("did you mean" in one_line(error)) == (hint is not None)
    assert hint is None or hint in str(error.value)


@pytest.mark.parametrize("weights", [["model.safetensors", "pytorch_model.bin"], ["pytorch_model.bin"]])
def test_only_what_is_needed_is_fetched(weights: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = ["tf_model.h5", "rust_model.ot", "README.md", "model.fp16.safetensors", "flax_model.msgpack"]
    described = ["config.json", "generation_config.json", "tokenizer.json", "vocab.json", "merges.txt", "vocab.txt"]

    def download(hub_id: str, *, allow_patterns: list[str]) -> str:
        assert hub_id == "owner/name"
        for name in [*weights, *others, *described]:
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                (tmp_path / name).touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("owner/name") == tmp_path
    assert {path.name for path in tmp_path.iterdir()} == {*described, weights[0]}


# Replacing


class Words:
    def __init__(self, text: str) -> None:
        self.vocabulary, self.separator, self.pad, self.text = 64, 0, None, text

    def save(self, directory: Path) -> None:
        (directory / "tokenizer.json").write_text(self.text)


class Crash(BaseException):
    pass


def model(heads: int, seed: int) -> GPT:
    """The same shapes whatever the heads: weights that fit a description they do not belong to."""
    torch.manual_seed(seed)
    built = GPT(GPTConfig(vocabulary=64, context=8, layers=1, hidden=8, heads=heads)).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter += torch.randn_like(parameter) * 0.5
    return built


@pytest.mark.parametrize("old_bytes", [10**9, 600])
@pytest.mark.parametrize("new_bytes", [10**9, 600])
@pytest.mark.parametrize("new_heads", [2, 4])
def test_a_crash_at_any_moment_leaves_the_old_the_new_or_nothing(
    old_bytes: int, new_bytes: int, new_heads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = torch.arange(8)[None]
    old, new = model(2, 0), model(new_heads, 1)
    texts = ("old", "new" if new_heads != 2 else "old")
    results = {0: old(tokens), 1: new(tokens)}
    assert not torch.equal(results[0], results[1])
    save(old, Words(texts[0]), tmp_path / "old", shard_bytes=old_bytes)
    outcomes = []
    for limit in count():
        directory = tmp_path / "run"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(tmp_path / "old", directory)
        steps = count()

        def guarded(name: str, steps: Any = steps, limit: int = limit) -> Any:
            real = getattr(Path, name)

            def step(self: Path, *arguments: Any, **options: Any) -> Any:
                if next(steps) == limit:
                    raise Crash
                return real(self, *arguments, **options)

            return step

        with monkeypatch.context() as patch:
            for name in ("replace", "unlink", "rename", "write_text"):
                patch.setattr(Path, name, guarded(name))
            patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # nobody tidies up after a kill
            try:
                save(new, Words(texts[1]), directory, shard_bytes=new_bytes)
                finished = True
            except Crash:
                finished = False
        try:
            loaded = load(directory)(tokens)
        except InputError as error:
            assert "no weights" in str(error)
            outcomes.append("nothing")
        else:
            which = next(index for index, result in results.items() if torch.equal(loaded, result))
            if texts[0] != texts[1]:
                assert (directory / "tokenizer.json").read_text() == texts[which]
            outcomes.append(("old", "new")[which])
        if finished:
            break
    assert outcomes[0] == "old" and outcomes[-1] == "new" and len(outcomes) > 4
    if new_heads == 2 and new_bytes == 10**9:
        assert "nothing" not in outcomes  # a run's own later weights are swapped in one rename
    # After a crash the next save goes through and leaves nothing behind.
    save(new, Words(texts[1]), directory, shard_bytes=new_bytes)
    save(new, Words(texts[1]), tmp_path / "fresh", shard_bytes=new_bytes)
    assert {path.name for path in directory.iterdir()} == {path.name for path in (tmp_path / "fresh").iterdir()}


def test_an_error_while_writing_changes_nothing(tmp_path: Path) -> None:
    save(model(2, 0), None, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(OSError, match="full"), replace_checkpoint(tmp_path) as staging:
        (staging / "config.json").write_text("{}")
        raise OSError(28, "disk full")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write a checkpoint here"):
        save(model(2, 0), None, tmp_path / "file" / "run")


def test_files_are_as_readable_as_any_other(tmp_path: Path) -> None:
    save(model(2, 0), None, tmp_path)
    (tmp_path / "other").touch()
    assert {path.stat().st_mode for path in tmp_path.iterdir()} == {(tmp_path / "other").stat().st_mode}


def test_other_files_in_the_directory_stay(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("a: 1")
    (tmp_path / "training_state").mkdir()
    save(model(2, 0), None, tmp_path)
    save(model(4, 0), None, tmp_path)
    assert (tmp_path / "recipe.yaml").exists() and (tmp_path / "training_state").is_dir()
    assert {path.name for path in tmp_path.iterdir()} == {
        "recipe.yaml", "training_state", "config.json", "generation_config.json", "model.safetensors",
    }  # fmt: skip
