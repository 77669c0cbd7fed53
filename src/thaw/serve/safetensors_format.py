"""safetensors: the weights under Thaw's own names, loaded by five lines."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from thaw import config
from thaw.model.files import save_files
from thaw.model.network import Network

if TYPE_CHECKING:
    from thaw.serve.export import Export, Loaded

LOADER = """# How to load this

```python
from pathlib import Path
from thaw.serve.safetensors_format import load

network, description = load(Path("."))  # of this folder
outputs = network(inputs)  # prepared as description["preprocessing"] says
```

Without Thaw: `safetensors.torch.load_file` gives the tensors; those of the body begin with `body.`, and `head.linear`
is a linear layer on its features. The metadata of the file holds the classes, the preprocessing and the model's
settings.
"""


def write(export: "Export", folder: Path) -> "Loaded":
    """Write model.safetensors, the files of a transformer, and how to load them."""
    # Contiguous and apart, as the format wants them: weights that two layers share are written twice.
    state = {name: values.contiguous().clone() for name, values in export.network.state_dict().items()}
    save_file(state, folder / "model.safetensors", export.description)
    save_files(export.network, folder)
    (folder / "README.md").write_text(LOADER)
    network, _ = load(folder)

    def loaded(inputs: Any) -> Any:
        with torch.no_grad():
            return network(inputs)

    return loaded


def load(folder: Path) -> tuple[Network, dict[str, Any]]:
    """The network in eval mode, and its description: classes, preprocessing, inputs, model, metrics."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        told = {name: json.loads(value) for name, value in file.metadata().items()}
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    network = config.network(told["model"], folder, told["given"])
    network.load_state_dict(state)
    return network.train(False), told
