"""The folder of a library: `AutoModelFor….from_pretrained(folder)`, or `timm.create_model("local-dir:folder")`."""

from pathlib import Path
from typing import TYPE_CHECKING

from thaw.errors import UserError
from thaw.model.transformer_body import TransformerBody

if TYPE_CHECKING:
    from thaw.serve.export import Export, Loaded


ELSE = "Write --format safetensors, onnx or torch_export."


def write(export: "Export", folder: Path) -> "Loaded":
    """Write what the library reads; see `transformers_export` and `timm_export`.

    Raises:
        UserError: the network is no library's, or its body and head do not fit the library's class.
    """
    try:
        return _write(export, folder)
    except UserError as error:
        raise UserError(f"--format hf: {error} {ELSE}") from None


def _write(export: "Export", folder: Path) -> "Loaded":
    task, model = export.run.task, export.run.settings["model"]
    if isinstance(export.network.body, TransformerBody):
        from thaw.model.transformers_export import save_transformers

        return save_transformers(export.network, folder, task.target, task.classes)
    if model["_target_"].endswith(".timm_network"):
        from thaw.model.timm_export import save_timm

        architecture = model["name"].partition(".")[0]
        return save_timm(export.network, folder, architecture, task.classes, model.get("options") or {})
    raise UserError(f"it must be of a network of transformers or timm; {model['_target_']} is neither.")
