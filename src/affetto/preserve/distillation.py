"""Knowledge distillation (Hinton et al. 2015) from the frozen base, per code and in float32."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from affetto.model.losses import LossTerm


def distillation_kl(teacher_log_probs: Tensor, student_logits: Tensor, temperature: float = 1.0) -> LossTerm:
    """Sum over codes of KL(softmax(teacher / T) || softmax(student / T)); both (…, V).

    The teacher is given as log-probabilities, which softmax(… / T) treats like logits. The factor T² belongs to the
    loss and isn't in here, so that at T = 1 this is the forgetting itself.
    """
    teacher = functional.log_softmax(teacher_log_probs.float() / temperature, dim=-1)
    student = functional.log_softmax(student_logits.float() / temperature, dim=-1)
    total = (teacher.exp() * (teacher - student)).sum()
    return LossTerm(total, teacher.numel() // teacher.shape[-1])
