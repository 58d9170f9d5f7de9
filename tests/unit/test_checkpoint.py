"""Checkpoints: whole, or refused by name."""

import json
from dataclasses import replace

import pytest
import torch

from knockscreen import checkpoint
from knockscreen.data.cells import Vocabulary
from knockscreen.errors import CheckpointError

VOCABULARY = Vocabulary(
    gene_ids=("ENSG1", "ENSG2", "ENSG3"),
    genes=("A", "B", "C"),
    factors=("donor", "time"),
    levels=(("D1", "D2"), ("Rest",)),
    target_ids=("non-targeting", "ENSG1"),
    targets=("non-targeting", "A"),
)


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "vae.safetensors"
    about = {"kind": "vae", "vocabulary": checkpoint.describe_vocabulary(VOCABULARY)}
    checkpoint.save(file, {"w": torch.arange(6.0).view(2, 3).T}, about)
    return file


def test_tensors_and_vocabulary_come_back(path):
    tensors, about = checkpoint.load(path, "vae")
    assert torch.equal(tensors["w"], torch.arange(6.0).view(2, 3).T)
    assert checkpoint.read_vocabulary(about) == VOCABULARY


def test_another_kind_is_refused(path):
    with pytest.raises(CheckpointError, match="is a 'vae' checkpoint of format 1, expected 'flow'"):
        checkpoint.load(path, "flow")


@pytest.mark.parametrize(
    ("kind", "verb"), [("vae", "train-vae"), ("flow", "train-flow"), ("effects", "fit-effects")]
)
def test_missing_file_names_the_verb_that_writes_it(tmp_path, kind, verb):
    with pytest.raises(
        CheckpointError, match=f"x.safetensors does not exist; 'knockscreen {verb}'"
    ):
        checkpoint.load(tmp_path / "x.safetensors", kind)


def test_missing_card_is_named(path):
    path.with_suffix(".json").unlink()
    with pytest.raises(CheckpointError, match=r"vae\.json does not exist"):
        checkpoint.load(path, "vae")


@pytest.mark.parametrize("keep", [4, 60])
def test_damaged_file_is_refused(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"vae\.safetensors is damaged .* train again"):
        checkpoint.load(path, "vae")


def test_another_format_is_refused(path):
    card = path.with_suffix(".json")
    card.write_text(json.dumps({**json.loads(card.read_text()), "format": 9}))
    with pytest.raises(CheckpointError, match="of format 9, expected 'vae' of format 1"):
        checkpoint.load(path, "vae")


def test_weights_and_card_of_two_trainings_are_refused(path, tmp_path):
    old = path.with_suffix(".json").read_text()
    other = replace(VOCABULARY, gene_ids=("ENSG1", "ENSG3", "ENSG2"))
    about = {"kind": "vae", "vocabulary": checkpoint.describe_vocabulary(other)}
    checkpoint.save(path, {"w": torch.zeros(3, 2)}, about)
    path.with_suffix(".json").write_text(old)
    with pytest.raises(CheckpointError, match=r"vae\.json is not the description of"):
        checkpoint.load(path, "vae")


def test_notes_do_not_change_the_weights_file(path):
    before, (tensors, about) = path.read_bytes(), checkpoint.load(path, "vae")
    checkpoint.save(path, tensors, {**about, "notes": {"seconds": 1.5}})
    assert path.read_bytes() == before


def refusal(given: Vocabulary, *, conditions: bool) -> str:
    with pytest.raises(CheckpointError) as refused:
        checkpoint.require_same(VOCABULARY, given, checkpoint="x", conditions=conditions)
    return str(refused.value)


def test_another_order_of_genes_is_refused_by_the_first_that_differs():
    moved = replace(VOCABULARY, gene_ids=("ENSG1", "ENSG3", "ENSG2"))
    assert "entry 2 is 'ENSG2' there and 'ENSG3' in the store" in refusal(moved, conditions=False)


def test_panel_of_another_length_is_refused():
    shorter = replace(VOCABULARY, gene_ids=("ENSG1", "ENSG2"))
    text = refusal(shorter, conditions=False)
    assert "another gene list (3 entries, here 2): entry 3 is 'ENSG3' there and 'nothing'" in text


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"factors": ("donor",)}, "context factor list (2 entries, here 1)"),
        ({"levels": (("D1", "D3"), ("Rest",))}, "donor level list"),
        ({"target_ids": ("non-targeting", "ENSG2")}, "entry 2 is 'ENSG1' there and 'ENSG2'"),
    ],
)
def test_other_conditions_are_refused_where_they_matter(change, sentence):
    other = replace(VOCABULARY, **change)
    assert sentence in refusal(other, conditions=True)
    checkpoint.require_same(VOCABULARY, other, checkpoint="x", conditions=False)


def test_the_same_vocabulary_is_accepted():
    checkpoint.require_same(VOCABULARY, replace(VOCABULARY), checkpoint="x", conditions=True)
