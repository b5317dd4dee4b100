"""Tries pruning on a tiny random copy of an architecture, before anything long relies on it."""

import copy
from contextlib import suppress

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from rules2ranks.decoders.families import FAMILIES
from rules2ranks.decoders.groups import Choice, blank, groups, keep
from rules2ranks.decoders.skeletons import causal_lm, skeleton

#: Sizes of the copy: key/value heads, one head, MLP, vocabulary, and a sliding window shorter than the prompt.
HEADS, HEAD, CHANNELS, VOCABULARY, WINDOW = 4, 16, 7, 32, 4
PROMPT, LENGTH = 7, 10  # tokens
#: What rounding may change, as a share of the largest output: some 1e-6 for each sum in another order (float32).
CLOSE = 1e-3
#: What is wrong with an architecture ("": nothing), by its class, its tiny configuration, the number of families, and
#: whether parts were left out whole.
_faults: dict[tuple[type, str, int, bool], str] = {}


def check_architecture(of: nn.Module | PreTrainedConfig, empty: bool = False) -> None:
    """Try pruning on a tiny random copy of a transformers model's architecture; any other module passes untried.

    The copy has all kinds of layers that the configuration names, at small sizes. All of them must be found; when some
    groups are cut out of the copy its outputs must be those with zeros in their place; and a prompt longer than a
    sliding window, continued with the cache, must give the logits of the whole. It takes some 0.1 s, once for each
    architecture, and leaves the global random state alone. A configuration is tried as a causal language model. With
    `empty` it is also tried without the first layer's attention and the last one's MLP.

    Raises:
        ValueError: what fails, with the name of the architecture.
    """
    if isinstance(of, PreTrainedModel):
        kind, config = type(of), of.config
    elif isinstance(of, PreTrainedConfig):
        kind, config = causal_lm(of)
    else:
        return
    try:
        tiny = tiny_config(config)
    except Exception as error:
        raise ValueError(f"{kind.__name__} cannot be tried at a small size: {error}") from error
    key = kind, repr(sorted(tiny.to_dict().items())), len(FAMILIES), empty
    if key not in _faults:
        _faults[key] = _fault(kind, tiny, empty)
    if _faults[key]:
        raise ValueError(f"{kind.__name__} cannot be pruned: {_faults[key]}")


def tiny_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy of `config` with two to four layers, of all kinds that it has, and small sizes."""
    tiny = copy.deepcopy(config)
    for part in (tiny, *(getattr(tiny, name) for name in tiny.sub_configs)):
        if getattr(part, "num_hidden_layers", None) and getattr(part, "num_attention_heads", None):
            _keep_layers(part)
            _shrink(part)
            _shorten(part)
    tiny._attn_implementation, tiny.dtype = None, torch.float32
    return tiny


def _keep_layers(config: PreTrainedConfig) -> None:
    """Keep the first layer of every kind, then last ones up to four; a kind is what the lists say of a layer."""
    number = config.num_hidden_layers
    lists = {
        name: value
        for name, value in vars(config).items()
        if isinstance(value, list) and len(value) == number and not name.endswith("token_id")
    }
    kinds: dict[str, list[int]] = {}
    for layer in range(number):
        kinds.setdefault(repr([value[layer] for value in lists.values()]), []).append(layer)
    first, last = ([layers[place] for layers in kinds.values()] for place in (0, -1))
    chosen = sorted({*first, *last[: max(4 - len(first), 0)]})
    config.num_hidden_layers = len(chosen)
    for name, value in lists.items():
        setattr(config, name, [value[layer] for layer in chosen])
    if getattr(config, "num_kv_shared_layers", 0):  # the last layers, which take keys and values from those before
        config.num_kv_shared_layers = len(chosen) // 2


def _shrink(config: PreTrainedConfig) -> None:
    """Small sizes, with as many kinds of them as before: grouped queries stay so, and a projection of embeddings."""
    heads = config.num_attention_heads
    heads = HEADS * (2 if heads > (getattr(config, "num_key_value_heads", None) or heads) else 1)
    hidden = heads * HEAD
    projected = getattr(config, "word_embed_proj_dim", None) != config.hidden_size
    small = {
        "word_embed_proj_dim": hidden // 2 if projected else hidden,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": HEADS,
        "head_dim": HEAD,
        "pad_token_id": 0,
    }
    for name in vars(config):
        if name.endswith(("intermediate_size", "ffn_dim", "n_inner")):
            small[name] = CHANNELS
        elif "vocab_size" in name:
            small[name] = VOCABULARY
    for name, size in small.items():
        if (old := getattr(config, name, None)) is not None:
            with suppress(AttributeError):  # a property that follows from the others
                setattr(config, name, [size] * len(old) if isinstance(old, list) else size)


def _shorten(config: PreTrainedConfig) -> None:
    """Windows shorter than the prompt, and for LongRoPE as many factors as a small head has frequencies."""
    for name in ("sliding_window", "attention_chunk_size"):
        if getattr(config, name, None):
            setattr(config, name, WINDOW)
    rope = getattr(config, "rope_parameters", None) or {}
    for rotation in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        for name, value in rotation.items():
            if isinstance(value, list):
                rotation[name] = value[: int(HEAD * rotation.get("partial_rotary_factor", 1)) // 2]


def _fault(kind: type[PreTrainedModel], config: PreTrainedConfig, empty: bool) -> str:
    """What is wrong with pruning this tiny model, in words; empty if nothing is."""
    try:
        model = skeleton(config, kind).eval()
    except Exception as error:
        return f"a tiny copy to try it on cannot be made ({type(error).__name__}: {error})"
    try:
        layers = groups(model)
    except ValueError as error:
        return str(error)
    if len(layers) != (number := config.get_text_config().num_hidden_layers):
        return f"of {number} decoder layers {len(layers)} were found"
    generator = torch.Generator().manual_seed(0)
    # Biases and norms too, which start at 0 and 1 and would hide mistakes.
    drawn = {name: torch.randn(p.shape, generator=generator) * 0.4 for name, p in model.named_parameters()}
    model.load_state_dict(drawn, strict=False, assign=True)
    model.tie_weights()
    tokens = torch.randint(1, VOCABULARY, (1, LENGTH), generator=generator)
    for halves in (True, False):  # what runs at sizes that are alike and even, and is wrong, should be called wrong
        kept = [tuple(_some(part.count, halves, generator) for part in layer.parts) for layer in layers]
        if empty:
            kept[0], kept[-1] = ([], kept[0][1]), (kept[-1][0], [])
        try:
            fault = _difference(copy.deepcopy(model), kept, tokens)
        except Exception as error:
            fault = f"a pruned copy does not run ({type(error).__name__}: {error})"
        if fault:
            return fault
    return ""


def _some(count: int, half: bool, generator: torch.Generator) -> list[int]:
    """Some of `count` groups, drawn: half of them, or any number but all."""
    number = count // 2 if half else int(torch.randint(1, count, (), generator=generator))
    return sorted(torch.randperm(count, generator=generator)[:number].tolist())


@torch.no_grad()
def _difference(model: PreTrainedModel, kept: Choice, tokens: Tensor) -> str:
    """Whether a pruned copy gives what a masked one gives, and the same with its cache: what differs, in words."""
    pruned, masked = keep(copy.deepcopy(model), kept), blank(model, kept)
    got, expected = (m(tokens, use_cache=False)[0] for m in (pruned, masked))
    if not _close(got, expected):
        return f"the outputs of a pruned copy and of a masked one differ by {(got - expected).abs().max():.1g}"
    if pruned.can_generate():
        steps, cache = [], None
        for new in (tokens[:, :PROMPT], *tokens[:, PROMPT:].split(1, dim=1)):
            step = pruned(new, past_key_values=cache, use_cache=True)
            steps, cache = [*steps, step.logits], step.past_key_values
        if not _close(stepwise := torch.cat(steps, 1), got):
            return f"with a cache the logits of a pruned copy differ by {(stepwise - got).abs().max():.1g}"
    return ""


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=CLOSE * other.abs().max().item())
