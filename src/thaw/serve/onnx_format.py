"""ONNX: one file that ONNX Runtime and others run, with metadata_props."""

import importlib.util
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from thaw.errors import UserError
from thaw.serve.graph import as_named, graph, refused

if TYPE_CHECKING:
    from thaw.serve.export import Export, Loaded

NEEDED = ("onnx", "onnxscript", "onnxruntime")


def write(export: "Export", folder: Path) -> "Loaded":
    """Write model.onnx; the number of samples varies, and of text and sound the length.

    Raises:
        UserError: a package is missing, or the network cannot be traced.
    """
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(f"--format onnx needs {', '.join(missing)}. Write pip install 'thaw[export]'.")
    import onnxruntime

    module, example, shapes = graph(export.network, export.inputs)
    steps = export.run.task.network_options.get("per_step")
    names = ["values", "lengths"] if steps else ["logits"]
    path = folder / "model.onnx"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own deprecations
            program = torch.onnx.export(
                module,
                kwargs=example,
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=list(example),
                output_names=names,
                external_data=False,
                verbose=False,
            )
            program.model.metadata_props.update(export.description)
            program.save(path, external_data=False)
    except Exception as error:  # torch, onnxscript and the network each have their own types
        raise refused(export.network, "onnx", error.__cause__ or error) from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    asked = {node.name for node in session.get_inputs()}  # the graph drops what the network does not read

    def loaded(inputs: Any) -> list[torch.Tensor]:
        given = {name: values.numpy() for name, values in as_named(inputs).items() if name in asked}
        return [torch.from_numpy(output) for output in session.run(None, given)]

    return loaded
