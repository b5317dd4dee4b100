"""The table of architecture families: where a decoder layer's matrices are, and how the groups lie in them.

To add a family, write one entry here and one line in `tests/test_architectures.py`, which then writes its table anew:
see `docs/extending.md`.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from operator import attrgetter

from torch import nn

#: What lies one after the other along a matrix's outputs, all groups in each: () for one section. "q" has the query
#: heads of each key/value head, any other section one head or channel of each group.
Sections = tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """The matrices that groups share out: `inner` along their outputs, `output` along its inputs. Paths in a layer."""

    inner: Mapping[str, Sections]
    output: str

    @property
    def matrices(self) -> tuple[str, ...]:
        return (*self.inner, self.output)


@dataclass(frozen=True)
class Family:
    """Decoder layers of one kind.

    `head` is the path of the size of a head, `queries` that of the query heads per key/value head ("": always 1), and
    `query_heads` are the matrices that single query heads share out, where these lie in matrices of their own.
    `remembers` are paths of sizes that pruning changes ("heads", "key/value heads", "width" of all heads, "channels")
    and that a module holds beside its weights, if it does; those of a `config` become the layer's own.
    """

    name: str
    what: str
    attention: Part
    mlp: Part
    head: str
    queries: str = ""
    query_heads: Part | None = None
    remembers: Mapping[str, str] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[Part, Part]:
        return self.attention, self.mlp

    @property
    def matrices(self) -> tuple[str, ...]:
        """The paths of all matrices, in the order of the network."""
        return self.attention.matrices + self.mlp.matrices


#: All families; the first whose paths a layer has is taken.
FAMILIES = [
    Family(
        "Llama-like",
        "Llama, Mistral, Qwen2, Qwen3 and others: separate q/k/v/o and gate/up/down",
        Part({"self_attn.q_proj": (), "self_attn.k_proj": (), "self_attn.v_proj": ()}, "self_attn.o_proj"),
        Part({"mlp.gate_proj": (), "mlp.up_proj": ()}, "mlp.down_proj"),
        head="self_attn.head_dim",
        queries="self_attn.num_key_value_groups",
        query_heads=Part({"self_attn.q_proj": ()}, "self_attn.o_proj"),
        remembers={"mlp.intermediate_size": "channels"},
    ),
    Family(
        "GPT-2",
        "q, k and v in one matrix, one after the other; two matrices in the MLP",
        Part({"attn.c_attn": ("q", "k", "v")}, "attn.c_proj"),
        Part({"mlp.c_fc": ()}, "mlp.c_proj"),
        head="attn.head_dim",
        remembers={"attn.split_size": "width", "attn.num_heads": "heads"},
    ),
    Family(
        "GPT-NeoX",
        "Pythia: q, k and v in one matrix, head by head; two matrices in the MLP",
        Part({"attention.query_key_value": ()}, "attention.dense"),
        Part({"mlp.dense_h_to_4h": ()}, "mlp.dense_4h_to_h"),
        head="attention.head_size",
    ),
    Family(
        "OPT",
        "separate q/k/v/out, and fc1 and fc2 on the layer itself",
        Part({"self_attn.q_proj": (), "self_attn.k_proj": (), "self_attn.v_proj": ()}, "self_attn.out_proj"),
        Part({"fc1": ()}, "fc2"),
        head="self_attn.head_dim",
        remembers={"self_attn.num_heads": "heads"},
    ),
    Family(
        "Phi-3",
        "q, k and v in one matrix, gate and up in another, one after the other",
        Part({"self_attn.qkv_proj": ("q", "k", "v")}, "self_attn.o_proj"),
        Part({"mlp.gate_up_proj": ("gate", "up")}, "mlp.down_proj"),
        head="self_attn.head_dim",
        queries="self_attn.num_key_value_groups",
        remembers={
            "self_attn.num_key_value_heads": "key/value heads",
            "self_attn.config.num_attention_heads": "heads",
        },
    ),
]
#: The matrices of a Llama-like layer, in the order of the network.
LLAMA = FAMILIES[0].matrices
SUPPORTED = "; ".join(f"{family.name} layers ({family.what})" for family in FAMILIES)


def family_of(module: nn.Module) -> Family | None:
    """The family that `module` is a layer of: it has the matrices."""
    if not module._modules:  # most modules have no others in them, and are asked again and again
        return None
    for family in FAMILIES:
        with suppress(AttributeError):
            attrgetter(*family.matrices)(module)
            return family
    return None
