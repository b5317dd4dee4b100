"""Training texts from a file of one's own: read, split into parts, and encoded for a causal language model.

Three kinds of file are understood, all UTF-8: `.json` (a list of objects), `.jsonl` (an object a line) and `.txt`
(paragraphs, with blank lines between them). An object holds either

| fields | its prompt | its answer |
|---|---|---|
| `instruction`, `output`, perhaps `input` | instruction and input in Alpaca's template | the output |
| `prompt`, `completion` | the prompt | the completion, which follows it as it is |
| `text` | none | the text |

and whatever other fields it likes. A paragraph of a `.txt` file is a text. Texts without an answer are left out.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

#: Marks the positions that no loss counts.
IGNORED = -100
#: Training, and the two parts held out from it: a search may look at one, and only a report at the other.
Part = Literal["train", "search", "report"]
#: The prompts of Stanford Alpaca (Taori et al. 2023), which LLM-Pruner and its family recover with.
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
_FORMS = (("instruction", "output"), ("prompt", "completion"), ("text",))
_UNDERSTOOD = "instruction, output and perhaps input (Alpaca's form); prompt and completion; or text"


class Text(NamedTuple):
    """What a model is given and what it is to say; the prompt may be empty."""

    prompt: str
    answer: str


def read(path: str | Path) -> list[Text]:
    """The texts of a file, in its order.

    Raises:
        ValueError: there is no such file, it is not of a kind that is understood, it holds objects with other fields or
            with fields that are no text, or nothing but empty texts: names the file and the entry.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"there is no file {path.absolute()}: expected texts as .json, .jsonl or .txt")
    if path.suffix.lower() not in (".json", ".jsonl", ".txt"):
        raise ValueError(f"{path} is not understood: expected texts as .json, .jsonl or .txt")
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    if not content.strip():
        raise ValueError(f"{path} is empty")
    if path.suffix.lower() == ".txt":
        found = [Text("", paragraph) for paragraph in re.split(r"\n\s*\n", content.strip())]
    else:
        found = [_text(entry, f"{path}, entry {place}") for place, entry in enumerate(_entries(path, content), 1)]
    found = [text for text in found if text.answer.strip()]
    if not found:
        raise ValueError(f"{path} holds only empty texts")
    return found


def split(texts: Sequence[Text], held_out: int) -> dict[Part, list[Text]]:
    """The texts in three parts that have no prompt in common: `held_out` (or slightly more) each for search and report.

    A hash of the prompt (of the text, where there is none) decides, so a text stays in its part when others of the file
    are put in another order; texts that occur twice count once.

    Raises:
        ValueError: fewer than `held_out` different texts would be left for training.
    """
    by_prompt: dict[str, list[Text]] = {}
    for text in dict.fromkeys(texts):
        by_prompt.setdefault(text.prompt.strip() or text.answer, []).append(text)
    parts: dict[Part, list[Text]] = {name: [] for name in get_args(Part)}
    for prompt in sorted(by_prompt, key=lambda prompt: hashlib.sha256(prompt.encode()).digest()):
        name = next((name for name in ("report", "search") if len(parts[name]) < held_out), "train")
        parts[name] += sorted(by_prompt[prompt])
    if len(parts["train"]) < held_out:
        raise ValueError(
            f"{sum(map(len, parts.values()))} different texts are too few to hold out {held_out} each for search and "
            "report and to train on no fewer: a smaller held_out, or more texts (in a .txt file blank lines part them)"
        )
    return parts


def encode(
    texts: Sequence[Text], tokenizer: Any, length: int, train_on_prompt: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Texts as a causal model of transformers takes them: tokens and labels, both `(n, length)` int64.

    Each text begins as the tokenizer begins one (Llama's: with a start token), is cut off at `length` tokens, ends with
    the tokenizer's end token where that fits, and is padded on the right: with zeros, as what stands there has no part
    in what a causal model says before. Labels are aligned with tokens (the model shifts) and -100 in the padding.
    LLM-Pruner's default is to train on the prompt, too; otherwise labels are -100 in prompts, and a text whose answer
    is cut off entirely is left out, so n may be smaller than the number of texts.

    Raises:
        ValueError: a `length` below 2, no text with anything to learn within it, or a slow tokenizer where the prompt
            is not trained on (it cannot tell where the prompt ends).
    """
    if length < 2:
        raise ValueError(f"length must be at least 2 tokens, got {length}")
    if not train_on_prompt and not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} is a slow tokenizer: it can only train on prompts, too")
    rows = []
    for place in range(0, len(texts), 1000):
        rows += _begun(texts[place : place + 1000], tokenizer, length, train_on_prompt)
    rows = [(ids, begin) for ids, begin in rows if len(ids) > max(begin, 1)]
    if not rows:
        raise ValueError(
            f"none of {len(texts)} texts has anything to learn in its first {length} tokens"
            + ("" if train_on_prompt else ": prompts are longer; a larger length, or train on prompts, too")
        )
    tokens = np.zeros((len(rows), length), dtype=np.int64)
    labels = np.full((len(rows), length), IGNORED, dtype=np.int64)
    for row, (ids, begin) in enumerate(rows):
        tokens[row, : len(ids)] = ids
        labels[row, begin : len(ids)] = ids[begin:]
    return tokens, labels


def some(tokens: np.ndarray, labels: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`n` different texts of `encode`'s, drawn from `seed`; all of them, in another order, where there are fewer."""
    rows = np.random.Generator(np.random.Philox(seed)).permutation(len(tokens))[:n]
    return tokens[rows], labels[rows]


def start_token(tokenizer: Any) -> int | None:
    """The token that the tokenizer begins every text with; None if it does not."""
    begun = tokenizer("").input_ids
    return begun[0] if begun and begun[0] == tokenizer.bos_token_id else None


def windows(
    tokens: np.ndarray, labels: np.ndarray, n: int, length: int, seed: int, start: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """`n` windows of `length` tokens, drawn from `seed`: each from any text and any place that has something to learn.

    With `start`, the `start_token`, every window begins with it, in the place of its first token: some models say
    nothing sensible without one.
    `tokens` and `labels` are `encode`'s; so is what comes back, `(n, length)` or as wide as the texts are. A text that
    is shorter than a window is taken whole, with its padding.

    Raises:
        ValueError: a `length` below 2.
    """
    if length < 2:
        raise ValueError(f"length must be at least 2 tokens, got {length}")
    length = min(length, tokens.shape[1])
    rng = np.random.Generator(np.random.Philox(seed))
    rows = rng.integers(len(tokens), size=n)
    learnt = labels[rows] != IGNORED
    first, end = learnt.argmax(axis=1), tokens.shape[1] - learnt[:, ::-1].argmax(axis=1)
    earliest = np.maximum(0, first - length + 1)
    starts = rng.integers(earliest, np.maximum(earliest, end - length) + 1)
    places = starts[:, None] + np.arange(length)
    drawn, wanted = tokens[rows[:, None], places], labels[rows[:, None], places]
    if start is not None:
        drawn[:, 0], wanted[:, 0] = start, IGNORED
    return drawn, wanted


def _entries(path: Path, content: str) -> list[Any]:
    try:
        found = json.loads(content)
        return found if isinstance(found, list) else [found]
    except ValueError as whole:
        lines = [(number, line) for number, line in enumerate(content.splitlines(), 1) if line.strip()]
        if path.suffix.lower() == ".json" and len(lines) < 2:
            raise ValueError(f"{path} is not JSON: {whole}") from whole
    found = []
    for number, line in lines:
        try:
            found.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON, as a whole or line by line: line {number}: {error}") from error
    return found


def _text(entry: Any, where: str) -> Text:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where} is no object but {entry!r:.60}: expected an object with {_UNDERSTOOD}")
    form = next((form for form in _FORMS if set(form) <= set(entry)), None)
    if form is None:
        raise ValueError(f"{where} has {', '.join(map(repr, entry)) or 'no field'}: expected {_UNDERSTOOD}")
    alpaca = "instruction" in form
    used = {name: entry.get(name) or "" for name in (*form, *["input"] * alpaca)}
    if wrong := [name for name, value in used.items() if not isinstance(value, str)]:
        raise ValueError(f"{where}: {wrong[0]} is no text but {used[wrong[0]]!r:.60}")
    if alpaca:
        template = ALPACA_WITH_INPUT if used["input"].strip() else ALPACA
        return Text(template.format(instruction=used["instruction"], input=used["input"]), used["output"])
    return Text(used.get("prompt", ""), used[form[-1]])


def _begun(texts: Sequence[Text], tokenizer: Any, length: int, train_on_prompt: bool) -> list[tuple[list[int], int]]:
    """Per text its tokens, and the place from which on they are to be learnt."""
    whole = [prompt + answer for prompt, answer in texts]
    exact = not train_on_prompt
    said = tokenizer(whole, padding=False, truncation=False, return_offsets_mapping=exact, verbose=False)
    rows = []
    for place, (prompt, _) in enumerate(texts):
        ids, begin = list(said["input_ids"][place][:length]), 0
        if exact:
            ends = [end for _, end in said["offset_mapping"][place][:length]]
            begin = next((i for i, end in enumerate(ends) if end > len(prompt)), len(ids))
        if tokenizer.eos_token_id is not None and len(ids) < length and ids[-1:] != [tokenizer.eos_token_id]:
            ids.append(tokenizer.eos_token_id)
        rows.append((ids, begin))
    return rows
