"""docs/api.md: signatures and docstrings of the public names, as they are in the source.

griffe reads the source without importing it, so that types look as they were written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import griffe
from api_names import FOR_THE_PACKAGE, GROUPS

SOURCE = Path(__file__).parents[1] / "src"
WIDTH, LONGEST_DEFAULT = 100, 60
ALIASES = {
    "Place": "policy.modes.Place",
    "GradientMode": "policy.modes.GradientMode",
    "Auto": "learner.options.Auto",
    "FinishReason": "records.FinishReason",
    "ChainEnd": "chains.thinking.ChainEnd",
    "Keep": "chains.folding.Keep",
    "Trace": "chains.chain.Trace",
    "Event": "sampler.events.Event",
    "Scores": "cache.budgets.scored.Scores",
    "Completion": "train.rewards.Completion",
    "Reward": "train.folding_reward.Reward",
    "Evaluator": "train.distill.Evaluator",
    "Text": "studies.passes.Text",
    "Parts": "planning.memory.parts.Parts",
}
"""Names of types in signatures and where they are defined."""
INTRODUCTION = """\
# Python API

Generated from signatures and docstrings by `make docs`. Names without an import line are those of
`import thoughtcache as tc`; they are stable. Those with one are imported from where it says, and may move.

Words: *thoughts* are the tokens that the model generates. A *window* of them is *resident* in the cache; what *leaves*
it is *absorbed* into the *state*. *Replay* repeats a rollout with its evictions, with gradient. More:
[design.md](design.md#2-the-method).

Letters in shapes: B batch, T thought tokens, P prompt tokens, L layers, H key-value heads, D head size, W window,
E tokens that leave at once, G global tokens, R rank, N evictions. Log-probabilities, entropies and losses are in nats,
memory is in bytes, time in seconds.

From a task to a command instead: [quickstart.md](quickstart.md).
"""


def api_page() -> str:
    """The page: contents, then every group."""
    package = griffe.load(
        "thoughtcache",
        search_paths=[str(SOURCE)],
        docstring_parser="google",
        docstring_options={"returns_named_value": False, "returns_multiple_items": False, "warnings": False},
    )
    contents, parts = [], []
    for number, group in enumerate(GROUPS, start=1):
        found = [(name, _target(package, name)) for name in group.names]
        links = ", ".join(f"[{one.name}](#{_anchor(one)})" for _, one in found)
        contents.append(f"| [{number}. {group.title}](#{number}-{group.title.lower()}) | {links} |")
        parts += [f"## {number}. {group.title}", group.introduction]
        for name, one in found:
            parts += _entry(name, one)
    table = "\n".join(["| group | names |", "|---|---|", *contents])
    return "\n\n".join([INTRODUCTION.rstrip(), table, *parts, _aliases(package)]).rstrip() + "\n"


def _aliases(package: griffe.Object) -> str:
    """The names that stand for longer types in the signatures."""
    rows = ["| `Tokens`, of a question, trace or link | `Sequence[int]` |"]
    rows += [f"| `{name}` | `{_type(package[path].value).replace(' | ', ' or ')}` |" for name, path in ALIASES.items()]
    return "\n".join(["## Short names of types", "", "| in signatures | means |", "|---|---|", *rows])


def _target(package: griffe.Object, name: str) -> griffe.Object:
    found = package[name]
    return found.final_target if found.is_alias else found


def _heading(one: griffe.Object) -> str:
    return f"{one.name}()" if one.is_function else f"class {one.name}"


def _anchor(one: griffe.Object) -> str:
    return re.sub(r"[^\w -]", "", _heading(one).lower()).replace(" ", "-")


def _entry(name: str, one: griffe.Object) -> Iterator[str]:
    """Heading, import line, signature, docstring, members."""
    yield f"### {_heading(one)}"
    if "." in name:
        yield f"`from thoughtcache.{name.rpartition('.')[0]} import {one.name}`"
    if not one.is_class:
        yield _signature(one.name, one)
        yield from _docstring(one)
        return
    is_record = "dataclass" in one.labels
    if not is_record and "__init__" in one.members:
        yield _signature(one.name, one["__init__"])
    yield from _docstring(one, fields=_fields(one) if is_record else None)
    yield from _members(one)


def _fields(one: griffe.Class) -> dict[str, griffe.Parameter]:
    """The fields of a dataclass: those that must be given, then its own, then those of its bases."""
    found = {parameter.name: parameter for parameter in one.parameters if parameter.name != "self"}
    order = sorted(found, key=lambda name: (found[name].default is not None, name not in one.members))
    return {name: found[name] for name in order}


def _signature(name: str, function: griffe.Function) -> str:
    """The signature as code: one line if it fits, else a line per parameter."""
    shown, kind = [], None
    for parameter in function.parameters:
        if parameter.name == "self":
            continue
        is_keyword = parameter.kind is griffe.ParameterKind.keyword_only
        if is_keyword and kind is not griffe.ParameterKind.keyword_only:
            shown.append("*")
        kind = parameter.kind
        stars = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}.get(kind, "")
        text = f"{stars}{parameter.name}"
        if parameter.annotation is not None:
            text += f": {_type(parameter.annotation)}"
        if parameter.default is not None and not stars:
            text += f" = {_default(parameter.default)}"
        shown.append(text)
    returns = function.returns
    end = "" if returns is None or function.name == "__init__" else f" -> {_type(returns)}"
    line = f"{name}({', '.join(shown)}){end}"
    if len(line) > WIDTH:
        line = "\n".join([f"{name}(", *(f"    {text}," for text in shown), f"){end}"])
    # Not `python`: blocks of that name are examples, which the tests run.
    return f"```py\n{line}\n```"


def _type(annotation: griffe.Expr | str) -> str:
    """A type as it was written, with the quotes of axes in one style and without their padding."""
    return re.sub(r"'\s*([^']*)'", r'"\1"', str(annotation))


def _type_in_table(annotation: griffe.Expr | str) -> str:
    """The same without strokes, which end a cell."""
    return f"`{_type(annotation).replace(' | ', ' or ')}`"


def _default(value: griffe.Expr | str) -> str:
    """A default as a reader wants it: the value of a constant, and what `field(...)` says."""
    if isinstance(value, griffe.ExprCall) and str(value.function) == "field":
        given = {argument.name: argument.value for argument in value.arguments}
        if "default_factory" in given:
            return _default(f"{given['default_factory']}()")
        return _default(given["default"])
    if isinstance(value, griffe.ExprName):
        try:
            found = value.resolved
        except griffe.NameResolutionError:
            found = None
        if found is not None and found.is_attribute and found.value is not None:
            text = _default(found.value)
            return text if len(text) <= LONGEST_DEFAULT else str(value)
    return {"dict()": "{}", "list()": "[]"}.get(str(value), str(value).replace("'", '"'))


def _docstring(one: griffe.Object, fields: dict[str, griffe.Parameter] | None = None) -> Iterator[str]:
    """The sections of a docstring, in its own words."""
    sections = one.docstring.parsed if one.docstring else []
    texts = _described(one)
    if fields is not None and not any(section.kind.value == "attributes" for section in sections):
        sections = [*sections[:1], None, *sections[1:]]
    for section in sections:
        kind = "attributes" if section is None else section.kind.value
        if kind == "text":
            yield section.value
        elif kind in ("parameters", "attributes") and fields is not None:
            yield _field_table(fields, texts)
        elif kind in ("parameters", "attributes"):
            rows = [f"| `{item.name}` | {_line(item.description)} |" for item in section.value]
            yield "\n".join(
                [f"| {'argument' if kind == 'parameters' else 'attribute'} | meaning |", "|---|---|", *rows]
            )
        elif kind == "returns":
            yield f"**Returns.** {' '.join(_returned(item, one) for item in section.value)}"
        elif kind == "raises":
            yield "\n".join(f"**Raises {item.annotation}** {item.description}  " for item in section.value).rstrip()
        else:
            raise ValueError(f"{one.path}: sections of kind {kind!r} are not shown; leave it out of the docstring")


def _returned(item: griffe.DocstringReturn, function: griffe.Function) -> str:
    """What is said about a result: words in front of a colon are no type here, since signatures have types."""
    if str(item.annotation) in (str(function.returns), "None"):
        return item.description
    return f"{item.annotation}: {item.description}"


def _described(one: griffe.Object) -> dict[str, str]:
    """What the docstrings of a class and its bases say about every field."""
    texts: dict[str, str] = {}
    bases = one.mro() if one.is_class else []
    for owner in (*reversed(bases), one):
        for section in owner.docstring.parsed if owner.docstring else []:
            if section.kind.value == "attributes":
                texts |= {item.name: item.description for item in section.value}
    return texts


def _field_table(fields: dict[str, griffe.Parameter], texts: dict[str, str]) -> str:
    rows = []
    for name, field in fields.items():
        default = "" if field.default is None else f"`{_default(field.default)}`"
        rows.append(f"| `{name}` | {_type_in_table(field.annotation)} | {default} | {_line(texts[name])} |")
    return "\n".join(["| field | type | default | meaning |", "|---|---|---|---|", *rows])


def _line(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def _members(one: griffe.Class) -> Iterator[str]:
    """Properties as a table; methods that no base on the way declares already, with their docstrings."""
    inherited = {name for base in one.mro() for name in base.members}
    shown = [
        member
        for name, member in one.members.items()
        if not name.startswith("_") and name not in inherited and member.has_docstring
        if f"{one.name}.{name}" not in FOR_THE_PACKAGE
    ]
    properties = [member for member in shown if "property" in member.labels]
    if properties:
        rows = [
            f"| `{member.name}` | {_type_in_table(member.annotation)} | {_line(member.docstring.value)} |"
            for member in properties
        ]
        yield "\n".join(["| property | type | meaning |", "|---|---|---|", *rows])
    constants = [member for member in shown if member.is_attribute and member not in properties]
    if constants:
        rows = [f"| `{member.name}` | {_line(member.docstring.value)} |" for member in constants]
        yield "\n".join(["| attribute of the class | meaning |", "|---|---|", *rows])
    for member in shown:
        if member.is_function:
            yield f"#### {one.name}.{member.name}()"
            yield _signature(member.name, member)
            yield from _docstring(member)
