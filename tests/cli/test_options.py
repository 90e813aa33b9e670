"""Each option of each command sets what it names, and nothing else."""

from dataclasses import Field, fields
from typing import Any

import click
import pytest

from quadpipe.cli import commands
from quadpipe.job import DatasetConfig, JobConfig, RunConfig
from quadpipe.model.config import TrainConfig
from quadpipe.tokenizer import TokenizerConfig

_ROOT = click.Context(commands)
COMMANDS = {name: commands.get_command(_ROOT, name) for name in commands.list_commands(_ROOT)}
OPTIONS = [
    pytest.param(name, parameter, id=f"{name} {parameter.opts[0]}")
    for name, command in COMMANDS.items()
    for parameter in command.params
    if isinstance(parameter, click.Option)
]


def typed(option: click.Option) -> list[str]:
    """The option as a person types it, with a value that is not its default."""
    if option.is_flag:
        return [option.opts[0]]
    if isinstance(option.type, click.Choice):
        value = next(c for c in option.type.choices if c != option.default)
    elif isinstance(option.type, click.types.FuncParamType):
        texts = ("7x9", "0.4,0.6", "0.1,0.2,0.3", "32=1.5,64=2.5", "7MB")
        value = next(text for text in texts if _converts(option, text))
    else:
        value = "7"
    return [option.opts[0], value]


def _converts(option: click.Option, text: str) -> bool:
    try:
        option.type.convert(text, option, _ROOT)
    except click.BadParameter:
        return False
    return True


def parsed(name: str, *arguments: str) -> dict[str, Any]:
    context = COMMANDS[name].make_context(name, list(arguments), resilient_parsing=True)
    return context.params


@pytest.mark.parametrize("name", COMMANDS)
def test_no_two_parameters_have_one_destination(name):
    destinations = [parameter.name for parameter in COMMANDS[name].params]
    assert sorted(destinations) == sorted(set(destinations))


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_an_option_sets_its_own_parameter_only(name, option):
    before, after = parsed(name), parsed(name, *typed(option))
    assert {key for key in after if after[key] != before[key]} == {option.name}


class ReachedError(Exception):
    """Raised where a command hands its options on, with what it hands on."""


def _reach(*_: object, **options: Any) -> None:
    raise ReachedError(options)


# By command: what it needs, where its options go, and whose fields they are.
HANDED_ON = {
    "tokenize": (
        ("--in", "images", "--out", "shards"),
        (JobConfig, "from_options"),
        (TokenizerConfig, DatasetConfig, RunConfig),
    ),
    "train": (("shards", "--out", "run"), "quadpipe.cli.train.train", (TrainConfig,)),
    "show": (
        ("a.jpg", "--out", "a.png"),
        "quadpipe.cli.show.Tokenizer",
        (TokenizerConfig,),
    ),
}
FIELDS = [
    pytest.param(name, item, id=f"{name} {item.name}")
    for name, (_, _, kinds) in HANDED_ON.items()
    for kind in kinds
    for item in fields(kind)
    if name != "show" or item.name not in ("tokens", "scorer")  # it takes several of them
]


@pytest.mark.parametrize(("name", "item"), FIELDS)
def test_an_option_reaches_the_field_it_is_named_after(
    name, item: Field[Any], monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jpg").touch()  # `show` asks whether it exists
    needed, place, kinds = HANDED_ON[name]
    names = [field.name for kind in kinds for field in fields(kind)]
    monkeypatch.setattr(*(place if isinstance(place, tuple) else (place,)), _reach)
    flag = "--" + item.name.replace("_", "-")
    option: Any = next(p for p in COMMANDS[name].params if flag in p.opts)
    handed_on = []
    for more in ([], typed(option)):
        with pytest.raises(ReachedError) as reached:
            COMMANDS[name].main([*needed, *more], standalone_mode=False)
        given = reached.value.args[0]
        handed_on.append({field: given[field] for field in names if field in given})
    before, after = handed_on
    assert {key for key in after if after[key] != before[key]} == {item.name}
    assert after[item.name] == parsed(name, *typed(option))[option.name]


def test_the_source_named_on_the_card_does_not_replace_the_input(monkeypatch):
    def job(inputs: str, out: str, config: JobConfig, **_: Any) -> None:
        raise ReachedError(inputs, out, config.dataset.source)

    monkeypatch.setattr("quadpipe.cli.tokenize.Job", job)
    for given in (
        ["--in", "photos", "--source", "the web"],
        ["--source", "the web", "--in", "photos"],
    ):
        with pytest.raises(ReachedError) as reached:
            COMMANDS["tokenize"].main([*given, "--out", "shards"], standalone_mode=False)
        assert reached.value.args == ("photos", "shards", "the web")
