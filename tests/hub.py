"""A hub on loopback, and the hub's cache as its library lays it out."""

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


def publish(cache: Path, folder: Path, repo: str, commit: str, *branches: str) -> Path:
    """Put a folder into a cache: blobs, links to them in a snapshot, and names of branches. The snapshot."""
    home = cache / f"models--{repo.replace('/', '--')}"
    snapshot = home / "snapshots" / commit
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        blob = home / "blobs" / hashlib.sha256(content).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    for branch in branches:
        ref = home / "refs" / branch
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit, encoding="utf-8")
    return snapshot


class Hub:
    """Repositories by their ids, each with folders by their commits, and branches.

    Attributes:
        fetched: names of files whose bytes were asked for.
        gated: repositories whose conditions nobody has accepted.
    """

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, Path]] = {}
        self.branches: dict[str, dict[str, str]] = {}
        self.fetched: list[str] = []
        self.gated: set[str] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def add(self, repo: str, folder: Path, commit: str, branch: str = "main") -> None:
        """A commit that is now the tip of a branch."""
        self.commits.setdefault(repo, {})[commit] = folder
        self.branches.setdefault(repo, {})[branch] = commit

    def answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = unquote(urlsplit(request.path).path).strip("/")
        of_api = path.startswith("api/models/")
        words = path.removeprefix("api/models/").split("/")
        repo, rest = "/".join(words[:2]), words[2:]
        if repo not in self.commits:
            return self._say(request, 401, {"X-Error-Code": "RepoNotFound"}, b"{}", body)
        revision = rest[1] if len(rest) > 1 else "main"
        commit = self.branches[repo].get(revision, revision)
        if commit not in self.commits[repo]:
            return self._say(request, 404, {"X-Error-Code": "RevisionNotFound"}, b"{}", body)
        if repo in self.gated and not of_api:
            return self._say(request, 403, {"X-Error-Code": "GatedRepo"}, b"{}", body)
        folder = self.commits[repo][commit]
        files = [str(p.relative_to(folder)) for p in sorted(folder.rglob("*")) if p.is_file()]
        if of_api and rest[:1] == ["tree"]:
            about = [
                {
                    "type": "file",
                    "path": name,
                    "size": (folder / name).stat().st_size,
                    "oid": _hash(folder / name),
                }
                for name in files
            ]
            return self._say(request, 200, {}, json.dumps(about).encode(), body)
        if of_api:
            found = {"id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
            return self._say(request, 200, {}, json.dumps(found).encode(), body)
        name = "/".join(rest[2:])
        headers = {"X-Repo-Commit": commit}
        if name not in files:
            return self._say(request, 404, {**headers, "X-Error-Code": "EntryNotFound"}, b"", body)
        if body:
            self.fetched.append(name)
        headers["ETag"] = f'"{_hash(folder / name)}"'
        return self._say(request, 200, headers, (folder / name).read_bytes(), body)

    @staticmethod
    def _say(
        request: BaseHTTPRequestHandler, code: int, headers: dict[str, str], content: bytes, body: bool
    ) -> None:
        request.send_response(code)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            request.send_header(key, value)
        request.end_headers()
        if body:
            request.wfile.write(content)


def _hash(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
