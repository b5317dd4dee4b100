"""A smaller vocabulary: the tokens that some texts use, and those that any other text can be spelt with.

    tokenizer, kept = cut_tokenizer(tokenizer, texts)
    model = keep_tokens(model, kept)

The texts are encoded into the same tokens as before, under new numbers, and any other text into more and smaller ones.
Of what the model says, the logits of kept tokens stay as they were. In a small model with a large vocabulary this is
more than structured pruning can remove: the embeddings are most of it.
"""

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast


def cut_tokenizer(
    tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]
) -> tuple[PreTrainedTokenizerFast, list[int]]:
    """A copy of a tokenizer that knows less, and which of the old tokens it has, ascending: the new numbers.

    Kept are the tokens of the texts, what their tokens are merged from, all special tokens that have a role, and single
    bytes (where the tokenizer falls back on them) or all single characters.

    Raises:
        ValueError: a slow tokenizer, one of another kind than BPE, Unigram or WordLevel, or merges with affixes.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"{type(tokenizer).__name__} is a slow tokenizer: only fast ones can be cut")
    about = json.loads(tokenizer.backend_tokenizer.to_str())
    kind, of = about["model"]["type"], about["model"]
    if kind not in ("BPE", "Unigram", "WordLevel"):
        raise ValueError(f"a tokenizer of the kind {kind} cannot be cut: BPE, Unigram and WordLevel can")
    if affixes := [of[name] for name in ("continuing_subword_prefix", "end_of_word_suffix") if of.get(name)]:
        raise ValueError(f"merges with affixes ({', '.join(affixes)}) are not known here")
    names = (
        {place: piece for place, (piece, _) in enumerate(of["vocab"])} if kind == "Unigram" else _turned(of["vocab"])
    )
    used = {token for ids in tokenizer(list(texts)).input_ids for token in ids} | set(tokenizer.all_special_ids)
    used |= {token for each in _templates(about) for token in each["ids"]}
    added = {each["id"] for each in about["added_tokens"]}
    unknown = names.get(of["unk_id"]) if kind == "Unigram" else of.get("unk_token")
    plain = {names[token] for token in used - added if token in names} | _spelling(names.values(), of) | {unknown}
    if kind == "BPE":
        plain |= _merged_from(plain, of["merges"])
    numbers = {name: token for token, name in names.items()}
    kept = sorted(used | {numbers[name] for name in plain if name in numbers})
    _renumber(about, {token: place for place, token in enumerate(kept)}, names)
    smaller = copy.deepcopy(tokenizer)
    smaller._tokenizer = Tokenizer.from_str(json.dumps(about))
    return smaller, kept


@torch.no_grad()
def keep_tokens(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """Give a model, in place, the tokens `kept` only, in this order; returns it. Tied embeddings stay tied.

    Raises:
        ValueError: a token that the model does not know, or one with a role (start, end, padding) that would be lost.
    """
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    count, now = inputs.weight.shape[0], {token: place for place, token in enumerate(kept)}
    if not all(0 <= token < count for token in kept):
        raise ValueError(f"the model knows tokens 0 to {count - 1}, asked for {min(kept)} to {max(kept)}")
    settings = [model.config, *([model.generation_config] if model.can_generate() else [])]
    roles = [(each, name, ids) for each in settings for name, ids in _roles(each).items()]
    if lost := {name for _, name, ids in roles if not set(ids) <= now.keys()}:
        raise ValueError(f"{', '.join(sorted(lost))} would be lost: keep the tokens that have a role")
    index, tied = torch.tensor(kept), outputs is not None and outputs.weight is inputs.weight
    for module in (inputs, outputs):
        for name, parameter in list(module.named_parameters(recurse=False)) if module is not None else ():
            cut = parameter.index_select(0, index.to(parameter.device)).contiguous()
            setattr(module, name, nn.Parameter(cut, parameter.requires_grad))
    if tied:
        outputs.weight = inputs.weight
    inputs.num_embeddings = len(kept)
    if inputs.padding_idx is not None:
        inputs.padding_idx = now.get(inputs.padding_idx)
    if outputs is not None:
        outputs.out_features = len(kept)
    for each, name, ids in roles:
        several = isinstance(getattr(each, name), list)
        setattr(each, name, [now[token] for token in ids] if several else now[ids[0]])
    model.config.vocab_size = len(kept)
    for module in model.modules():
        if getattr(module, "vocab_size", None) == count:
            module.vocab_size = len(kept)
    return model


def _roles(settings: Any) -> dict[str, list[int]]:
    """Tokens that settings name, by the name of their role."""
    named = {name: value for name, value in settings.to_dict().items() if name.endswith("_token_id")}
    return {
        name: value if isinstance(value, list) else [value]
        for name, value in named.items()
        if value is not None and value != -1
    }


def _turned(vocabulary: Mapping[str, int]) -> dict[int, str]:
    return {token: name for name, token in vocabulary.items()}


def _templates(about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The special tokens that the tokenizer itself adds: those of its template, or of the templates in a sequence."""
    process = about.get("post_processor") or {}
    parts = process.get("processors", [process])
    return [each for part in parts for each in (part.get("special_tokens") or {}).values() if isinstance(each, dict)]


def _spelling(names: Iterable[str], model: Mapping[str, Any]) -> set[str]:
    """What any text can be spelt with."""
    if model["type"] == "WordLevel":
        return set()
    if model.get("byte_fallback"):
        return {f"<0x{byte:02X}>" for byte in range(256)}
    return {name for name in names if len(name) == 1}


def _merged_from(names: set[str], merges: Sequence[Sequence[str] | str]) -> set[str]:
    """Everything that comes about on the way from single characters to each of the names.

    Merges are never undone, and what happens within a token does not depend on what stands beside it: so these are all
    the merges that ever happen in a text of such tokens.
    """
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)
    rank = {(one, other): place for place, (one, other) in enumerate(pairs)}
    found: set[str] = set()
    for name in names:
        parts = list(name or "")
        while len(parts) > 1:
            places = ((rank.get(pair, len(rank)), at) for at, pair in enumerate(pairwise(parts)))
            best, at = min(places)
            if best == len(rank):
                break  # a token that no merge leads to, such as a byte's
            found.update(parts[at : at + 2])
            parts[at : at + 2] = ["".join(parts[at : at + 2])]
        found.update(parts)
    return found


def _renumber(about: dict[str, Any], now: Mapping[int, int], names: Mapping[int, str]) -> None:
    """Bring a tokenizer's description, in place, to the tokens that are kept and their new numbers."""
    of = about["model"]
    if of["type"] == "Unigram":
        of["vocab"] = [each for token, each in enumerate(of["vocab"]) if token in now]
        of["unk_id"] = now.get(of["unk_id"])
    else:
        of["vocab"] = {name: now[token] for token, name in names.items() if token in now}
    if "merges" in of:
        known = of["vocab"]
        pairs = ((merge, merge.split(" ") if isinstance(merge, str) else merge) for merge in of["merges"])
        of["merges"] = [m for m, (a, b) in pairs if a in known and b in known and a + b in known]
    about["added_tokens"] = [each | {"id": now[each["id"]]} for each in about["added_tokens"] if each["id"] in now]
    for each in _templates(about):
        each["ids"] = [now[token] for token in each["ids"]]
