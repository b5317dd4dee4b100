"""A training under way as one file, from which it goes on: whole, on the disk, and known to be what was written."""

import hashlib
import json
import os
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def write(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    """Write tensors, and what is noted beside them, with a digest of both, in place of the file before."""
    tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    beside = path.with_name(f".{path.name}.new")
    save_file(tensors, beside, metadata=about | {"sha256": _digest(tensors, about)})
    with beside.open("rb") as file:  # on the disk before it takes the place of the one before
        os.fsync(file.fileno())
    os.replace(beside, path)


def read(path: Path, noted: set[str]) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """What `write` wrote, with what is `noted` beside the tensors; None if it is damaged: then it is named, and put
    aside."""
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        digest = about.pop("sha256", None)  # older ones have none
        if digest not in (None, _digest(tensors, about)) or about.keys() != noted:
            raise ValueError("its content is not what was written")
    except (SafetensorError, ValueError) as error:
        aside = path.with_name(f".{path.name}.damaged")
        os.replace(path, aside)
        print(f"{path} is damaged ({error}): training begins anew, and it lies in {aside} now", file=sys.stderr)
        return None
    return tensors, about


def _digest(tensors: dict[str, Tensor], about: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
