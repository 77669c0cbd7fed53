"""Weights, and the folders they come in: no code is run, and no claim is believed that the file cannot keep."""

import contextlib
import json
import pickle
import resource
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import transformers
from hostile import Payload
from safetensors.torch import save_file

from thaw.errors import UserError
from thaw.model.timm import timm_network
from thaw.model.tokenizer import byte_tokenizer
from thaw.model.transformers import transformers_network
from thaw.run import claims
from thaw.run.checkpoint import AtomicCheckpointIO, load_checkpoint

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT as `save_pretrained` leaves it, with a tokenizer."""
    path = tmp_path_factory.mktemp("bert")
    transformers.BertModel(transformers.BertConfig(**SIZE, vocab_size=258)).save_pretrained(path)
    byte_tokenizer(token_types=True)._tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(timm.create_model("resnet10t").state_dict(), path)
    return path


# Code in a model's folder


@pytest.mark.fault("S8")
@pytest.mark.parametrize(
    "fields",
    [
        {"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}, "model_type": "evil"},
        {"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}},
        {"_attn_implementation_internal": "evil/kernels"},
        {"_attn_implementation": "evil/kernels:evil"},
        {"attn_implementation": "evil.py"},
        {"trust_remote_code": True, "auto_map": {"AutoModel": "evil.Model"}},
        {"custom_pipelines": {"x": {"impl": "evil.Model"}}, "auto_map": {"AutoTokenizer": ["evil.T", None]}},
    ],
)
def test_code_in_a_models_folder_is_never_run(bert: Path, tmp_path: Path, monkeypatch, fields: dict) -> None:
    folder = Path(shutil.copytree(bert, tmp_path / "model"))
    marker = tmp_path / "marker"
    code = f"import os\nos.makedirs({str(marker)!r}, exist_ok=True)\n"
    for name in ("evil.py", "configuration_evil.py", "modeling_evil.py", "tokenization_evil.py", "kernels.py"):
        (folder / name).write_text(code + "class Config: pass\nclass Model: pass\nclass T: pass\n")
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    for variable in ("TRUST_REMOTE_CODE", "HF_TRUST_REMOTE_CODE"):
        monkeypatch.setenv(variable, "1")
    monkeypatch.syspath_prepend(str(folder))
    for weights in ("pretrained", "none"):
        with contextlib.suppress(UserError):
            transformers_network(str(folder), 3, weights=weights)
    assert not marker.exists()
    exec(code)
    assert marker.exists()


@pytest.mark.fault("S8", "S9")
def test_only_safetensors_are_read(bert: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bert, tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pt", "tf_model.h5", "flax_model.msgpack", "training_args.bin"):
        (folder / name).write_bytes(pickle.dumps(Payload(tmp_path / "marker")))
    with pytest.raises(UserError, match=r"has only pytorch_model\.bin, a format that can run code"):
        transformers_network(str(folder), 3)
    for name in ("model.pt", "pytorch_model.bin"):
        with pytest.raises(UserError, match="must be a readable safetensors file"):
            timm_network("resnet10t", 3, weights=str(folder / name))
    assert not (tmp_path / "marker").exists()


# Claims of a safetensors file


def with_header(change: Callable[[dict, int], None]) -> Callable[[bytes], bytes]:
    def changed(content: bytes) -> bytes:
        (length,) = struct.unpack("<Q", content[:8])
        header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
        change(header, len(data))
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data

    return changed


def overlap(header: dict, size: int) -> None:
    first, second, *_ = [entry for name, entry in header.items() if name != "__metadata__"]
    second["data_offsets"], second["shape"] = first["data_offsets"], first["shape"]


def huge_shape(header: dict, size: int) -> None:
    next(entry for name, entry in header.items() if name != "__metadata__")["shape"] = [10**9, 10**9]


def past_the_end(header: dict, size: int) -> None:
    entry = next(entry for name, entry in header.items() if name != "__metadata__")
    entry["data_offsets"], entry["shape"] = [0, 2**50], [2**48]


def gap(header: dict, size: int) -> None:
    header["more"] = {"dtype": "F32", "shape": [1], "data_offsets": [size + 4096, size + 4100]}


def negative(header: dict, size: int) -> None:
    next(entry for name, entry in header.items() if name != "__metadata__")["shape"] = [-1, 4]


LIES: dict[str, Callable[[bytes], bytes]] = {
    "header of 4 GB": lambda content: struct.pack("<Q", 2**32) + content[8:],
    "header of 2^63": lambda content: struct.pack("<Q", 2**63) + content[8:],
    "header of 101 MB": lambda content: struct.pack("<Q", 101_000_000) + b"{" + b" " * 101_000_000,
    "header longer than the file": lambda content: struct.pack("<Q", len(content)) + content[8:],
    "no header": lambda content: content[:8],
    "nested header": lambda content: struct.pack("<Q", 100_000) + b"[" * 100_000,
    "overlapping offsets": with_header(overlap),
    "huge shape": with_header(huge_shape),
    "offsets past the end": with_header(past_the_end),
    "gap": with_header(gap),
    "negative shape": with_header(negative),
}


@pytest.mark.fault("S9", "S23")
@pytest.mark.parametrize("lie", LIES)
def test_a_safetensors_file_that_lies_is_refused_at_once(bert: Path, resnet: Path, tmp_path: Path, lie: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (tmp_path / "lie.safetensors").write_bytes(LIES[lie](resnet.read_bytes()))
    with pytest.raises(UserError, match="must be a readable safetensors file"):
        timm_network("resnet10t", 3, weights=str(tmp_path / "lie.safetensors"))
    folder = Path(shutil.copytree(bert, tmp_path / "model"))
    (folder / "model.safetensors").write_bytes(LIES[lie]((folder / "model.safetensors").read_bytes()))
    with pytest.raises(UserError, match="damaged"):
        transformers_network(str(folder), 3)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 600 * 2**20


# Claims of a checkpoint


def deflated(path: Path, count: int) -> None:
    """A small file that unpacks to many zeros."""
    torch.save({"state_dict": {"w": torch.zeros(70_000)}}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            if name.endswith("/data/0"):
                content = bytes(4 * count)
            if name.endswith(".pkl"):
                content = content.replace(struct.pack("<i", 70_000), struct.pack("<i", count))
            archive.writestr(name, content)


def expanded(path: Path, count: int) -> None:
    torch.save({"state_dict": {"w": torch.zeros(1).expand(count)}}, path)


def sparse(path: Path, count: int) -> None:
    tensor = torch.sparse_coo_tensor(torch.zeros(1, 0, dtype=torch.long), torch.zeros(0), (count,))
    torch.save({"state_dict": [{"w": tensor}]}, path)


def without_data(path: Path, count: int) -> None:
    torch.save({"state_dict": {"w": torch.empty(count, device="meta")}}, path)


def legacy(path: Path, count: int) -> None:
    torch.save({"state_dict": {"w": torch.zeros(70_000)}}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(struct.pack("<i", 70_000), struct.pack("<i", count)))


def twice(path: Path, count: int) -> None:
    """Every entry of the directory points at the same bytes."""
    torch.save({f"w{index}": torch.zeros(70_000) for index in range(4)}, path)
    content = bytearray(path.read_bytes())
    starts = [at for at in range(len(content)) if content[at : at + 4] == b"PK\x01\x02"]
    data = [at for at in starts if b"/data/" in content[at + 46 : at + 80]]
    for at in data:
        content[at + 42 : at + 46] = content[data[0] + 42 : data[0] + 46]
    for at in data:  # and each claims to be larger than what it points at
        content[at + 20 : at + 28] = struct.pack("<II", 1_000_000, 1_000_000)
    path.write_bytes(content)


@pytest.mark.fault("S23")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("write", [expanded, sparse, without_data, legacy, twice])
def test_a_checkpoint_that_claims_more_than_its_file_is_refused(tmp_path: Path, write) -> None:
    write(tmp_path / "lie.ckpt", 10**9)
    with pytest.raises(UserError, match="must be a checkpoint of tensors and plain containers"):
        load_checkpoint(tmp_path / "lie.ckpt")


@pytest.mark.fault("S23")
def test_a_compressed_checkpoint_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch) -> None:
    deflated(tmp_path / "bomb.ckpt", 25_000_000)
    assert (tmp_path / "bomb.ckpt").stat().st_size < 2**18
    assert torch.load(tmp_path / "bomb.ckpt", weights_only=True)["state_dict"]["w"].numel() == 25_000_000
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(UserError, match=r"ValueError"):
        load_checkpoint(tmp_path / "bomb.ckpt")


@pytest.mark.fault("S23")
def test_a_checkpoint_larger_than_the_memory_is_not_begun(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.zeros(1000)}}, path)
    (tmp_path / "meminfo").write_text("MemTotal: 99 kB\nMemAvailable:          3 kB\n")
    monkeypatch.setattr(claims, "MEMORY", tmp_path / "meminfo")
    with pytest.raises(UserError):
        load_checkpoint(path)
    (tmp_path / "meminfo").write_text("MemTotal: 99 kB\nMemAvailable:        300 kB\n")
    assert load_checkpoint(path)["state_dict"]["w"].shape == (1000,)
    (tmp_path / "meminfo").unlink()
    assert claims.free_memory() > 2**20


def test_what_a_run_really_keeps_is_plausible(tmp_path: Path) -> None:
    weight = torch.randn(30, 30)
    state = {"w": weight, "tied": weight, "part": weight[:3], "one": torch.zeros(()), "wide": torch.zeros(1).expand(40)}
    AtomicCheckpointIO().save_checkpoint({"state_dict": state, "loops": [(1, {"x": None})]}, tmp_path / "last.ckpt")
    loaded = load_checkpoint(tmp_path / "last.ckpt")["state_dict"]
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
