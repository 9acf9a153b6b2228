"""Checks that huggingface_hub finds in the cache what resalign downloads, and the other way round.

    go build -o bin/resalign ./cmd/resalign && python scripts/check_hub_cache.py bin/resalign

A server on this machine stands in for the hub and serves testdata/golden/tiny-sd. Nothing is asked of the real one.
"""

import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading

MODEL = pathlib.Path(__file__).parent.parent / "testdata/golden/tiny-sd"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {str(p.relative_to(MODEL)): p.read_bytes() for p in MODEL.rglob("*") if p.is_file()}


def is_large(name):
    return name.endswith(".safetensors")


def sha(name):
    content = FILES[name]
    if is_large(name):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        file = path.removeprefix(f"/owner/name/resolve/{COMMIT}/").removeprefix("/owner/name/resolve/main/")
        headers = {}
        if path.endswith("/revision/main") or path.endswith("/revision/" + COMMIT):
            siblings = [{"rfilename": name} for name in FILES]
            body = json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": siblings}).encode()
        elif path.endswith("/tree/" + COMMIT):
            tree = []
            for name in FILES:
                entry = {"type": "file", "path": name, "size": len(FILES[name]), "oid": sha(name)}
                if is_large(name):
                    entry |= {"oid": "a" * 40, "lfs": {"oid": sha(name), "size": len(FILES[name]), "pointerSize": 134}}
                tree.append(entry)
            body = json.dumps(tree).encode()
        elif file in FILES:
            body = FILES[file]
            headers = {"ETag": f'"{sha(file)}"', "X-Repo-Commit": COMMIT}
        else:
            self.send_error(404)
            return
        self.send_response(200)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def layout(cache):
    """The paths of a cache, with what its links lead to."""
    root = pathlib.Path(cache) / "models--owner--name"
    return {
        str(p.relative_to(root)): os.readlink(p) if p.is_symlink() else p.read_bytes()
        for part in ("blobs", "refs", "snapshots")
        for p in (root / part).rglob("*")
        if p.is_symlink() or p.is_file()
    }


def main():
    program = os.path.abspath(sys.argv[1])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
    os.environ["HF_HUB_DISABLE_XET"] = "1"

    from huggingface_hub import scan_cache_dir, snapshot_download

    def resalign(*args, **env):
        done = subprocess.run([program, *args, "--json"], env=os.environ | env, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"resalign {' '.join(args)}: {done.stderr}")
        return json.loads(done.stdout)

    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = folder + "/ours", folder + "/theirs"
        result = resalign("download", "owner/name", HF_HUB_CACHE=ours)
        files = [name for name in FILES if (pathlib.Path(result["folder"]) / name).exists()]
        found = snapshot_download("owner/name", cache_dir=ours, local_files_only=True)
        assert found == result["folder"], (found, result)
        assert all((pathlib.Path(found) / name).read_bytes() == FILES[name] for name in files)
        info = scan_cache_dir(ours)
        assert not info.warnings and [r.repo_id for r in info.repos] == ["owner/name"], info
        print(f"huggingface_hub finds the {len(files)} files that resalign downloaded")

        snapshot_download("owner/name", cache_dir=theirs, allow_patterns=files)
        assert layout(ours) == layout(theirs), (sorted(layout(ours)), sorted(layout(theirs)))
        print("both lay out the same blobs, links and references")

        prompt = ["--prompt", "a", "--steps", "1", "--engine", "go", "--out", folder + "/pictures"]
        made = resalign("generate", "--model", "owner/name", *prompt, HF_HUB_CACHE=theirs, HF_HUB_OFFLINE="1")
        assert made["made"] == 1, made
        print("resalign draws with the model that huggingface_hub downloaded, offline")

        from diffusers import StableDiffusionPipeline

        os.environ["HF_HUB_OFFLINE"] = "1"
        pipeline = StableDiffusionPipeline.from_pretrained(
            "owner/name", cache_dir=ours, local_files_only=True, safety_checker=None, feature_extractor=None
        )
        print("diffusers loads the model that resalign downloaded:", type(pipeline.unet).__name__)


main()
