"""How each client opens a folder: a table of clients, and the commands of those that are known (formats/clients.py)."""

from fnmatch import fnmatch
from pathlib import PurePosixPath
from shlex import quote
from typing import Any

from roundel.formats.clients import CLIENTS, Client, clients_of
from roundel.formatting import printable
from roundel.report.parts.markdown import block, plain, table

_ROUNDEL = CLIENTS[-1]


def opening(manifest: dict[str, Any], folder: str, repo: str | None) -> str:
    """Sections with the commands of all clients that open a folder.

    Args:
        manifest: of the folder.
        folder: its name.
        repo: its id on the hub, where it goes there.
    """
    words = list(manifest.get("opens_in") or ())
    if not any(_ROUNDEL in clients_of(one) for one in words):
        words.append("roundel")
    rows: list[list[str]] = []
    shown: dict[str, Client] = {}
    for one in words:
        known = clients_of(one)
        rows.append([plain(one), ", ".join(plain(c.name) for c in known) or "see its own manual"])
        shown |= {client.name: client for client in known}
    parts = [table(["opens in", "by the commands of"], rows)]
    for client in shown.values():
        code = _code(client, manifest, folder, repo)
        if code:
            parts.append(f"### {client.name}\n\n{block(code, client.language)}")
    return "\n\n".join(parts)


def _code(client: Client, manifest: dict[str, Any], folder: str, repo: str | None) -> str:
    """The commands with the names put in; empty where the folder holds no file for the client."""
    origin = manifest.get("origin") or {}
    folder = f"./{folder}" if folder.startswith(("-", "~")) else folder
    write = repr if client.language == "python" else quote
    file = ""
    if client.ending:
        files = sorted(name for name in manifest.get("files") or {} if fnmatch(name, f"*{client.ending}"))
        if not files:
            return ""
        file = files[0] if repo else str(PurePosixPath(folder) / files[0])
    trust = (", trust_remote_code=True", " --trust-remote-code") if origin.get("own_code") else ("", "")
    # What is opened from this machine only is fetched first.
    fetched = repo.partition("/")[2] if repo and client.local and not client.ending else ""
    values = {
        "model": write(printable(fetched or repo or folder)),
        "file": write(printable(file)),
        "auto_class": origin.get("auto_class") or "AutoModelForCausalLM",
        "trust": trust[0] if client.language == "python" else trust[1],
    }
    code = client.code
    for name, value in values.items():
        code = code.replace(f"{{{name}}}", value)
    if repo and client.local:
        where = (
            f"--local-dir {quote(fetched)}"
            if fetched
            else f"--include {quote('*' + client.ending)} --local-dir ."
        )
        code = f"hf download {quote(repo)} {where}\n{code}"
    return code
