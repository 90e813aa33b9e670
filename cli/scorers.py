"""`quadpipe scorers`: list the scorers."""

import json
import textwrap
from typing import Any

import click

from quadpipe.fields import declared_options
from quadpipe.scorers import SCORERS, NetworkScorer, Scorer
from quadpipe.scorers.own import OwnScorer
from quadpipe.tokenizer import TokenizerConfig


@click.command("scorers")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """List the scorers with their options and costs.

    A cost is milliseconds per image of 256 x 256 pixels on one core, measured by
    benchmarks/scorers.py. Decoding an image takes about 2.
    """
    if as_json:
        click.echo(json.dumps([_row(scorer) for scorer in SCORERS.values()], indent=2))
        return
    declared = declared_options(TokenizerConfig)
    for scorer in SCORERS.values():
        click.echo(f"{scorer.name:<18}{scorer.summary}")
        click.echo(f"{'':<18}costs {scorer.cost}")
        if scorer.hint:
            source = "the labels" if scorer.label_aware else "the folder --maps"
            click.echo(f"{'':<18}needs {scorer.hint} of each image, from {source}")
        for name in scorer.option_names():
            option = declared[name]
            text = option.help
            if option.choices:
                text += f" One of {', '.join(option.choices)}."
            if name == "backbone" and issubclass(scorer, NetworkScorer):
                text += f" By default {scorer.default_backbone}."
            _print_option("--" + name.replace("_", "-"), text)
        if scorer.uses_network:
            _print_option("--scorer-weights", "File of the network's weights.")
    click.echo(f"{OwnScorer.name}\n{'':<18}{OwnScorer.summary}")
    click.echo(
        "\nAll scorers except uniform take --scale-weight and --thresholds. docs/scorers.md "
        "compares the scorers."
    )


def _print_option(flag: str, text: str) -> None:
    for number, line in enumerate(textwrap.wrap(text, 60)):
        click.echo(f"{'':<18}{flag if number == 0 else '':<20}{line}")


def _row(scorer: type[Scorer]) -> dict[str, Any]:
    return {
        "name": scorer.name,
        "summary": scorer.summary,
        "cost": scorer.cost,
        "options": list(scorer.option_names()),
        "hint": scorer.hint,
        "label_aware": scorer.label_aware,
        "uses_network": scorer.uses_network,
    }
