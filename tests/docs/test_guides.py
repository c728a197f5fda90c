"""The code of the guides runs as it stands."""

import socket
from pathlib import Path

import pytest
import torch

from gossamer import SparseLinear
from support.fences import FENCE, ROOT, run_fence

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_sparsify_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run_fence("docs/guides/sparsify.md", "sparsify.py", tmp_path)

    assert "2:4:v4" in capsys.readouterr().out  # the summary names the pattern
    assert names["y"].shape == (8, 3072)
    assert all(type(module).__name__ != "SparseLinear" for module in names["model"])


def test_the_example_of_parameter_groups_runs(tmp_path: Path) -> None:
    names = run_fence("docs/guides/sparsify.md", "groups.py", tmp_path)

    factors = [group.get("lr_factor") for group in names["optimizer"].param_groups]
    assert factors == [None, pytest.approx(10.0, rel=0.01), None]
    assert {group["lr"] for group in names["optimizer"].param_groups} == {0.0}


def test_the_example_of_muon_runs(tmp_path: Path) -> None:
    names = run_fence("docs/guides/sparsify.md", "muon.py", tmp_path)

    groups = names["optimizer"].param_groups
    assert [(g["orthogonal"], g["weight_decay"], len(g["params"])) for g in groups] == [
        (True, 0.1, 1),
        (False, 0.1, 1),
        (False, 0.0, 2),
    ]


def test_the_profile_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run_fence("docs/guides/sparsify.md", "profile.py", tmp_path)

    assert "90%: about" in capsys.readouterr().out
    assert [layer.rows for layer in names["found"].layers] == [512, 512]


def test_the_example_of_convolutions_runs(tmp_path: Path) -> None:
    names = run_fence("docs/guides/sparsify.md", "convolutions.py", tmp_path)

    assert names["y"].shape == (8, 64, 32, 32)
    assert names["model"][2].density == pytest.approx(0.1, abs=1e-3)


def test_the_example_of_parameters_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run_fence("docs/guides/sparsify.md", "parameters.py", tmp_path)

    assert "64x128, matrix, turned" in capsys.readouterr().out
    assert type(names["model"].w).__name__ == "Parameter"


def test_the_exchange_example_runs(tmp_path: Path) -> None:
    names = run_fence("docs/guides/sparsify.md", "exchange.py", tmp_path)

    assert names["layer"].weight.values.grad.abs().sum() > 0
    assert (names["back"] != names["matrix"]).nnz == 0


def test_the_finetune_example_runs(tmp_path: Path) -> None:
    names = run_fence("docs/guides/finetune.md", "finetune.py", tmp_path)

    assert names["model"][0].weight.density == 0.25
    assert names["tuned"] < 0.5 * names["pruned"]


def test_the_sharpness_example_runs(tmp_path: Path) -> None:
    names = run_fence("docs/guides/sharpness.md", "sharpness.py", tmp_path)

    assert names["closure"]() < 2.0
    assert names["model"][1].num_batches_tracked == 11


def test_the_example_of_one_cut_runs(tmp_path: Path) -> None:
    names = run_fence("docs/guides/sharpness.md", "cram.py", tmp_path)

    assert names["small"][0].weight.density == 0.5
    assert names["closure"]() < 2.3


def test_the_example_of_a_trust_region_runs(tmp_path: Path) -> None:
    names = run_fence("docs/guides/sharpness.md", "tram.py", tmp_path)

    assert not torch.equal(names["model"].weight, names["pretrained"].weight)


def test_the_example_of_scores_runs(tmp_path: Path) -> None:
    names = run_fence("docs/guides/scores.md", "scores.py", tmp_path)

    assert names["scores"].keys() == names["before_training"].keys() == {"0", "2"}
    kept = names["model"][0].mask().reshape(-1, 4)
    assert torch.equal(kept, names["scores"]["0"].reshape(-1, 4).argsort(1).argsort(1) >= 2)


def test_the_examples_of_cuts_run(tmp_path: Path) -> None:
    names = run_fence("docs/guides/scores.md", "synflow.py", tmp_path)
    assert sum(int((s > 0).sum()) for s in names["scores"].values()) == round(0.1 * 74 * 256)
    assert 0.0 < run_fence("docs/guides/scores.md", "essential.py", tmp_path)["found"].knee < 1.0


def test_the_soups_example_runs(tmp_path: Path) -> None:
    names = run_fence("docs/guides/recipes.md", "soups.py", tmp_path)

    assert -names["made"].score <= min(map(names["loss"], names["models"]))
    assert names["barrier"](*names["models"][:2], names["loss"]) < 1e-3


def test_the_phases_example_runs(tmp_path: Path) -> None:
    names = run_fence("docs/guides/recipes.md", "phases.py", tmp_path)
    assert names["phases"].is_over
    assert names["soup"][0].weight.nnz == names["models"][0][0].weight.nnz == 205


def test_groups_of_the_guide(tmp_path: Path) -> None:
    names = run_fence("docs/guides/recipes.md", "groups.py", tmp_path)
    assert names["loss"].has_begun
    assert int(names["loss"].seen.min()) > 0


def test_the_prune_example_runs(tmp_path: Path) -> None:
    names = run_fence("docs/guides/prune.md", "prune.py", tmp_path)

    before, after = names["report"].flops
    assert after <= 0.5 * before
    assert names["smaller"][0].out_channels % 4 == 0


def test_the_example_of_loading_a_pruned_model_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_fence("docs/guides/prune.md", "resize.py", tmp_path)

    x = torch.randn(3, 8)
    assert torch.equal(names["again"](x), names["smaller"](x))
    assert names["again"][0].out_features == 19


def test_the_example_of_pruned_groups_runs(tmp_path: Path) -> None:
    names = run_fence("docs/guides/prune.md", "prune_groups.py", tmp_path)

    assert names["smaller"][0].out_features == 51
    assert names["loss"].item() < 0.2


def test_the_saving_example_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_fence("docs/guides/saving.md", "saving.py", tmp_path)

    assert capsys.readouterr().out == "True 75%:v4\n"


def test_the_sparse_activations_example_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    names = run_fence("docs/guides/sparse-activations.md", "sparsify_activations.py", tmp_path)

    assert "% live" in capsys.readouterr().out
    assert type(names["model"].model.layers[0].mlp).__name__ == "LlamaMLP"


def test_the_transport_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run_fence("docs/guides/transport.md", "transport.py", tmp_path)

    assert capsys.readouterr().out.startswith("converged")
    assert names["x"].grad.abs().sum() > 0
    assert ((names["few"].plan > 0).sum(0) <= 8).all()


def test_the_pot_example_runs(tmp_path: Path) -> None:
    names = run_fence("docs/guides/pot.md", "pot.py", tmp_path)

    assert names["plan"].sum() == pytest.approx(1)
    assert names["few"].sum() < 1
    assert names["value"] > 0


def test_the_guide_to_sparse_weights_beside_sparse_activations(tmp_path: Path) -> None:
    names = run_fence("docs/guides/sparse-activations.md", "both.py", tmp_path)
    assert list(names["network"].sparse_parts) == ["gate", "down"]


def test_the_example_of_the_activation_penalty_runs(tmp_path: Path) -> None:
    names = run_fence("docs/guides/sparse-activations.md", "activation_l1.py", tmp_path)

    assert names["recipe"].live_share == pytest.approx(0.05, rel=0.4)


def test_the_fsdp_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    for name, value in alone.items():  # as torchrun sets them
        monkeypatch.setenv(name, value)
    names = run_fence("docs/guides/several-machines.md", "fsdp.py", tmp_path)

    assert names["recipe"].step == 30
    assert names["model"][0].weight.density == 0.5


def test_the_recipe_example_runs(tmp_path: Path) -> None:
    names = run_fence("docs/guides/recipes.md", "recipes.py", tmp_path)

    layer = names["model"][0]
    assert isinstance(layer, SparseLinear)
    assert layer.weight.density == 0.5
    assert type(names["model"][2]) is torch.nn.Linear
    assert names["loss"] < 0.5


def test_the_proximal_example_runs(tmp_path: Path) -> None:
    names = run_fence("docs/guides/proximal.md", "proximal.py", tmp_path)

    model, smaller, x = names["model"], names["smaller"], names["x"]
    alive = int((model[0].weight != 0).any(1).sum())
    assert 0 < alive < 256
    assert smaller[0].out_features <= alive
    assert (model[2].weight == 0).any()
    assert torch.allclose(smaller(x), model(x), atol=1e-5)


def test_the_autoencoder_example_runs(tmp_path: Path) -> None:
    names = run_fence("docs/guides/autoencoders.md", "autoencoders.py", tmp_path)

    assert names["code"].indices.shape == (4096, 2)
    assert names["explained"] > 0.5


def test_every_named_fence_is_run() -> None:
    tests = Path(__file__).read_text(encoding="utf-8")
    for page in sorted((ROOT / "docs").rglob("*.md")):
        for name, _ in FENCE.findall(page.read_text(encoding="utf-8")):
            if "/" not in name:  # with a folder it is a quotation
                assert f'"{page.relative_to(ROOT).as_posix()}", "{name}"' in tests, (
                    f"{page}: {name}"
                )
