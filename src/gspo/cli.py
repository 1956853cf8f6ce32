"""The command line: arguments in, exit code out.

0 done, 1 a failure, 2 a setting or an input that cannot be used, said in one line.
"""

import argparse
import sys
from types import NoneType
from typing import get_args, get_origin

import yaml

from gspo import __version__
from gspo.config import Recipe, unknown_key
from gspo.errors import DataError, SettingError

SWITCHED = ("true", "false", "yes", "no", "on", "off", "1", "0")
"""Values of a switch."""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except (SettingError, DataError) as error:
        print(f"gspo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("gspo: interrupted", file=sys.stderr)
        return 1


def _run(arguments: list[str]) -> int:
    parser = _parser()
    options, rest = parser.parse_known_args(_joined(arguments))
    if rest and not rest[0].startswith("-"):
        raise SettingError(f"one recipe at a time: what is '{rest[0]}'?")
    if rest:
        key = rest[0].lstrip("-").split("=")[0].replace("-", "_")
        raise SettingError(unknown_key(key, Recipe.model_fields))
    if options.command is None:
        parser.print_help()
        return 0
    return _train(options)


def _train(options: argparse.Namespace) -> int:
    from gspo.recipe import make_trainer, read_recipe

    overrides = {
        name: _value(name, text)
        for name in Recipe.model_fields
        if (text := getattr(options, f"set_{name}")) is not None
    }
    recipe = read_recipe(options.recipe, overrides)
    trainer, prompts = make_trainer(recipe, options.resume)
    result = trainer.train(prompts, resume=options.resume)
    print(f"{result.metrics['step']} optimizer steps")
    print(f"model: {result.final_dir}")
    print(f"figures: {result.metrics_path}")
    return 0


class _OneLineParser(argparse.ArgumentParser):
    """argparse prints its usage with each error; one sentence is enough."""

    def error(self, message: str) -> None:
        raise SettingError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(
        prog="gspo",
        description="Train language models by Group Sequence Policy Optimization.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gspo {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="train the model of a recipe",
        usage="gspo train RECIPE.yaml [--resume] [--KEY VALUE ...]",
        description="Trains the model of a recipe. Each key of the recipe is an option, too.",
        allow_abbrev=False,
    )
    train.add_argument("recipe", metavar="RECIPE.yaml")
    train.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint in output_dir"
    )
    for name, field in Recipe.model_fields.items():
        default = "" if field.is_required() else f" (default: {field.default!r})"
        train.add_argument(
            f"--{name}",
            f"--{name.replace('_', '-')}",
            dest=f"set_{name}",
            metavar="VALUE",
            help=(field.description + default).replace("%", "%%"),
        )
    return parser


def _joined(arguments: list[str]) -> list[str]:
    """`--key value` as `--key=value`, so that a value may begin with a dash, and a switch without a
    value as `--switch=true`, so that it does not take the recipe's name for one."""
    joined: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        field = Recipe.model_fields.get(word[2:].replace("-", "_")) if word[:2] == "--" else None
        if field is None:
            joined.append(word)
        elif field.annotation is bool and not (rest and rest[0].lower() in SWITCHED):
            joined.append(f"{word}=true")
        else:
            joined.append(f"{word}={rest.pop(0)}" if rest else word)
    return joined


def _value(name: str, text: str) -> object:
    """Text from the command line as the YAML of a recipe would have it, for lists and null."""
    annotation = Recipe.model_fields[name].annotation
    kinds = (annotation, *get_args(annotation))
    if NoneType in kinds and text.lower() in ("null", "none"):
        return None
    if not text.startswith("[") or list not in [get_origin(kind) for kind in kinds]:
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise SettingError(f"{name} = {text}: no valid list") from None


if __name__ == "__main__":
    sys.exit(main())
