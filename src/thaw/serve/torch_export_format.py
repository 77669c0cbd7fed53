"""torch.export: a program that torch runs without the code of Thaw or of the network's library."""

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from thaw.serve.graph import as_named, graph, refused

if TYPE_CHECKING:
    from thaw.serve.export import Export, Loaded

EXTRA = "thaw.json"  # one of the file's extra files


def write(export: "Export", folder: Path) -> "Loaded":
    """Write model.pt2; the number of samples varies, and of text and sound the length.

    Raises:
        UserError: the network cannot be traced.
    """
    module, example, shapes = graph(export.network, export.inputs)
    told = {name: json.loads(value) for name, value in export.description.items()}
    path = folder / "model.pt2"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(module, (), example, dynamic_shapes=shapes)
            torch.export.save(program, path, extra_files={EXTRA: json.dumps(told)})
            again = torch.export.load(path).module()
    except Exception as error:  # of torch and of the network
        raise refused(export.network, "torch_export", error) from None

    def loaded(inputs: Any) -> Any:
        with torch.no_grad():
            return again(**as_named(inputs))

    return loaded
