"""What calibration knows about the linear maps of a model.

Notation: a linear map z = W x with W [N, K]; over calibration tokens t, x_t is its input and g_t [N] the gradient
of the token's end loss with respect to z_t. The loss is that of labels drawn from the model's own predictions,
so that E[g gᵀ] is the Fisher information, and half its quadratic form is the KL divergence that a small error
causes, in nats per token:

    KL ≈ 1/2 * sum_n row_importance[n] * e_n second_moment e_nᵀ          e = Wq - W

with second_moment = E[w_t x_t x_tᵀ], w_t = mean over n of g_tn², and row_importance scaled to a mean of 1.
(GuidedQuant, arXiv 2505.07004, with one group; the rows' share added as in K-FAC, arXiv 1503.05671.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Statistics:
    """Of one linear map [N, K].

    Attributes:
        second_moment: float32 [K, K], symmetric, as above; scaled so that the formula above gives nats per token.
        row_importance: float32 [N], mean 1.
        held_out: float32 [K, K], the second moment over tokens that aren't in `second_moment`; for checking.
        tokens: how many tokens are in `second_moment` (for an expert: those routed to it).
    """

    second_moment: Floats
    row_importance: Floats
    held_out: Floats
    tokens: int

    def importance(self) -> Floats:
        """The diagonal of the second moment: the weight of each input column, float32 [K]."""
        return np.ascontiguousarray(np.diagonal(self.second_moment))


def quadratic_loss(error: Floats, second_moment: Floats, row_importance: Floats) -> float:
    """Predicted KL divergence in nats per token of an error Wq - W, float32 [N, K]."""
    per_row = np.einsum("nk,nk->n", error @ second_moment, error, dtype=np.float64)
    return 0.5 * float(per_row @ row_importance.astype(np.float64))
