"""Losses. Each takes the student's logits, the labels and (where it distils) the teacher's logits.

Shapes: logits (B, classes) and labels (B,), or logits (B, classes, H, W) and labels (B, H, W) with IGNORE where a pixel
is of no class. All return the mean, over the batch or over its pixels.
"""

import torch
from torch.nn import functional as F

from edgekit.data import IGNORE


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean over the batch; of masks, over their labelled pixels: 0 where there is none."""
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels)  # here 255 may be a class
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp(min=1)


def distillation(
    logits: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor, temperature: float, alpha: float
) -> torch.Tensor:
    """(1 − alpha) · CE(student, labels) + alpha · T² · KL(softmax(teacher / T) || softmax(student / T)).

    KL is the mean over the batch, or over all its pixels: the teacher has an answer where the mask has none.

    Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531, section 2.
    """
    student_log = F.log_softmax(logits / temperature, dim=1)
    teacher_log = F.log_softmax(teacher / temperature, dim=1)
    answers = logits.numel() // logits.shape[1]  # B, or B·H·W
    divergence = F.kl_div(student_log, teacher_log, reduction="sum", log_target=True) / answers
    return (1 - alpha) * cross_entropy(logits, labels) + alpha * temperature**2 * divergence
