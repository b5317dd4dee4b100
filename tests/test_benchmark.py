"""The bridge to lm-eval on local tasks, a tiny random Llama, pruned too, and a tokenizer made on the spot."""

import copy
import json
import sys
import time

import pandas as pd
import pytest
import torch

from rules2ranks import checkpoints
from rules2ranks.evaluation import benchmark, benchmarks
from rules2ranks.runs import ParameterError

WORDS = ("<unk>", "<s>", "</s>", *"the sky is blue green sum of one and two three four".split())
QUESTIONS = [
    {"text": "the sky is", "choices": ["blue", "green and one"], "gold": 0},
    {"text": "sum of one and two is", "choices": ["three", "four of the sky", "one"], "gold": 0},
    {"text": "one and one is", "choices": ["three three", "two"], "gold": 1},
    {"text": "green is", "choices": ["the sky", "four", "blue and green"], "gold": 2},
]


@pytest.fixture(scope="module")
def tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    from transformers import PreTrainedTokenizerFast

    known = {word: place for place, word in enumerate(WORDS)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def llama(kept=None):
    """A random Llama of two layers; `kept` are the key/value groups and MLP channels that remain in each."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from rules2ranks import decoders

    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = LlamaForCausalLM(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return decoders.keep(model, kept) if kept else model


def by_hand(model, tokenizer):
    """Share of questions whose right answer is the likeliest, by sum and by character of the answer."""
    right = {"acc": 0, "acc_norm": 0}
    for question in QUESTIONS:
        sums = []
        for choice in question["choices"]:
            context = tokenizer(question["text"])["input_ids"]
            ids = torch.tensor(context + tokenizer(choice)["input_ids"])
            with torch.no_grad():
                logs = model(ids[None]).logits[0].log_softmax(-1)
            sums.append(sum(float(logs[place - 1, ids[place]]) for place in range(len(context), len(ids))))
        per_character = [log / len(choice) for log, choice in zip(sums, question["choices"], strict=True)]
        right["acc"] += sums.index(max(sums)) == question["gold"]
        right["acc_norm"] += per_character.index(max(per_character)) == question["gold"]
    return {metric: count / len(QUESTIONS) for metric, count in right.items()}


@pytest.mark.slow
@pytest.mark.parametrize("kept", [None, [((0,), tuple(range(9))), ((0, 1), tuple(range(4, 24)))]])
def test_both_scores_are_those_counted_by_hand(tokenizer, kept):
    pytest.importorskip("lm_eval", reason="the extra llm is not installed")
    import datasets

    task = {
        "task": "tiny",
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(QUESTIONS)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{gold}}",
        "doc_to_choice": "{{choices}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        "metadata": {"version": 2.0},
    }
    model = llama(kept)
    before = torch.random.get_rng_state()
    result = benchmark(model, tokenizer, [task], batch_size=3)
    assert torch.equal(before, torch.random.get_rng_state())
    assert result.scores.loc["tiny", ["acc", "acc_norm"]].to_dict() == by_hand(model, tokenizer)
    assert result.scores.loc["tiny", ["n", "fewshot", "version"]].tolist() == [4, 0, "2.0"]
    assert set(result.versions) == {"lm_eval", "datasets", "transformers", "tokenizers", "torch"}
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(ValueError, match="the tokenizer has neither a start nor an end token"):
        benchmark(model, tokenizer, [task])
    assert isinstance(result.scores, pd.DataFrame) and result.scores.index.name == "task"


def test_without_the_extra_the_message_says_what_to_install(monkeypatch):
    for name in ("lm_eval", "lm_eval.tasks"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[llm\]'"):
        benchmark(None, None, ["boolq"])


@pytest.mark.parametrize("tasks", ["boolq", []])
def test_tasks_must_be_a_list_with_something_in_it(tasks):
    with pytest.raises(ValueError, match="tasks must be a list with at least one task"):
        benchmark(None, None, tasks)


@pytest.mark.slow
def test_data_that_cannot_be_had_are_told_with_what_fetches_them(monkeypatch):
    pytest.importorskip("lm_eval", reason="the extra llm is not installed")
    import datasets
    import huggingface_hub

    switches = datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE
    monkeypatch.setattr(checkpoints, "hub_answers", lambda: False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", "nowhere")
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    with pytest.raises(OSError, match=r"the data of boolq, arc_easy cannot be had: ") as told:
        benchmarks.load_tasks(["boolq", "arc_easy"])
    assert sum(waited) < 1, "retried, though the hub does not answer"
    assert "lm-eval run --model dummy --limit 1 --tasks boolq arc_easy\n" in str(told.value)
    assert "fetches allenai/ai2_arc, aps/super_glue into the folder ~/.cache/huggingface" in str(told.value)
    assert (datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE) == switches
    with pytest.raises(ValueError, match=r"lm-eval knows no task boolk; the papers' seven are boolq, piqa, hellaswag"):
        benchmarks.load_tasks(["boolk"])


@pytest.mark.parametrize("line", ["doc_to_text: !function evil.text", "class: !function evil.Task", "class: evil.Task"])
def test_code_in_a_folder_of_tasks_is_not_run_unasked(line, tmp_path):
    pytest.importorskip("lm_eval", reason="the extra llm is not installed")
    (tmp_path / "deep").mkdir()
    (tmp_path / "evil.py").write_text("open('ran', 'w')")
    (tmp_path / "deep" / "mine.yaml").write_text(f"task: mine\n{line}\n")
    with pytest.raises(ValueError, match=r"would run the Python of \S+mine\.yaml: read it, and pass run_code=True"):
        benchmarks.load_tasks(["mine"], tmp_path)


@pytest.fixture
def seven(tmp_path):
    """A folder with a few questions of each of the seven tasks, laid out and named as the hub's repositories are."""
    answers = {"text": ["sky", "sum", "one", "two"], "label": list("ABCD")}
    asked = {"question": "what is blue", "question_stem": "what is blue", "choices": answers, "answerKey": "A"}
    ending = {"activity_label": "x", "ctx_a": "a man", "ctx_b": "he", "endings": ["runs", "sky", "is", "sum"]}
    files = {
        "aps/super_glue/boolq/validation.jsonl": {"question": "is it", "passage": "it is", "label": 1},
        "baber/piqa/data/validation-00000-of-00001.parquet": {"goal": "go", "sol1": "to", "sol2": "no", "label": 0},
        "Rowan/hellaswag/data/validation-00000-of-00001.parquet": ending | {"label": "0"},
        "allenai/winogrande/winogrande_xl/validation.jsonl": {
            "sentence": "Ann and Bo, _ is it",
            "option1": "Bo",
            "option2": "Ann",
            "answer": "1",
        },
        "allenai/ai2_arc/ARC-Easy/test-00000-of-00001.parquet": asked,
        "allenai/ai2_arc/ARC-Challenge/test.jsonl": asked,
        "allenai/openbookqa/main/test.jsonl": asked,
        "allenai/openbookqa/additional/test.jsonl": {"other": 1},
    }
    for number, (name, row) in enumerate(files.items(), 2):
        place = tmp_path / "data" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        rows = pd.DataFrame([row] * number)
        rows.to_parquet(place) if place.suffix == ".parquet" else rows.to_json(place, orient="records", lines=True)
    return tmp_path / "data"


@pytest.mark.slow
def test_the_seven_tasks_are_read_from_a_folder_laid_out_like_the_hub(seven, monkeypatch):
    pytest.importorskip("lm_eval", reason="the extra llm is not installed")
    monkeypatch.setattr(checkpoints, "hub_answers", lambda: False)
    found = benchmarks.load_tasks(benchmarks.SEVEN, data_folder=seven)
    assert {task.config.task: len(task.eval_docs) for task in found} == {
        "boolq": 2,
        "piqa": 3,
        "hellaswag": 4,
        "winogrande": 5,
        "arc_easy": 6,
        "arc_challenge": 7,
        "openbookqa": 8,
    }
    assert found[0].doc_to_text(found[0].eval_docs[0]) == "it is\nQuestion: is it?\nAnswer:", "lm-eval's own prompt"
    (seven / "allenai/openbookqa/main/test.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"openbookqa: .*main holds no split 'test', as") as told:
        benchmarks.load_tasks(benchmarks.SEVEN, data_folder=seven)
    assert f"hf download allenai/openbookqa --repo-type dataset --local-dir {seven}" in str(told.value)
    with pytest.raises(ValueError, match="mmlu is a group of tasks: name the tasks in it"):
        benchmarks.load_tasks(["mmlu"], data_folder=seven)
    with pytest.raises(ValueError, match=r"data_folder .+none must be a folder"):
        benchmarks.load_tasks(["boolq"], data_folder=seven / "none")


@pytest.fixture
def of_ones_own(tmp_path, monkeypatch, tokenizer):
    """A model of one's own with texts, and a folder of two tasks in lm-eval's own YAML: the second has no acc_norm."""
    monkeypatch.setenv("RULES2RANKS_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    llama().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    texts = [f"{a} and {b} is {c}" for a in WORDS[3:9] for b in WORDS[9:12] for c in WORDS[12:15]]
    (tmp_path / "texts.txt").write_text("\n\n".join(texts))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "questions.json").write_text(json.dumps(QUESTIONS))
    for name, metrics in (("both_scores", ["acc", "acc_norm"]), ("one_score", ["acc"])):
        lines = [
            f"task: {name}",
            "dataset_path: json",
            f"dataset_kwargs: {{data_files: {{test: '{tmp_path / 'tasks' / 'questions.json'}'}}}}",
            "test_split: test",
            "output_type: multiple_choice",
            "doc_to_text: '{{text}}'",
            "doc_to_target: '{{gold}}'",
            "doc_to_choice: '{{choices}}'",
            f"metric_list: [{', '.join(f'{{metric: {metric}}}' for metric in metrics)}]",
            "metadata: {version: 3.0}",
        ]
        (tmp_path / "tasks" / f"{name}.yaml").write_text("\n".join(lines))
    base = {"model": str(tmp_path / "model"), "data": str(tmp_path / "texts.txt"), "held_out": 5, "length": 8}
    return base, {"folder": str(tmp_path / "tasks")}


@pytest.mark.slow
def test_a_model_of_ones_own_is_measured_whole_pruned_and_recovered(of_ones_own, tokenizer):
    pytest.importorskip("lm_eval", reason="the extra llm is not installed")
    from rules2ranks import models, recovery, stages
    from rules2ranks.stages import compressing, own_model

    base, folder = of_ones_own
    asked = {"tasks": ["both_scores", "one_score"], "task_folder": folder, "batch": 3}
    pruned = {"base": base, "ratio": 0.2, "protect": (0, 0)}
    recovered = stages.recover(pruned=pruned, ranks=2, steps=4, batch=8, examples=20, lr=0.05)
    parameters = stages.recover.Params.check(recovered.params)
    smaller = compressing.load_pruned(parameters.pruned)
    adapted = recovery.load_adapter(compressing.load_pruned(parameters.pruned), recovered.folder)
    for of, model in [
        (base, models.load_causal_lm(base["model"])),
        (pruned, smaller),
        (recovered.params, recovery.merge(adapted)),
    ]:
        metrics = own_model.benchmark(of=of, **asked).metrics
        expected = by_hand(model, tokenizer)
        both, one = metrics["tasks"]["both_scores"], metrics["tasks"]["one_score"]
        assert {name: both[name] for name in expected} == expected
        assert (one["acc"], one["acc_norm"], one["n"], one["version"]) == (expected["acc"], None, 4, "3.0")
        assert metrics["mean_acc"] == expected["acc"]
        assert metrics["mean_acc_norm"] == (expected["acc_norm"] + expected["acc"]) / 2
        assert metrics["versions"]["lm_eval"]
    first = own_model.benchmark(of=base, **asked, limit=1)
    assert first.metrics["tasks"]["one_score"]["n"] == 1
    assert own_model.benchmark.find(of=base, **asked, limit=1).folder == first.folder
    with pytest.raises(ValueError, match="got 'language': it has no tokenizer"):
        own_model.benchmark(of={"ratio": 0.5}, **asked)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task_folder": {"folder": "none"}}, r"there is no folder .+none"),
        ({"tasks": []}, "parameter 'tasks' = .*: Tuple should have at least 1 item"),
        ({"fewshot": -1}, "parameter 'fewshot' = -1"),
        ({"of": {"pruned": {}, "rank": 2}}, "'of' = .* unknown parameter 'rank': did you mean 'ranks'"),
        ({"of": {"model": "x"}}, "'of' = .* parameter 'data' is missing"),
        ({"of": {"ratoi": 0.5}}, "'of' = .* unknown parameter 'ratoi': did you mean 'ratio'"),
    ],
)
def test_mistakes_are_told_before_any_work(of_ones_own, change, said):
    from rules2ranks.stages import own_model

    base, folder = of_ones_own
    with pytest.raises(ParameterError, match=said):
        own_model.benchmark(**{"of": base, "task_folder": folder} | change)


def test_changed_tasks_are_another_result(of_ones_own, tmp_path):
    from rules2ranks.stages.own_model import Folder

    _, folder = of_ones_own
    before = Folder.check(folder)
    assert Folder.check(before.model_dump()) == before
    (tmp_path / "tasks" / "questions.json").write_text(json.dumps(QUESTIONS[:3]))
    assert Folder.check(folder).fingerprint != before.fingerprint
    with pytest.raises(ParameterError, match="the files of content have changed since"):
        Folder.check(before.model_dump())
