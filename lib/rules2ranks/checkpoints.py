"""Where a checkpoint of one's own lies: found in a folder or on the hub, looked over, and known again by its content.

Nothing here loads a model or imports torch.
"""

import functools
import hashlib
import json
import os
import re
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors
from huggingface_hub.utils import get_session

#: What is taken from the hub: weights as safetensors, configuration, tokenizer; never pickles.
WANTED = ("*.safetensors", "*.json", "tokenizer*", "*.model", "merges.txt", "vocab*")
#: The files of a tokenizer, as the usual ones are saved.
TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model", "*.jinja")
#: Seconds to wait for a hub that does not answer.
PATIENCE = 5.0
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_CONVERT = (
    "from transformers import AutoModelForCausalLM as M; M.from_pretrained({old!r}).save_pretrained({new!r}); "
    "from transformers import AutoTokenizer as T; T.from_pretrained({old!r}).save_pretrained({new!r})"
)
_UNPACK = (
    "if it is of an architecture that README names, let transformers unpack it once (package gguf):\n"
    '  python -c "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
    "how = dict(gguf_file={file!r}); m = M.from_pretrained({folder!r}, **how); m.hf_quantizer = None; "
    "del m.config.quantization_config; m.save_pretrained('unpacked'); "
    "T.from_pretrained({folder!r}, **how).save_pretrained('unpacked')\""
)


def find(model: str | Path) -> Path:
    """The folder of a model: itself, or that of a hub name, taken from the hub's cache or else downloaded into it.

    Raises:
        OSError: there is no such folder; or the hub cannot be reached, is switched off (HF_HUB_OFFLINE) or gives no
            model of that name: says what to download, where to put it and what to set. Within seconds.
    """
    place = Path(model).expanduser()
    if str(model) and place.is_dir():
        return place
    if not isinstance(model, str) or not _NAME.fullmatch(model):
        raise FileNotFoundError(f"there is no folder {model} (looked for {place.absolute()})")
    try:
        cached = Path(huggingface_hub.snapshot_download(model, local_files_only=True))
        check(cached)
        return cached
    except OSError:
        pass  # not in the cache, or not all of it
    try:
        return Path(huggingface_hub.snapshot_download(model, allow_patterns=list(WANTED), etag_timeout=PATIENCE))
    except OSError as error:
        raise OSError(_advice(model, _reason(error))) from error


def check(folder: str | Path) -> None:
    """Look over the files of a model that transformers is to load, before anything is loaded.

    Raises:
        ValueError: a pruned checkpoint, which `pruning.load_pruned` loads; or a quantised one.
        OSError: no configuration, no weights, weights in pickles only, or shards that are missing.
    """
    folder = Path(folder)
    if (folder / "pruning.json").is_file():
        raise ValueError(f"{folder} holds a pruned checkpoint: load it with rules2ranks.pruning.load_pruned")
    if not (folder / "config.json").is_file():
        other = "a PEFT adapter: merge it into its model first" if (folder / "adapter_config.json").is_file() else ""
        if packed := sorted(path.name for path in folder.glob("*.gguf")):
            other = f"GGUF only ({packed[0]}): {_UNPACK.format(folder=str(folder), file=packed[0])}"
        raise OSError(f"{folder} holds {other or 'no config.json, so no model that transformers saved'}")
    quantised = _json(folder / "config.json").get("quantization_config")
    if quantised:
        how = quantised.get("quant_method", "of an unknown kind") if isinstance(quantised, dict) else quantised
        raise ValueError(
            f"{folder} is quantised ({how}): groups can only be cut from plain weights. "
            "Take the unquantised checkpoint, prune it, and quantise the result"
        )
    if not weights(folder):
        pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
        if not pickles:
            raise OSError(f"{folder} holds no weights: expected model.safetensors, or shards and their index")
        command = _CONVERT.format(old=str(folder), new=f"{folder}-safetensors")
        raise OSError(
            f"{folder} holds pickled weights only ({', '.join(pickles[:3])}). A pickle can run any code, so none is "
            "ever loaded: take the model's safetensors, or, if you trust the file, convert it once:\n"
            f'  python -c "{command}"'
        )
    if missing := [path.name for path in weights(folder) if not path.is_file()]:
        raise OSError(f"{folder} lacks {', '.join(missing)}, which its index names: the download is not complete")


def weights(folder: Path) -> list[Path]:
    """The safetensors files that make up a model, whether or not all are there: one, or the shards of an index.

    Raises:
        OSError: an index that is damaged, or names a file outside the folder.
    """
    if (single := folder / "model.safetensors").is_file():
        return [single]
    index = folder / "model.safetensors.index.json"
    named = _json(index).get("weight_map", {}) if index.is_file() else {}
    files = sorted(set(named.values())) if isinstance(named, dict) else [named]
    if outside := [name for name in files if not isinstance(name, str) or Path(name).name != name]:
        raise OSError(f"{index} names {outside[0]!r}: weights must be files in the same folder")
    return [folder / name for name in files]


def tokenizer_files(folder: str | Path) -> list[Path]:
    """The tokenizer's files of a model, by name; none if it has no tokenizer of its own."""
    return sorted({path for pattern in TOKENIZER for path in Path(folder).glob(pattern) if path.is_file()})


def fingerprint(folder: str | Path) -> str:
    """Sixteen hexadecimal digits for the content of configuration, weights and tokenizer, wherever they lie.

    Every byte counts. Large files in the hub's cache are named by their own sha256 and need no reading; others are read
    once per process and change, at one to three seconds per gigabyte.
    """
    folder = Path(folder)
    files = [folder / "config.json", *weights(folder), *tokenizer_files(folder)]
    return hashlib.sha256("".join(f"{path.name} {sha256(path)}\n" for path in files).encode()).hexdigest()[:16]


def sha256(path: str | Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    real = Path(path).resolve()
    if real.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", real.name):
        return real.name
    stat = real.stat()
    return _sha256(real, stat.st_size, stat.st_mtime_ns)


def hub_answers() -> bool:
    """Whether the hub can be reached: not switched off by HF_HUB_OFFLINE, and it answers within seconds."""
    if huggingface_hub.is_offline_mode():
        return False
    try:
        get_session().head(huggingface_hub.constants.ENDPOINT, timeout=PATIENCE)
    except Exception:  # whatever the HTTP library of the hub's client calls it
        return False
    return True


@functools.lru_cache(maxsize=1000)
def _sha256(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OSError(f"{path} is damaged: {error}") from error
    return found if isinstance(found, dict) else {}


def _reason(error: OSError) -> str:
    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ else error
    if huggingface_hub.is_offline_mode():
        return "the hub is switched off by HF_HUB_OFFLINE (`make` sets it), and its cache has no such model"
    if isinstance(cause, errors.GatedRepoError):
        return "the hub gives that model only to those who accepted its terms: accept them there, then `hf auth login`"
    if isinstance(cause, errors.RepositoryNotFoundError):
        return "the hub knows no model of that name, or shows it to its owners only"
    if isinstance(cause, errors.HfHubHTTPError):
        return f"the hub refused it ({str(cause).splitlines()[0]})"
    return f"the hub at {huggingface_hub.constants.ENDPOINT} cannot be reached ({type(cause).__name__}: {cause})"


def _advice(name: str, reason: str) -> str:
    wanted = " ".join(f'--include "{pattern}"' for pattern in WANTED)
    folder = os.path.join("models", name.rpartition("/")[2])
    return (
        f"there is no folder {Path(name).absolute()}, and {reason}.\n"
        f"Where the hub can be reached: hf download {name} {wanted} --local-dir {folder}\n"
        f"Then bring the folder {folder} here and set model to its path."
    )
