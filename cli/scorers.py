"""`quadpipe scorers`: what can say which patches matter."""

import json
import textwrap
from typing import Any

import click

from quadpipe.fields import declared_options
from quadpipe.scorers import SCORERS, NetworkScorer, Scorer
from quadpipe.tokenizer import TokenizerConfig


@click.command("scorers")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """List the scorers with their options, and what they cost.

    Costs are milliseconds for an image of 256 x 256 pixels on one core, as benchmarks/scorers.py
    has measured them; the decoder takes about 2.
    """
    if as_json:
        click.echo(json.dumps([_row(scorer) for scorer in SCORERS.values()], indent=2))
        return
    declared = declared_options(TokenizerConfig)
    for scorer in SCORERS.values():
        click.echo(f"{scorer.name:<14}{scorer.summary}")
        click.echo(f"{'':<14}costs {scorer.cost}")
        if scorer.hint:
            source = "the labels" if scorer.label_aware else "the folder --maps"
            click.echo(f"{'':<14}needs {scorer.hint} of each image, from {source}")
        for name in scorer.options:
            text = declared[name].help
            if name == "backbone" and issubclass(scorer, NetworkScorer):
                text += f" By default {scorer.default_backbone}."
            lines = textwrap.wrap(text, 60)
            for number, line in enumerate(lines):
                flag = "" if number else "--" + name.replace("_", "-")
                click.echo(f"{'':<14}{flag:<20}{line}")
        if scorer.uses_network:
            click.echo(f"{'':<14}{'--scorer-weights':<20}File of the network's weights.")
    click.echo("\nAll but uniform take --thresholds; docs/scorers.md says when to use which.")


def _row(scorer: type[Scorer]) -> dict[str, Any]:
    return {
        "name": scorer.name,
        "summary": scorer.summary,
        "cost": scorer.cost,
        "options": list(scorer.options),
        "hint": scorer.hint,
        "label_aware": scorer.label_aware,
        "uses_network": scorer.uses_network,
    }
