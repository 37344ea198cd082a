"""Makes the folder: the adapter's files, its configuration with a base that others can find, and the card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from rich.console import Console

from thoughtcache.recipes.export.card import make_card
from thoughtcache.recipes.export.run_record import find_record
from thoughtcache.recipes.load_adapter import read_adapter
from thoughtcache.report.files import whole_folder, writing
from thoughtcache.report.progress import plain_line

SUFFIXES = (".safetensors", ".json", ".jinja", ".txt", ".model")
"""Files that are taken along: weights, settings, tokenizer. No pickles, and no card, which is written anew."""
CONFIG = "adapter_config.json"
_REMEDY = "free some space, or choose another --output-dir"


def export_adapter(
    *,
    adapter: str,
    output_dir: str,
    base_model: str | None = None,
    run: str | None = None,
    repo_id: str | None = None,
    license: str | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> Path:
    """Export an adapter; nothing is uploaded.

    Args:
        adapter: folder of the adapter.
        output_dir: the folder that is made.
        base_model: hub id of the base model; None takes what the adapter names.
        run: folder of the run that made it; None looks around the adapter.
        repo_id: what it will be called on the hub; None takes the name of the folder.
        license: licence of the adapter, by the hub's name; None leaves it open.
        overwrite: replace an older export.
        console: where the end is told.

    Returns:
        The folder.

    Raises:
        ValueError: if the adapter or the run cannot be used, the base has no name that others can find, or the folder
            is there.
    """
    console = console or Console()
    source, target = Path(adapter), Path(output_dir)
    config, _ = read_adapter(adapter)
    base = base_model or config.base_model_name_or_path
    if not base or Path(base).expanduser().exists() or Path(base).is_absolute():
        raise ValueError(
            f"the adapter names its base model as {base!r}, which nobody else can find; give its hub id with "
            "--base-model, such as Qwen/Qwen2.5-3B"
        )
    if target.exists() and target.resolve() == source.resolve():
        raise ValueError(f"{target} is the adapter itself; choose another --output-dir")
    if target.exists() and not (overwrite and (target / CONFIG).is_file()):
        remedy = (
            "choose another --output-dir"
            if overwrite
            else "choose another --output-dir, or --overwrite an older export"
        )
        raise ValueError(f"{target} exists already{' and holds no adapter' if overwrite else ''}; {remedy}")
    record = find_record(source, run)
    name = repo_id or target.resolve().name
    config.base_model_name_or_path = base
    card = make_card(config, base=base, title=name, record=record, license_name=license)
    files = sorted(file for file in source.iterdir() if file.is_file() and file.name != "README.md")
    left_out = [file.name for file in files if file.suffix not in SUFFIXES]
    with writing(target.parent, _REMEDY), whole_folder(target) as unfinished:
        for file in files:
            if file.name not in left_out:
                shutil.copyfile(file, unfinished / file.name)
        settings = json.loads((source / CONFIG).read_text())
        (unfinished / CONFIG).write_text(json.dumps({**settings, "base_model_name_or_path": base}, indent=2) + "\n")
        card.save(unfinished / "README.md")
    if left_out:
        plain_line(console, f"left out: {', '.join(left_out)} (taken are {', '.join(SUFFIXES)})")
    if record is None:
        plain_line(console, "no run folder is known: the card has no training settings and no figures (--run)")
    plain_line(console, f"exported: {target}; read its README.md, then: hf upload {repo_id or 'NAME/' + name} {target}")
    return target
