"""GMP and IMP: densities along the schedule, exact zeros, and the way back."""

import copy

import pytest
import torch
from torch import nn

from gossamer.errors import PatternError, RecipeError
from gossamer.masks import check_mask, magnitude_mask
from gossamer.patterns import NM, parse_pattern
from gossamer.recipes.base.fixed import with_sparsity
from gossamer.recipes.gmp import GMP
from gossamer.recipes.imp import IMP
from support.recipe_course import training

PATTERNS = ["90%", "75%:v4", "2:4", "1:4", "2:8:v4", "block 4x4 75%", "1:4:v16", "75%:v16"]


def test_thinner_patterns_of_each_kind():
    assert with_sparsity(parse_pattern("90%"), 0.5) == parse_pattern("50%")
    assert with_sparsity(parse_pattern("50%:v4"), 0.7) == parse_pattern("50%:v4")
    found = [with_sparsity(NM(1, 4), s).n for s in (0.0, 0.2, 0.25, 0.26, 0.5, 0.51, 0.75, 0.9)]
    assert found == [4, 4, 3, 3, 2, 2, 1, 1]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(
    "options", [{}, {"initial_sparsity": 0.3, "begin_share": 0.2, "end_share": 0.6, "every": 7}]
)
@pytest.mark.slow
def test_gmp_follows_the_cubic_and_what_is_pruned_stays_zero(pattern, options):
    recipe = GMP(pattern, **options)
    final = parse_pattern(pattern)
    _, opt, step = training(recipe, 60)
    every = options.get("every", 2)
    begin, end = int(60 * options.get("begin_share", 0.0)), int(60 * options.get("end_share", 0.75))
    initial = min(options.get("initial_sparsity", 0.0), final.sparsity)
    gone = [torch.zeros_like(layer.mask()) for layer in recipe.layers.values()]
    for t in range(60):
        if t >= end:
            expected = final.sparsity
        else:
            at = max(begin, t - (t - begin) % every) if t >= begin else begin
            left = (1 - (at - begin) / (end - begin)) ** 3
            expected = final.sparsity + (initial - final.sparsity) * left if left < 1 else initial
        for index, layer in enumerate(recipe.layers.values()):
            mask = layer.mask()
            check_mask(mask, layer.pattern)
            assert layer.pattern == with_sparsity(final, expected), t
            assert not layer.weight[~mask].any()
            assert not mask[gone[index]].any()
            gone[index] = ~mask
        step()
        for layer in recipe.layers.values():
            assert not layer.weight.grad[~layer.mask()].any()
    assert all(layer.pattern == final for layer in recipe.layers.values())
    for layer in recipe.layers.values():
        assert not opt.state[layer.weight]["exp_avg"][~layer.mask()].any()


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [(torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}), (torch.optim.Adam, {})],
)
def test_momentum_does_not_move_what_was_pruned(optimizer, options):
    recipe = GMP("90%", end_share=0.5)
    _, _, step = training(recipe, 20, optimizer, **options)
    for _ in range(20):
        step()
        for layer in recipe.layers.values():
            assert not layer.weight[~layer.mask()].any()


def test_gmp_keeps_the_largest_of_the_step():
    recipe = GMP("75%", begin_share=0.5, end_share=0.5)
    model, _, step = training(recipe, 10)
    for _ in range(4):
        step()
    assert recipe.layers["0"].density == 1.0
    seen = {}
    handle = model[0].register_forward_pre_hook(lambda m, a: seen.update(w=m.weight.clone()))
    step()
    handle.remove()
    mask = recipe.layers["0"].mask()
    kept = recipe.layers["0"].weight.detach()[mask]
    assert len(kept) == 512
    assert torch.equal(magnitude_mask(model[0].weight.detach(), "75%"), mask)
    # One step of Adam moves an entry by 0.01 or so: the least kept beats the greatest pruned.
    assert kept.abs().min() > seen["w"].abs()[~mask].max() - 0.03


def test_a_pattern_of_no_sparsity_is_the_dense_optimizer():
    recipe = GMP("0%")
    model, _, step = training(recipe, 10)
    torch.manual_seed(0)
    twin = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16)).double()
    opt = torch.optim.AdamW(twin.parameters(), lr=1e-2)
    x, y = torch.randn(16, 32).double(), torch.randn(16, 16).double()
    for _ in range(10):
        step()
        opt.zero_grad()
        (twin(x) - y).square().mean().backward()
        opt.step()
    torch.testing.assert_close(model[0].weight, twin[0].weight, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("rewind_share", [0.0, 0.5])
def test_imp_prunes_and_goes_back(pattern, rewind_share):
    recipe = IMP(pattern, rounds=3, rewind_share=rewind_share)
    final = parse_pattern(pattern)
    model, opt, step = training(recipe, 22)
    assert recipe.part == 5
    back = int(rewind_share * 5)
    early, parts = {}, []
    for t in range(22):
        if t == back:
            early = {name: p.detach().clone() for name, p in model.named_parameters()}
            moments = [s["exp_avg"].clone() for s in opt.state.values()]
        if t in (5, 10, 15):
            for name, parameter in model.named_parameters():
                layer = model.get_submodule(name.rpartition(".")[0])
                mask = layer.mask() if name.endswith("weight") else 1.0
                assert torch.equal(parameter, early[name] * mask)
            if back:
                for state, moment, parameter in zip(
                    opt.state.values(), moments, opt.state, strict=True
                ):
                    assert float(state["step"]) == back
                    kept = parameter != 0
                    assert torch.equal(state["exp_avg"][kept], moment[kept])
                    if parameter.dim() == 2:
                        assert not state["exp_avg"][~kept].any()
            else:
                assert all(not state for state in opt.state.values())
        parts.append(recipe.layers["0"].density)
        step()
        for layer in recipe.layers.values():
            check_mask(layer.mask(), layer.pattern)
            assert not layer.weight[~layer.mask()].any()
    for finished in range(4):
        wanted = with_sparsity(final, 1 - final.density ** (finished / 3)).density
        assert parts[5 * finished] == pytest.approx(wanted, abs=0.01)
        assert parts[5 * finished : 5 * finished + 5] == [parts[5 * finished]] * 5
    assert recipe.layers["0"].pattern == final


def test_imp_keeps_what_was_largest_before_it_went_back():
    recipe = IMP("50%", rounds=1, rewind_share=0.0)
    model, opt, step = training(recipe, 8)
    steered = torch.zeros(64, 32, dtype=torch.bool)
    steered.view(-1)[::2] = True

    def steer(*_):
        if recipe.step == 3:
            model[0].weight.data[steered] = 10.0

    # Hooks run in their order: this one is in front of the recipe's.
    recipe.detach()
    opt.register_step_post_hook(steer)
    recipe.attach(model, opt, 8)
    for _ in range(4):
        step()
    assert torch.equal(recipe.layers["0"].mask(), steered)
    assert model[0].weight.max() < 1.0


def test_resume_in_the_middle_of_a_part_goes_back_to_the_same_point():
    straight = IMP("75%", rounds=2, rewind_share=0.4)
    model, opt, step = training(straight, 18)
    for t in range(18):
        if t == 4:
            saved = [
                {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in m.items()}
                for m in (straight.state_dict(), model.state_dict())
            ]
            saved.append(copy.deepcopy(opt.state_dict()))
        step()
    again = IMP("75%", rounds=2, rewind_share=0.4)
    model2, opt2, step2 = training(again, 18)
    again.load_state_dict(saved[0])
    model2.load_state_dict(saved[1])
    opt2.load_state_dict(saved[2])
    for _ in range(4, 18):
        step2()
    assert torch.equal(model[0].weight, model2[0].weight)


def test_bad_input_says_what_fits():
    with pytest.raises(RecipeError, match="swap the shares"):
        GMP("90%", begin_share=0.5, end_share=0.2)
    with pytest.raises(RecipeError, match="share in"):
        GMP("90%", initial_sparsity=2.0)
    for kind in (GMP, IMP):
        with pytest.raises(PatternError, match="'2:4' or '50%'"):
            kind("2:4:g2")
    with pytest.raises(RecipeError, match="at least 1"):
        IMP("90%", rounds=0)
    for recipe, least in ((IMP("90%", rounds=9), 10), (GMP("90%", every=9), 14)):
        model = recipe.prepare(nn.Sequential(nn.Linear(8, 32)))
        opt = torch.optim.SGD(recipe.parameters(model), lr=0.1)
        with pytest.raises(RecipeError, match=f"at least {least} steps"):
            recipe.attach(model, opt, total_steps=least - 1)
        recipe.attach(model, opt, total_steps=least)


@pytest.mark.parametrize(("rounds", "share", "steps"), [(3, 0.25, 43), (1, 0.0, 9), (4, 0.9, 50)])
def test_the_position_goes_back_with_the_weights(rounds: int, share: float, steps: int) -> None:
    """Each part begins at the step whose weights it begins with, and ends at the last step."""
    recipe = IMP("75%", rounds=rounds, rewind_share=share)
    model = recipe.prepare(torch.nn.Sequential(torch.nn.Linear(8, 8)))
    optimizer = torch.optim.SGD(recipe.parameters(model), lr=0.1)
    recipe.attach(model, optimizer, total_steps=steps)
    part = recipe.part
    found = [recipe.position(step, steps) for step in range(steps)]
    assert {of for _, of in found} == {part}
    places = [place for place, _ in found]
    assert places[:part] == list(range(part))
    for number in range(1, rounds + 1):
        own = places[number * part : (number + 1) * part if number < rounds else None]
        assert own[0] == recipe.rewind_step
        assert own == sorted(own)
        assert part - 2 <= own[-1] < part
    assert GMP("75%").position(7, 9) == (7, 9)
