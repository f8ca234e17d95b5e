"""The live zoom on a real bundle: painting beside rendering, and the page's server with every kind of client."""

import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from outzoom.runtime import Limits, LiveZoom, Motion, Painting, UserError, live_server, open_bundle
from outzoom.runtime.live import MAX_PROMPT_CHARACTERS
from outzoom.runtime.live_server import MAX_BODY_BYTES, MAX_HEAD_BYTES, LiveServer, parse_address
from outzoom.runtime.operating_points import operating_points
from outzoom.runtime.painter import LOOKAHEAD, Painter

QUICK = Painting(steps=2, guidance=1)
MOTION = Motion(fps=24, zoom_rate=2, keyframe_every=12)


@pytest.fixture(scope="module")
def zoom(tiny_bundles):
    with open_bundle(tiny_bundles["onnxruntime-fp32"]) as opened:
        yield opened


@pytest.fixture(scope="module")
def still():
    y, x = np.mgrid[0:64, 0:64] / 63
    return np.stack([255 * x, 255 * y, 255 * (1 - x)], -1).astype(np.uint8)


@pytest.fixture
def live(zoom, still):
    with LiveZoom(zoom, still, "a reef", {"quality": QUICK}, MOTION) as live:
        yield live


def until(condition, seconds=20.0):
    """Wait for a condition; what it gave, or the test fails."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)
    return found


def second_of_frames(live):
    """How steadily the frames came since the zoom last began to count them, of a second's at least."""
    return until(lambda: (frames := live.status().frames).frames > MOTION.fps and frames)


# the zoom


def test_painted_live_are_the_keyframes_of_a_video_and_only_a_few_ahead(zoom, still):
    (point,) = operating_points({"quality": QUICK}, MOTION, zoom.bundle.manifest.scheduler)[:1]
    painter = Painter(zoom, still, "a reef", MOTION, point)
    painter.start()
    try:
        until(lambda: painter.progress().painted == 1 + LOOKAHEAD)
        time.sleep(0.2)
        assert painter.progress().painted == 1 + LOOKAHEAD  # the camera has not moved
        expected = zoom.keyframes(still, "a reef", MOTION.scale, QUICK)
        step = -np.log(MOTION.scale)
        for index in range(1 + LOOKAHEAD):
            inner, outer = painter.around(index * step + 1e-6)
            assert np.array_equal(inner.picture, next(expected)), index
            assert (inner.index, outer.depth - inner.depth) == (index, pytest.approx(step))
        until(lambda: painter.progress().painted == 3 + LOOKAHEAD)
    finally:
        assert painter.stop(10)


def test_a_live_zoom_shows_the_picture_and_then_goes_out_of_it_steadily(live, still):
    first = live.latest.newer(0, 10)
    assert np.array_equal(first.picture, still)
    until(lambda: live.status().keyframes_painted >= 4)
    assert not np.array_equal(live.latest.newer(first.number, 1).picture, still)
    status = live.status()
    assert status.running and status.error is None
    frames = second_of_frames(live)
    due_per_second = frames.fps * (1 + frames.dropped / (frames.frames - 1))  # on a busy machine some are left out
    assert due_per_second == pytest.approx(24, rel=0.2)
    assert status.zoom_rate <= 2 * (1 + 1e-9)
    assert (status.keyframe_every, status.preset, status.steps) == (12, "quality", 2)


def test_stop_holds_the_picture_and_start_goes_on(live):
    until(lambda: live.status().keyframes_painted >= 2)
    live.set_running(False)
    until(lambda: live.status().zoom_rate < 1.0001)
    shown, painted = live.status().frames_shown, until(lambda: live.status().keyframes_painted)
    time.sleep(0.5)
    assert live.status().frames_shown <= shown + 2
    assert live.status().keyframes_painted <= painted + 1
    live.set_running(True)
    until(lambda: live.status().keyframes_painted > painted + 2)


def test_a_new_prompt_is_painted_and_it_is_measured_how_soon(live):
    until(lambda: live.status().keyframes_painted >= 1)
    live.set_prompt("a town")
    assert live.status().prompt == "a town"
    assert 0 < until(lambda: live.status().prompt_latency_seconds) < 20


@pytest.mark.parametrize("prompt", ["a" * (MAX_PROMPT_CHARACTERS + 1), "\ud800"], ids=["long", "surrogate"])
def test_a_prompt_that_is_none_is_refused_and_the_zoom_goes_on(live, prompt):
    with pytest.raises(UserError, match="prompt"):
        live.set_prompt(prompt)
    assert live.status().prompt == "a reef"


def test_the_interval_changes_while_it_runs(live):
    live.set_keyframe_every(24)
    assert live.status().keyframe_every == 24
    with pytest.raises(UserError, match="--keyframe-every"):
        live.set_keyframe_every(0)


def test_painting_that_is_too_slow_slows_the_camera_and_not_the_frames_and_the_governor_helps(zoom, still):
    slow = Painting(steps=300, guidance=2)  # a keyframe every 83 ms: far too much
    with LiveZoom(zoom, still, "", {"quality": slow}, Motion(fps=24, zoom_rate=2, keyframe_every=2)) as live:
        status = until(lambda: (found := live.status()).level > 0 and found)
        assert status.reason == "painting"
        assert live.latest.newer(0, 1) is not None
        until(lambda: live.status().keyframes_painted >= 3, 60)
        assert live.status().zoom_rate < 1.9
        assert second_of_frames(live).fps > 8  # waiting for the painter would leave 2


def test_without_a_governor_everything_stays_as_it_was_asked_for(zoom, still):
    with LiveZoom(zoom, still, "", {"quality": QUICK}, MOTION, governed=False) as live:
        assert live.status().levels == 1


def test_what_fails_in_painting_ends_the_zoom_with_that_error(zoom, still):
    broken = Painting(steps=2, whole_every=2)  # the bundle has no shallow UNet
    with (
        pytest.raises(UserError, match="no shallow UNet"),
        LiveZoom(zoom, still, "", {"quality": broken}, MOTION) as live,
    ):
        until(lambda: not live.wait(0.1))


def test_a_picture_of_another_size_is_refused(zoom):
    with pytest.raises(UserError, match="64x64"):
        LiveZoom(zoom, np.zeros((32, 32, 3), np.uint8), "", {"quality": QUICK}, MOTION)


# over HTTP


@pytest.fixture(scope="module")
def served(zoom, still):
    """A server that shows one zoom to all of the tests below."""
    live = LiveZoom(zoom, still, "a reef", {"quality": QUICK}, MOTION)
    with LiveServer() as server, live, server.serving(live):
        yield server


def connect(server):
    return socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=20)


def send(server, data):
    """Status and body of what comes back for some bytes."""
    with connect(server) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := connection.recv(65536):
                answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    found = re.match(rb"HTTP/1\.\d (\d+)", head)
    return (int(found[1]) if found else 0), head.decode("latin-1"), body


def request(server, method="GET", path="/", body=b"", **headers):
    headers = {"Host": f"127.0.0.1:{server.server_address[1]}", **headers}
    if method == "POST":
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items() if value is not None)]
    return send(server, "\r\n".join([*lines, "", ""]).encode("latin-1") + body)


def post(server, body, **headers):
    return request(
        server, "POST", "/control", body if isinstance(body, bytes) else json.dumps(body).encode(), **headers
    )


def ask(path):
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def parts(connection, count):
    """The frames of a stream: (number, JPEG)."""
    stream = connection.makefile("rb")
    while stream.readline().strip():
        pass
    for _ in range(count):
        fields = {}
        while b":" in (line := stream.readline()) or line.startswith(b"--"):
            name, _, value = line.partition(b":")
            fields[name.lower()] = value.strip()
        jpeg = stream.read(int(fields[b"content-length"]))
        stream.readline()
        yield int(fields[b"x-frame"]), jpeg


def test_the_page_is_one_file_that_asks_nobody_else_and_runs_only_its_own_script(served):
    code, head, body = request(served)
    assert code == 200 and "text/html" in head
    page = body.decode()
    assert not re.search(r"(?:src|href)=|https?://|@import|url\(", page.replace('href="data:,"', ""))
    assert page.count("<script>") == page.count("<style>") == 1 and "<script " not in page
    assert not re.search(r"\son\w+=|style=", page)  # which the policy would not run
    policy = re.search(r"Content-Security-Policy: (.*)", head)[1]
    assert policy.startswith("default-src 'none'") and policy.count("'sha256-") == 2 and "unsafe" not in policy


def test_the_status_says_what_is_measured_and_what_is_not(served):
    code, head, body = request(served, path="/status")
    status = json.loads(body)
    assert code == 200 and "no-store" in head
    assert status["target_fps"] == 24 and status["prompt"] is not None
    assert status["power_watts"] is None or status["power_watts"] > 0
    assert status["power_method"] in ("not measured", "RAPL", "battery")


def test_the_stream_is_jpegs_in_order(served):
    with connect(served) as connection:
        connection.sendall(ask("/stream"))
        found = list(parts(connection, 12))
    numbers = [number for number, _ in found]
    assert numbers == sorted(set(numbers))
    for _, jpeg in found:
        assert Image.open(io.BytesIO(jpeg)).size == (64, 64)
    until(lambda: json.loads(request(served, path="/status")[2])["latency_ms"] is not None)


def test_one_frame_can_be_had_alone(served):
    code, _, body = request(served, path="/frame.jpg")
    assert code == 200 and Image.open(io.BytesIO(body)).size == (64, 64)


def test_the_zoom_is_steered(served):
    own = f"http://127.0.0.1:{served.server_address[1]}"
    code, _, body = post(served, {"action": "stop", "prompt": "caf\u00e9 \U0001f469\u200d\U0001f680"}, Origin=own)
    assert code == 200, body
    status = json.loads(body)
    assert (status["running"], status["prompt"]) == (False, "caf\u00e9 \U0001f469\u200d\U0001f680")
    assert json.loads(post(served, {"action": "start", "keyframe_every": 24})[2])["keyframe_every"] == 24


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", 0),
        (b"\r\n\r\n", 0),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)), 400),
        (b"hello\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", 505),
        (b"GET / HTTP/one\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 505),
        (b"BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n", 501),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * 200 + b"\r\n", 431),
        (b"GET http://[/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET / HTTP/1.1\r\nHost: [\r\n\r\n", 403),
        (b"GET / HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n", 403),
    ],
    ids=lambda value: str(value[:24]) if isinstance(value, bytes) else "",
)
def test_garbage_is_answered_with_an_error_and_the_next_is_served(served, data, code):
    assert send(served, data)[0] == code
    assert request(served, path="/status")[0] == 200


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/..%2f..%2fetc/passwd", "//etc/passwd", "/live.html", "/status/", "/control", "/\x00", "*"],
)
def test_no_path_names_a_file(served, path):
    code, _, body = request(served, path=path)
    assert code in (400, 404)
    assert b"root:" not in body


@pytest.mark.parametrize(
    "host", [None, "evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "192.0.2.7", ""]
)
@pytest.mark.parametrize("path", ["/", "/status", "/stream", "/frame.jpg"])
def test_a_foreign_name_that_leads_here_is_refused(served, host, path):
    assert request(served, path=path, Host=host)[0] == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9", "127.0.0.1:9000", "[::1]:8000"])
def test_names_of_this_machine_are_fine_at_any_port_that_is_forwarded(served, host):
    assert request(served, path="/status", Host=host)[0] == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1", "https://127.0.0.1"])
def test_another_page_may_not_steer(served, origin):
    assert post(served, {"action": "stop"}, Origin=origin)[0] == 403
    assert json.loads(request(served, path="/status")[2])["running"]


@pytest.mark.parametrize(
    ("body", "headers", "code"),
    [
        (b"{", {}, 400),
        (b"", {}, 400),
        (b"[]", {}, 400),
        (b"\xff\xfe", {}, 400),
        (b'{"action": "explode"}', {}, 400),
        (b'{"action": 1}', {}, 400),
        (b'{"prompt": "\\ud800"}', {}, 400),
        (b'{"other": 1}', {}, 400),
        (b'{"keyframe_every": 0}', {}, 400),
        (b'{"keyframe_every": 1e99}', {}, 400),
        (b'{"keyframe_every": ' + b"9" * 400 + b"}", {}, 400),
        (b"[" * 5000, {}, 400),
        ({"prompt": "a" * 2000}, {}, 400),
        ({"prompt": "a" * MAX_BODY_BYTES}, {}, 413),
        ({}, {"Content-Length": None}, 411),
        ({}, {"Content-Length": "-1"}, 411),
        ({}, {"Content-Length": "9" * 30}, 411),
        ({}, {"Content-Length": "50"}, 400),
        ({}, {"Content-Type": "text/plain"}, 415),
        ({}, {"Content-Type": "application/x-www-form-urlencoded"}, 415),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_request_changes_nothing_and_says_why(served, body, headers, code):
    before = json.loads(request(served, path="/status")[2])
    found, _, answer = post(served, body, **headers)
    assert found == code and json.loads(answer)["error"]
    after = json.loads(request(served, path="/status")[2])
    assert [after[name] for name in ("running", "prompt", "keyframe_every")] == [
        before[name] for name in ("running", "prompt", "keyframe_every")
    ]


def test_clients_that_say_nothing_or_a_byte_at_a_time_are_cut_off(served, monkeypatch):
    monkeypatch.setattr(live_server, "REQUEST_SECONDS", 0.6)
    with connect(served) as silent, connect(served) as slow:
        started = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for byte in b"GET /status HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 1000:
                slow.sendall(bytes([byte]))
                time.sleep(0.02)
                if time.monotonic() > started + 5:
                    break
        assert time.monotonic() - started < 4
        assert request(served, path="/status")[0] == 200
        with contextlib.suppress(ConnectionError):
            assert silent.recv(100) == b""


def test_a_viewer_that_takes_nothing_does_not_hold_up_another(served):
    with connect(served) as stuck, connect(served) as viewer:
        stuck.sendall(ask("/stream"))
        viewer.sendall(ask("/stream"))
        started = time.monotonic()
        found = [number for number, _ in parts(viewer, 48)]
        assert time.monotonic() - started < 6  # 2 seconds of frames
        assert found[-1] - found[0] < 60
    post(served, {"action": "start"})


def test_a_slow_viewer_gets_the_newest_frame_and_not_the_backlog(served):
    with socket.socket() as viewer:
        viewer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        viewer.settimeout(20)
        viewer.connect(("127.0.0.1", served.server_address[1]))
        viewer.sendall(ask("/stream"))
        time.sleep(2)  # 48 frames
        numbers = [number for number, _ in parts(viewer, 12)]
    assert max(np.diff(numbers)) > 24


def test_more_viewers_than_there_are_places_for_are_told_so_and_a_place_comes_free(served):
    def watches(viewer):
        viewer.sendall(ask("/stream"))
        return b" 200 " in viewer.recv(64)

    with contextlib.ExitStack() as stack:
        for _ in range(live_server.MAX_VIEWERS):  # some of the viewers of other tests may not have gone yet
            until(lambda: watches(stack.enter_context(connect(served))))
        code, _, body = request(served, path="/stream")
        assert code == 503 and b"watching already" in body
        assert request(served, path="/status")[0] == 200
    with contextlib.ExitStack() as stack:
        until(lambda: watches(stack.enter_context(connect(served))))


def test_more_connections_than_there_are_places_for_are_turned_away(served):
    with contextlib.ExitStack() as stack:
        for _ in range(live_server.MAX_CONNECTIONS + 5):
            stack.enter_context(connect(served))
        with connect(served) as one_more:
            assert b" 503 " in one_more.recv(100)
    until(lambda: request(served, path="/status")[0] == 200)


def test_who_may_come_from_elsewhere_needs_the_token(zoom, still):
    live = LiveZoom(zoom, still, "", {"quality": QUICK}, MOTION)
    with LiveServer("0.0.0.0") as server, live, server.serving(live):
        assert len(server.token) >= 20 and server.url.endswith(f"/?token={server.token}")
        for path in ("/", "/status", "/stream", "/frame.jpg", "/status?token=", "/status?token=wrong"):
            assert request(server, path=path)[0] == 401, path
        assert post(server, {"action": "stop"})[0] == 401
        assert request(server, path=f"/status?token={server.token}")[0] == 200
        assert request(server, path="/status", Host="192.0.2.7:80", Authorization=f"Bearer {server.token}")[0] == 200
        assert request(server, path="/status", Authorization="Bearer caf\xe9")[0] == 401
        assert request(server, path=f"/status?token={server.token}", Host="evil.example")[0] == 403


def test_a_port_that_is_taken_is_the_users_mistake():
    with LiveServer() as server, pytest.raises(UserError, match="in use") as caught:
        LiveServer("127.0.0.1", server.server_address[1])
    assert "--live 0" in caught.value.hint


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.name.invalid", "a" * 300])
def test_an_address_of_another_machine_is_the_users_mistake(host):
    with pytest.raises(UserError, match="address"):
        LiveServer(host, 8000)


@pytest.mark.parametrize(
    ("text", "address"),
    [("8000", ("127.0.0.1", 8000)), ("0", ("127.0.0.1", 0)), ("0.0.0.0:80", ("0.0.0.0", 80)),
     ("localhost:1", ("localhost", 1)), ("[::1]:8000", ("::1", 8000))],
)  # fmt: skip
def test_addresses_by_hand(text, address):
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", ":", ":80", "host", "1:2:3", "65536", "-1", "::1:80", "a b:80", "80\n", "\u0661"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(UserError, match="HOST"):
        parse_address(text)


# from the command line


def arguments(tiny_bundles, still, folder, *more):
    Image.fromarray(still).save(folder / "picture.png")
    short = ["--steps", "1", "--guidance", "1", "--keyframe-every", "12"]
    picture = ["--image", str(folder / "picture.png"), "--prompt", "a reef"]
    return ["zoom", str(tiny_bundles["onnxruntime-fp32"]), *picture, *short, *more]


def test_a_live_zoom_ends_after_its_seconds_and_tells_what_it_did(tiny_bundles, still, tmp_path, capsys):
    from outzoom import cli

    code = cli.run(arguments(tiny_bundles, still, tmp_path, "--live", "0", "--seconds", "1.5", "--json"))
    out, err = capsys.readouterr()
    assert code == 0, err
    assert json.loads(out)["frames_shown"] > 10
    assert re.search(r"the zoom is on http://127\.0\.0\.1:\d+/", err)


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_ctrl_c_is_how_a_live_zoom_ends(tiny_bundles, still, tmp_path):
    command = [sys.executable, "-m", "outzoom", *arguments(tiny_bundles, still, tmp_path, "--live", "0")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        for line in child.stderr:
            if "the zoom is on" in line:
                break
        time.sleep(0.5)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    assert "keyframes painted" in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--live", "0", "--out", "x.mp4"], "neither --out nor --strip"),
        (["--live", "http"], "[HOST:]PORT"),
        (["--live", "0", "--power-budget", "0"], "--power-budget"),
        (["--live", "0", "--temperature-limit", "500"], "--temperature-limit"),
        (["--live", "0", "--power-budget", "9", "--no-governor"], "governor"),
        (["--out", "x.mp4", "--power-budget", "9"], "live zoom"),
        (["--live", "192.0.2.1:0"], "no address of this machine"),
        (["--live", "0", "--seconds", "0"], "seconds"),
        (["--live", "0", "--preset", "fst"], "did you mean 'fast'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_do_not_go_together_are_refused(tiny_bundles, still, tmp_path, capsys, options, words):
    from outzoom import cli

    assert cli.run(arguments(tiny_bundles, still, tmp_path, *options)) == 2
    assert words in capsys.readouterr().err


def test_a_limit_that_cannot_be_measured_here_is_said(tiny_bundles, still, tmp_path, capsys, monkeypatch):
    from outzoom import cli

    monkeypatch.setattr("outzoom.runtime.live.temperature_celsius", lambda: None)
    more = ["--live", "0", "--seconds", "0.3", "--temperature-limit", "80"]
    assert cli.run(arguments(tiny_bundles, still, tmp_path, *more)) == 0
    assert "--temperature-limit has no effect" in capsys.readouterr().err


def test_limits_are_checked_when_they_are_made():
    assert Limits(power_watts=15, temperature_celsius=80).power_watts == 15
