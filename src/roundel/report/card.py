"""The model card: `README.md` in every output folder, which the hub shows, and people read where there is no hub.

Like the page of a run it is a pure function of `report.json`, or of the manifest where that is all there is. Order:
what it is, what it weighs, how good it is, how it is opened, how it was made, what may be done with it.
"""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from roundel.evaluation.quality import DRAWS, SEED
from roundel.report.card_data import card_data, licence
from roundel.report.parts.exported import as_tuned, export_commands, measured_before
from roundel.report.parts.markdown import block, code, link, one_line, plain, table
from roundel.report.parts.opening import opening
from roundel.report.parts.quality import have_bounds, sentence, task_rows, text_rows
from roundel.report.parts.reproduce import command, recipe_text, without_folders
from roundel.report.parts.summary import describe_calibration, describe_method, figures, model_name
from roundel.report.plots.numbers import NONE, fixed, size
from roundel.system.belongings import CARD
from roundel.system.seal import unsealed, write_sealed

_HUB = "https://huggingface.co"


def write_card(folder: Path, report: dict[str, Any], repo: str | None = None) -> Path:
    """Write the card of an output folder, and return its path.

    Args:
        folder: with everything that a client reads, under its final name.
        report: as for `render_card`.
        repo: id on the hub, where the folder goes there.

    Raises:
        OutputError: another file has this name, disk full, no permission.
    """
    path = folder / CARD
    write_sealed(path, "card", render_card(report, folder.resolve().name, repo))
    return path


def render_card(report: dict[str, Any], folder: str, repo: str | None = None) -> str:
    """The card as Markdown, the same for the same arguments to the last byte.

    Args:
        report: manifest, quality (may be None, then `no_quality` says why), as `report.json` holds them.
        folder: the folder's name.
        repo: id on the hub, where the folder goes there.
    """
    manifest = report["manifest"]
    parts = [
        f"<!-- {unsealed('card')} -->",
        f"# {plain(repo.partition('/')[2] if repo else folder)}",
        _what_it_is(manifest),
        f"## Size\n\n{_weight(manifest)}",
        f"## Quality\n\n{_quality(report)}",
        f"## How to open it\n\n{opening(manifest, folder, repo)}",
        f"## How it was made\n\n{_making(manifest, folder)}",
        f"## Licence\n\n{_licence(manifest)}",
    ]
    data = card_data(manifest, repo)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"))


def _what_it_is(manifest: dict[str, Any]) -> str:
    """Two or three sentences."""
    origin, original = manifest.get("origin") or {}, manifest["original"]
    ids = list(origin.get("base_model") or ())
    name = code(model_name(manifest))
    if not ids:
        of = f"{name} (whose place on the hub is not known)"
    elif original.get("adapter") or len(ids) > 1:
        of = f"{name}, made of {' and '.join(link(one, f'{_HUB}/{one}') for one in ids)}"
    else:
        of = link(ids[0], f"{_HUB}/{ids[0]}")
        if not original.get("commit") and str(manifest["source"]) != ids[0]:
            of = f"{name}, from {of}"
    if original.get("commit"):
        of += f" at commit {code(original['commit'])}"
    said = [
        f"A quantized version of {of}: {plain(describe_method(manifest['recipe']))}.",
        f"Made with Roundel {plain(manifest['versions']['roundel'])}.",
    ]
    if original.get("read_from") and not original.get("adapter"):
        said.append(f"The original was {plain(without_folders(original['read_from']))}.")
    if ids:
        said.append("What the model is for, and what its limits are, is said where it comes from.")
    return " ".join(said)


def _weight(manifest: dict[str, Any]) -> str:
    """Of the whole first, since that is what is downloaded."""
    shown = {figure["name"]: figure for figure in figures(manifest)}
    order = ("Bits per parameter", "Bits per weight", "File", "Outliers", "Quantized")
    rows = [
        [plain(figure["name"]), plain(figure["value"]), plain(figure["words"])]
        for figure in (shown[name] for name in order if name in shown)
    ]
    original = manifest["original"].get("bytes")
    rows.append(["Original", size(original), f"{fixed(manifest['original'].get('bits_per_weight'), 0)} bit"])
    return table(["", "value", "of what"], rows)


def _quality(report: dict[str, Any]) -> str:
    """The figures of the report, each with its interval and how it was measured."""
    quality = report.get("quality") or {}
    texts = quality.get("texts") or []
    if not texts and not quality.get("tasks"):
        reason = one_line(without_folders(report.get("no_quality") or "")).rstrip(".")
        return f"Not measured{': ' if reason else ''}{plain(reason)}."
    parts = [plain(without_folders(f"{sentence(quality, '')} {measured_before(report)}".rstrip()))]
    if texts:
        head = [
            "text",
            "perplexity of the original",
            "of this model",
            "ratio",
            "KL to the original, nats per token",
        ]
        rows = [
            [
                plain(without_folders(row["text"])),
                row["original"],
                row["perplexity"],
                row["ratio"],
                row["kl"],
                row["top1"],
            ]
            for row in text_rows(quality)
        ]
        parts.append(table([*head, "same most likely token"], rows))
        how = [
            f"{without_folders(row['text'])}: {row['convention']}, {row['measured']}"
            for row in text_rows(quality)
        ]
        words = "; ".join(one_line(one) for one in how)
        if have_bounds(texts):
            words += f". In brackets: 95 % intervals, by bootstrap over windows ({DRAWS} draws, seed {SEED})"
        parts.append(plain(words) + ".")
    tasks = task_rows(quality)
    if tasks:
        keys = ("task", "metric", "documents", "fewshot", "original", "value")
        parts.append(table(keys, [[plain(row[key]) for key in keys] for row in tasks]))
    return "\n\n".join(parts)


def _making(manifest: dict[str, Any], folder: str) -> str:
    recipe, first = as_tuned(manifest, folder)
    data = describe_calibration(manifest)
    found = manifest.get("calibration")
    if found:
        data += (
            f", seed {recipe.get('seed', NONE)}, fingerprint of the tokens {found.get('fingerprint', NONE)}"
        )
    line, language = command(manifest, first)
    given = " (`DATA`)" if "calibration DATA" in line or "calibration=DATA" in line else ""
    versions = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
    exported = export_commands(manifest, folder)
    return "\n\n".join(
        [
            block(line, language),
            "with this as `recipe.yaml` (the keys that differ from the method's defaults):",
            block(recipe_text(recipe), "yaml"),
            *(["Then, without any rounding:", block("\n".join(exported), "bash")] if exported else []),
            f"Calibration data{given}: {plain(without_folders(data))}.",
            f"Everything else about the run is in `roundel.json`. Versions: {plain(versions)}.",
        ]
    )


def _licence(manifest: dict[str, Any]) -> str:
    """What the original's owner states, and that quantizing changes nothing in it."""
    found = (manifest.get("origin") or {}).get("licences") or ()
    if not found:
        return "The licence of the original is not known: nothing that came with it states one."
    lines = []
    for one in found:
        called = one["name"] or (one["id"] if one["id"] != "other" else "")
        words = f"{plain(one['of'])}: " + (code(called) if called else "no licence is stated by name")
        words += f", as {code(one['read_in'])} says" if one["read_in"] else ""
        words += (
            f"; its text is in {code(one['file'])}" if one["file"] in (manifest.get("files") or {}) else ""
        )
        lines.append(f"* {words}")
    text = licence(manifest)["link"]
    more = f" The text: {code(text)}." if text else ""
    return "\n".join(lines) + f"\n\nThe licence of the original is that of this version too.{more}"
