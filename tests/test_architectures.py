"""What of transformers can be pruned, architecture by architecture: a table, committed as `data/architectures.csv`.

What is said to work has been pruned as it is masked, and with its cache, by the trial itself; here it goes from a tiny
random checkpoint through files and an adapter. `python tests/test_architectures.py` writes the table anew.
"""

import re
from pathlib import Path

import pandas as pd
import pytest
import torch
import transformers

from rules2ranks import decoders, models, pruning, recovery
from rules2ranks.decoders.trial import tiny_config
from tiny_decoders import lm_loss, plan_of

TABLE = Path(__file__).parents[1] / "data" / "architectures.csv"
DENSE = {"num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0] * 35}
#: Configuration classes, what differs from their defaults, and words of the refusal ("": it works).
ARCHITECTURES = [
    ("LlamaConfig", {}, ""),
    ("MistralConfig", {}, ""),
    ("MinistralConfig", {"head_dim": 128}, ""),
    ("Ministral3Config", {}, ""),
    ("Qwen2Config", {}, ""),
    ("Qwen3Config", {}, ""),
    ("GemmaConfig", {}, ""),
    ("Gemma2Config", {}, ""),
    ("Gemma3TextConfig", {}, ""),
    ("SmolLM3Config", {}, ""),
    ("OlmoConfig", {}, ""),
    ("GraniteConfig", {}, ""),
    ("CohereConfig", {}, ""),
    ("Cohere2Config", {}, ""),
    ("HeliumConfig", {}, ""),
    ("HunYuanDenseV1Config", {"head_dim": 128}, ""),
    ("SeedOssConfig", {}, ""),
    ("Ernie4_5Config", {}, ""),
    ("Exaone4Config", {}, ""),
    ("GPT2Config", {}, ""),
    ("GPTNeoXConfig", {}, ""),
    ("OPTConfig", {}, ""),
    ("OPTConfig", {"word_embed_proj_dim": 512, "do_layer_norm_before": False}, ""),
    ("Phi3Config", {}, ""),
    ("Phi3Config", {"num_key_value_heads": 8}, ""),
    ("DiffLlamaConfig", {}, "the outputs of a pruned copy and of a masked one differ by"),
    ("Gemma3nTextConfig", {"num_kv_shared_layers": 0}, "the outputs of a pruned copy and of a masked one differ by"),
    ("Gemma3nTextConfig", DENSE, ""),
    ("Gemma3nTextConfig", {}, "not in the table"),
    ("Qwen3_5TextConfig", {}, r"not in the table: .*\(linear_attn"),
    ("StableLmConfig", {}, "a pruned copy does not run"),
    ("BitNetConfig", {}, "attn_sub_norm.weight couples the heads"),
    ("DogeConfig", {}, "self_attn.A couples the heads"),
    ("GraniteSWAConfig", {}, "sinks couples the heads"),
    ("CohereConfig", {"use_qk_norm": True}, "q_norm.weight couples the heads"),
    ("Olmo2Config", {}, "q_norm.weight couples the heads"),
    ("GPTBigCodeConfig", {}, "a pruned copy does not run"),
    ("OpenAIGPTConfig", {}, "no attribute 'head_dim'"),
    ("FalconConfig", {}, "not in the table: .*query_key_value"),
    ("BloomConfig", {}, "not in the table: .*query_key_value"),
    ("Llama4TextConfig", {}, "not in the table: .*experts"),
    ("MixtralConfig", {}, "not in the table: .*experts"),
    ("DeepseekV3Config", {}, "not in the table: .*kv_b_proj"),
    ("BartConfig", {}, "of 2 decoder layers 12 were found"),
]


def config_of(name, changes):
    return getattr(transformers, name)(**changes)


def refusal(config, kind, empty):
    """Why an architecture cannot be pruned; empty if it can."""
    try:
        pruning.check_architecture(config, empty)
    except ValueError as refused:
        return str(refused).partition("; supported are")[0].removeprefix(f"{kind.__name__} cannot be pruned: ")
    return ""


def look(name, changes):
    """What is found out about one architecture."""
    config = config_of(name, changes)
    kind, part = decoders.causal_lm(config)
    family = next(filter(None, map(decoders.family_of, decoders.skeleton(tiny_config(part), kind).modules())), None)
    why = refusal(config, kind, False)
    whole = "" if why else "yes" if not (fault := refusal(config, kind, True)) else fault
    given = ", ".join(
        f"{key}={f'[{value[0]}, …]' if isinstance(value, list) else value}" for key, value in changes.items()
    )
    return {
        "architecture": f"{kind.__name__} ({given})" if given else kind.__name__,
        "family": family.name if family else "",
        "verdict": "refused" if why else "works",
        "whole parts can go": whole,
        "why": why,
    }


def rounded(rows):
    """Rows without the sizes of differences, which are sums in an order that depends on the machine."""
    return [{**row, "why": re.sub(r"differ by .*", "differ", row["why"])} for row in rows]


@pytest.fixture(scope="module")
def found():
    return [look(name, changes) for name, changes, _ in ARCHITECTURES]


def test_every_architecture_works_or_is_refused_with_its_reason(found):
    for (_, _, said), row in zip(ARCHITECTURES, found, strict=True):
        assert re.search(said, row["why"]) if said else row["verdict"] == "works", row
    assert {row["family"] for row in found if row["verdict"] == "works"} == {f.name for f in decoders.FAMILIES}


def test_the_committed_table_is_what_is_found(found):
    committed = pd.read_csv(TABLE, keep_default_na=False).to_dict("records")
    assert rounded(committed) == rounded(found)


def checkpoint(folder, name, changes):
    """A tiny random checkpoint of an architecture, loaded as any other."""
    kind, config = decoders.causal_lm(config_of(name, changes))
    config = tiny_config(config)
    config.bos_token_id = config.eos_token_id = None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config)
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.data.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    model.save_pretrained(folder)
    return models.load_causal_lm(folder)


@pytest.mark.parametrize(
    ("name", "changes"),
    [pytest.param(name, changes, id=f"{name}{list(changes)}") for name, changes, said in ARCHITECTURES if not said],
)
def test_what_works_works_from_the_checkpoint_to_the_adapter(name, changes, tmp_path):
    model = checkpoint(tmp_path / "whole", name, changes)
    layers = pruning.groups(model)
    plan = plan_of(model, [([i % 2, 3], [i, 2 + i]) if i else ([0, 1, 3], [1, 4, 5]) for i in range(len(layers))])
    pruned = pruning.prune(model, plan)
    tokens = torch.randint(1, 32, (2, 7), generator=torch.Generator().manual_seed(0))
    pruning.save_pruned(pruned, tmp_path / "pruned")
    loaded = pruning.load_pruned(tmp_path / "pruned")
    assert torch.equal(loaded(tokens).logits, pruned(tokens).logits)
    assert pruning.sizes(pruning.skeleton(tmp_path / "pruned")) == pruning.sizes(pruned)

    adapted = recovery.add_adapter(pruned, 2, seed=0)
    for which, p in adapted.named_parameters():
        if "lora_B" in which:
            p.data.normal_(generator=torch.Generator().manual_seed(2))
    recovery.save_adapter(adapted, tmp_path / "adapter")
    assert lm_loss(adapted, tokens).isfinite()
    again = recovery.load_adapter(loaded, tmp_path / "adapter")
    assert torch.equal(again(tokens).logits, adapted(tokens).logits)
    matrices = {f"{layer.name}.{path}" for layer in layers for path in layer.family.matrices}
    assert {name for name, module in again.get_base_model().named_modules() if hasattr(module, "lora_A")} == matrices


if __name__ == "__main__":
    pd.DataFrame([look(name, changes) for name, changes, _ in ARCHITECTURES]).to_csv(TABLE, index=False)
