"""What the command line is given, as text: NAME=VALUE entries, tables of values; and its refusal in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class Refused(Exception):
    """Input that cannot be used: one sentence for the user."""


def pairs(entries: Sequence[str], option: str) -> dict[str, str]:
    """Read NAME=VALUE entries. Raises Refused for an entry that is not one."""
    found = {}
    for entry in entries:
        name, sign, value = entry.partition("=")
        if not sign or not name.strip() or not value.strip():
            raise Refused(f"{option} is given '{entry}', but must be NAME=VALUE such as transmission_rate=70/year")
        if name.strip() in found:
            raise Refused(f"{option} is given {name.strip()} twice")
        found[name.strip()] = value.strip()
    return found


def table_of(path: str) -> dict[str, float | str]:
    """Read a YAML or JSON table of values. Raises Refused where it is missing or something else."""
    import yaml

    from meningitis.tables import TwiceError, read_yaml

    try:
        data = read_yaml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise Refused(f"--params {path} cannot be read: {error.strerror}") from error
    except TwiceError as error:
        raise Refused(f"--params {path}: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Refused(f"--params {path} is neither YAML nor JSON") from error
    if not isinstance(data, dict):
        raise Refused(f"--params {path} must be a table of names and values")
    for name, value in data.items():
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise Refused(f"--params {path} gives {name} as {value}, but it must be a number or a text such as 70/year")
    return {str(name): value for name, value in data.items()}
