"""Random gradients at the logits whose covariance is the Fisher matrix of the model's own predictions.

With labels drawn from the model, the gradient at the logits is p - onehot(label): covariance diag(p) - p p^T,
the true Fisher, but where the model is sure, rare large draws carry all of it. Random signs z give
sqrt(p) z - p (sqrt(p) . z), of that same covariance and of nearly the same size at every draw (figures in
docs/lab-log.md). The text's own tokens would give the empirical Fisher, which over-weighs surprising text.
"""

import torch
from torch import Tensor

_STEP = 97  # between the signs of two rows; ids next to each other are often alike, so not 1
_ROWS = 16  # rows at once: in float32 they stay in the processor's cache, even of a large vocabulary


def random_signs(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Signs [rows, columns], float32, of a CPU generator: a view of one sequence, each row further along.

    Independent within a row, which is all that the covariance asks for; a sign that two rows share stands
    for two unrelated ids. Drawing every sign anew took longer than the softmax.
    """
    count = columns + _STEP * (rows - 1)
    drawn = torch.randint(0, 2, (count,), generator=generator).float().mul_(2).sub_(1)
    return drawn.unfold(0, columns, _STEP)


def fisher_probes(logits: Tensor, signs: Tensor) -> Tensor:
    """Rows [n, vocabulary], in the dtype of `logits`, of mean 0 and covariance diag(p) - p p^T over `signs`.

    p = softmax(logits), computed in float32. signs: of the same shape. Peak memory: the result.
    """
    rows, vocabulary = logits.shape
    probes = torch.empty_like(logits)
    buffers = torch.empty(2, min(rows, _ROWS), vocabulary, device=logits.device)
    for start in range(0, rows, _ROWS):
        part, own = logits[start : start + _ROWS], signs[start : start + _ROWS]
        roots, work = buffers[:, : len(part)]
        torch.sub(part, part.amax(dim=-1, keepdim=True), out=roots)
        roots.mul_(0.5).exp_()
        roots.mul_(torch.linalg.vecdot(roots, roots).rsqrt_().unsqueeze(1))  # sqrt(p)
        projection = torch.mul(roots, own, out=work).sum(dim=-1, keepdim=True)  # sqrt(p) . z
        torch.addcmul(work, roots.square_(), projection, value=-1, out=work)
        probes[start : start + _ROWS] = work
    return probes
