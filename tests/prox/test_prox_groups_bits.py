"""Operators on groups give the same bits for any number of threads and instruction set."""

import numpy as np
import pytest
import torch

from gossamer import backend
from gossamer.prox import operators as ops
from gossamer.prox.groupings import Groups


def every_operator() -> list[torch.Tensor]:
    rng = np.random.default_rng(13)
    m = 70_001
    a = torch.from_numpy(rng.random(m))
    d, c = (torch.from_numpy(np.exp(rng.uniform(-1, 1, m))) for _ in range(2))
    two = torch.where(a < 0.5, 2.0, 1.0).double()
    k = float((two == 2).sum())
    found = [ops.wgsef_gains(a, m / 3, lam)[0] for lam in (1e-3, 2.0)]
    found += [ops.wgsef_gains(a, m / 3, 0.1, d, c, c)[0], ops.wgsef_gains(two, k, 3.0)[0]]
    amount, shares = ops.wgsef_value(a, m / 3, d, c)
    found += [torch.tensor(amount), shares]
    for dtype in (torch.float32, torch.float64):
        x = torch.from_numpy(rng.standard_normal((m, 3))).to(dtype)
        h = torch.from_numpy(np.exp(rng.uniform(-2, 2, (m, 3)))).to(dtype)
        for groups in (Groups(1, m, 3), Groups(m, 3, 1), Groups(1, 1, 3 * m)):
            norms = ops.group_norms(x, groups)
            lam = 0.6 * norms.mean()
            found += [norms, ops.scale_groups_(x.clone(), torch.rand_like(norms), groups)]
            found += [ops.metric_group_l2_(x.clone(), h, groups, float(lam))]
        found += [ops.top_k_(x.clone(), m), ops.l1_minus_l2_(x.clone(), 0.5, 0.7)]
        found += [ops.l1_ball_(x.clone(), 100.0), ops.simplex_(x.clone(), 1000.0)]
    return found


@pytest.mark.slow
def test_the_bits_depend_on_neither_threads_nor_isa() -> None:
    torch.set_num_threads(2)
    torch.manual_seed(1)
    expected = every_operator()
    assert any(t.count_nonzero() for t in expected)
    choices = [(1, backend.isa()), (3, backend.isa())]
    choices += [(2, isa) for isa in backend.isas() if isa in ("avx2", "emulated")]
    for threads, isa in choices:
        torch.set_num_threads(threads)
        backend.use_isa(isa)
        torch.manual_seed(1)
        for number, (one, two) in enumerate(zip(every_operator(), expected, strict=True)):
            assert torch.equal(one, two), f"result {number} with {threads} threads, {isa}"
