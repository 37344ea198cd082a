"""Makes the folder: the adapter's files, its configuration with a base that others can find, and the card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from rich.console import Console

from thoughtcache.config import ThoughtConfig
from thoughtcache.model_card import ANYWHERE, BASE_TOKENIZER, loading_code
from thoughtcache.recipes.export.card import MARK, make_card
from thoughtcache.recipes.export.names import is_hub_id
from thoughtcache.recipes.export.run_record import RunRecord, find_record
from thoughtcache.recipes.load_adapter import WEIGHTS, read_adapter
from thoughtcache.report.files import whole_folder, writing
from thoughtcache.report.progress import plain_line
from thoughtcache.tasks.saved_prompt import FILE as PROMPT_FORMAT

CONFIG, CARD = "adapter_config.json", "README.md"
TOKENIZER, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
FILES = (
    WEIGHTS, CONFIG, PROMPT_FORMAT, TEMPLATE, TOKENIZER, "tokenizer.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model",
)  # fmt: skip
"""Files that are taken along: weights, settings, tokenizer. Nothing else, and no card, which is written anew."""
_COMMIT_LENGTH = 40
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
        repo_id: its id on the hub, OWNER/NAME; None takes the name of the folder for the title of the card.
        license: licence of the adapter, by the hub's name; None leaves it open.
        overwrite: replace an older export, and nothing else.
        console: where the end is told.

    Returns:
        The folder.

    Raises:
        ValueError: if the adapter or the run cannot be used, the base has no name that others can find, or the folder
            is there and is no export.
    """
    console = console or Console()
    source, target = Path(adapter), Path(output_dir)
    config, _ = read_adapter(adapter)
    if not (source / WEIGHTS).is_file():
        raise ValueError(
            f"{adapter} has its weights not as {WEIGHTS}, and pickles are not exported; load it and save it again by "
            "save_pretrained"
        )
    if repo_id is not None and not is_hub_id(repo_id):
        raise ValueError(f"--repo-id {repo_id!r} is no id on the hub; give OWNER/NAME, such as me/mine")
    _check_target(source, target, overwrite)
    record = find_record(source, run)
    base = _base(config, base_model, record)
    name = repo_id or target.resolve().name
    config.base_model_name_or_path = base
    found = sorted(file.name for file in source.iterdir() if file.name != CARD)
    taken = [file for file in found if file in FILES and (source / file).is_file()]
    code = loading_code(
        repo_id or ANYWHERE,
        tokenizer="place" if TOKENIZER in taken else BASE_TOKENIZER,
        has_template=TEMPLATE in taken,
    )
    card = make_card(config, base=base, title=name, record=record, code=code, license_name=license)
    with writing(target.parent, _REMEDY), whole_folder(target) as unfinished:
        for file in taken:
            shutil.copyfile(source / file, unfinished / file)
        settings = json.loads((source / CONFIG).read_text())
        (unfinished / CONFIG).write_text(json.dumps({**settings, "base_model_name_or_path": base}, indent=2) + "\n")
        card.save(unfinished / CARD)
    plain_line(console, f"taken: {', '.join(taken)}")
    if len(taken) < len(found):
        plain_line(console, f"left out: {', '.join(file for file in found if file not in taken)}")
    if record is None:
        plain_line(console, "no run folder is known: the card has no training settings and no figures (--run)")
    plain_line(console, f"exported: {target}; read its README.md, then: hf upload {repo_id or 'NAME/' + name} {target}")
    return target


def _base(config: ThoughtConfig, named: str | None, record: RunRecord | None) -> str:
    """The hub id of the base: the one that was given, or the adapter's own where that is no folder."""
    base = named or config.base_model_name_or_path or ""
    if is_hub_id(base) and (named or not (Path(base).exists() or _is_from_folder(record))):
        return base
    found = f"--base-model {base!r} is no id on the hub" if named else f"the adapter names its base model as {base!r}"
    raise ValueError(f"{found}, which nobody else can find; give its hub id with --base-model, such as Qwen/Qwen2.5-3B")


def _is_from_folder(record: RunRecord | None) -> bool:
    """Whether the run knew its base by a digest of files and not by a commit on the hub (`base_identity`)."""
    digest = None if record is None else record.run.get("base_digest")
    return digest is not None and len(digest) != _COMMIT_LENGTH


def _check_target(source: Path, target: Path, overwrite: bool) -> None:
    """Refuse a folder that is something else than an older export, or that holds the adapter or lies in it.

    Raises:
        ValueError: if it is.
    """
    inner, outer = source.resolve(), target.resolve()
    if inner == outer:
        raise ValueError(f"{target} is the adapter itself; choose another --output-dir")
    if inner.is_relative_to(outer) or outer.is_relative_to(inner):
        raise ValueError(f"one of {source} and {target} lies in the other; choose another --output-dir")
    if not target.exists() and not target.is_symlink():
        return
    if not overwrite:
        raise ValueError(f"{target} exists already; choose another --output-dir, or --overwrite an older export")
    why = _not_an_export(target)
    if why is not None:
        raise ValueError(f"{target} exists already and {why}, so that it is not replaced; choose another --output-dir")


def _not_an_export(folder: Path) -> str | None:
    """Why a folder is not what `export_adapter` made and nothing more, as a clause; None if it is."""
    if folder.is_symlink() or not folder.is_dir():
        return "is a link or a file"
    if not (folder / CONFIG).is_file():
        return "holds no adapter"
    others = sorted(file.name for file in folder.iterdir() if file.name not in (*FILES, CARD) or not file.is_file())
    if others:
        return f"holds {', '.join(others[:3])}{' and more' if len(others) > 3 else ''}"
    card = folder / CARD
    is_ours = card.is_file() and MARK in card.read_text(encoding="utf-8", errors="replace")
    return None if is_ours else f"has no {CARD} of an export"
