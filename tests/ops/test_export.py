"""What leaves the process: AOTInductor packages work; ONNX is refused by name."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import gossamer
from gossamer import SparseLinear
from gossamer.nn import MaskedLinear

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of torch's exporters

LOAD = """
import sys, torch, gossamer.ops
run, x, y = torch._inductor.aoti_load_package(sys.argv[1]), *torch.load(sys.argv[2])
torch.testing.assert_close(run(x), y)
"""


@pytest.mark.process
def test_an_aot_inductor_package_runs_in_another_process(tmp_path: Path) -> None:
    model = nn.Sequential(
        SparseLinear(16, 32, pattern="2:4:v4"),  # no transpose, no pointers
        nn.GELU(),
        SparseLinear(32, 8, bias=False, pattern="75%"),
    ).eval()
    x = torch.randn(5, 16)
    batch = torch.export.Dim("batch", min=2, max=64)
    with torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
        package = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "model.pt2")
        )
        run = torch._inductor.aoti_load_package(package)
        for size in (2, 5, 9):
            x = torch.randn(size, 16)
            torch.testing.assert_close(run(x), model(x))
        torch.save((x, model(x)), tmp_path / "pair.pt")
    files = [package, str(tmp_path / "pair.pt")]
    done = subprocess.run([sys.executable, "-c", LOAD, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["sparse", "masked"])
def test_the_onnx_exporter_names_the_layer(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    layer = SparseLinear(16, 8, pattern="2:4")
    if kind == "masked":
        layer = MaskedLinear.from_dense(nn.Linear(16, 8), "2:4")
    model = nn.Sequential(nn.Identity(), nn.Sequential(layer)).eval()
    x = torch.randn(3, 16)
    with pytest.raises(Exception, match=r"1\.0.*densify"):
        torch.onnx.export(model, (x,), str(tmp_path / "a.onnx"), dynamo=True)
    assert not list(tmp_path.iterdir())
    torch.onnx.export(gossamer.densify(model), (x,), str(tmp_path / "a.onnx"), dynamo=True)
    assert list(tmp_path.iterdir())
