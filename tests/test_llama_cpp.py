"""A pruned model as GGUF: what the file holds, and where llama-cpp-python is installed, that it computes the same."""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from rules2ranks import decoders as layers
from rules2ranks import pruning
from rules2ranks.pruning import llama_cpp
from tiny_decoders import build

gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")

TEXT = ["The rule of the automaton decides what comes after a row.", "Ranks, bits; and rules: one by one!"] * 20
#: The attention groups and channels that stay; a layer without attention, and one without MLP.
UNEVEN = [((0, 1), (0, 2, 3)), ((1,), (0, 1, 2, 3, 4)), ((), (0, 4)), ((0, 1), ())]
#: The same with attention everywhere: the tiny Llama has biases, which llama.cpp would leave out without it.
BIASED = [UNEVEN[0], UNEVEN[1], ((0,), (0, 4)), UNEVEN[3]]


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def byte_fallback():
    """As Llama 2 has it: blanks are parts of words, and what is unknown is spelt in bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = [text.replace(" ", "▁") for text in TEXT]
    tokenizer.train_from_iterator(
        words, trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    about = json.loads(tokenizer.to_str())
    about["added_tokens"] = about["added_tokens"][:3]  # bytes are tokens like any other
    tokenizer = Tokenizer.from_str(json.dumps(about))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def exported(folder, tokenizer, family="mistral", kept=UNEVEN, dtype=torch.float32):
    model = build(family, layers=4, hidden=16, head=8)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for p in (model.model.embed_tokens.weight, model.lm_head.weight):
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.4)
    model.config.sliding_window = None
    model = layers.keep(model, kept).to(dtype)
    pruning.save_pruned(model, folder)
    tokenizer.save_pretrained(folder)
    return pruning.load_pruned(folder)


def read(file):
    found = gguf.GGUFReader(file)
    return {name: field.contents() for name, field in found.fields.items()}, {t.name: t.data for t in found.tensors}


def test_the_file_holds_the_layers_own_sizes(tmp_path):
    model = exported(tmp_path / "model", byte_level())
    about, tensors = read(llama_cpp.write_gguf(tmp_path / "model", tmp_path / "model.gguf"))
    assert about["general.architecture"] == "deci"
    assert about["deci.attention.head_count"] == [4, 2, 0, 4]
    assert about["deci.attention.head_count_kv"] == [2, 1, 0, 2]
    assert about["deci.feed_forward_length"] == [3, 5, 2, 1], "one channel of zeros in place of none"
    assert about["tokenizer.ggml.model"] == "gpt2"
    assert about["tokenizer.ggml.pre"] == "gpt-2"
    assert tensors["blk.1.ffn_down.weight"].tolist() == model.model.layers[1].mlp.down_proj.weight.tolist()
    assert not tensors["blk.3.ffn_up.weight"].any() and tensors["blk.3.ffn_up.weight"].shape == (1, 16)
    assert "blk.2.attn_q.weight" not in tensors
    turned = tensors["blk.1.attn_k.weight"]
    weight = model.model.layers[1].self_attn.k_proj.weight
    assert turned[0].tolist() == weight[0].tolist() and turned[1].tolist() == weight[4].tolist(), "halves in pairs"


def llama(file):
    llama_cpp_python = pytest.importorskip("llama_cpp", reason="pip install llama-cpp-python: it is built from source")
    return llama_cpp_python.Llama(str(file), n_ctx=64, n_threads=1, logits_all=True, verbose=False)


@pytest.mark.parametrize(
    ("family", "tokenizer", "kept", "dtype"),
    [
        ("mistral", byte_level, UNEVEN, torch.float32),
        ("mistral", byte_fallback, UNEVEN, torch.float32),
        ("mistral", byte_level, UNEVEN, torch.bfloat16),
        ("llama", byte_fallback, BIASED, torch.float32),
        ("qwen2", byte_level, UNEVEN, torch.float32),
    ],
)
def test_llama_cpp_computes_the_same(family, tokenizer, kept, dtype, tmp_path):
    tokenizer = tokenizer()
    model = exported(tmp_path / "model", tokenizer, family, kept, dtype).float()
    file = llama_cpp.write_gguf(tmp_path / "model", tmp_path / "model.gguf")
    other = llama(file)
    for text in ("The rule of rows, one by one", "Zebra: 17 ü – bits!"):
        ids = tokenizer(text).input_ids
        assert other.tokenize(text.encode(), special=False) == ids
        other.reset()
        other.eval(ids)
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0]
        got = torch.tensor(other.scores[: len(ids)])
        # Sums in another order, and keys and values kept in float16; beside bfloat16, inputs are rounded to it, too.
        allowed = (5e-3 if dtype == torch.float32 else 2e-2) * expected.abs().max().item()
        torch.testing.assert_close(got, expected, rtol=0, atol=allowed)


@pytest.mark.parametrize(
    ("family", "change", "said"),
    [
        ("qwen3", {}, "a Qwen3ForCausalLM has layers that llama.cpp's Deci does not compute"),
        ("llama", {"hidden_act": "gelu"}, "the activation is gelu, Deci's is silu"),
        ("mistral", {"sliding_window": 4}, "Deci has no sliding window"),
    ],
)
def test_what_deci_does_not_compute_is_refused(family, change, said, tmp_path):
    model = build(family)
    vars(model.config).update({"sliding_window": None} | change)
    pruning.save_pruned(layers.keep(model, [((0,), (0, 1)), ((0, 1), (2, 3, 4))]), tmp_path / "model")
    with pytest.raises(ValueError, match=f"no GGUF of this model: {said}"):
        llama_cpp.write_gguf(tmp_path / "model", tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


def test_a_bias_of_attention_that_is_gone_is_refused(tmp_path):
    model = build("llama", layers=4)
    pruning.save_pruned(layers.keep(model, [(each, (0, 1)) for each in ((0,), (0, 1), (), (1,))]), tmp_path / "model")
    with pytest.raises(ValueError, match=r"model.layers.2 has no attention but its bias, which Deci leaves out"):
        llama_cpp.write_gguf(tmp_path / "model", tmp_path / "model.gguf")


def test_a_way_to_part_texts_that_is_not_known_has_to_be_named(tmp_path):
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    exported(tmp_path / "model", tokenizer)
    with pytest.raises(ValueError, match=r"name it by `words`, as llama\.cpp calls it"):
        llama_cpp.write_gguf(tmp_path / "model", tmp_path / "model.gguf")
    about, _ = read(llama_cpp.write_gguf(tmp_path / "model", tmp_path / "model.gguf", words="default"))
    assert about["tokenizer.ggml.pre"] == "default"
