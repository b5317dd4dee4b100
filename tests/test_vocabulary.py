"""A cut vocabulary: the same texts give the same tokens, any other still encodes, and logits are those of before."""

import json
import math
import random
import sys

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rules2ranks import models as rules_models
from rules2ranks import stages
from rules2ranks.pruning import cut_tokenizer, keep_tokens
from rules2ranks.stages import minimal_pairs, own_texts, real_models, subjects
from rules2ranks.stages.own_texts import OwnModel
from rules2ranks.tasks import english

WORDS = "the quick brown fox jumps over lazy dogs while seven silent wizards vex a jolly judge of black quartz".split()
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<unused>"]


def corpus(seed, number=300):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(3, 12))).capitalize() + "." for _ in range(number)]


def wrapped(backend):
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    roles = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **roles)


def byte_level():
    """As GPT-2's, Llama 3's and Qwen's."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(corpus(0), trainer)
    return wrapped(backend)


def byte_fallback():
    """As Llama 2's and Gemma's: merges of characters, and bytes for what has no token."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=SPECIAL + bytes_, show_progress=False)
    backend.train_from_iterator(corpus(0), trainer)
    about = json.loads(backend.to_str())
    about["added_tokens"] = about["added_tokens"][: len(SPECIAL)]  # bytes are tokens like any other
    return wrapped(Tokenizer.from_str(json.dumps(about)))


def unigram():
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(corpus(0), trainer)
    return wrapped(backend)


KINDS = {"byte level": byte_level, "byte fallback": byte_fallback, "unigram": unigram}
SOME = corpus(1, 20)[:3]


@pytest.fixture(scope="module", params=KINDS)
def whole(request):
    return KINDS[request.param]()


def test_the_texts_give_the_same_tokens_under_new_numbers(whole, tmp_path):
    smaller, kept = cut_tokenizer(whole, SOME)
    assert len(kept) == len(smaller) < len(whole)
    smaller.save_pretrained(tmp_path)
    for tokenizer in (smaller, AutoTokenizer.from_pretrained(tmp_path)):
        for text in SOME:
            assert [kept[token] for token in tokenizer(text).input_ids] == whole(text).input_ids
    for role in ("pad", "eos", "bos", "unk"):
        assert kept[getattr(smaller, f"{role}_token_id")] == getattr(whole, f"{role}_token_id")
    assert "<unused>" not in smaller.get_vocab()


def test_any_other_text_still_encodes_and_comes_back(whole):
    smaller, kept = cut_tokenizer(whole, SOME)
    draw = random.Random(7)
    letters = "".join(WORDS) + " .,!?ABCß√漢字🦊\n\t0123"
    for _ in range(1000):
        text = "".join(draw.choices(letters, k=draw.randint(1, 30)))
        before, after = (t.decode(t(text).input_ids, skip_special_tokens=True) for t in (whole, smaller))
        assert after == before
    for text in corpus(3, 50):
        assert smaller.decode(smaller(text).input_ids, skip_special_tokens=True) == text
    assert max(smaller("".join(WORDS)).input_ids) < len(kept)


def tiny(size, tied):
    config = LlamaConfig(
        vocab_size=size, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=tied, pad_token_id=0, eos_token_id=[1, 3], bos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_said_of_kept_tokens_is_what_the_whole_model_says_renormalised(whole, tied, tmp_path):
    smaller, kept = cut_tokenizer(whole, SOME)
    model = tiny(len(whole), tied)
    ids = torch.tensor([whole(SOME[0]).input_ids])
    with torch.no_grad():
        expected = model(ids).logits[..., kept].log_softmax(-1)
    cut = keep_tokens(model, kept)
    cut.save_pretrained(tmp_path)
    for each in (cut, AutoModelForCausalLM.from_pretrained(tmp_path)):
        with torch.no_grad():
            got = each(torch.tensor([smaller(SOME[0]).input_ids])).logits.log_softmax(-1)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
        assert each.config.vocab_size == len(kept) == each.get_input_embeddings().num_embeddings
        assert (each.get_input_embeddings().weight is each.get_output_embeddings().weight) == tied
        assert [kept[token] for token in each.config.eos_token_id] == [1, 3]
        each.generate(torch.tensor([smaller(SOME[0]).input_ids]), max_new_tokens=3, do_sample=False)


def test_a_token_with_a_role_is_not_lost():
    with pytest.raises(ValueError, match="eos_token_id would be lost"):
        keep_tokens(tiny(30, False), [0, 1, 2, 5, 6])
    with pytest.raises(ValueError, match="knows tokens 0 to 29, asked for 0 to 30"):
        keep_tokens(tiny(30, False), [0, 1, 2, 3, 30])


def test_other_tokenizers_are_refused():
    pieces = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    with pytest.raises(ValueError, match="of the kind WordPiece cannot be cut"):
        cut_tokenizer(PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="[UNK]"), ["a"])


# --- stages -----------------------------------------------------------------------------------------------------------


def test_a_model_with_the_vocabulary_of_its_texts_takes_the_place_of_the_whole_one(store, tmp_path):
    tokenizer = byte_fallback()
    tiny(len(tokenizer), True).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "texts.json").write_text(json.dumps([{"text": text} for text in corpus(5, 60)[:30]]))
    given = {"model": str(tmp_path / "model"), "data": str(tmp_path / "texts.json")}
    made = stages.vocabulary(**given)
    assert made.metrics["tokens_after"] < made.metrics["tokens_before"] == len(tokenizer)
    assert made.metrics["parameters_removed"] > 0
    how = {"length": 20, "held_out": 5}
    before, after = (
        subjects.subject(OwnModel(**given | {"model": str(model)} | how)).held_out("report")
        for model in (given["model"], made.folder)
    )
    assert torch.equal(before[1] != -100, after[1] != -100)
    loss = subjects.subject(OwnModel(**given | {"model": str(made.folder)} | how)).evaluate("report")["loss"]
    assert 0 < loss < math.log(made.metrics["tokens_after"]) + 1


def test_texts_of_packages_are_prose_and_the_same_again():
    found = english.paragraphs(["numpy"])
    assert len(found) > 20 and found == english.paragraphs(["numpy"])
    for text in found:
        assert text[0].isupper() and text.endswith(".") and len(text.split()) >= english.WORDS and ">>>" not in text
    assert len({tuple(text.lower().split()[: english.ALIKE]) for text in found}) == len(found)
    with pytest.raises(ValueError, match="none_such is not installed"):
        english.paragraphs(["none_such"])


def test_gemma_is_asked_for_by_name_where_its_packages_are_not(store, monkeypatch):
    monkeypatch.setitem(sys.modules, real_models.PACKAGE, None)
    with pytest.raises(ImportError, match=r"read its terms, https://ai\.google\.dev/gemma/terms, .*EXTRAS=gemma"):
        stages.gemma()


@pytest.mark.slow
def test_gemma_from_its_packages_speaks_english_and_is_cut_to_some(store, tmp_path):
    """Runs where the extra `gemma` is installed; a wrong way to unpack its bits would leave noise."""
    pytest.importorskip(real_models.PACKAGE, reason="the extra gemma is not installed: make test EXTRAS=gemma")
    made = stages.gemma()
    assert made.metrics["parameters"] == 268_098_176
    good, bad = "The capital of France is Paris.", "The capital of France is bread."
    (tmp_path / "texts.txt").write_text("\n\n".join([*SOME, good, bad]))
    smaller = stages.vocabulary(model=str(made.folder), data=str(tmp_path / "texts.txt"))
    for folder in (made.folder, smaller.folder):
        tokenizer = own_texts.tokenizer_of(folder)
        model = rules_models.load_causal_lm(folder)
        likely = minimal_pairs.log_likelihoods(model, tokenizer, [good, bad])
        assert likely[0] > likely[1] + 5
    assert smaller.metrics["parameters_after"] < 0.45 * 268_098_176
