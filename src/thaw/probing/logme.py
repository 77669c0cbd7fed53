"""LogME: the evidence that a linear model has for the labels, given the features (arXiv:2102.11005)."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

ROUNDS, CLOSE = 100, 1e-4  # of the fixed point, and the relative change at which it has been found


def logme(features: Tensor, classes: Tensor) -> float:
    """The log evidence a sample, mean over the classes, each as targets of 0 and 1; larger is better.

    Targets are noise of precision β around features · weights, the weights noise of precision α around 0; α and β are
    those under which the targets are likeliest. Unlike an accuracy it needs no validation.

    Args:
        features: (samples, width).
        classes: (samples,).
    """
    targets = F.one_hot(classes).double()
    return float(evidence(features.double(), targets[:, targets.any(0)]).mean() / len(targets))


def evidence(features: Tensor, targets: Tensor) -> Tensor:
    """The largest log evidence of each column (outputs,) of the targets (samples, outputs), over α and β."""
    samples, width = features.shape
    wide = width > samples
    squares, vectors = torch.linalg.eigh(features @ features.T if wide else features.T @ features)
    kept = squares > 1e-12 * squares.max()
    squares, vectors = squares[kept][:, None], vectors[:, kept]
    left = vectors if wide else features @ vectors / squares.sqrt()[:, 0]
    along = (left.T @ targets).square()  # (rank, outputs): what of the targets the features reach
    beyond = (targets.square().sum(0) - along.sum(0)).clamp(min=0)

    def moments(alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Effective number of weights, their squared length, and the squared residual."""
        share = beta * squares / (alpha + beta * squares)
        weights = (share.square() / squares * along).sum(0)
        return share.sum(0), weights, ((1 - share).square() * along).sum(0) + beyond

    alpha, beta = torch.ones(2, targets.shape[1], dtype=features.dtype)
    for _ in range(ROUNDS):
        count, weights, residual = moments(alpha, beta)
        before = alpha / beta
        alpha, beta = count / weights.clamp(min=1e-12), (samples - count) / residual.clamp(min=1e-12)
        if ((alpha / beta - before).abs() <= CLOSE * before).all():
            break
    _, weights, residual = moments(alpha, beta)
    determinant = (alpha + beta * squares).log().sum(0) + (width - len(squares)) * alpha.log()
    fit = samples * beta.log() + width * alpha.log() - beta * residual - alpha * weights
    return (fit - determinant - samples * math.log(2 * math.pi)) / 2
