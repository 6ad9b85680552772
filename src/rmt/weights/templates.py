"""Names of tensors as templates: one rule says what a file calls a tensor and what we call it.

``layers.{i}.blocks.{j}.retention.{p:q|k|v}_proj.{rest}`` has four placeholders. One with words
behind its name stands for one of them, ``{rest}`` for any remainder, and every other for a number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

_PLACEHOLDER = re.compile(r"\{(\w+)(?::([\w|]+))?\}")
# No model has ten thousand of anything; what is longer is no number of a layer.
_NUMBER, _REST = "[0-9]{1,4}", ".+"


@dataclass(frozen=True)
class Template:
    """A name with placeholders.

    Attributes:
        text: as above.
        words: placeholder -> its words, where ``text`` does not repeat them.
    """

    text: str
    words: Mapping[str, str] | None = None

    @cached_property
    def placeholders(self) -> dict[str, str]:
        """The pattern of each placeholder."""
        known = self.words or {}
        return {
            name: words or known.get(name) or (_REST if name == "rest" else _NUMBER)
            for name, words in _PLACEHOLDER.findall(self.text)
        }

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        parts = _PLACEHOLDER.split(self.text)  # text, name, words, text, name, words, ..., text
        groups = [f"(?P<{name}>{self.placeholders[name]})" for name in parts[1::3]]
        texts = [re.escape(text) for text in parts[::3]]
        return re.compile("".join(a + b for a, b in zip(texts, [*groups, ""], strict=True)))

    def read(self, name: str) -> dict[str, str] | None:
        """Return what stands for each placeholder in a name, None if the name is another."""
        match = self._pattern.fullmatch(name)
        return None if match is None else match.groupdict()

    def behind(self, name: str) -> str | None:
        """Return what stands before this template in a name, None if the name is another.

        It may be nothing, or words with a dot behind each.
        """
        match = self._behind.fullmatch(name)
        return None if match is None else match["prefix"]

    @cached_property
    def _behind(self) -> re.Pattern[str]:
        return re.compile(rf"(?P<prefix>(?:\w+\.)*?){self._pattern.pattern}", re.ASCII)

    def write(self, values: Mapping[str, str]) -> str:
        """Return the name with these values for the placeholders."""
        return _PLACEHOLDER.sub(lambda match: values[match[1]], self.text)


@dataclass(frozen=True)
class Rule:
    """What a file calls a tensor, and what we call it; both have the same placeholders.

    Attributes:
        theirs: template of the file's name.
        ours: template of our name; it need not repeat the words of a placeholder.
    """

    theirs: str
    ours: str

    @cached_property
    def _both(self) -> tuple[Template, Template]:
        theirs = Template(self.theirs)
        ours = Template(self.ours, words=theirs.placeholders)
        assert ours.placeholders == theirs.placeholders, f"{self} does not read both ways"
        return theirs, ours

    def to_ours(self, name: str) -> str | None:
        """Return our name for a name in the file, None if the rule is for others."""
        theirs, ours = self._both
        values = theirs.read(name)
        return None if values is None else ours.write(values)

    def to_theirs(self, name: str) -> str | None:
        """Return the file's name for a name of ours, None if the rule is for others."""
        theirs, ours = self._both
        values = ours.read(name)
        return None if values is None else theirs.write(values)


def below(theirs: str, ours: str, rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Return the rules for the same names behind a prefix on either side."""
    return tuple(Rule(theirs + rule.theirs, ours + rule.ours) for rule in rules)
