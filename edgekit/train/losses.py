"""Losses. Each takes the student's logits, the labels and (where it distils) the teacher's logits.

Shapes: logits (B, classes), labels (B,). All return the mean over the batch.
"""

import torch
from torch.nn import functional as F


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, labels)


def distillation(
    logits: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor, temperature: float, alpha: float
) -> torch.Tensor:
    """(1 − alpha) · CE(student, labels) + alpha · T² · KL(softmax(teacher / T) || softmax(student / T)).

    Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531, section 2.
    """
    student_log = F.log_softmax(logits / temperature, dim=1)
    teacher_log = F.log_softmax(teacher / temperature, dim=1)
    divergence = F.kl_div(student_log, teacher_log, reduction="batchmean", log_target=True)
    return (1 - alpha) * F.cross_entropy(logits, labels) + alpha * temperature**2 * divergence
