"""Word vectors in files, both ways, against gensim."""

import gzip

import gensim.models as gensim
import numpy as np
import pytest
from safetensors import SafetensorError

from stemma.data.vectors import FORMATS, WordVectors, map_tensor, write_directory, write_tensors
from stemma.errors import InputError

WORDS = ["the", "of", "naïve", "日本", "</s>", "in", "New-York", "7"]


@pytest.fixture
def vectors():
    matrix = np.random.default_rng(0).normal(size=(len(WORDS), 5)).astype(np.float32)
    return WordVectors(WORDS, matrix, np.arange(len(WORDS), 0, -1))


def same(one, words, matrix, **tolerance):
    assert list(one.words) == list(words)
    assert one.matrix.dtype == np.float32
    np.testing.assert_allclose(one.matrix, matrix, **({"rtol": 0, "atol": 0} | tolerance))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("recognised", [True, False])
def test_what_is_saved_is_loaded(vectors, tmp_path, form, recognised):
    vectors.save(tmp_path / "v", form)
    loaded = WordVectors.load(tmp_path / "v", form=None if recognised else form)
    same(loaded, WORDS, vectors.matrix, atol=0 if form.endswith("binary") else 5.1e-7)
    same(WordVectors.load(tmp_path / "v", limit=3), WORDS[:3], vectors.matrix[:3], atol=5.1e-7)
    (tmp_path / "v.gz").write_bytes(gzip.compress((tmp_path / "v").read_bytes()))
    same(WordVectors.load(tmp_path / "v.gz"), WORDS, vectors.matrix, atol=5.1e-7)


@pytest.mark.parametrize("form", FORMATS)
def test_gensim_reads_what_we_write(vectors, tmp_path, form):
    vectors.save(tmp_path / "v", form, decimals=8)
    options = {"binary": form == "word2vec-binary", "no_header": form == "glove"}
    loaded = gensim.KeyedVectors.load_word2vec_format(str(tmp_path / "v"), **options)
    assert loaded.index_to_key == WORDS
    np.testing.assert_allclose(loaded.vectors, vectors.matrix, rtol=0, atol=1e-7)


@pytest.mark.parametrize("binary, header", [(True, True), (False, True), (False, False)])
def test_we_read_what_gensim_writes(vectors, tmp_path, binary, header):
    theirs = gensim.KeyedVectors(5)
    theirs.add_vectors(WORDS, vectors.matrix)
    theirs.save_word2vec_format(str(tmp_path / "v"), binary=binary, write_header=header)
    same(WordVectors.load(tmp_path / "v"), WORDS, vectors.matrix, atol=1e-7)


def test_words_with_blanks_are_split_from_the_right(tmp_path):
    (tmp_path / "v.txt").write_text("the 1 2 -3\n. . . 4 5 6e-1\nat name@domain.com 7 8 9\n")
    loaded = WordVectors.load(tmp_path / "v.txt")
    same(loaded, ["the", ". . .", "at name@domain.com"], [[1, 2, -3], [4, 5, 0.6], [7, 8, 9]], rtol=1e-6)
    loaded.save(tmp_path / "w.txt", "glove")
    same(WordVectors.load(tmp_path / "w.txt"), loaded.words, loaded.matrix)
    with pytest.raises(InputError, match="has white space"):
        loaded.save(tmp_path / "x", "word2vec")
    assert not (tmp_path / "x").exists()


def test_a_vocabulary_of_numbers_is_not_taken_for_a_header(tmp_path):
    (tmp_path / "v.txt").write_text("3 1\n4 2\n5 9\n")
    same(WordVectors.load(tmp_path / "v.txt", form="glove"), ["3", "4", "5"], [[1], [2], [9]])


def test_words_that_are_not_utf_8(tmp_path):
    rows = np.array([[1, 2], [3, 4]], "<f4")
    (tmp_path / "v.bin").write_bytes(b"2 2\nok " + rows[0].tobytes() + b"\n\xe9t\xe9 " + rows[1].tobytes() + b"\n")
    with pytest.raises(InputError, match="v.bin, word 2: not UTF-8"):
        WordVectors.load(tmp_path / "v.bin")
    assert WordVectors.load(tmp_path / "v.bin", errors="replace").words[1] == "\ufffdt\ufffd"
    kept = WordVectors.load(tmp_path / "v.bin", errors="surrogateescape")
    kept.save(tmp_path / "w.bin", "word2vec-binary")
    assert (tmp_path / "w.bin").read_bytes() == (tmp_path / "v.bin").read_bytes()


def test_large_binary_files_are_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("stemma.data.vector_files.BUFFER", 37)
    matrix = np.random.default_rng(0).integers(0, 256, (200, 12), np.uint8).view("<f4")
    matrix = np.nan_to_num(matrix, posinf=1, neginf=1)
    words = [f"w{number}" for number in range(200)]
    WordVectors(words, matrix).save(tmp_path / "v.bin", "word2vec-binary")
    same(WordVectors.load(tmp_path / "v.bin"), words, matrix)


@pytest.mark.parametrize(
    ("content", "form", "message"),
    [
        (b"2 3\na 1 2 3\n", "word2vec", "1 words; the first line promises 2"),
        (b"2 3\na 1 2 3\nb 1 2\n", "word2vec", "line 3: expected a word and 3 numbers"),
        (b"a 1 2\nb 1 x\n", None, "lines 1 to 2: could not convert"),
        (b"2 2\na " + b"\0" * 8 + b"b \0\0", "word2vec-binary", "ends in word 2 of 2"),
        (b"", None, "expected a word and its numbers"),
        (b"a 1 2\n", "word2vec", "line 1: expected the numbers of words and dimensions"),
        (b"a 1 2\n", "golve", "did you mean 'glove'"),
    ],
)
def test_broken_files(tmp_path, content, form, message):
    (tmp_path / "v").write_bytes(content)
    with pytest.raises(InputError, match=message):
        WordVectors.load(tmp_path / "v", form=form)


def test_directory_is_memory_mapped(vectors, tmp_path):
    tensors = {"outputs": vectors.matrix + 1, "vectors": vectors.matrix}
    write_directory(tmp_path, {"model_type": "word2vec"}, vectors.words, vectors.counts, tensors)
    loaded = WordVectors.load(tmp_path)
    same(loaded, WORDS, vectors.matrix)
    assert isinstance(loaded.matrix, np.memmap) and loaded.counts.tolist() == vectors.counts.tolist()
    same(WordVectors.load(tmp_path, limit=2), WORDS[:2], vectors.matrix[:2])
    np.testing.assert_array_equal(map_tensor(tmp_path / "model.safetensors", "outputs"), vectors.matrix + 1)
    with pytest.raises(InputError, match="no whole safetensors file with a tensor 'inputs'"):
        map_tensor(tmp_path / "model.safetensors", "inputs")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-30])
    with pytest.raises(InputError, match="model.safetensors: no whole safetensors file"):
        map_tensor(tmp_path / "model.safetensors", "vectors")  # the last one in the file, by name


def test_a_full_disk_is_an_os_error_and_leaves_nothing(vectors, tmp_path, monkeypatch):
    def full(tensors, path, metadata=None):
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: No space left on device (os error 28)")

    monkeypatch.setattr("stemma.data.vectors.save_file", full)
    with pytest.raises(OSError, match=r"model\.safetensors: .*No space left"):
        write_directory(tmp_path, {}, vectors.words, vectors.counts, {"vectors": vectors.matrix})
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "vocabulary.txt"}


def test_tensors_are_as_readable_as_other_files(vectors, tmp_path):
    write_tensors(tmp_path / "tensors", {"vectors": vectors.matrix}, {"note": "x"})
    (tmp_path / "other").touch()
    assert (tmp_path / "tensors").stat().st_mode == (tmp_path / "other").stat().st_mode
    np.testing.assert_array_equal(map_tensor(tmp_path / "tensors", "vectors"), vectors.matrix)


def test_neighbours_and_analogies_are_gensims():
    generator = np.random.default_rng(3)
    words, matrix = [f"w{number}" for number in range(300)], generator.normal(size=(300, 8)).astype(np.float32)
    ours, theirs = WordVectors(words, matrix), gensim.KeyedVectors(8)
    theirs.add_vectors(words, matrix)
    for found, right in [
        (ours.neighbours("w7", 12), theirs.most_similar("w7", topn=12)),
        (ours.analogy("w1", "w2", "w3", 5), theirs.most_similar(positive=["w2", "w3"], negative=["w1"], topn=5)),
    ]:
        assert [word for word, _ in found] == [word for word, _ in right]
        cosines, right_cosines = [cosine for _, cosine in found], [cosine for _, cosine in right]
        # gensim divides the target by the number of words, as a mean, and then by its length: the same direction
        np.testing.assert_allclose(cosines, right_cosines, atol=1e-6)
    assert len(ours.neighbours("w7", 1000)) == 299


def test_zero_vectors_have_cosine_zero():
    vectors = WordVectors(["a", "b", "zero"], np.array([[1, 0], [1, 1], [0, 0]], np.float32))
    assert vectors.neighbours("zero") == [("a", 0.0), ("b", 0.0)]
    assert vectors.neighbours("a") == [("b", pytest.approx(0.5**0.5)), ("zero", 0.0)]


def test_unknown_words(vectors):
    with pytest.raises(InputError, match=r"no vector for the word 'teh' \(did you mean 'the'\?\)"):
        vectors.neighbours("teh")
    with pytest.raises(InputError, match="expected a row a word"):
        WordVectors(["a"], np.zeros((2, 3), np.float32))
    assert "the" in vectors and "teh" not in vectors and len(vectors) == 8 and vectors.dimensions == 5
