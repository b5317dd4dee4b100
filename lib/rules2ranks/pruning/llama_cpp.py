"""A pruned folder as one GGUF file for llama.cpp, layers of their own sizes among them: needs the package gguf.

llama.cpp knows an architecture whose layers differ, Deci (Llama-3.1-Nemotron), with Llama's layers. So what computes as
a Llama does fits it: Llama, Mistral without a window, Qwen2. All others have one size for all layers there.
"""

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

from rules2ranks import checkpoints, decoders, quantisation
from rules2ranks.pruning import files

MODELS = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
#: How llama.cpp calls the ways in which byte-level tokenizers part a text into words, by what they look like here.
WORDS = {
    "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|": "llama-bpe",
    "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|": "qwen2",
}
#: The paths of a layer's tensors here, and their names there; queries and keys are turned, see `_turned`.
_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(folder: str | Path, file: str | Path, words: str | None = None) -> Path:
    """Write a folder of `save_pruned` with its tokenizer as GGUF, in the type of its weights; returns the file.

    A layer without an MLP gets one channel of zeros: llama.cpp would leave out its attention, too. `words` is what
    llama.cpp calls the tokenizer's way to part a text (`tokenizer.ggml.pre`), where it is not known here.

    Raises:
        ImportError: the package gguf is not installed.
        ValueError: an architecture, or something in it, that llama.cpp's Deci does not compute; packed matrices; or a
            tokenizer that is not known here.
    """
    try:
        gguf = importlib.import_module("gguf")
    except ImportError as error:
        raise ImportError("writing GGUF needs its package: pip install -e '.[gguf]' in the project's folder") from error
    folder, file = Path(folder), Path(file)
    model = files.load_pruned(folder)
    _check(model)
    writer = gguf.GGUFWriter(file, "deci")
    _write_sizes(writer, model)
    _write_tokenizer(writer, folder, model, words)
    kind = getattr(gguf.GGMLQuantizationType, {torch.float32: "F32", torch.bfloat16: "BF16"}[model.dtype])
    for name, tensor in _tensors(model):
        array = tensor.detach().float().numpy()
        if tensor.ndim > 1 and kind.name != "F32":
            writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    return file


def _check(model: PreTrainedModel) -> None:
    """Refuse what would compute something else there."""
    config, kind, said = model.config, type(model).__name__, ""
    if kind not in MODELS:
        said = f"a {kind} has layers that llama.cpp's Deci does not compute: {', '.join(MODELS)} can be written"
    elif quantisation.bits_of(model):
        said = "packed matrices are not GGUF's: recover and export with 16 bits, and let llama-quantize pack the file"
    elif config.hidden_act != "silu":
        said = f"the activation is {config.hidden_act}, Deci's is silu"
    elif (kind == "MistralForCausalLM" and config.sliding_window) or getattr(config, "use_sliding_window", False):
        said = "Deci has no sliding window"
    elif model.model.rotary_emb.attention_scaling != 1:
        said = f"positions of the kind {config.rope_parameters['rope_type']} scale attention, which is not written here"
    elif model.dtype not in (torch.float32, torch.bfloat16):
        said = f"the weights are {model.dtype}, expected float32 or bfloat16"
    for layer in decoders.groups(model):
        if not layer.attention.count and layer.attention.output.module.bias is not None:
            said = (
                said or f"{layer.name} has no attention but its bias, which Deci leaves out: prune without compensate"
            )
    if said:
        raise ValueError(f"no GGUF of this model: {said}")


def _write_sizes(writer: Any, model: PreTrainedModel) -> None:
    config, layers = model.config, decoders.groups(model)
    head, each = layers[0].module.self_attn.head_dim, layers[0].module.self_attn.num_key_value_groups
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(len(layers))
    writer.add_feed_forward_length([max(layer.channels.count, 1) for layer in layers])
    writer.add_head_count([layer.attention.count * each for layer in layers])
    writer.add_head_count_kv([layer.attention.count for layer in layers])
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    yield "token_embd.weight", model.model.embed_tokens.weight
    yield "output_norm.weight", model.model.norm.weight
    if model.lm_head.weight is not model.model.embed_tokens.weight:
        yield "output.weight", model.lm_head.weight
    rotary = model.model.rotary_emb
    plain = model.config.rope_parameters["rope_theta"] ** -(torch.arange(len(rotary.inv_freq)) / len(rotary.inv_freq))
    if not torch.allclose(factors := plain / rotary.inv_freq, torch.ones(len(plain)), rtol=1e-5):
        yield "rope_freqs.weight", factors
    for number, layer in enumerate(decoders.groups(model)):
        for path, name in _LAYER.items():
            part = layer.channels if path.startswith("mlp") or path.startswith("post") else layer.attention
            module, empty = layer.module.get_submodule(path), part is layer.channels and not part.count
            if not part.count and not empty:
                continue
            for leaf, parameter in module.named_parameters():
                tensor = _zeros(parameter) if empty else parameter
                if name in ("attn_q", "attn_k"):
                    tensor = _turned(tensor, layer.module.self_attn.head_dim)
                yield f"blk.{number}.{name}.{leaf}", tensor


def _zeros(parameter: nn.Parameter) -> Tensor:
    """One channel that does nothing, in place of none."""
    return parameter.new_zeros([max(size, 1) for size in parameter.shape]) if not parameter.numel() else parameter


def _turned(tensor: Tensor, head: int) -> Tensor:
    """Rows of queries and keys in the order of llama.cpp: the two halves of a head, which turn together, in pairs."""
    return tensor.unflatten(0, (-1, 2, head // 2)).transpose(1, 2).flatten(0, 2)


def _write_tokenizer(writer: Any, folder: Path, model: PreTrainedModel, words: str | None) -> None:
    gguf = importlib.import_module("gguf")
    if not checkpoints.tokenizer_files(folder):
        raise ValueError(f"no GGUF of this model: {folder} holds no tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    about = json.loads(tokenizer.backend_tokenizer.to_str())
    of = about["model"]
    if of["type"] != "BPE":
        raise ValueError(f"no GGUF of this model: a tokenizer of the kind {of['type']} is not known here, only BPE")
    names = {token: name for name, token in tokenizer.get_vocab().items()}
    added = {each["id"]: each["special"] for each in about["added_tokens"]}
    size, kinds, pieces = model.get_input_embeddings().num_embeddings, [], []
    for token in range(size):
        pieces.append(names.get(token, f"[PAD{token}]"))
        if token in added or token not in names:
            kinds.append(gguf.TokenType.CONTROL if added.get(token, True) else gguf.TokenType.USER_DEFINED)
        else:
            byte = of.get("byte_fallback") and re.fullmatch("<0x[0-9A-F]{2}>", pieces[-1])
            kinds.append(gguf.TokenType.BYTE if byte else gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("llama" if of.get("byte_fallback") else "gpt2")
    writer.add_token_list(pieces)
    writer.add_token_types(kinds)
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in of["merges"]]
    if of.get("byte_fallback"):
        # What llama.cpp calls scores is the order in which pieces are put together.
        rank = {"".join(pair): place for place, pair in reversed(list(enumerate(merges)))}
        writer.add_token_scores([-float(rank.get(piece, len(merges))) for piece in pieces])
        writer.add_add_space_prefix("prepend" in json.dumps(about["normalizer"] or {}).lower())
    else:
        writer.add_tokenizer_pre(words or _words(about))
        writer.add_token_merges([" ".join(pair) for pair in merges])
    for role in ("bos", "eos", "unk", "pad"):
        if (token := getattr(tokenizer, f"{role}_token_id")) is not None:
            getattr(writer, f"add_{role}_token_id")(token)
    begins = tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    writer.add_add_bos_token(begins)


def _words(about: dict[str, Any]) -> str:
    text = json.dumps(about["pre_tokenizer"])
    for pattern, name in WORDS.items():
        if json.dumps(pattern)[1:-1] in text:
            return name
    if '"ByteLevel"' in text and '"use_regex": true' in text and '"Split"' not in text:
        return "gpt-2"
    raise ValueError(
        "no GGUF of this model: how the tokenizer parts a text into words is not known here; name it by `words`, as "
        "llama.cpp calls it (tokenizer.ggml.pre)"
    )
