"""From words to a frozen dataclass: YAML pieces, overrides, and messages of one line."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from outeropt.cli import pieces
from outeropt.cli.values import Plain, plain
from outeropt.errors import ConfigError, unknown_name


C = TypeVar("C")


def parse(verb: str, config_class: type[C], words: Sequence[str]) -> C:
    """Reads the words after a verb into its configuration.

    `-c a.yaml b.yaml` fills it first and flags override. A configuration's `DOTTED` says which mappings take
    options of their own: with `{"optimizer": "hyperparameters"}`, `--optimizer.NAME VALUE` sets one entry of
    `hyperparameters`.

    Files are pieces that add up: what two of them set to different values is an error, so that their order
    decides nothing that nobody sees. The later one wins for keys that it lists under `override`, and a flag
    for its own.

    Raises:
      ConfigError: an unknown key, a wrong type, a missing value, an unreadable file, or files that disagree.
      SystemExit: help was asked for, and printed.
    """
    files, words = _take_files(verb, words)
    presets, words = _take_presets(verb, words, getattr(config_class, "PRESETS", None))
    entries, words = _take_dotted(verb, words, getattr(config_class, "DOTTED", {}))
    flags = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in words if word.startswith("--")}
    decided = flags | {f"{field}.{name}" for field, values in entries.items() for name in values}
    given = pieces.read(files, config_class, decided, presets)
    for field, values in entries.items():
        given[field] = {**given.get(field, {}), **values}
    # tyro would add to the list of a file; a flag replaces it.
    given = {name: value for name, value in given.items() if not (isinstance(value, tuple) and name in flags)}
    default = _default(config_class, given)
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            return tyro.cli(config_class, prog=f"outeropt {verb}", args=words, default=default)
    except SystemExit as stop:
        if stop.code:
            raise ConfigError(_one_line(err.getvalue() or out.getvalue(), verb)) from None
        print(out.getvalue(), end="")
        raise


def _take_files(verb: str, words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Pulls `-c`/`--config` and the paths that follow it out of the words."""
    files, rest = [], []
    words = list(words)
    while words:
        word = words.pop(0)
        if word not in ("-c", "--config"):
            rest.append(word)
            continue
        if not words or words[0].startswith("-"):
            raise ConfigError(f"{word} needs a YAML file, as in outeropt {verb} {word} a.yaml b.yaml.")
        while words and not words[0].startswith("-"):
            files.append(Path(words.pop(0)))
    return files, rest


def _take_presets(verb: str, words: list[str], folder: Path | None) -> tuple[list[Path], list[str]]:
    """Pulls `--preset` and the names that follow it, also with commas between them, out of the words."""
    if folder is None:
        return [], words
    known = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    files, rest, words = [], [], list(words)
    while words:
        word = words.pop(0)
        if word not in ("--preset", "--presets"):
            rest.append(word)
            continue
        names = []
        while words and not words[0].startswith("-"):
            names += filter(None, words.pop(0).split(","))
        if not names:
            raise ConfigError(
                f"{word} needs names, as in outeropt {verb} {word} fgsm; see outeropt list presets."
            )
        for name in names:
            if name not in known:
                raise unknown_name("preset", name, known, see="outeropt list presets")
            files.append(known[name])
    return files, rest


def _take_dotted(
    verb: str, words: list[str], dotted: Mapping[str, str]
) -> tuple[dict[str, dict[str, Plain]], list[str]]:
    """Pulls `--HEAD.NAME VALUE` and `--HEAD.NAME=VALUE` out of the words: entries by field."""
    found: dict[str, dict[str, Plain]] = {}
    rest, words = [], list(words)
    while words:
        word = words.pop(0)
        option, equals, value = word.partition("=")
        head, dot, name = option.removeprefix("--").partition(".")
        if not word.startswith("--") or not dot or not name:
            rest.append(word)
            continue
        if head not in dotted:
            allowed = f"it takes {', '.join(f'--{known}.*' for known in dotted)}" if dotted else "it has none"
            raise ConfigError(f"outeropt {verb} takes no --{head}.* options; {allowed}.")
        if not equals:
            if not words:
                raise ConfigError(f"{word} needs a value, as in {word} 1e-3.")
            value = words.pop(0)
        found.setdefault(dotted[head], {})[name.replace("-", "_")] = plain(value)
    return found, rest


def _default(config_class: type[C], given: Mapping[str, Any]) -> C:
    """A configuration whose missing required fields tyro will ask for."""
    values = {}
    for field in dataclasses.fields(config_class):  # pyright: ignore[reportArgumentType]
        if field.name in given:
            values[field.name] = given[field.name]
        elif field.default is not dataclasses.MISSING:
            values[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            values[field.name] = field.default_factory()
        else:
            values[field.name] = tyro.MISSING
    return config_class(**values)


def _one_line(box: str, verb: str) -> str:
    """What tyro says in a box, as one line; the box and its rules are ASCII where the locale is."""
    lines = [line.strip(" │|") for line in box.splitlines() if not line.startswith(("╭", "╰", "+"))]
    parts: list[list[str]] = [[]]
    for line in filter(None, lines):
        if re.fullmatch("[─-]+", line):
            parts.append([])
        else:
            parts[-1].append(line)
    if len(parts) > 1 and ":" not in " ".join(parts[0]):  # the box's title
        parts.pop(0)
    message = " ".join(parts[0]).replace("(required)", "").strip().rstrip(".")
    message = re.sub(
        r"^Error parsing (\S+): .*invalid literal for int\(\) with base 10: (.*)$",
        r"\1 must be a whole number, not \2",
        message,
    )
    for part in parts[1:]:
        if part and part[0].startswith("Perhaps you meant"):
            message += f". Did you mean {part[1]}?"
        elif part and part[0].startswith("Unrecognized"):
            message += f". {' '.join(part)}"
    return f"{message.rstrip('.')}. See outeropt {verb} --help".replace("?.", "?")
