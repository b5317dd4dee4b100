"""Models of one's own, pruned and recovered from files as users bring them: tiny random ones, made on the spot."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers import models as kinds
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    MixtralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

import tiny_decoders
from rules2ranks import checkpoints, models, pruning, recovery, stages
from rules2ranks.configuration import Configuration, memory
from rules2ranks.recovery.methods import IN_PLACE
from rules2ranks.runs import ParameterError
from rules2ranks.stages import compressing, own_model, own_texts, subjects
from rules2ranks.stages.compressing import Pruning, Recovery
from rules2ranks.stages.own_texts import OwnModel
from rules2ranks.tasks import texts

#: Heads as wide as 8 although 24 / 4 = 6: as in Llama 3.2 and Qwen 3, the width of a head is a number of its own.
SHAPE = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
ROPE = {"rope_type": "default", "rope_theta": 500000.0}
FAMILIES = {
    "llama": LlamaConfig(**SHAPE, vocab_size=300, head_dim=8, rope_parameters=ROPE),
    "llama, tied": LlamaConfig(**SHAPE, vocab_size=300, head_dim=8, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SHAPE, vocab_size=300, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SHAPE, vocab_size=300, head_dim=8),
}
ROWS = [
    {"instruction": f"Add {a} and {b}.", "input": "" if a % 2 else f"as {a}", "output": f"The sum is {a + b}."}
    for a in range(11)
    for b in range(11)
]
SETTINGS = {"length": 240, "held_out": 12, "train_on_prompt": False}
PRUNED = {"ratio": 0.2, "protect": (0, 1)}
TRAINED = {"ranks": 2, "steps": 6, "batch": 10, "examples": 60, "lr": 1e-2}


@pytest.fixture(autouse=True, scope="module")
def store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RULES2RANKS_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setenv("TQDM_DISABLE", "1")
        yield


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level BPE with a start token, as Llama 3 has."""
    pairs = Tokenizer(kinds.BPE())
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pairs.train_from_iterator([text for row in ROWS for text in row.values()], trainer)
    pairs.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=pairs, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def home(tmp_path_factory, tokenizer):
    """A folder of models, one of each family, and of texts in Alpaca's form."""
    home = tmp_path_factory.mktemp("home")
    (home / "alpaca.json").write_text(json.dumps(ROWS))
    for name, config in FAMILIES.items():
        save(config, home / name, tokenizer)
    return home


def save(config, folder, tokenizer, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.2)
    model.save_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)


def of(home, name="llama", **settings):
    return {"model": str(home / name), "data": str(home / "alpaca.json"), **SETTINGS, **settings}


def own_loss(model, tokens, labels):
    """The mean over scored tokens of the loss that transformers itself computes, text by text, and their number."""
    total, count = 0.0, 0
    with torch.no_grad():
        for ids, wanted in zip(tokens, labels, strict=True):
            scored = int((wanted[1:] != -100).sum())
            total += model(input_ids=ids[None], labels=wanted[None]).loss.double().item() * scored
            count += scored
    return total / count, count


# --- prune, recover, export -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_pruned_recovered_and_exported(home, tmp_path, family):
    base = of(home, family)
    given = subjects.subject(OwnModel.check(base))
    before = stages.prune(base=base, **PRUNED)
    assert before.metrics["parameters_removed"] == pytest.approx(0.2, abs=0.01)
    after = stages.recover(pruned={"base": base, **PRUNED}, **TRAINED)
    assert after.metrics["loss"] < before.metrics["after"]["loss"]

    # Two lines load it, and it says what the recovery's metrics say, by transformers' own loss.
    folder = own_model.export(after.params, tmp_path / "merged")
    model, tokenizer = pruning.load_pruned(folder), AutoTokenizer.from_pretrained(folder)
    some = texts.split(texts.read(base["data"]), SETTINGS["held_out"])["report"]
    report = [torch.from_numpy(a) for a in texts.encode(some, tokenizer, SETTINGS["length"], False)]
    assert own_loss(model, *report)[0] == pytest.approx(after.metrics["loss"], abs=1e-4)
    assert torch.equal(report[0], given.held_out("report")[0].cpu())

    # Beside the weights, the adapter gives the same; and what an earlier export wrote is replaced.
    assert own_model.export(after.params, folder, merged=False) == folder
    apart = recovery.load_adapter(pruning.load_pruned(folder), folder / "adapter")
    with torch.no_grad():
        ids = report[0][:2, :30]
        torch.testing.assert_close(apart(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)


def test_the_readme_of_an_export_loads_it(home, tmp_path):
    made = stages.recover(pruned={"base": of(home), **PRUNED}, **TRAINED)
    for merged in (True, False):
        folder = own_model.export(made.params, tmp_path / f"merged {merged}", merged=merged)
        said = (folder / "README.md").read_text()
        names = {}
        exec(said.split("```python\n")[1].split("```")[0].replace("THIS FOLDER", str(folder)), names)
        given = subjects.subject(OwnModel.check(of(home)))
        assert given.evaluate("report", names["model"])["loss"] == pytest.approx(made.metrics["loss"], abs=1e-4)
        assert names["tokenizer"]("The sum").input_ids[0] == 0
        noted = json.loads(said.split("```json\n")[1].split("```")[0])
        noted["pruned"]["base"] |= {"model": str(home / "llama"), "data": str(home / "alpaca.json")}
        assert noted == made.params
        assert f"{made.metrics['loss']:.4f} nats" in said


def test_the_same_parameters_give_the_same_bytes_and_no_path_wherever_they_lie(home, tmp_path, monkeypatch):
    found = []
    for place in ("one", "the other"):
        shutil.copytree(home / "llama", tmp_path / place / "llama")
        shutil.copyfile(home / "alpaca.json", tmp_path / place / "alpaca.json")
        monkeypatch.setenv("RULES2RANKS_RUNS", str(tmp_path / place / "runs"))
        recovered = {"pruned": {"base": of(tmp_path / place), **PRUNED}, **TRAINED}
        folder = own_model.export(recovered, tmp_path / place / "exported", merged=False)
        files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert not [name for name, content in files.items() if str(tmp_path).encode() in content]
        found.append(files)
    assert found[0] == found[1]


@pytest.mark.parametrize("method", [each.name for each in IN_PLACE])
def test_what_was_trained_in_place_is_exported_in_the_weights_or_beside_them(home, tmp_path, method):
    made = stages.recover(pruned={"base": of(home), **PRUNED}, **TRAINED | {"method": method})
    given = subjects.subject(OwnModel.check(of(home)))
    for merged in (True, False):
        folder = own_model.export(made.params, tmp_path / f"merged {merged}", merged=merged)
        assert (folder / "adapter" / "correction.safetensors").is_file() != merged
        said, names = (folder / "README.md").read_text(), {}
        exec(said.split("```python\n")[1].split("```")[0].replace("THIS FOLDER", str(folder)), names)
        assert given.evaluate("report", names["model"])["loss"] == pytest.approx(made.metrics["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("ranks", "bits", "method"),
    [(2, 4, "lora"), ([2, 0, 1], [2, 8, 4], "loftq"), ([0, 2, 2], [3, 16, 16], "lora"), (0, 3, "lora")],
)
def test_a_quantised_export_computes_what_was_measured(home, tmp_path, ranks, bits, method):
    pruned, how = {"base": of(home), **PRUNED}, TRAINED | {"ranks": ranks, "bits": bits, "group": 16, "method": method}
    made = stages.recover(pruned=pruned, **how)
    names = {}
    folder = own_model.export(made.params, tmp_path / "few bits")
    said = (folder / "README.md").read_text()
    exec(said.split("```python\n")[1].split("```")[0].replace("THIS FOLDER", str(folder)), names)
    given = subjects.subject(OwnModel.check(of(home)))
    # The same numbers, but for sums that a training step takes in another order.
    assert given.evaluate("report", names["model"])["loss"] == pytest.approx(made.metrics["loss"], rel=1e-5)
    choice = Recovery.check(made.params)
    configuration = Configuration(bits=choice.bits, ranks=choice.ranks)
    promised = memory(configuration, compressing.pruned_shapes(choice.pruned), group=16)
    adapter = folder / "adapter" / "adapter_model.safetensors"
    assert adapter.exists() == (choice.bits.keys() & choice.ranks.keys() != set())
    if adapter.exists() or not choice.ranks:
        held = [t for f in folder.rglob("*.safetensors") for t in load_file(f).values()]
        assert sum(t.numel() * t.element_size() for t in held) == promised


def test_nothing_else_is_exported_or_written_over(home, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="mine holds something else than an exported model"):
        own_model.export({"pruned": {"base": of(home), **PRUNED}, **TRAINED}, tmp_path / "mine")
    (tmp_path / "mine" / "pruning.json").write_text("{}")
    with pytest.raises(ValueError, match=r"something else than an exported model \(thesis\.txt\): name another"):
        own_model.export({"pruned": {"base": of(home), **PRUNED}, **TRAINED}, tmp_path / "mine")
    (tmp_path / "mine" / ".git").mkdir()
    with pytest.raises(ValueError, match=r"something else than an exported model \(\.git, thesis\.txt\): name another"):
        own_model.export({"pruned": {"base": of(home), **PRUNED}, **TRAINED}, tmp_path / "mine")
    (tmp_path / "mine" / ".git").rmdir()
    (tmp_path / "mine" / "pruning.json").unlink()
    with pytest.raises(ValueError, match=r"expected a base with a model of your own \(model, data\), got 'language'"):
        own_model.export({"pruned": {}}, tmp_path / "other")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"] and not (tmp_path / "other").exists()


def test_in_bfloat16_too(home, tmp_path):
    base = of(home, dtype="bfloat16")
    before = stages.prune(base=base, **PRUNED)
    assert {tensor.dtype for tensor in load_file(before.file("model.safetensors")).values()} == {torch.bfloat16}
    after = stages.recover(pruned={"base": base, **PRUNED}, **TRAINED)
    whole = stages.prune(base=of(home), **PRUNED).metrics["before"]["loss"]
    assert before.metrics["before"]["loss"] == pytest.approx(whole, rel=0.02)
    assert after.metrics["loss"] < before.metrics["after"]["loss"]
    model = pruning.load_pruned(own_model.export(after.params, tmp_path / "half"))
    loss = subjects.subject(OwnModel.check(base)).evaluate("report", model)["loss"]
    assert model.dtype == torch.bfloat16 and loss == pytest.approx(after.metrics["loss"], rel=0.02)


# --- the subject ------------------------------------------------------------------------------------------------


@pytest.fixture
def given(home):
    return subjects.subject(OwnModel.check(of(home, at_once=5)))


def test_scores_are_those_of_transformers_and_counted_by_hand(given):
    tokens, labels = batch = given.held_out("search")
    loss, count = own_loss(given.model, tokens, labels)
    scores = given.evaluate("search")
    assert scores["loss"] == pytest.approx(loss, rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    right = sum(
        int((given.model(ids[None]).logits[0].argmax(-1)[:-1] == wanted[1:]).sum())
        for ids, wanted in zip(*batch, strict=True)
    )
    assert scores["accuracy"] == pytest.approx(right / count)


def test_a_loss_in_parts_has_the_gradients_of_the_whole(given):
    batch = given.draw(13, 0)
    gradients = []
    for mode in (True, False):  # in training five texts at a time, else all together
        given.model.train(mode).zero_grad()
        loss = given.loss(given.model, batch)
        loss.backward()
        gradients.append([p.grad.clone() for p in given.model.parameters()])
        assert loss.item() == pytest.approx(own_loss(given.model, *batch)[0], rel=1e-5)
    for parts, whole in zip(*gradients, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", tiny_decoders.FAMILIES)
@pytest.mark.parametrize("train", [False, True])
def test_layers_computed_again_have_the_same_gradients(family, train):
    model = tiny_decoders.build(family).train(train)
    pair = tiny_decoders.tokens(batch=3), tiny_decoders.tokens(batch=3)
    found = []
    for again in (False, True):
        torch.manual_seed(0)  # GPT-2 and OPT drop some in training
        model.zero_grad()
        loss = own_texts.text_loss(model, pair, 2, again)
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 9
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert not any("forward" in vars(module) for module in model.modules())


def test_measures_and_recovery_are_the_same_with_layers_computed_again(home):
    usual, again = ({"base": of(home, gradient_checkpointing=how), **PRUNED} for how in (False, True))
    for measure in ("taylor-mixed", "flap"):
        one, other = (stages.prune(**given, importance=measure) for given in (usual, again))
        assert one.folder != other.folder
        assert one.file("model.safetensors").read_bytes() == other.file("model.safetensors").read_bytes()
    one, other = (stages.recover(pruned=given, **TRAINED) for given in (usual, again))
    assert one.metrics["loss"] == other.metrics["loss"]
    assert "gradient_checkpointing" not in OwnModel.check(of(home)).model_dump(), "older results are still found"


def test_divergence_is_the_mean_over_scored_positions(given, home):
    other = models.load_causal_lm(home / "llama")
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
        tokens, labels = given.held_out("search")
        ours, theirs = (m(tokens).logits[:, :-1].double().log_softmax(-1) for m in (other, given.model))
        apart = (theirs.exp() * (theirs - ours)).sum(-1)[labels[:, 1:] != -100].mean().item()
    assert apart > 0.01
    assert given.divergence(given.held_out("search"), other) == pytest.approx(apart, rel=1e-4)
    assert given.divergence(given.held_out("search"), given.model) == 0


def test_what_is_drawn(given, home):
    parts = given.encoded
    assert {name: len(tokens) for name, (tokens, _) in parts.items()} == {"train": 97, "search": 12, "report": 12}
    tokens, labels = given.draw(20, 1)
    assert tokens.shape == labels.shape == (20, 240) and len(tokens.unique(dim=0)) == 20
    assert torch.equal(tokens, given.draw(20, 1)[0]) and not torch.equal(tokens, given.draw(20, 2)[0])
    assert len(given.draw(10**6, 1)[0]) == 97
    training = {tuple(row) for row in parts["train"][0].tolist()}
    assert {tuple(row) for row in tokens.tolist()} <= training
    assert not training & {tuple(row) for part in ("search", "report") for row in parts[part][0].tolist()}
    # LLM-Pruner's ten windows of 64 tokens, one by one, each with something to learn.
    windows = given.calibration(0)
    assert [ids.shape for ids, _ in windows] == [(1, 64)] * 10
    assert all((wanted[:, 1:] != -100).any() for _, wanted in windows)
    assert len({tuple(ids.flatten().tolist()) for ids, _ in windows}) > 5


@pytest.mark.parametrize("base", ["own", "language"])
def test_positions_are_those_that_the_loss_depends_on(home, base):
    given = subjects.subject(OwnModel.check(of(home)) if base == "own" else base)
    batch = given.draw(6, 0)
    seen = []

    def hook(module, inputs, output):
        seen.append(output.requires_grad_())

    handle = given.model.get_input_embeddings().register_forward_hook(hook)
    loss = given.loss(given.model.eval(), batch)
    handle.remove()
    (gradient,) = torch.autograd.grad(loss, seen)
    assert torch.equal(given.positions(batch), gradient.ne(0).any(-1))


# --- parameters -------------------------------------------------------------------------------------------------


def copied(home, folder, name="llama"):
    shutil.copytree(home / name, folder / "model")
    shutil.copy(home / "alpaca.json", folder / "alpaca.json")
    return {**SETTINGS, "model": str(folder / "model"), "data": str(folder / "alpaca.json")}


def rewrite(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def change_weight(folder):
    weights = load_file(folder / "model" / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, folder / "model" / "model.safetensors", {"format": "pt"})


CHANGES = {
    "weights": ("model", change_weight),
    "configuration": ("model", lambda folder: rewrite(folder / "model" / "config.json", "500000.0", "500001.0")),
    "tokenizer": ("model", lambda folder: rewrite(folder / "model" / "tokenizer.json", '"<s>"', '"<S>"')),
    "texts": ("data", lambda folder: rewrite(folder / "alpaca.json", "The sum is 3.", "The sum is 4.")),
    "a readme": (None, lambda folder: (folder / "model" / "README.md").write_text("more words")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_files_are_another_result(home, tmp_path, change):
    what, change = CHANGES[change]
    base = copied(home, tmp_path)
    before = OwnModel.check(base)
    assert before.fingerprint == OwnModel.check(of(home)).fingerprint, "the same files elsewhere"
    assert OwnModel.check(before.model_dump()) == before
    change(tmp_path)
    after = OwnModel.check(base)
    if what is None:
        assert after == before
        return
    assert after.fingerprint != before.fingerprint
    with pytest.raises(ParameterError, match=f"the files of {what} have changed since: their fingerprint was "):
        stages.prune.find(base=before.model_dump())


def test_a_base_is_told_by_its_names():
    def kind(base):
        return type(Pruning.check({"base": base}).base).__name__

    assert kind("language") == "str"
    for base, name in [({}, "LanguageTraining"), ({"seed": 3}, "LanguageTraining"), ({"source": 30}, "Pretraining")]:
        assert kind(base) == name
        assert Pruning.check(Pruning.check({"base": base}).model_dump(mode="json")) == Pruning.check({"base": base})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": None}, r"parameter 'data' = None: Input should be a valid string"),
        (
            {"data": "none.json"},
            r"data: there is no file .+none\.json; alpaca-cleaned, for example, is had by: hf down",
        ),
        ({"lenght": 64}, r"unknown parameter 'lenght': did you mean 'length'\? Allowed are model, data, length"),
        ({"dtype": "int8"}, r"parameter 'dtype' = 'int8': Input should be 'float32' or 'bfloat16'"),
        ({"length": 1}, r"parameter 'length' = 1: Input should be greater than or equal to 2"),
        ({"held_out": 0}, r"parameter 'held_out' = 0: Input should be greater than or equal to 1"),
        ({"calibration_length": 1}, r"parameter 'calibration_length' = 1: Input should be greater than or equal to 2"),
    ],
)
def test_mistakes_are_told_before_any_work(home, change, said):
    with pytest.raises(ParameterError, match=f"parameter 'base' = .*{said}"):
        stages.prune(base=of(home) | change)


def test_mistakes_in_other_bases_are_told_with_their_names():
    for base, said in [
        ({"sauce": 30}, "'base' = .* unknown parameter 'sauce': did you mean 'source'"),
        ({"model": "x"}, "'base' = .* parameter 'data' is missing. Allowed are model, data, length"),
        ("langage", "'base' = 'langage': Input should be 'language' or 'gemma'"),
    ]:
        with pytest.raises(ParameterError, match=said):
            stages.prune(base=base)


def test_texts_and_model_have_to_fit(home, tmp_path, tokenizer):
    with pytest.raises(ValueError, match="121 different texts are too few to hold out 50 each"):
        stages.prune(base=of(home, held_out=50))
    config = LlamaConfig(**SHAPE, vocab_size=100)
    save(config, tmp_path / "small", tokenizer)
    base = of(home) | {"model": str(tmp_path / "small")}
    with pytest.raises(ValueError, match=r"tokenizer beside \S+small says token \d+, the model knows 0 to 99"):
        stages.prune(base=base)
    for path in checkpoints.tokenizer_files(tmp_path / "small"):
        path.unlink()
    with pytest.raises(ValueError, match=r"small holds no tokenizer: expected tokenizer\.json"):
        stages.prune(base=base)
    save(LlamaConfig(**SHAPE | {"max_position_embeddings": 128}, vocab_size=300), tmp_path / "short", tokenizer)
    with pytest.raises(ValueError, match="length is 240 tokens, but the model's positions end at 128"):
        stages.prune(base=of(home) | {"model": str(tmp_path / "short")})
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "some.gguf").touch()
    with pytest.raises(OSError, match=r"holds GGUF only \(some\.gguf\): [^$]*from_pretrained"):
        stages.prune(base=of(home) | {"model": str(tmp_path / "packed")})
    experts = MixtralConfig(**SHAPE, vocab_size=300, num_local_experts=2)
    save(experts, tmp_path / "experts", tokenizer)
    with pytest.raises(ValueError, match=r"Mixtral\S+ cannot be pruned: .*not in the table.*supported are Llama"):
        stages.prune(base=of(home) | {"model": str(tmp_path / "experts")})
