"""Minimal pairs: likelihoods are those of transformers' own loss, and counts are of pairs."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rules2ranks import stages
from rules2ranks.runs import ParameterError
from rules2ranks.stages import minimal_pairs, own_model

pytestmark = pytest.mark.usefixtures("store")
ROWS = [
    {"field": "syntax", "sentence_good": "sort 7 3 = 3 7", "sentence_bad": "sort 7 3 = 7 3"},
    {"field": "syntax_semantics", "sentence_good": "sort 3 7 = 7 3", "sentence_bad": "sort 3 7 = 3 7"},
    {"field": "syntax/semantics", "sentence_good": "sort 9 2 = 2 9", "sentence_bad": "sort 9 2 = 9 2"},
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model with a tokenizer, its texts, and pairs."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return own_model.demo(folder, examples=300) | {"pairs": str(folder / "pairs.jsonl")}


def test_a_likelihood_is_what_transformers_itself_computes(home):
    model, tokenizer = (kind.from_pretrained(home["model"]) for kind in (AutoModelForCausalLM, AutoTokenizer))
    sentences = [pair.good for pair in minimal_pairs.read(home["pairs"])] + ["nim 3 6 1 = b 4 a 2"]
    for got, sentence in zip(minimal_pairs.log_likelihoods(model, tokenizer, sentences, 3), sentences, strict=True):
        ids = torch.tensor([tokenizer(sentence).input_ids])
        with torch.no_grad():
            expected = -model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        assert got == pytest.approx(expected, rel=1e-4)


def test_pairs_are_counted_by_field(home):
    base = {"model": home["model"], "data": home["data"], "length": 32, "held_out": 20}
    found = stages.pairs(recovered={"pruned": {"base": base, "ratio": 0}, "ranks": 0}, data=home["pairs"])
    assert found.metrics["fields"] == {"syntax": [1, 1], "syntax/semantics": [1, 2]}  # it learnt to sort


def test_wrong_files_are_named_with_the_line(home, tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"field": "syntax", "sentence_good": "a"}\n')
    with pytest.raises(ValueError, match=r"pairs\.jsonl, line 1: expected an object with field, sentence_good"):
        minimal_pairs.read(tmp_path / "pairs.jsonl")
    with pytest.raises(ParameterError, match=r"there is no file .*BLiMP is at github"):
        stages.pairs(recovered={"pruned": {"ratio": 0}, "ranks": 0}, data="none.jsonl")
    with pytest.raises(ValueError, match="a model with a tokenizer is needed, 'language' has none"):
        stages.pairs(recovered={"pruned": {"ratio": 0}, "ranks": 0}, data=home["pairs"])
