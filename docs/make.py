"""Writes docs/settings.md from the code: `python docs/make.py`. A test holds the file to what this gives."""

from pathlib import Path

from harness.config import Config, kinds, recipes, resolve, settings

HEAD = """# Settings

Made from `harness/config.py` by `python docs/make.py`. Each is an option of `harness run` in any spelling of case, dash
and underscore, a key of a recipe, of `config.yaml`, of W&B's `run.config` and of the journal's first line.

An option wins over the recipe, the recipe over the default. A setting marked + changes the numbers of a run: an
unfinished run is gone on with only when all of those are equal.
"""


def text() -> str:
    """The whole page."""
    parts, default = [HEAD], Config()
    for group in dict.fromkeys(setting.metadata["group"] for setting in settings().values()):
        parts.append(f"\n## {group}\n\n| setting | default | what it is |\n| --- | --- | --- |")
        for name, setting in settings().items():
            if setting.metadata["group"] == group:
                parts.append(_row(name, getattr(default, name)))
    parts.append("\n## Recipes\n\n| recipe | what it sets |\n| --- | --- |")
    for name in recipes():
        made, plain = resolve({}, name).to_dict(), default.to_dict()
        changed = ", ".join(f"{key} {made[key]}" for key in made if made[key] != plain[key] and key != "recipe")
        parts.append(f"| {name} | {changed or 'the defaults'} |")
    return "\n".join(parts) + "\n"


def _row(name: str, default: object) -> str:
    about = settings()[name].metadata
    words = about["help"] + (f" One of {', '.join(about['choices'])}." if about["choices"] else "") + _bounds(name)
    shown = {"": "", "()": "", "{}": "", "None": "none"}.get(str(default), str(default))
    return f"| `{name}`{' +' if about['counts'] else ''} | {shown} | {words.replace('|', '/')} |"


def _bounds(name: str) -> str:
    about = settings()[name].metadata
    signs = (("low", "≥"), ("above", ">"), ("high", "≤"), ("below", "<"))
    bounds = [
        f"{sign} {about[word]:g}" for word, sign in signs if about[word] is not None and kinds()[name] is not bool
    ]
    return f" ({', '.join(bounds)})" if bounds else ""


if __name__ == "__main__":
    Path(__file__).with_name("settings.md").write_text(text(), encoding="utf-8")
