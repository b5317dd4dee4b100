"""Where a checkpoint lies and what is wrong with it: folders, the hub's cache, and a hub played by a local server."""

import hashlib
import json
import re
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from transformers import LlamaConfig, LlamaForCausalLM

from rules2ranks import checkpoints, models

TINY = LlamaConfig(
    vocab_size=11,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
)
COMMIT = "c0ffee" + "0" * 34


def tiny():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(TINY).eval()


@pytest.fixture
def folder(tmp_path):
    tiny().save_pretrained(tmp_path / "tiny")
    (tmp_path / "tiny" / "tokenizer.json").write_text("{}")
    return tmp_path / "tiny"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A hub's cache of our own, and a hub that is not switched off."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "cache"


def set_hub(monkeypatch, address):
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


# --- what is wrong with a folder --------------------------------------------------------------------------------


def remove(name):
    return lambda folder: (folder / name).unlink()


def pickled(folder):
    torch.save(tiny().state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def configured(**more):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | more))

    return change


def sharded(folder):
    (folder / "model.safetensors").unlink()
    tiny().save_pretrained(folder, max_shard_size="2KB")
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def elsewhere(name):
    """An index that leads to a file outside the folder."""

    def change(folder):
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))

    return change


def adapter_only(folder):
    (folder / "config.json").rename(folder / "adapter_config.json")


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (remove("config.json"), OSError, "tiny holds no config.json, so no model that transformers saved"),
        (adapter_only, OSError, "tiny holds a PEFT adapter: merge it into its model first"),
        (remove("model.safetensors"), OSError, "tiny holds no weights: expected model.safetensors, or shards"),
        (pickled, OSError, r"tiny holds pickled weights only \(pytorch_model\.bin\)\. A pickle can run any code"),
        (sharded, OSError, r"tiny lacks model-00002-of-0000\d\.safetensors, which its index names"),
        (elsewhere("/etc/hosts"), OSError, r"index\.json names '/etc/hosts': weights must be files in the same folder"),
        (elsewhere("../x.safetensors"), OSError, r"names '\.\./x\.safetensors': weights must be files in the same"),
        (elsewhere(5), OSError, r"names 5: weights must be files in the same folder"),
        (lambda f: (f / "config.json").write_text("{"), OSError, r"config\.json is damaged"),
        (
            lambda f: (f / "pruning.json").write_text("{}"),
            ValueError,
            "holds a pruned checkpoint: load it with rules2ra",
        ),
        (
            configured(quantization_config={"quant_method": "gptq", "bits": 4}),
            ValueError,
            r"tiny is quantised \(gptq\): groups can only be cut from plain weights",
        ),
    ],
)
def test_what_cannot_be_loaded_is_said_before_it_is_tried(folder, change, error, said):
    checkpoints.check(folder)
    change(folder)
    for tried in (checkpoints.check, models.load_causal_lm):
        with pytest.raises(error, match=said):
            tried(folder)


def test_the_command_that_is_named_converts_a_pickle(folder, tmp_path):
    whole = models.load_causal_lm(folder)
    pickled(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(OSError) as told:
        models.load_causal_lm(folder)
    command = re.search(r'python -c "(.*)"', str(told.value)).group(1)
    exec(command.partition("; from transformers import AutoTokenizer")[0], {})
    converted = models.load_causal_lm(f"{folder}-safetensors")
    ids = torch.arange(7)[None]
    assert torch.equal(converted(ids).logits, whole(ids).logits)


def test_damaged_weights_and_code_in_the_folder_are_refused(folder):
    (folder / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(OSError, match=r"the weights in .*tiny are damaged"):
        models.load_causal_lm(folder)
    tiny().save_pretrained(folder)
    configured(model_type="mine", auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"})(folder)
    (folder / "code.py").write_text("raise SystemExit('code of the folder was run')\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        models.load_causal_lm(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loaded_as_asked_for_in_shards_too(folder, dtype):
    whole = tiny()
    (folder / "model.safetensors").unlink()
    whole.save_pretrained(folder, max_shard_size="2KB")
    assert len(checkpoints.weights(folder)) > 1
    model = models.load_causal_lm(folder, dtype)
    assert not model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name].to(getattr(torch, dtype)))


def test_a_fingerprint_is_of_contents_only(folder, tmp_path):
    before = checkpoints.fingerprint(folder)
    assert re.fullmatch("[0-9a-f]{16}", before)
    (folder / "README.md").write_text("more")
    moved = folder.rename(tmp_path / "moved")
    assert checkpoints.fingerprint(moved) == before
    weights = moved / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # one bit of the last weight
    assert checkpoints.fingerprint(moved) != before


# --- the hub ----------------------------------------------------------------------------------------------------


def test_folders_are_taken_as_they_are(folder, monkeypatch, cache):
    assert checkpoints.find(folder) == checkpoints.find(str(folder)) == folder
    monkeypatch.setenv("HOME", str(folder.parent))
    assert checkpoints.find("~/tiny") == folder
    monkeypatch.chdir(folder.parent)
    assert checkpoints.check(checkpoints.find("tiny")) is None


@pytest.mark.parametrize("name", ["./none", "../none", "~/none", "/none", "a/b/none", "a b", ""])
def test_a_missing_folder_is_told_as_one(name, cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("the hub was asked"))
    with pytest.raises(FileNotFoundError, match=re.escape(f"there is no folder {name} (looked for /")):
        checkpoints.find(name)


def put_in_cache(cache, name, folder):
    """What the hub's own client leaves behind: blobs, named by their sha256 where they are large, and links to them."""
    place = cache / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    (place / "snapshots" / COMMIT).mkdir(parents=True)
    (place / "blobs").mkdir()
    for file in folder.iterdir():
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        blob = place / "blobs" / (digest if file.suffix == ".safetensors" else digest[:40])
        blob.write_bytes(file.read_bytes())
        (place / "snapshots" / COMMIT / file.name).symlink_to(blob)
    return place / "snapshots" / COMMIT


def test_what_is_in_the_cache_needs_no_hub(folder, cache, monkeypatch):
    snapshot = put_in_cache(cache, "org/tiny", folder)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert checkpoints.find("org/tiny").resolve() == snapshot.resolve()
    assert checkpoints.fingerprint(checkpoints.find("org/tiny")) == checkpoints.fingerprint(folder)
    ids = torch.arange(7)[None]
    assert torch.equal(models.load_causal_lm("org/tiny")(ids).logits, tiny()(ids).logits)
    # The name of a large blob is its checksum: it is not read again.
    (snapshot / "model.safetensors").resolve().write_bytes(b"")
    assert checkpoints.fingerprint(checkpoints.find("org/tiny")) == checkpoints.fingerprint(folder)


@contextmanager
def hub(files, status=200, code=""):
    """A hub on this machine with one model, or one that refuses everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            path = self.path.partition("?")[0]
            headers, content = {"X-Repo-Commit": COMMIT, "X-Error-Code": code}, b"{}"
            if "/resolve/" in path and status == 200:
                content = files[path.rpartition("/")[2]]
                headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
            elif "/tree/" in path:
                sizes = [{"type": "file", "path": n, "size": len(c), "oid": n} for n, c in files.items()]
                content = json.dumps(sizes).encode()
            elif "/revision/" in path:
                siblings = [{"rfilename": name} for name in files]
                content = json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": siblings}).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *said):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_name_is_downloaded_without_its_pickles(folder, cache, monkeypatch):
    files = {file.name: file.read_bytes() for file in folder.iterdir()} | {"pytorch_model.bin": b"any code"}
    with hub(files) as address:
        set_hub(monkeypatch, address)
        assert checkpoints.hub_answers()
        found = checkpoints.find("org/tiny")
    assert sorted(file.name for file in found.iterdir()) == sorted(file.name for file in folder.iterdir())
    assert checkpoints.fingerprint(found) == checkpoints.fingerprint(folder)
    assert checkpoints.find("org/tiny") == found, "now from the cache: the hub is gone"
    assert not checkpoints.hub_answers()


def test_a_download_that_broke_off_goes_on(folder, cache, monkeypatch):
    snapshot = put_in_cache(cache, "org/tiny", folder)
    (snapshot / "model.safetensors").unlink()
    with hub({file.name: file.read_bytes() for file in folder.iterdir()}) as address:
        set_hub(monkeypatch, address)
        assert torch.equal(models.load_causal_lm("org/tiny").lm_head.weight, tiny().lm_head.weight)


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (404, "RepoNotFound", "the hub knows no model of that name"),
        (403, "GatedRepo", "accept them there, then `hf auth login`"),
        (418, "", "the hub refused it"),
        (None, "", r"the hub at http://127\.0\.0\.1:9 cannot be reached \(ConnectError"),
        ("off", "", "the hub is switched off by HF_HUB_OFFLINE"),
    ],
)
def test_a_hub_that_gives_nothing_is_told_with_what_to_do(cache, monkeypatch, status, code, said):
    begin = time.monotonic()
    with hub({}, status if isinstance(status, int) else 200, code) as address:
        set_hub(monkeypatch, address if isinstance(status, int) else "http://127.0.0.1:9")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", status == "off")
        with pytest.raises(OSError, match=said) as told:
            models.load_causal_lm("org/tiny-llama")
    assert time.monotonic() - begin < 10
    assert 'hf download org/tiny-llama --include "*.safetensors" --include "*.json"' in str(told.value)
    assert "Then bring the folder models/tiny-llama here and set model to its path." in str(told.value)


def test_the_command_for_a_download_is_one_that_the_client_takes(monkeypatch):
    """The words after `hf` go through the client's own parser, up to the download itself."""
    with pytest.raises(OSError) as told:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        checkpoints.find("org/tiny-llama")
    words = re.search("hf (download .*)", str(told.value)).group(1).replace('"', "").split()
    asked = {}

    def download(**given):
        asked.update(given)
        return given["local_dir"]

    monkeypatch.setattr("huggingface_hub.cli.download.snapshot_download", download)
    monkeypatch.setattr("sys.argv", ["hf", *words])
    from huggingface_hub.cli.hf import main

    with pytest.raises(SystemExit):
        main()
    assert asked["repo_id"] == "org/tiny-llama" and asked["allow_patterns"] == list(checkpoints.WANTED)
    assert str(asked["local_dir"]) == "models/tiny-llama"
