"""What training costs in floating-point operations, counted by parameters (Hoffmann et al., arXiv 2203.15556, appendix F)."""

from __future__ import annotations


def training_flops_per_token(num_parameters: int, num_teacher_parameters: int = 0) -> float:
    """FLOPs of training on one token: 6 N, and 2 N_teacher where a teacher of `num_teacher_parameters` runs along.

    2 N a forward pass, twice that a backward pass; the teacher has no backward pass. Embeddings count as parameters, as in the
    published figures; attention scores are left out, as they are there.
    """
    return 6.0 * num_parameters + 2.0 * num_teacher_parameters
