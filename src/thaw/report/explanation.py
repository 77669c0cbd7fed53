"""Eight samples, and what in them the network's answer rests on."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from thaw.data.datamodule import DataModule
from thaw.data.loaders import Split
from thaw.model.network import Network
from thaw.report import colored_tokens, overlays
from thaw.report.answers import Verdict, verdicts
from thaw.report.attribution import LIMIT, Attribution, TooExpensiveError, attribute, undisturbed
from thaw.report.evidence import Evidence
from thaw.report.section import Picture, Section

SAMPLES, WRONG = 8, 4
LIMITS = {"standard": LIMIT, "full": 100 * LIMIT}
TITLE = "What the answers rest on"
COLORS = "orange speaks for the answer, blue against it"
METHODS = {
    "grad_cam": "Grad-CAM (arXiv:1610.02391): where a late map of the convolutions speaks for the answer. It tells "
    "where, not what it is there; it shows nothing that speaks against the answer, and is as coarse as that map of "
    "{size} cells.",
    "integrated_gradients": "Integrated gradients (arXiv:1703.01365) from {empty}: {colors}. They add up to what the "
    "answer's score gains over that, and miss it by {missed} at the median. They tell what this answer was computed "
    "from, not whether it would be another one without it.",
    "silence": "Occlusion (arXiv:1311.2901): how far the answer's score falls when one of {size} cells of pitch and "
    "time is silenced; {colors}. What a sound says twice is not missed when it is silenced once, so a pale cell need "
    "not be without meaning.",
}


def explanation(evidence: Evidence) -> Section | None:
    """Attributions of up to four wrong answers and the rest right ones, with what the method can and cannot tell."""
    answers, module, data, split = evidence.answers, evidence.module, evidence.data, evidence.split
    if answers.kind not in SCORES or not answers.rows:
        return None
    chosen, indices = choose(verdicts(answers)), list(evidence.rows)
    keys = [indices[each.row] for each in chosen]
    with undisturbed(module.network) as network:
        try:
            inputs, found = attributed(network, data, split, keys, answers.kind, LIMITS[evidence.depth])
        except TooExpensiveError:
            more = "" if evidence.depth == "full" else " report.depth=full does it all the same."
            return Section(TITLE, text=[f"Left out: it would take minutes on this device.{more}"])
    labels = [f"{each.truth} → {each.guess}" if not each.right else each.truth for each in chosen]
    preprocessing = module.network.preprocessing
    if preprocessing["kind"] == "text":
        tokens = [colored_tokens.pieces(preprocessing["tokenizer"], ids) for ids in inputs]
        figure = colored_tokens.draw(tokens, found.values, labels)
        seen = colored_tokens.strongest(tokens[0], found.values[0])
    elif preprocessing["kind"] == "image":
        pictures = [overlays.as_seen(each, preprocessing["mean"], preprocessing["std"]) for each in inputs]
        figure = overlays.over_images(pictures, found.values, labels)
        seen = overlays.place(found.values[0])
    else:
        sounds = [data.splits[split][key][0] for key in keys]
        figure = overlays.over_sounds(sounds, found.values, labels)
        seen = overlays.moment(*sounds[0], found.values[0])
    right = sum(each.right for each in chosen)
    who = f"{len(chosen)} samples, {right} of them answered rightly"
    alt = f"{who}, under what speaks for the answer. In the first, {labels[0]}, {seen}."
    return Section(TITLE, pictures=[Picture(figure, alt, caption(found, preprocessing["kind"]), vector=False)])


def choose(judged: Sequence[Verdict]) -> list[Verdict]:
    """The surest wrong answers, and right ones of as many classes as there are, the surest of each."""
    surest = sorted(judged, key=lambda each: (-each.confidence, each.row))
    wrong = [each for each in surest if not each.right]
    right = [each for each in surest if each.right]
    first = {each.truth: each for each in reversed(right)}
    varied = [each for each in right if first[each.truth] is each]
    spread = varied + [each for each in right if first[each.truth] is not each]
    mixed = wrong[: max(WRONG, SAMPLES - len(right))]
    return mixed + spread[: SAMPLES - len(mixed)]


def attributed(
    network: Network, data: DataModule, split: Split, keys: Sequence[int], kind: str, limit: float
) -> tuple[list[Any], Attribution]:
    """What the network reads of each of these samples, and their attribution.

    Raises:
        TooExpensiveError: see `attribute`.
    """
    if network.preprocessing["kind"] != "waveform":
        inputs = read(network, data, split, keys)
        found = attribute(network, inputs, SCORES[kind], _chosen(network, inputs, kind), limit)
        lengths = [len(values) for values in found.values]
        if isinstance(inputs, Mapping):
            return [row[:length].tolist() for row, length in zip(inputs["input_ids"], lengths, strict=True)], found
        return list(inputs), found
    each = []  # one by one: silence that fills up the others would count as sound
    for key in keys:
        inputs = read(network, data, split, [key])
        each.append(attribute(network, inputs, SCORES[kind], _chosen(network, inputs, kind), limit / len(keys)))
    explained = np.concatenate([one.explained for one in each])
    return [], Attribution(each[0].method, [one.values[0] for one in each], explained)


def read(network: Network, data: DataModule, split: Split, keys: Sequence[int]) -> Any:
    """A batch of these samples as the network reads it, in float32 and where it is."""
    batch = data.on_after_batch_transfer(data.batch(split, [(0, key) for key in keys]), 0)[0]
    device = next(network.parameters()).device
    if isinstance(batch, Tensor):
        return network.laid_out(batch.to(device).float())
    return {name: (v.float() if v.is_floating_point() else v).to(device) for name, v in batch.items()}


def _log_odds(outputs: Tensor, chosen: Tensor) -> Tensor:
    own = F.one_hot(chosen, outputs.shape[1]).bool()
    return outputs[own] - outputs.masked_fill(own, -torch.inf).logsumexp(dim=1)


def _of_path(outputs: Any, chosen: Tensor) -> Tensor:
    logs = outputs[0].log_softmax(dim=-1).gather(-1, chosen.clamp(min=0)[..., None])[..., 0]
    return (logs * (chosen >= 0)).sum(dim=1)


def _one(outputs: Tensor, chosen: Tensor) -> Tensor:
    return outputs.gather(1, chosen[:, None])[:, 0]


#: What is explained of each kind of answer: the log-odds of the class or label, the number in standard deviations, the
#: log-probability of the letters (chosen frame by frame).
SCORES = {"class": _log_odds, "labels": _one, "number": _one, "transcript": _of_path}


def _chosen(network: Network, inputs: Any, kind: str) -> Tensor:
    with torch.no_grad():
        outputs = network.forward(inputs)
    if kind == "transcript":
        path = outputs[0].argmax(dim=-1)
        steps = torch.arange(path.shape[1], device=path.device)
        return path.masked_fill(steps >= outputs[1][:, None], -1)
    return outputs.argmax(dim=1) if kind != "number" else torch.zeros_like(outputs[:, 0], dtype=torch.long)


EMPTY = {"image": "a black image", "text": "nothing but padding", "waveform": "silence"}


def caption(found: Attribution, reads: str) -> str:
    """The method, and what it cannot tell."""
    size = " × ".join(map(str, found.values[0].shape))
    missed = ""
    if found.missed is not None:
        missed = f"{np.median(np.abs(found.missed) / np.maximum(np.abs(found.explained), 1e-6)):.1%}"
    return METHODS[found.method].format(size=size, empty=EMPTY[reads], colors=COLORS, missed=missed)
