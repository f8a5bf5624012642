"""A hub on loopback, and the hub's cache as its library lays it out."""

import base64
import hashlib
import json
import shutil
import socket
import tempfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
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
        people: what `whoami` says, by tokens.
        closed: repositories that no token may write to.
        private: repositories that only their owners see.
        faults: what happens instead of an answer to a POST or PUT, by a part of its path: a status, or None to hang up.
        asked: paths of all requests that change something.
        large: endings of files that go to a store of their own.
        stored: these files, by their hashes.
        commits_made: of each commit that was sent, the operations.
    """

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, Path]] = {}
        self.branches: dict[str, dict[str, str]] = {}
        self.fetched: list[str] = []
        self.gated: set[str] = set()
        self.people: dict[str, dict[str, Any]] = {}
        self.closed: set[str] = set()
        self.private: set[str] = set()
        self.faults: dict[str, int | None] = {}
        self.asked: list[str] = []
        self.stored: dict[str, bytes] = {}
        self.commits_made: list[list[dict[str, Any]]] = []
        self.large: tuple[str, ...] = (".safetensors", ".gguf")
        self.home = Path(tempfile.mkdtemp())
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def do_POST(self) -> None:
                hub.change(self)

            def do_PUT(self) -> None:
                hub.change(self)

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
        if path == "api/whoami-v2":
            who = self.people.get(_token(request))
            return self._say(request, 401 if who is None else 200, {}, json.dumps(who or {}).encode(), body)
        of_api = path.startswith("api/models/")
        words = path.removeprefix("api/models/").split("/")
        repo, rest = "/".join(words[:2]), words[2:]
        if repo not in self.commits:
            return self._say(request, 401, {"X-Error-Code": "RepoNotFound"}, b"{}", body)
        if of_api and rest[:1] == ["auth-check"]:
            return self._say(request, 403 if repo in self.closed else 200, {}, b"{}", body)
        revision = unquote(rest[1]) if len(rest) > 1 else "main"
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
            found = {
                "id": repo,
                "sha": commit,
                "private": repo in self.private,
                "siblings": [{"rfilename": name} for name in files],
            }
            return self._say(request, 200, {}, json.dumps(found).encode(), body)
        name = "/".join(rest[2:])
        headers = {"X-Repo-Commit": commit}
        if name not in files:
            return self._say(request, 404, {**headers, "X-Error-Code": "EntryNotFound"}, b"", body)
        if body:
            self.fetched.append(name)
        headers["ETag"] = f'"{_hash(folder / name)}"'
        return self._say(request, 200, headers, (folder / name).read_bytes(), body)

    def change(self, request: BaseHTTPRequestHandler) -> None:
        """What is sent: a new repository, where files are to go, a large file, a commit."""
        path = unquote(urlsplit(request.path).path).strip("/")
        content = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        self.asked.append(path)
        for part, code in self.faults.items():
            if part in path:
                if code is None:
                    request.connection.shutdown(socket.SHUT_RDWR)
                    request.close_connection = True
                    return None
                return self._say(request, code, {}, b"{}", True)
        if path.startswith("stored/"):
            self.stored[path.removeprefix("stored/")] = content
            return self._say(request, 200, {}, b"{}", True)
        if _token(request) not in self.people:
            return self._say(request, 401, {}, b"{}", True)
        sent = json.loads(content) if not path.endswith("/commit/main") else {}
        if path == "api/validate-yaml":
            answer: dict[str, Any] = {"errors": [], "warnings": []}
        elif path == "api/repos/create":
            return self._create(request, sent)
        elif path.endswith("/preupload/main"):
            answer = {"files": [self._way(file) for file in sent["files"]]}
        elif path.endswith(".git/info/lfs/objects/batch"):
            answer = {"transfer": "basic", "objects": [self._place(thing) for thing in sent["objects"]]}
        else:
            repo = path.removeprefix("api/models/").removesuffix("/commit/main")
            lines = [json.loads(line) for line in content.splitlines()]
            answer = self._commit(repo, lines)
        return self._say(request, 200, {}, json.dumps(answer).encode(), True)

    def _create(self, request: BaseHTTPRequestHandler, sent: dict[str, Any]) -> None:
        repo = f"{sent['organization'] or self.people[_token(request)]['name']}/{sent['name']}"
        answer = json.dumps({"url": f"{self.url}/{repo}"}).encode()
        if repo in self.commits:
            return self._say(request, 409, {}, answer, True)
        if sent.get("visibility") == "private" or sent.get("private"):
            self.private.add(repo)
        (self.home / repo / "0").mkdir(parents=True)
        self.add(repo, self.home / repo / "0", f"{0:040}")
        return self._say(request, 200, {}, answer, True)

    def _way(self, file: dict[str, Any]) -> dict[str, Any]:
        large = file["path"].endswith(self.large)
        return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

    def _place(self, thing: dict[str, Any]) -> dict[str, Any]:
        return {**thing, "actions": {"upload": {"href": f"{self.url}/stored/{thing['oid']}"}}}

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
        self.commits_made.append(lines)
        number = len(self.commits[repo])
        before = self.commits[repo][self.branches[repo]["main"]]
        folder = self.home / repo / f"{number}-{len(self.commits_made)}"
        shutil.copytree(before, folder)
        for line in lines[1:]:
            value = line["value"]
            path = folder / value["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            if line["key"] == "deletedFile":
                path.unlink()
            elif line["key"] == "lfsFile":
                path.write_bytes(self.stored[value["oid"]])
            else:
                path.write_bytes(base64.b64decode(value["content"]))
        commit = f"{len(self.commits_made):040}"
        self.add(repo, folder, commit)
        return {"commitUrl": f"{self.url}/{repo}/commit/{commit}", "commitOid": commit}

    def files(self, repo: str) -> dict[str, bytes]:
        """What a repository holds now."""
        folder = self.commits[repo][self.branches[repo]["main"]]
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

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


def _token(request: BaseHTTPRequestHandler) -> str:
    return request.headers.get("Authorization", "").removeprefix("Bearer ")


def _hash(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
