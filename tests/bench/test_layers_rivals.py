"""The bench's candidates: what computes the layer rightly passes, what does not is never timed."""

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.harness import run
from bench.harness.contest import UnavailableError, WrongResultError
from bench.harness.machine import honest_notes
from bench.harness.record import GOSSAMER
from bench.harness.results import Results
from bench.layers import bars, cases, jobs, rivals
from bench.layers.cases import NN_LINEAR, QUICK, SPARSEPROP, Case, Problem, Shape
from bench.layers.rivals import Candidate

SMALL = Shape(6, 32, 16)
NAMES = (NN_LINEAR, GOSSAMER, cases.MASKED_DENSE, cases.TORCH_CSR)


def small(pattern: str = "50%", dtype: torch.dtype = torch.float32) -> Problem:
    return cases.build(Case(SMALL, pattern, dtype))


@pytest.mark.parametrize("pattern", ["2:4:v4", "2:4", "50%", "block 4x4 50%"])
@pytest.mark.parametrize("name", NAMES)
def test_right_candidates_pass(name: str, pattern: str) -> None:
    problem = small(pattern)
    one = rivals.candidate(name, problem)
    rivals.verify(one, problem, backward=False)
    rivals.verify(one, problem, backward=True)


@pytest.mark.parametrize("name", [NN_LINEAR, GOSSAMER])
def test_bfloat16_passes(name: str) -> None:
    problem = small(dtype=torch.bfloat16)
    rivals.verify(rivals.candidate(name, problem), problem, backward=True)


def _off_by_one_entry(result: Tensor) -> Tensor:
    result = result.clone()
    result.view(-1)[3] += 0.01 * result.abs().max()
    return result


@pytest.mark.parametrize(
    "fault",
    [
        lambda one: replace(one, layer=lambda x: _off_by_one_entry(one.layer(x))),
        lambda one: replace(one, layer=lambda x: one.layer(x) * math.nan),
        lambda one: replace(one, layer=lambda x: one.layer(x)[:, :-1]),
    ],
    ids=["one entry", "nan", "shape"],
)
def test_a_wrong_output_is_refused(fault: Callable[[Candidate], Candidate]) -> None:
    problem = small()
    one = fault(rivals.candidate(NN_LINEAR, problem))
    with pytest.raises(WrongResultError, match="output"):
        rivals.verify(one, problem, backward=False)


class _WrongInputGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return _off_by_one_entry(grad)


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        (
            lambda one: replace(one, layer=lambda x: one.layer(_WrongInputGradient.apply(x))),
            "gradient of the input",
        ),
        (
            lambda one: replace(one, grad_weight=lambda: _off_by_one_entry(one.grad_weight())),
            "gradient of the weight",
        ),
        (lambda one: replace(one, grad_bias=lambda: None), "gradient of the bias"),
    ],
    ids=["input", "weight", "bias"],
)
def test_a_wrong_gradient_is_refused(fault: Callable[[Candidate], Candidate], what: str) -> None:
    problem = small()
    one = fault(rivals.candidate(NN_LINEAR, problem))
    rivals.verify(one, problem, backward=False)
    with pytest.raises(WrongResultError, match=what):
        rivals.verify(one, problem, backward=True)


def test_a_gradient_outside_the_mask_is_refused() -> None:
    problem = small()
    linear = problem.linear
    one = replace(
        rivals.candidate(NN_LINEAR, problem), grad_weight=lambda: rivals._grad(linear.weight)
    )
    with pytest.raises(WrongResultError, match="gradient of the weight"):
        rivals.verify(one, problem, backward=True)


def test_a_step_computes_gradients_anew() -> None:
    problem = small()
    one = rivals.candidate(GOSSAMER, problem)
    for _ in range(3):
        rivals.verify(one, problem, backward=True)


def test_a_wrong_rival_is_left_out_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    right = rivals.masked_dense

    def wrong(problem: Problem) -> Candidate:
        one = right(problem)
        return replace(one, layer=lambda x: one.layer(x) * 2)

    monkeypatch.setattr(rivals, "masked_dense", wrong)
    errors: list[str] = []
    names = (NN_LINEAR, GOSSAMER, cases.MASKED_DENSE)
    good, skipped = jobs.verified(names, small(), False, errors)
    assert [one.name for one in good] == [NN_LINEAR, GOSSAMER]
    assert list(skipped) == [cases.MASKED_DENSE]
    assert "differs from the dense formula" in errors[0]


def test_a_wrong_gossamer_ends_the_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    right = rivals.gossamer

    def wrong(problem: Problem) -> Candidate:
        one = right(problem)
        return replace(one, layer=lambda x: one.layer(x) + 1)

    monkeypatch.setattr(rivals, "gossamer", wrong)
    scope = replace(QUICK.scope, shapes=(SMALL,), patterns=("50%",))
    plan = replace(QUICK, scope=scope, rounds=(1, 1))
    job = next(jobs.case_jobs(plan))
    found = Results(tmp_path / "r.json", {}, {})
    run._run(job, found)
    assert not found.records
    assert "gossamer, 50%: output differs" in found.errors[0]


@pytest.mark.parametrize("pattern", ["2:4:v4", "50%"])
def test_a_wrong_verb_is_refused(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(SMALL, pattern)
    runs = jobs.verb_runners(case)
    assert list(runs) == [bars.SPMM, bars.SPMM_T, bars.SDDMM]
    for verb in runs:
        right = getattr(jobs.backend, verb)
        monkeypatch.setattr(jobs.backend, verb, lambda *a, right=right: right(*a) * 1.01)
        with pytest.raises(WrongResultError, match=verb):
            jobs.verb_runners(case)
        monkeypatch.undo()


def test_sparseprop_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sparseprop.modules", None)
    with pytest.raises(UnavailableError, match="no-build-isolation"):
        rivals.candidate(SPARSEPROP, small())
    good, skipped = jobs.verified((GOSSAMER, SPARSEPROP), small(), False, errors := [])
    assert [one.name for one in good] == [GOSSAMER]
    assert SPARSEPROP in skipped
    assert not errors
    machine = {"cpu": "Intel Xeon", "isas": ["avx2"], "isa": "avx2", "versions": {}}
    assert any("not installed" in note for note in honest_notes(machine))


def test_sparseprop_is_read_rightly(monkeypatch: pytest.MonkeyPatch) -> None:
    class Theirs(torch.nn.Module):
        """Shaped like sparseprop.modules.SparseLinear, computing with torch."""

        def __init__(self, linear: torch.nn.Linear) -> None:
            super().__init__()
            csr = linear.weight.detach().to_sparse_csr()
            self.W_val = torch.nn.Parameter(csr.values())
            self.W_idx = (csr.crow_indices().int(), csr.col_indices().int())
            self.bias = torch.nn.Parameter(linear.bias.detach().clone())

        from_dense = classmethod(lambda cls, linear: cls(linear))

        def forward(self, x: Tensor) -> Tensor:
            indptr, columns = self.W_idx
            rows = torch.repeat_interleave(torch.arange(len(indptr) - 1), indptr.diff())
            dense = torch.zeros(len(indptr) - 1, x.shape[1])
            dense = dense.index_put((rows, columns.long()), self.W_val)
            return x @ dense.T + self.bias

    module = SimpleNamespace(SparseLinear=Theirs)
    monkeypatch.setitem(sys.modules, "sparseprop", SimpleNamespace(modules=module))
    monkeypatch.setitem(sys.modules, "sparseprop.modules", module)
    problem = small()
    rivals.verify(rivals.candidate(SPARSEPROP, problem), problem, backward=True)
