"""README.md of a run: a model card in the format of the Hugging Face Hub."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from thaw.report.evidence import Evidence
from thaw.report.section import Section, Table
from thaw.report.setup import commands, configuration
from thaw.report.summary import SPLITS, data_name, main_metric, results_table, sentence

# (what the task answers, what the network reads) → the Hub's own name for the task
PIPELINES = {
    ("class", "image"): "image-classification",
    ("labels", "image"): "image-classification",
    ("class", "text"): "text-classification",
    ("labels", "text"): "text-classification",
    ("number", "text"): "text-classification",
    ("tags", "text"): "token-classification",
    ("text", "text"): "text-generation",
    ("class", "waveform"): "audio-classification",
    ("labels", "waveform"): "audio-classification",
    ("transcript", "waveform"): "automatic-speech-recognition",
}
# What the Hub calls a metric, where that is another name than ours.
METRICS = {"auroc": "roc_auc", "mcc": "matthews_correlation", "average_precision": "average_precision"}


def card(evidence: Evidence) -> str:
    """The whole file; its metadata has the figures of the split that was measured last as `model-index`."""
    body = [
        f"# {escaped(evidence.folder.name)}",
        escaped(sentence(evidence)),
        "## Results",
        _table(results_table(evidence)),
        f"Chosen by {evidence.record['monitor']}; the interval is a bootstrap over the samples of the split. "
        "Figures, curves, configuration and mistakes: `report.html`.",
        "## Use",
        *_section(commands(evidence)),
        "## Configuration",
        *_section(configuration(evidence)),
        "## Limits",
        f"Measured on {data_name(evidence)} alone. What the figures are on other data is not known.",
    ]
    return str(ModelCard(f"---\n{metadata(evidence).to_yaml()}\n---\n\n" + "\n\n".join(body) + "\n"))


def metadata(evidence: Evidence) -> ModelCardData:
    """The front matter."""
    kind = evidence.module.network.preprocessing.get("kind", "image")
    if kind == "image" and evidence.data.unit == "seconds":
        kind = "waveform"  # sound as images of its mel spectrum
    pipeline = PIPELINES.get((evidence.task.target, kind))
    base, prefix = base_model(evidence), f"{evidence.split}/"
    measured = {n.removeprefix(prefix): v for n, v in evidence.record["metrics"].items() if n.startswith(prefix)}
    main = main_metric(evidence).partition("/")[2]
    order = [main, *(name for name in measured if name != main)]
    name = data_name(evidence)
    figures = [
        EvalResult(
            task_type=pipeline or "other",
            dataset_type=evidence.settings["data"].get("hub") or name,
            dataset_name=name,
            dataset_split=SPLITS[evidence.split],
            metric_type=METRICS.get(metric, metric),
            metric_name=metric,
            metric_value=round(float(measured[metric]), 6),
        )
        for metric in order
        if measured[metric] is not None
    ]
    return ModelCardData(
        library_name="thaw",
        base_model=base,
        datasets=evidence.settings["data"].get("hub"),
        pipeline_tag=pipeline,
        metrics=[figure.metric_type for figure in figures if figure.metric_name != "loss"],
        tags=["thaw", "fine-tuning", *_strategy(evidence)],
        model_name=evidence.folder.name,
        eval_results=figures,
    )


def base_model(evidence: Evidence) -> str | None:
    """Its name on the Hub; None where it is bundled, a folder, or nothing was pretrained."""
    model = evidence.settings["model"]
    name, target = str(model.get("name") or ""), str(model["_target_"])
    if not evidence.module.network.pretrained or not name or name == "resnet_glyphs" or Path(name).exists():
        return None
    return f"timm/{name}" if ".timm" in target else name if not name.startswith(("/", ".", "~")) else None


def _strategy(evidence: Evidence) -> list[str]:
    chosen = evidence.choices.get("freezing", ("none", None))[0]
    return [str(chosen)] * (chosen not in (None, "none"))


def _section(section: Section) -> list[str]:
    code = [f"{escaped(what)}:\n\n```bash\n{command}\n```" for what, command in section.code]
    return [*map(escaped, section.text), *map(_table, section.tables), *code]


def _table(table: Table) -> str:
    def line(cells: Sequence[Any]) -> str:
        return "| " + " | ".join(escaped(str(cell)).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(table.head), "|---" * len(table.head) + "|", *map(line, table.rows)])


def escaped(text: str) -> str:
    """What users name must not become markup."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("`", "&#96;")
