"""Recipes: what is allowed, and how a mistake is explained before any work starts."""

from pathlib import Path

import pytest

from edgekit import recipe
from edgekit.errors import BadInput
from edgekit.passes import Prune

GOOD = """
[input]
size = 32
[[pass]]
name = "prune"
budget = { macs = 0.6 }
[[rewrite]]
name = "int8"
[gates]
top1 = [{ max_drop = 1.0 }, { min = 50.0, precision = "int8" }]
"""


def load(tmp_path, text: str, *overrides: str) -> recipe.Recipe:
    path = tmp_path / "r.toml"
    path.write_text(text)
    return recipe.load(str(path), overrides)


def test_names_become_objects(tmp_path):
    found = load(tmp_path, GOOD)
    assert found.passes[0].run == Prune(budget={"macs": 0.6})
    assert found.input.shape == (3, 32, 32)
    assert [gate.max_drop for gate in found.gates["top1"]] == [1.0, None]
    assert found.export.targets == ("onnxruntime",)


def test_overrides(tmp_path):
    found = load(tmp_path, GOOD, "prune.budget.macs=0.5", "prune.round_to=4", "input.size=64", "int8.ranges=kl")
    assert found.passes[0].run == Prune(budget={"macs": 0.5}, round_to=4)
    assert found.input.size == 64 and found.rewrites[0].run.ranges == "kl"


@pytest.mark.parametrize("name", sorted(recipe.known_recipes()))
def test_every_shipped_recipe_loads_and_says_how_to_run_it(name):
    assert recipe.load(name, defaults={"input": {"size": 32}}).name == name
    text = recipe.known_recipes()[name].read_text()
    assert text.startswith("#") and f"--recipe {name}" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("size = 32", "sise = 32"), r"\[input\].*unknown key 'sise'.*did you mean 'size'"),
        (GOOD.replace("size = 32", 'size = "big"'), r"\[input\].*size.*'big'"),
        (GOOD.replace('"prune"', '"prun"'), r"\[\[pass\]\] 1.*unknown pass 'prun'; did you mean 'prune'.*distil"),
        (GOOD.replace('name = "prune"\n', ""), r"\[\[pass\]\] 1: name is missing"),
        (GOOD.replace("macs = 0.6", "macs = 1.6"), r"\(prune\): budget.macs = 1.6.*less than 1"),
        (GOOD.replace("macs = 0.6", "watts = 0.6"), r"\(prune\).*watts"),
        (GOOD.replace("{ macs = 0.6 }", "{}"), r"\(prune\).*names no cost"),
        (GOOD.replace("[[pass]]", "[pass]"), r"headed \[\[pass\]\]"),
        (GOOD.replace("[[pass]]", "[[passes]]"), "unknown section 'passes'; did you mean 'pass'"),
        (GOOD.replace('"int8"\n', '"int9"\n'), "unknown rewrite 'int9'; did you mean 'int8'"),
        (GOOD.replace("top1", "top11"), "unknown metric 'top11'; did you mean 'top1'"),
        (GOOD.replace("max_drop = 1.0", "max_dorp = 1.0"), "unknown key 'max_dorp'; did you mean 'max_drop'"),
        (GOOD.replace("{ max_drop = 1.0 }, ", "{}, "), "needs at least one of max, min, max_drop, max_ratio"),
        (GOOD + '[export]\ntargets = ["onnxruntim"]', "unknown target 'onnxruntim'; did you mean 'onnxruntime'"),
        (GOOD + "[export]\nbatch = 0", "batch"),
        (GOOD.replace("[input]\nsize = 32", ""), r"\[input\] is missing"),
        ("[input", "r.toml"),
        (GOOD + '[[rewrite]]\nname = "int8"', "several .*rewrite.* make int8"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path, text, message):
    with pytest.raises(BadInput, match=f"(?s)r.toml.*{message}|{message}"):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("prune", "write section.field=value"),
        ("prun.budget=1", "did you mean 'prune'"),
        ("prune.bugdet=1", "did you mean 'budget'"),
    ],
)
def test_a_wrong_override_is_explained(tmp_path, override, message):
    with pytest.raises(BadInput, match=message):
        load(tmp_path, GOOD, override)


def test_two_steps_of_one_name_cannot_be_overridden(tmp_path):
    step = '[[pass]]\nname = "finetune"\n'
    with pytest.raises(BadInput, match="2 steps named 'finetune'"):
        load(tmp_path, GOOD + step + step, "finetune.epochs=1")


def test_unknown_recipe_lists_the_known_ones():
    with pytest.raises(BadInput, match="unknown recipe 'quickstrat'; did you mean 'quickstart'"):
        recipe.load("quickstrat")


def test_a_missing_file_is_named():
    with pytest.raises(BadInput, match=r"nowhere.toml: no such file"):
        recipe.load("nowhere.toml")


def test_the_readmes_pruning_passes_are_understood(tmp_path):
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    block = readme.partition("### Pruning")[2].partition("```toml\n")[2].partition("```")[0]
    found = load(tmp_path, "[input]\nsize = 32\n" + block)
    assert [step.name for step in found.passes] == ["prune", "depth"]
    assert found.passes[0].run.importance.batches == 4 and found.passes[0].run.floor == {"blocks.1*": 0.5}
