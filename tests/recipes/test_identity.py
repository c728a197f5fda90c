"""What a checkpoint says of its recipe, and which of them a training takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from gossamer.errors import GossamerDeprecationWarning, RecipeError
from gossamer.patterns import NM
from gossamer.recipes import (
    DSL,
    FST,
    GMP,
    RECIPES,
    SET,
    SRSTE,
    STE,
    AutoSparse,
    BiMask,
    Entry,
    HyperSparse,
    MaskDecay,
    Recipe,
    RigL,
    SLoPe,
    SparseIFT,
    StructureDecay,
    entry,
    make,
    register,
)
from gossamer.recipes.base.identity import identity, recipe_id
from gossamer.train import load_checkpoint, save_checkpoint


def attached(recipe: Recipe) -> Recipe:
    torch.manual_seed(0)
    model = recipe.prepare(nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16)))
    optimizer = torch.optim.SGD(recipe.parameters(model), lr=0.1)
    recipe.attach(model, optimizer, total_steps=40)
    return recipe


def saved(recipe: Recipe) -> dict[str, Any]:
    return attached(recipe).state_dict()


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_registered_name_has_an_id_that_begins_it_and_plain_fields(name: str) -> None:
    one = identity(make(name))
    assert name == one["recipe"] or name.startswith(one["recipe"] + "-")
    assert one["fields"]["pattern"] == str(make(name).pattern)
    assert all(
        value is None or type(value) in (str, int, float, bool) for value in one["fields"].values()
    )


def test_ids_are_of_one_class_each() -> None:
    kinds = {one.load() for one in RECIPES.values()}
    assert len({recipe_id(kind) for kind in kinds}) == len(kinds)


def test_a_state_dict_names_the_id_and_the_fields() -> None:
    state = saved(SET("75%", every=4))
    assert state["recipe"] == "set"
    assert state["fields"] == {
        "pattern": "75%", "distribution": "erk", "seed": 0, "fraction": 0.3, "every": 4,
        "end_share": 0.75,
    }  # fmt: skip


def test_a_field_that_the_checkpoint_misses_is_its_default() -> None:
    state = saved(GMP("75%"))
    del state["fields"]["every"], state["fields"]["distribution"]
    attached(GMP("75%")).load_state_dict(state)
    with pytest.raises(RecipeError, match=r"has every=None, this training's has every=5;"):
        attached(GMP("75%", every=5)).load_state_dict(state)
    state = saved(SET("75%"))
    del state["fields"]["distribution"]
    attached(SET("75%")).load_state_dict(state)
    with pytest.raises(RecipeError, match="distribution='uniform'"):
        attached(SET("75%", distribution="uniform")).load_state_dict(state)


def test_a_field_that_is_unknown_here_is_ignored() -> None:
    state = saved(GMP("75%"))
    state["fields"]["colour"] = "blue"
    attached(GMP("75%")).load_state_dict(state)


def test_values_that_differ_are_named_and_only_those() -> None:
    state = saved(GMP("75%", every=4, end_share=0.5))
    target = attached(GMP("75%", every=5))
    before = target.state_dict()
    with pytest.raises(RecipeError) as raised:
        target.load_state_dict(state)
    assert str(raised.value).startswith(
        "the checkpoint's recipe 'gmp' has end_share=0.5, every=4, this training's has "
        "end_share=0.75, every=5; resume with"
    )
    assert target.state_dict() == before


@pytest.mark.parametrize("other", ["srste", "nobody-knows-it", "my_module:Mine", None, 7])
def test_another_id_is_refused_in_one_sentence(other: object) -> None:
    with pytest.raises(RecipeError, match=r"recipe is .*, this training's 'gmp'; resume with"):
        attached(GMP("75%")).load_state_dict(saved(GMP("75%")) | {"recipe": other})


# Field names before they were renamed, and a recipe whose fields are not their defaults.
FORMER: list[tuple[Recipe, dict[str, Any]]] = [
    (SLoPe("2:4", every=7), {"refresh_every": 7}),
    (
        FST("2:4", gradient_decay=0.5, every=7, dense_finetune_share=0.25),
        {"decay": 0.5, "refresh_every": 7, "dense_finetune": 0.25},
    ),
    (BiMask("2:4", gradient_decay=0.5, every=7), {"decay": 0.5, "choose_every": 7}),
    (SRSTE("2:4", gradient_decay=0.5), {"decay": 0.5}),
    (SET("75%", end_share=0.5), {"until": 0.5}),
    (RigL("75%", end_share=0.5), {"until": 0.5}),
    (DSL("75%", end_share=0.5), {"until": 0.5}),
    (
        GMP("75%", initial_sparsity=0.25, begin_share=0.25, end_share=0.5),
        {"initial": 0.25, "begin": 0.25, "end": 0.5},
    ),
    (AutoSparse("75%", initial_threshold=-3.0, scope="layer"), {"initial": -3.0, "per": "layer"}),
    (HyperSparse("75%", lam=0.5), {"strength": 0.5}),
    (MaskDecay("2:4", method="exponential"), {"kind": "exponential"}),
    (StructureDecay("1:4", method="geometric", windows=2), {"kind": "geometric"}),
    (SparseIFT("75%", method="doped"), {"kind": "doped"}),
]


@pytest.mark.parametrize(("recipe", "former"), FORMER, ids=lambda v: type(v).__name__)
def test_former_names_of_fields_are_read_in_checkpoints_and_options(
    recipe: Recipe, former: dict[str, Any]
) -> None:
    kind = type(recipe)
    assert set(former) == set(kind.renamed)
    mine = identity(recipe)
    old = {k: v for k, v in mine["fields"].items() if k not in kind.renamed.values()} | former
    name = next(name for name, one in RECIPES.items() if one.kind == kind.__name__)
    options = {k: v for k, v in old.items() if k != "pattern"}
    with pytest.warns(GossamerDeprecationWarning, match=next(iter(former))) as caught:
        assert identity(make(name, recipe.pattern, **options)) == mine
    assert {warning.filename for warning in caught} == {__file__}  # it names the caller's line
    again = kind(**mine["fields"])
    attached(again)
    state = again.state_dict()
    again.load_state_dict(state | {"fields": old})
    first = next(iter(former))
    with pytest.raises(RecipeError, match=kind.renamed[first]):
        again.load_state_dict(state | {"fields": old | {first: "another"}})
    with pytest.raises(RecipeError, match="present and its former name"):
        make(name, **{first: former[first], kind.renamed[first]: former[first]})


OLD = {
    "SLoPe(pattern=NM(n=2, m=4, vector=1), adapter_rank=0, adapter_share=0.01, "
    "adapter_weight_decay=0.01, refresh_every=7, backward=None, seed=0)": SLoPe("2:4", every=7),
    "SET(pattern=Unstructured(sparsity=0.9, vector=1), distribution='erk', seed=0, fraction=0.3, "
    "every=None, until=0.75)": SET("90%"),
    "GMP(pattern=Block(rows=4, cols=4, sparsity=0.75), initial=0.0, begin=0.0, end=0.75, "
    "every=None, distribution='uniform')": GMP("block 4x4 75%"),
    "STE(pattern=GroupedNM(n=2, m=4, g=1))": STE("2:4:g1"),
    "FST(pattern=NM(n=2, m=4, vector=1), decay=6e-05, refresh_every=40, "
    "dense_finetune=0.16666666666666666, mvue=NM(n=2, m=4, vector=1), seed=0, method='auto')": FST(
        "2:4"
    ),
    "MaskDecay(pattern=NM(n=2, m=4, vector=1), kind='linear', rate=None, dense_share=0.0, "
    "finetune_share=0.1)": MaskDecay("2:4"),
}


@pytest.mark.parametrize("text", list(OLD), ids=lambda text: text.partition("(")[0])
def test_a_checkpoint_that_holds_a_repr_is_read(text: str) -> None:
    recipe = attached(OLD[text])
    state = recipe.state_dict()
    del state["fields"]
    recipe.load_state_dict(state | {"recipe": text})
    recipe.detach()
    other = attached(type(recipe)("1:4" if ":" in str(recipe.pattern) else "50%"))
    with pytest.raises(RecipeError, match=r"the checkpoint's recipe .* has pattern="):
        other.load_state_dict(state | {"recipe": text})
    elsewhere = attached(STE("2:8"))
    with pytest.raises(RecipeError, match="the checkpoint's recipe "):
        elsewhere.load_state_dict(state | {"recipe": text})


@pytest.mark.parametrize(
    "text",
    ["GMP(pattern=<odd>)", "GMP(", "GMP", "", "GMP(pattern=__import__('os').getcwd())",
     "GMP(pattern=Other(n=1))", "GMP(pattern=NM(n=9, m=4, vector=1))", "GMP('75%')", None, 3],
)  # fmt: skip
def test_a_repr_that_says_nothing_is_refused_in_one_sentence(text: object) -> None:
    recipe = attached(GMP("75%"))
    state = recipe.state_dict()
    del state["fields"]
    with pytest.raises(RecipeError, match=r"checkpoint's recipe .*(cannot read|this training's)"):
        recipe.load_state_dict(state | {"recipe": text})


def test_infinities_in_a_repr_are_read() -> None:
    recipe = attached(MaskDecay("2:4", rate=0.5))
    state = recipe.state_dict()
    del state["fields"]
    text = "MaskDecay(pattern=NM(n=2, m=4, vector=1), kind='linear', rate=inf)"
    with pytest.raises(RecipeError, match=f"rate={math.inf}, this training's has rate=0.5"):
        recipe.load_state_dict(state | {"recipe": text})


NEW = '''
from dataclasses import dataclass

from gossamer.nn import MaskedLinear
from gossamer.recipes import Recipe


@dataclass(eq=False)
class ShrinkAll(Recipe):
    """Shrink every weight by a factor per step."""

    factor: float = 0.5

    def layer(self, name, linear, pattern, index):
        return MaskedLinear.from_dense(linear, pattern)

    def after_step(self, t):
        for _, _, layer in self.of_type(MaskedLinear):
            layer.weight.mul_(self.factor)
'''


def test_a_new_recipe_is_one_file_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shrink_all.py").write_text(NEW)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("gossamer.recipes.base.registry.RECIPES", dict(RECIPES))
    register("shrink-all", Entry("shrink_all", "ShrinkAll"))
    recipe = attached(make("shrink-all", "1:4", factor=0.25))
    assert recipe.pattern == NM(1, 4)
    state = recipe.state_dict()
    assert (state["recipe"], state["fields"]["factor"]) == ("shrink-all", 0.25)
    save_checkpoint(tmp_path / "saved", state)
    before = recipe.layers["0"].weight.detach().clone()
    optimizer = recipe.optimizer
    assert optimizer is not None
    for parameter in recipe.layers["0"].parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.equal(recipe.layers["0"].weight, 0.25 * before)
    attached(make("shrink-all", "1:4", factor=0.25)).load_state_dict(
        load_checkpoint(tmp_path / "saved")
    )
    with pytest.raises(RecipeError, match=r"factor=0.25, this training's has factor=0.5"):
        attached(make("shrink-all", "1:4")).load_state_dict(load_checkpoint(tmp_path / "saved"))
    with pytest.raises(RecipeError, match="another name"):
        register("shrink-all", Entry("elsewhere", "ShrinkAll"))
    assert entry("Shrink_All").kind == "ShrinkAll"


def test_a_recipe_that_is_not_registered_is_known_by_its_path_or_its_own_id() -> None:
    @dataclass(eq=False)
    class Local(STE):
        pass

    @dataclass(eq=False)
    class Named(STE):
        id: ClassVar[str] = "mine"

    assert recipe_id(Local) == f"{__name__}:{Local.__qualname__}"
    assert recipe_id(Named) == "mine"
    state = saved(Named("2:4"))
    attached(Named("2:4")).load_state_dict(state)
    with pytest.raises(RecipeError, match="is 'mine', this training's 'ste'"):
        attached(STE("2:4")).load_state_dict(state)


def test_a_prepared_model_remembers_its_recipe_through_a_new_default() -> None:
    recipe = GMP("75%", every=4)
    model = recipe.prepare(nn.Sequential(nn.Linear(32, 64)))
    del model[0]._gossamer_recipe["fields"]["distribution"]
    optimizer = torch.optim.SGD(recipe.parameters(model), lr=0.1)
    with pytest.raises(RecipeError, match=r"prepared by gmp\(pattern='75%', .*every=5"):
        GMP("75%", every=5).attach(model, optimizer, 40)
    recipe.attach(model, optimizer, 40)


def test_the_base_class_is_not_a_recipe() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Recipe("2:4")  # type: ignore[abstract]
