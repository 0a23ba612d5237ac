"""The keeper of a site's daemons, tried on a small daemon that answers as ProxyStore does."""

import fcntl
import http.server
import inspect
import json
import multiprocessing
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import yaml
from parsl.executors.high_throughput import interchange
from proxystore.p2p.connection import PeerConnection
from proxystore.p2p.manager import PeerManager
from proxystore.p2p.relay.client import RelayClient
from proxystore.utils.tasks import exit_on_error

from tests.conftest import TOP
from tests.deploy import namespaces

UUID = "a6dbf2d2-847a-427d-ae48-5c39d95436ad"
OTHER = "8578b678-2e80-4b4e-abfb-f85ad9f7fa00"
# Answers GET /endpoint with its id, and has a child, as endpoints have.
ENDPOINT = """
import http.server, json, subprocess, sys
port, uuid = sys.argv[1:]
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"uuid": uuid}).encode())
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
http.server.HTTPServer(("127.0.0.1", int(port)), Answer).serve_forever()
"""


# Another process below the endpoint, with two of its own, one of them named.
PARENT_OF_TWO = """
import shutil
vital = sys.argv[0].replace("endpoint.py", "vital")
shutil.copy("/bin/sleep", vital)
user = subprocess.Popen([sys.executable, "-c", f'''
import subprocess, time
children = [subprocess.Popen([name, "600"]) for name in ("{vital}", "/bin/sleep")]
print("started", flush=True)
time.sleep(600)
'''], stdout=subprocess.PIPE)
user.stdout.readline()
"""

# One that brings answers of those peers alone that a file beside it names, and can be kept busy.
ENDPOINT_WITH_PEERS = """
import http.server, json, pathlib, sys, threading, time
port, uuid = sys.argv[1:]
here = pathlib.Path(sys.argv[0]).parent
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        peer = self.path.partition("endpoint=")[2]
        (here / "asked").open("a").write(peer + "\\n") if peer else None
        while peer and peer not in (here / "answering").read_text():
            time.sleep(0.2)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"uuid": uuid, "exists": False}).encode())
def work():
    while (here / "busy").exists():
        pass
threading.Thread(target=work, daemon=True).start()
http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Answer).serve_forever()
"""


class Site:
    """A folder with the keeper in it, and one definition."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("bin", "daemons", "logs"):
            (folder / name).mkdir()
        shutil.copy(TOP / "templates/site/daemon.py", folder / "bin/daemon")
        self.endpoint = folder / "endpoint.py"
        self.endpoint.write_text(ENDPOINT)
        self.config = folder / "config"
        self.config.write_text("one")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.define()

    def define(self, **changes: object) -> None:
        definition = {
            "what": "the endpoint of site-a",
            "command": [sys.executable, str(self.endpoint), str(self.port), UUID],
            "restart_for": [str(self.config)],
            "mark": str(self.folder / "proxystore"),
            "pid_file": str(self.folder / "daemon.pid"),
            "log": str(self.folder / "logs/proxystore.log"),
            "other_logs": [],
            "host": "127.0.0.1",
            "host_variable": "fl_proxystore_host of site-a",
            "port": self.port,
            "port_variable": "fl_proxystore_port of site-a",
            "uuid": UUID,
            "deadline": 10,
            "known_errors": [
                {"pattern": "Errno 111", "meaning": "no relay", "remedy": "start the relay"}
            ],
        }
        (self.folder / "daemons/proxystore.json").write_text(json.dumps(definition | changes))

    @property
    def log(self) -> Path:
        return self.folder / "logs/proxystore.log"

    @property
    def record(self) -> Path:
        return self.folder / "daemons/proxystore.running"

    def call(self, verb: str) -> dict:
        done = self.run(verb)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def refusal(self, verb: str = "ensure") -> str:
        done = self.run(verb)
        assert done.returncode == 1, done.stdout
        (line,) = done.stderr.splitlines()
        return line

    def command(self, verb: str) -> list[str | Path]:
        return [sys.executable, self.folder / "bin/daemon", verb, "proxystore"]

    def run(self, verb: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(verb),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def processes(self) -> list[psutil.Process]:
        mark = str(self.folder / "proxystore")
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("FL_DAEMON") == mark:
                    found.append(process)
            except psutil.Error:
                continue
        return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]

    def end(self) -> None:
        """Whatever the test left."""
        for process in self.processes():
            process.kill()


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    yield made
    made.end()


@pytest.fixture
def other(site, tmp_path_factory):
    """Another site, whose endpoint has the same port and an id of its own."""
    made = Site(tmp_path_factory.mktemp("other"))
    made.port = site.port
    made.define(command=[sys.executable, str(made.endpoint), str(made.port), OTHER], uuid=OTHER)
    yield made
    made.end()


def say(site: Site, line: str) -> None:
    with site.log.open("a") as log:
        log.write(line + "\n")


@pytest.fixture
def bystander():
    """A process that is none of the keeper's business."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def test_it_starts_once_and_stops_with_all_its_children(site):
    started = site.call("ensure")
    assert started["changed"] is True
    assert site.call("ensure") == {"changed": False, "pid": started["pid"]}
    assert site.call("status")["pid"] == started["pid"]
    assert len(site.processes()) == 2
    assert site.call("stop") == {"changed": True}
    assert site.processes() == []
    assert site.call("stop") == {"changed": False}
    assert "does not run" in site.refusal("status")


def test_it_restarts_when_a_file_it_depends_on_changed(site):
    first = site.call("ensure")["pid"]
    site.config.write_text("two")
    again = site.call("ensure")
    assert again["changed"] is True
    assert again["pid"] != first
    assert len(site.processes()) == 2


@contextmanager
def held_up(site):
    """A call that has begun, and waits inside for another one to end."""
    lock = site.folder / "daemons/proxystore.lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = psutil.Popen(site.command("ensure"), stdout=subprocess.PIPE)
        while str(lock) not in [file.path for file in waiting.open_files()]:
            assert waiting.poll() is None
            time.sleep(0.02)
        yield waiting


def test_one_that_was_started_with_older_settings_is_restarted(site):
    """A call has the settings of its beginning, and a play may change them while it waits."""
    with held_up(site) as waiting:
        site.config.write_text("two")
    first = json.loads(waiting.communicate(timeout=60)[0])["pid"]
    again = site.call("ensure")
    assert again["changed"] is True
    assert again["pid"] != first


def test_a_call_waits_for_as_long_as_another_may_take_to_start_it(site):
    keeper = site.folder / "bin/daemon"
    keeper.write_text(keeper.read_text().replace("LOCK_SECONDS = 180", "LOCK_SECONDS = 0"))
    with held_up(site) as waiting:
        # Whoever waits no longer than it tries once has given up by then.
        time.sleep(0.5)
    assert json.loads(waiting.communicate(timeout=60)[0])["changed"] is True


def test_after_kill_9_it_starts_again_and_sweeps_the_orphan(site):
    killed = site.call("ensure")["pid"]
    orphan = psutil.Process(killed).children()[0]
    psutil.Process(killed).kill()
    assert site.call("ensure")["changed"] is True
    assert orphan not in site.processes()
    assert len(site.processes()) == 2


def test_an_orphan_that_wrote_over_its_environment_is_swept_as_well(site):
    # As nginx's workers do, which would go on listening.
    site.endpoint.write_text(ENDPOINT.replace('600)"])', '600)"], env={})'))
    leader = psutil.Process(site.call("ensure")["pid"])
    (orphan,) = leader.children()
    leader.kill()
    leader.wait()
    assert orphan.is_running()
    assert site.call("ensure")["changed"]
    assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
    site.call("stop")


@pytest.mark.parametrize("verb", ["ensure", "keep"])
def test_of_many_calls_at_once_one_starts_it(site, verb):
    calls = [subprocess.Popen(site.command(verb), stdout=subprocess.PIPE) for _ in range(4)]
    answers = [json.loads(call.communicate(timeout=60)[0]) for call in calls]
    assert [call.returncode for call in calls] == [0] * 4
    assert [answer["changed"] for answer in answers].count(True) == 1
    assert len(site.processes()) == 2


def test_what_cron_calls_starts_what_is_dead_and_leaves_what_runs(site):
    """A play that has changed a file restarts the daemon itself, once all files are there."""
    site.config.write_text("one")
    running = site.call("keep")["pid"]
    site.config.write_text("two")
    assert site.call("keep") == {"changed": False, "pid": running}
    psutil.Process(running).kill()
    assert site.call("keep")["changed"] is True
    assert len(site.processes()) == 2


def test_what_cron_cannot_start_for_long_it_tries_more_rarely(site):
    """As where a federation has ended and nobody has taken it down."""
    refused = site.folder / "daemons/proxystore.refused"
    tries = site.folder / "tries"
    site.endpoint.write_text(f"open({str(tries)!r}, 'a').write('.')\nraise SystemExit('revoked')")

    def age(first: float, last: float) -> None:
        said = json.loads(refused.read_text())
        said |= {"since": time.time() - first, "last": time.time() - last}
        refused.write_text(json.dumps(said))

    for tried in ("one", "two"):  # at first, as often as it is called
        assert "its last words: revoked" in site.refusal("keep"), tried
    for first, last, tried in (
        (9_000, 900, 2),
        (9_000, 1_100, 3),
        (10_000_000, 3_500, 3),
        (10_000_000, 3_700, 4),
    ):
        age(first, last)
        assert "its last words: revoked" in site.refusal("keep"), "the reason is told in any case"
        assert len(tries.read_text()) == tried
    site.endpoint.write_text(ENDPOINT)
    site.call("ensure")
    assert not refused.exists()


def test_what_starts_and_dies_is_not_taken_for_what_was_long_refused(site):
    """It is tried again at once: an eighth of its own outage is nothing yet."""
    refused = site.folder / "daemons/proxystore.refused"
    refused.write_text(json.dumps({"since": 0, "last": time.time() - 9_000, "said": "long ago"}))
    psutil.Process(site.call("keep")["pid"]).kill()
    site.endpoint.write_text("raise SystemExit('broken')")
    assert "its last words: broken" in site.refusal("keep")
    assert "its last words: broken" in site.refusal("keep")
    site.endpoint.write_text(ENDPOINT)
    assert site.call("keep")["changed"] is True


def test_what_cron_calls_starts_again_what_runs_and_does_not_answer(site):
    """An endpoint that ProxyStore has ended half: it listens, and no more than that."""
    keeper = site.folder / "bin/daemon"
    quick = keeper.read_text().replace("SILENCE_SECONDS = 30", "SILENCE_SECONDS = 1")
    keeper.write_text(quick)
    silent = psutil.Process(site.call("keep")["pid"])
    silent.suspend()
    killed = threading.Timer(3, silent.kill)  # a stopped process would not heed SIGTERM
    killed.start()
    again = site.call("keep")
    killed.join()
    assert again["changed"] is True
    assert again["pid"] != silent.pid
    assert site.call("keep") == {"changed": False, "pid": again["pid"]}
    assert "it has not answered for 1 s" in site.log.read_text()


@pytest.mark.parametrize("verb", ["keep", "ensure"])
def test_an_endpoint_that_has_met_its_relay_twice_is_started_again(site, verb):
    """ProxyStore hears no peer any more, once the relay has been away."""
    sign = {"text": "met the relay", "times": 2, "meaning": "it is deaf"}
    site.define(useless_signs=[{**sign, "text": "has ended", "times": 1}, sign])
    first = site.call("keep")["pid"]
    say(site, "met the relay")
    assert site.call(verb) == {"changed": False, "pid": first}
    say(site, "met the relay")
    again = site.call(verb)
    assert again["changed"] is True
    assert "started again, because it is deaf" in site.log.read_text()
    assert site.call(verb) == {"changed": False, "pid": again["pid"]}, "what was said before counts"
    say(site, "has ended")
    assert site.call(verb)["changed"] is True


SITE_B, SITE_C = "0d6f5f0b-4d0c-4b77-8a46-3a6d2b4a1a0b", "1c8f33a2-6f0e-4d54-9d0e-5f7a0c9b2d1c"


@pytest.fixture
def server(site):
    """The server's endpoint, connected with site-b and site-c, and a keeper of less patience."""
    keeper = site.folder / "bin/daemon"
    quick = keeper.read_text().replace("SILENCE_SECONDS = 35", "SILENCE_SECONDS = 1")
    keeper.write_text(quick.replace("IDLE_SECONDS = 0.5", "IDLE_SECONDS = 0.1"))
    site.endpoint.write_text(ENDPOINT_WITH_PEERS)
    (site.folder / "answering").write_text("")
    site.define(asks_peers=True)
    return site


def meet(site: Site) -> int:
    """Start it, and have it meet its peers; its process id."""
    pid = site.call("keep")["pid"]
    say(site, f"PeerConnection[home > pending]: received offer from {SITE_B} (b)")
    say(site, f"PeerConnection[home > pending]: received answer from {SITE_C} (c)")
    return pid


def part(site: Site, peer: str) -> None:
    say(site, f"PeerManager[home] Closing connection between peers: {UUID}, {peer}")


def test_one_that_waits_for_a_dead_peer_to_take_an_object_is_started_again(server):
    """It says who it is, and brings no peer's answer any more."""
    first = meet(server)
    part(server, SITE_B)
    again = server.call("keep")
    assert again["changed"] is True
    assert again["pid"] != first
    assert (server.folder / "asked").read_text().split() == [SITE_C]
    assert "because no peer's answer has reached it for 1 s" in server.log.read_text()
    assert server.call("keep") == {"changed": False, "pid": again["pid"]}


def test_one_that_brings_a_peers_answer_is_left(server):
    running = meet(server)
    part(server, "2b0e7f44-19b5-4d5b-8a57-6d1b0c7e3f2a")
    (server.folder / "answering").write_text(SITE_C)
    assert server.call("keep") == {"changed": False, "pid": running}
    assert sorted((server.folder / "asked").read_text().split()) == [SITE_B, SITE_C]


def test_one_that_has_lost_no_peer_is_not_asked_nor_one_that_has_lost_all(server):
    running = meet(server)
    assert server.call("keep") == {"changed": False, "pid": running}
    part(server, SITE_B)
    part(server, SITE_C)
    assert server.call("keep") == {"changed": False, "pid": running}
    assert not (server.folder / "asked").exists()


def test_one_that_is_at_work_is_left(server):
    """It may be sending a model of gigabytes to a peer, and hears the others after that."""
    (server.folder / "busy").touch()
    running = meet(server)
    part(server, SITE_B)
    assert server.call("keep") == {"changed": False, "pid": running}


def test_one_whose_silent_peer_turns_out_to_be_dead_is_left(server):
    running = meet(server)
    part(server, SITE_B)
    keeping = subprocess.Popen(server.command("keep"), stdout=subprocess.PIPE)
    asked = server.folder / "asked"
    while not asked.exists():
        assert keeping.poll() is None, keeping.communicate()
        time.sleep(0.02)
    part(server, SITE_C)
    assert json.loads(keeping.communicate(timeout=60)[0]) == {"changed": False, "pid": running}


def test_a_process_whose_vital_child_has_died_is_ended_and_no_other(site):
    """As a user endpoint without its interchange: it hangs, and the manager starts another."""
    site.endpoint.write_text(ENDPOINT.replace("child = ", PARENT_OF_TWO + "child = "))
    site.define(vital_child="vital")
    manager = psutil.Process(site.call("keep")["pid"])
    (maimed,) = [child for child in manager.children() if child.children()]
    vital, other = sorted(maimed.children(), key=lambda child: child.name() != "vital")
    assert vital.name() == "vital"
    assert site.call("keep") == {"changed": False, "pid": manager.pid}
    vital.kill()
    assert site.call("keep") == {"changed": True, "pid": manager.pid}
    assert psutil.wait_procs([other], timeout=5)[1] == [], "what was below it lives on"
    assert maimed.status() == psutil.STATUS_ZOMBIE
    assert manager.is_running()
    assert "its 'vital' has died" in site.log.read_text()


def test_what_the_keeper_looks_for_is_what_the_daemons_say():
    """Both texts are other people's, and may change with a new version."""
    roles = TOP / "playbooks/roles"
    defaults = yaml.safe_load((roles / "proxystore/defaults/main.yml").read_text())
    relay, task = (sign["text"] for sign in defaults["proxystore_useless_signs"])
    assert relay in inspect.getsource(RelayClient)
    assert task in inspect.getsource(exit_on_error)
    source = (TOP / "templates/site/daemon.py").read_text()
    (parted,) = re.findall('PEERS_PARTED = "(.*)"', source)
    assert parted in inspect.getsource(PeerManager)
    assert "received offer from '" in inspect.getsource(PeerConnection)
    assert "received answer from '" in inspect.getsource(PeerConnection)
    vital = yaml.safe_load((roles / "compute/defaults/main.yml").read_text())["compute_vital_child"]
    assert len(vital) == 15, "the kernel cuts a longer one off"
    assert f'setproctitle("{vital}' in inspect.getsource(interchange)


def test_what_cron_calls_leaves_it_to_who_is_at_work_on_it(site):
    with (site.folder / "daemons/proxystore.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert site.call("keep") == {"changed": False}
    assert site.processes() == []


def test_a_recorded_pid_that_is_somebody_elses_now_is_left_alone(site, bystander):
    site.call("ensure")
    record = json.loads(site.record.read_text())
    site.call("stop")
    site.record.write_text(json.dumps(record | {"pid": bystander.pid}))
    assert site.call("stop") == {"changed": False}
    assert bystander.poll() is None
    site.record.write_text(json.dumps(record | {"pid": bystander.pid}))
    assert site.call("ensure")["changed"] is True
    assert bystander.poll() is None


def test_one_that_had_ended_before_its_record_was_made_does_not_run(site, bystander):
    site.call("ensure")
    record = json.loads(site.record.read_text())
    site.call("stop")
    bystander.kill()
    bystander.wait()
    gone = json.dumps(record | {"pid": bystander.pid, "start_time": None})
    site.record.write_text(gone)
    assert "does not run" in site.refusal("status")
    assert site.call("stop") == {"changed": False}
    site.record.write_text(gone)
    assert site.call("ensure")["changed"] is True


def test_after_a_reboot_no_process_is_taken_for_it(site, bystander):
    """Number and clock tick may come again; the kernel's id of a boot does not."""
    site.call("ensure")
    record = json.loads(site.record.read_text())
    site.call("stop")
    stat = Path(f"/proc/{bystander.pid}/stat").read_text()
    same = {"pid": bystander.pid, "start_time": int(stat.rpartition(")")[2].split()[19])}
    site.record.write_text(json.dumps(record | same | {"boot": "the one before"}))
    assert "does not run" in site.refusal("status")
    assert site.call("stop") == {"changed": False}
    assert bystander.poll() is None


def test_a_name_that_is_no_text_is_in_nobodys_way(site):
    """Any user's process may have one: the kernel keeps 15 bytes of whatever it is."""
    odd = site.folder / os.fsdecode(b"caf\xe9")
    shutil.copy("/bin/sleep", odd)
    process = subprocess.Popen([odd, "600"])
    try:
        assert site.call("ensure")["changed"] is True
        assert site.call("stop") == {"changed": True}
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_a_pid_file_of_somebody_elses_process_is_not_believed(site, bystander):
    """ProxyStore would say that it is already running, and stop that process."""
    pid_file = site.folder / "daemon.pid"
    pid_file.write_text(f"{bystander.pid}\n")
    site.endpoint.write_text(
        f"import pathlib\nassert not pathlib.Path({str(pid_file)!r}).exists()\n" + ENDPOINT
    )
    assert site.call("ensure")["changed"] is True
    assert bystander.poll() is None


def test_a_record_of_another_login_node_is_not_believed(site):
    site.call("ensure")
    record = json.loads(site.record.read_text())
    site.record.write_text(json.dumps(record | {"host": "login02"}))
    assert "recorded as running on login02" in site.refusal()
    assert len(site.processes()) == 2
    site.record.write_text(json.dumps(record))


def test_the_other_login_node_neither_believes_nor_ends_it(site):
    """It has the same files, and another name and other processes; an alias may lead there."""
    if reason := namespaces.refusal():
        pytest.skip(f"no machine of namespaces here: {reason}")
    running = site.call("ensure")["pid"]
    other = namespaces.Machine.make("login02")
    try:
        for verb in ("ensure", "keep", "stop", "status"):
            done = other.run(*map(str, site.command(verb)))
            assert done.returncode == 1
            assert f"recorded as running on {socket.gethostname()}, and this is" in done.stderr
            assert "login02; name that login node in the inventory" in done.stderr
    finally:
        other.end()
    assert site.call("status")["pid"] == running


def test_a_port_taken_by_another_endpoint_is_named_with_the_remedy(site, other):
    other.call("ensure")
    line = site.refusal()
    assert f"port {site.port} on 127.0.0.1 is in use by ProxyStore endpoint {OTHER}" in line
    assert "set fl_proxystore_port of site-a to a free port" in line


def test_a_port_taken_by_another_program_is_named(site):
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", site.port))
        squatter.listen()
        started = time.monotonic()
        assert f"port {site.port} on 127.0.0.1 is in use by another program" in site.refusal()
        assert time.monotonic() - started < 8


# Who asked for a file beside it closes its port, and says so.
LETS_GO_OF_ITS_PORT = """
import http.server, pathlib, sys, time
port, uuid = sys.argv[1:]
asked = pathlib.Path(sys.argv[0]).with_name("let go")
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(('{"uuid": "' + uuid + '"}').encode())
server = http.server.HTTPServer(("127.0.0.1", int(port)), Answer)
server.timeout = 0.1
while not asked.exists():
    server.handle_request()
server.server_close()
asked.unlink()
time.sleep(600)
"""


class Impostor(http.server.BaseHTTPRequestHandler):
    """Says our id."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"uuid": UUID}).encode())


def pretend(port: int) -> None:
    """Be another user, where this one may, and answer as ours does."""
    if os.geteuid() == 0:
        os.setuid(65534)
    http.server.HTTPServer(("127.0.0.1", port), Impostor).serve_forever()


@pytest.fixture
def impostor(site):
    """Has another user's program take the port, once ours has let go of it."""
    process = multiprocessing.get_context("fork").Process(target=pretend, args=[site.port])

    def take() -> None:
        (site.folder / "let go").touch()
        while (site.folder / "let go").exists():
            time.sleep(0.02)
        process.start()
        while socket.socket().connect_ex(("127.0.0.1", site.port)):
            assert process.is_alive()
            time.sleep(0.02)

    yield take
    process.kill()
    process.join()


def test_another_users_endpoint_is_not_ours_whatever_it_says(site, impostor):
    """It listens on our port with our id, while ours runs and listens no more."""
    site.endpoint.write_text(LETS_GO_OF_ITS_PORT)
    site.call("ensure")
    site.call("status")
    impostor()
    assert "runs (pid" in (line := site.refusal("status"))
    assert "but does not answer" in line


def test_an_address_of_another_machine_is_named(site):
    site.define(host="192.0.2.1")
    assert "set fl_proxystore_host of site-a" in site.refusal()


def test_a_machine_without_an_ipv4_address_is_named(site):
    """As one whose name has IPv6 alone, or resolves to nothing."""
    keeper = site.folder / "bin/daemon"
    keeper.write_text(keeper.read_text().replace("socket.gethostname()", "'::1'"))
    site.define(host="ip")
    line = site.refusal()
    assert "the endpoint of site-a: ::1 has no IPv4 address (" in line
    assert "set fl_proxystore_host of site-a to fqdn or an address" in line


def test_a_known_error_comes_back_as_what_to_do(site):
    site.endpoint.write_text("raise SystemExit('ConnectionRefusedError: [Errno 111] relay')")
    assert "did not start: no relay; start the relay (log: " in site.refusal()


def test_an_unknown_error_comes_back_in_the_daemons_last_words(site):
    site.endpoint.write_text("raise SystemExit('out of cheese')")
    line = site.refusal()
    assert "it ended with code 1; its last words: out of cheese" in line
    assert not site.record.exists()


def test_a_full_disk_leaves_no_daemon_that_nobody_knows_of(site):
    """The record cannot be written: the daemon that has just been started is ended again."""
    partial = site.record.with_suffix(".partial")
    partial.symlink_to("/dev/full")
    assert f"{site.folder}: No space left on device; make room there, then run" in site.refusal()
    assert site.processes() == []
    partial.unlink()
    assert site.call("ensure")["changed"] is True


@pytest.fixture
def talkative(server):
    """A site whose keeper takes little for a long log."""
    keeper = server.folder / "bin/daemon"
    keeper.write_text(keeper.read_text().replace("LOG_BYTES = 10_000_000", "LOG_BYTES = 5_000"))
    server.other = server.folder / "proxystore.txt"
    server.other.write_text("told twice\n" * 500)
    server.sign = {"text": "met the relay", "times": 2, "meaning": "it is deaf"}
    server.define(asks_peers=True, other_logs=[str(server.other)], useless_signs=[server.sign])
    return server


def test_a_long_log_is_emptied_and_one_more_is_kept(talkative):
    """The daemon has it open and writes on; nothing is started again for that."""
    running = talkative.call("keep")["pid"]
    assert talkative.other.stat().st_size == 0
    assert Path(f"{talkative.other}.1").read_text().startswith("told twice")
    for _ in range(2):
        say(talkative, "a request\n" * 600)
        assert talkative.call("keep") == {"changed": False, "pid": running}
        assert talkative.log.stat().st_size < 1_000
        assert "what it has said before stands in" in talkative.log.read_text()
        assert "a request" in Path(f"{talkative.log}.1").read_text()


def test_what_the_keeper_goes_by_outlives_a_long_log(talkative):
    first = meet(talkative)
    say(talkative, "met the relay\n" + "a request\n" * 600)
    assert talkative.call("keep") == {"changed": False, "pid": first}
    assert talkative.log.stat().st_size < 1_000
    part(talkative, SITE_B)
    assert "no peer's answer has reached it" not in talkative.log.read_text()
    assert (again := talkative.call("keep"))["changed"] is True, "it has met and lost peers before"
    assert "no peer's answer has reached it" in talkative.log.read_text()
    say(talkative, "met the relay\n" + "a request\n" * 600)
    assert talkative.call("keep") == {"changed": False, "pid": again["pid"]}
    say(talkative, "met the relay")
    assert talkative.call("keep")["changed"] is True
    assert "started again, because it is deaf" in talkative.log.read_text()


def test_a_folder_that_is_somebody_elses_is_named(site):
    (site.folder / "logs/proxystore.log").mkdir()
    line = site.refusal()
    assert f"{site.folder}/logs/proxystore.log: Is a directory; see that it is yours" in line


def test_one_that_never_answers_is_stopped_at_its_deadline(site):
    site.endpoint.write_text("import time; print('thinking', flush=True); time.sleep(600)")
    site.define(deadline=1)
    assert "it did not answer within 1 s" in site.refusal()
    assert site.processes() == []
