"""Names are read and written by the same template, in both directions."""

import pytest

from rmt.weights.release import CLASSIFIER, DETECTION, SEGMENTATION, count_blocks
from rmt.weights.templates import Rule, Template, below

BLOCK = Rule(
    "layers.{i}.blocks.{j}.retention.{p:q|k|v}_proj.{rest}", "stages.{i}.blocks.{j}.attn.{p}.{rest}"
)


def test_both_ways() -> None:
    theirs, ours = "layers.2.blocks.17.retention.k_proj.weight", "stages.2.blocks.17.attn.k.weight"
    assert BLOCK.to_ours(theirs) == ours
    assert BLOCK.to_theirs(ours) == theirs


@pytest.mark.parametrize(
    "name",
    [
        "layers.2.blocks.x.retention.k_proj.weight",  # not a number
        "layers.2.blocks.12345.retention.k_proj.weight",  # nor is this of a layer
        "layers.٢.blocks.1.retention.k_proj.weight",  # nor a digit of our names
        "layers.2.blocks.1.retention.out_proj.weight",  # not one of the words
        "layers.2.blocks.1.retention.k_proj.",  # nothing left
        "a.layers.2.blocks.1.retention.k_proj.weight",
        "layers2xblocks.1.retention.k_proj.weight",  # a dot is a dot
    ],
)
def test_other_names(name: str) -> None:
    assert BLOCK.to_ours(name) is None


def test_a_prefix_on_either_side() -> None:
    (rule,) = below("module.", "body.", (Rule("fc.{rest}", "head.fc.{rest}"),))
    assert rule.to_ours("module.fc.bias") == "body.head.fc.bias"
    assert rule.to_theirs("body.head.fc.bias") == "module.fc.bias"


def test_a_rule_must_read_both_ways() -> None:
    with pytest.raises(AssertionError, match="does not read both ways"):
        Rule("a.{i}.{rest}", "b.{rest}").to_ours("a.1.x")


def test_a_template_without_placeholders() -> None:
    assert Template("a.b").read("a.b") == {}
    assert Template("a.b").read("a.c") is None
    assert Template("a.b").write({}) == "a.b"


@pytest.mark.parametrize("rules", [CLASSIFIER, DETECTION, SEGMENTATION])
def test_every_rule_of_the_release_reads_both_ways(rules: tuple[Rule, ...]) -> None:
    values = {"i": "3", "j": "12", "rest": "weight"}
    for rule in rules:
        theirs = Template(rule.theirs)
        words = {name: kinds.split("|")[0] for name, kinds in theirs.placeholders.items()}
        name = theirs.write(words | values)
        ours = rule.to_ours(name)
        assert ours is not None
        assert rule.to_theirs(ours) == name


def test_blocks_are_counted_once_and_gaps_show() -> None:
    found = [{"i": "0", "j": "0"}, {"i": "0", "j": "0"}, {"i": "2", "j": "7"}]
    assert count_blocks(found) == (1, 0, 1)
    assert count_blocks([]) == ()
