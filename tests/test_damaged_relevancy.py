"""A relevancy file that is damaged, or of other tables, is named, and never gives a bare error."""
import pickle

import numpy as np
import pytest
import torch
from annotation_files import RELEVANCY, refused, user
from safetensors.torch import save_file

from egokit import prep
from egokit.data import relevancy


@pytest.fixture
def use(resolve, copied):
    return user(resolve, copied)


@pytest.mark.parametrize("content", [{"a": 1}, [1, 2], np.zeros(3), np.zeros((2, 2), object),
                                     np.full((20, 20), "x"), "text"])
def test_a_pickle_of_something_else(tmp_path, content):
    path = tmp_path / "relevancy.pkl"
    path.write_bytes(pickle.dumps(content))
    refused(lambda: prep.load_relevancy(path), path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 3.0])
def test_relevancy_outside_its_range(tmp_path, value):
    matrix = np.random.default_rng(0).random((5, 4)).astype(np.float32)
    matrix[2, 3] = value
    np.save(tmp_path / "relevancy.npy", matrix)
    refused(lambda: relevancy.read(tmp_path / "relevancy.npy").row(2), tmp_path / "relevancy.npy", "outside 0..1")
    relevancy.read(tmp_path / "relevancy.npy").row(1)


def test_flipped_bytes_of_a_relevancy_file_are_never_a_bare_error(use):
    do, root = use
    path = root / RELEVANCY
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in [*range(12), *rng.integers(0, len(data), 60).tolist()]:
        path.write_bytes(data[:at] + bytes([data[at] ^ 0xff]) + data[at + 1:])
        try:
            do(RELEVANCY)
        except ValueError as error:
            assert type(error) is ValueError and str(path) in str(error), (at, error)


def test_a_relevancy_without_a_sentence_for_a_clip(use):
    do, root = use
    path = root / RELEVANCY
    shape = relevancy.read(path).shape
    path.unlink()
    path.with_suffix(".pkl").write_bytes(pickle.dumps(np.zeros(shape, np.float32)))
    refused(lambda: do(RELEVANCY), path.with_suffix(".pkl"), "no sentence of a relevancy above", "P01_")


@pytest.mark.parametrize("codes, values", [
    (torch.zeros(3, 4, dtype=torch.uint8), torch.zeros(5, 2)),
    (torch.full((3, 4), -1, dtype=torch.int8), torch.zeros(2)),
    (torch.zeros(3, 4, dtype=torch.bool), torch.zeros(2)), (torch.zeros(3, 4), torch.zeros(2)),
    (torch.zeros(3, 4, dtype=torch.uint8), torch.tensor(0.5))])
def test_codes_are_places_in_a_list_of_values(tmp_path, codes, values):
    path = tmp_path / "relevancy.safetensors"
    save_file({"codes": codes, "values": values}, path)
    refused(lambda: relevancy.read(path), path, "without a sign")
    save_file({"codes": torch.ones(3, 4, dtype=torch.uint8), "values": torch.tensor([0, 0.5])}, path)
    assert (relevancy.read(path).array() == 0.5).all()
