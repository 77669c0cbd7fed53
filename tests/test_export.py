"""`scripts/export.py`: what is written gives the outputs of the checkpoint, and whoever loads it needs nothing else."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from test_evaluate import DIGITS, MEL, TEXT, finished
from test_train_speech import SMALL, TASK, WAV2VEC2, folders, recordings
from test_train_text import sentences, write

from thaw.errors import RunError, UserError
from thaw.run.checkpoint import load_checkpoint
from thaw.serve import export as exporting
from thaw.serve.export import export
from thaw.serve.fitted import fitted
from thaw.serve.safetensors_format import load

GRAPHS = ("onnx", "torch_export")


@pytest.fixture
def text_run(run_train, tmp_path: Path):
    """`text_run("model.pool=first")` is the directory of a finished run over texts of two classes."""

    def run(*options: str) -> Path:
        return finished(run_train(*TEXT, write(tmp_path / "data", sentences(60)), *options))

    return run


def logits_of(folder: Path, inputs) -> torch.Tensor:
    """As the checkpoint itself gives them, its adapters apart."""
    with torch.no_grad():
        return fitted(folder).network(inputs)


@pytest.mark.medium
@pytest.mark.fault("J1")
@pytest.mark.parametrize(("freezing", "tolerance"), [("gradual", 1e-6), ("lora", 1e-5)])
def test_safetensors_give_the_logits_of_the_checkpoint(run_train, tmp_path: Path, freezing: str, tolerance) -> None:
    folder = finished(run_train(*DIGITS, f"freezing={freezing}"))
    state = load_checkpoint(folder / "checkpoints" / "best.ckpt")["state_dict"]
    assert any("lora" in name for name in state) == (freezing == "lora")
    found = export(folder, "safetensors")
    assert found.real
    assert found.folder == folder / "export" / "safetensors"
    network, description = load(Path(shutil.move(found.folder, tmp_path / "elsewhere")))
    assert not any("lora" in name for name in network.state_dict())
    inputs = torch.randn(5, 1, 32, 32)
    with torch.no_grad():
        assert (network(inputs) - logits_of(folder, inputs)).abs().max() <= tolerance
    assert description["classes"] == [str(digit) for digit in range(10)]
    assert description["preprocessing"]["size"] == 32
    with safe_open(tmp_path / "elsewhere" / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["task"]) == "class"


@pytest.mark.medium
@pytest.mark.parametrize("form", GRAPHS)
def test_the_bundled_network_as_a_graph(run_train, form: str) -> None:
    folder = finished(run_train(*DIGITS))
    found = export(folder, form)
    assert found.difference <= 1e-5
    if form == "onnx":
        import onnx
        import onnxruntime

        model = onnx.load(found.folder / "model.onnx")
        told = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
        session = onnxruntime.InferenceSession(found.folder / "model.onnx", providers=["CPUExecutionProvider"])
        for count in (1, 3):
            inputs = torch.randn(count, 1, 32, 32)
            logits = torch.from_numpy(session.run(["logits"], {"images": inputs.numpy()})[0])
            assert (logits - logits_of(folder, inputs)).abs().max() <= 1e-5
    else:
        extra = {"thaw.json": ""}
        torch.export.load(found.folder / "model.pt2", extra_files=extra)
        told = json.loads(extra["thaw.json"])
    assert told["classes"] == [str(digit) for digit in range(10)]
    assert told["preprocessing"]["mean"] == [0.3]


@pytest.mark.medium
@pytest.mark.parametrize("form", GRAPHS)
def test_texts_of_any_length_as_a_graph(text_run, form: str) -> None:
    folder = text_run("freezing=lora")
    found = export(folder, form)
    assert found.difference <= 1e-5
    if form == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(found.folder / "model.onnx", providers=["CPUExecutionProvider"])
        for count, length in ((1, 3), (4, 19)):
            ids = torch.randint(2, 250, (count, length))
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            logits = session.run(["logits"], {name: values.numpy() for name, values in inputs.items()})[0]
            assert (torch.from_numpy(logits) - logits_of(folder, inputs)).abs().max() <= 1e-5


@pytest.mark.medium
def test_a_mel_image_network_as_onnx_without_its_data(run_train, tmp_path: Path) -> None:
    folders(tmp_path / "data", count=8)
    folder = finished(run_train(*MEL))
    shutil.rmtree(tmp_path / "data")
    found = export(folder, "onnx", tmp_path / "mel")
    assert (found.folder, found.real) == (tmp_path / "mel", False)
    import onnx

    told = {entry.key: json.loads(entry.value) for entry in onnx.load(tmp_path / "mel" / "model.onnx").metadata_props}
    assert told["inputs"]["medium"] == "sound"
    assert told["inputs"]["window"] > 0


def test_hf_of_timm_is_a_folder_of_timm(run_train) -> None:
    import timm

    folder = finished(run_train(*DIGITS))
    found = export(folder, "hf")
    model = timm.create_model(f"local-dir:{found.folder}", pretrained=True).eval()
    inputs = torch.randn(3, 1, 32, 32)
    with torch.no_grad():
        assert (model(inputs) - logits_of(folder, inputs)).abs().max() <= 1e-5
    assert model.pretrained_cfg["mean"] in ([0.3], (0.3,))
    assert json.loads((found.folder / "config.json").read_text())["label_names"] == [str(digit) for digit in range(10)]


def test_hf_of_a_transformer_is_a_folder_of_transformers(text_run) -> None:
    """A text at a time, and a padded batch: tokens by the folder's own tokenizer."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = text_run("model.pool=first", "freezing=lora")
    found = export(folder, "hf")
    model = AutoModelForSequenceClassification.from_pretrained(found.folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(found.folder)
    batch = dict(tokenizer(["hay cow", "wave"], padding=True, return_tensors="pt"))
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        assert (model(**batch).logits - logits_of(folder, batch)).abs().max() <= 1e-5
    assert model.config.id2label == {0: "farm", 1: "sea"}


def test_hf_is_refused_where_the_library_pools_otherwise(text_run, run_script) -> None:
    folder = text_run()
    code, _, errors = run_script("export", folder, "--format", "hf")
    assert code == 2
    assert "reads the first token, and this network has model.pool=mean" in errors
    assert "Traceback" not in errors
    assert len(errors.splitlines()) <= 6
    assert "safetensors" in errors
    assert not (folder / "export" / "hf").exists()


@pytest.mark.medium
def test_hf_of_tags_and_of_letters(run_train, tmp_path: Path) -> None:
    rows = [row | {"label": " ".join(word[0] for word in row["text"].split())} for row in sentences(60)]
    tags = finished(run_train(*TEXT, write(tmp_path / "tags", rows), "task=token_classification"))
    assert export(tags, "hf").difference <= 1e-5
    recordings(tmp_path / "data")
    speech = ("data=speech_csv", "data.root=data", TASK, *MEL[4:], "data.val_size=0.2")
    letters = finished(run_train(*speech, *WAV2VEC2))
    assert export(letters, "safetensors").difference <= 1e-6
    assert export(letters, "hf").difference <= 1e-5
    own = finished(run_train(*speech, *SMALL))
    assert export(own, "safetensors").difference <= 1e-6
    with pytest.raises(UserError, match="must be of a network of transformers or timm"):
        export(own, "hf")


@pytest.mark.medium
def test_an_export_that_differs_leaves_nothing(run_train, run_script, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = finished(run_train(*DIGITS))
    from thaw.serve import safetensors_format

    write_it = safetensors_format.write

    def spoilt(made: exporting.Export, place: Path):
        with torch.no_grad():
            made.network.head.linear.bias.add_(1e-3)
        return write_it(made, place)

    monkeypatch.setattr(safetensors_format, "write", spoilt)
    with pytest.raises(RunError, match="must give the outputs of the checkpoint"):
        export(folder, "safetensors")
    code, _, errors = run_script("export", folder, "--format", "safetensors")
    assert code == 1
    assert len(errors.splitlines()) <= 6
    assert not list((folder / "export").iterdir())


def test_what_cannot_be_exported_is_told_in_words(run_train, run_script, monkeypatch, tmp_path: Path) -> None:
    from thaw.serve import onnx_format

    folder = finished(run_train(*DIGITS))
    monkeypatch.setattr(onnx_format, "NEEDED", ("onnx", "no_such_package"))
    for arguments, said in (
        ((tmp_path / "nothing", "--format", "hf"), "there is no run.json"),
        ((folder, "--format", "onnx"), "--format onnx needs no_such_package. Write pip install 'thaw[export]'"),
        ((folder, "--format", "tflite"), "invalid choice"),
    ):
        code, _, errors = run_script("export", *arguments)
        assert code == 2, errors
        assert said in errors
        assert "Traceback" not in errors
    (folder / "checkpoints" / "best.ckpt").write_bytes(b"no checkpoint")
    code, _, errors = run_script("export", folder, "--format", "hf")
    assert (code, "must be a checkpoint" in errors) == (2, True)
