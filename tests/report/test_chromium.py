"""The report in a headless Chromium, spoken to by its DevTools protocol."""

import http.client
import json
import shutil
import subprocess
import time
from contextlib import ExitStack
from itertools import count

import psutil
import pytest
from websockets.sync.client import connect

from fl.report.numbers import read_run
from fl.report.page import render
from tests import packages
from tests.recorded import Run

SECONDS = 30.0
DRAWN = "document.querySelectorAll('figure:not(:has(.plot svg))').length === 0"
# Texts of plots that are cut off at a side, and all that was loaded.
SEEN = """(() => ({
  wider: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  cut: [...document.querySelectorAll(".plot svg text")].filter((text) => {
    const [inner, outer] = [text, text.closest("svg")].map((e) => e.getBoundingClientRect());
    return inner.right > outer.right + 1 || inner.left < outer.left - 1;
  }).map((text) => text.textContent),
  loaded: performance.getEntriesByType("resource").map((entry) => entry.name),
  ground: getComputedStyle(document.body).backgroundColor,
}))()"""
GROUND = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"}


class Browser:
    """A page of a Chromium; `errors` is what its scripts threw."""

    def __init__(self, program, folder):
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        self.process = subprocess.Popen(
            [program, *options, f"--user-data-dir={folder}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self._stack, self._numbers, self.errors = ExitStack(), count(), []
        try:
            self._connect(folder / "DevToolsActivePort")
        except BaseException:  # pytest.fail's too
            self.close()
            raise

    def _connect(self, port_file):
        self.wait(lambda: port_file.exists() and port_file.read_text().split())
        port = int(port_file.read_text().split()[0])
        self.wait(lambda: self._pages(port))
        connection = connect(self._pages(port)[0], max_size=None, proxy=None)
        self._socket = self._stack.enter_context(connection)
        self.call("Runtime.enable")

    @staticmethod
    def _pages(port):
        asked = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
        asked.request("GET", "/json/list")
        listed = json.loads(asked.getresponse().read())
        return [page["webSocketDebuggerUrl"] for page in listed if page["type"] == "page"]

    def call(self, method, **params):
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            said = json.loads(self._socket.recv(SECONDS))
            if said.get("method") == "Runtime.exceptionThrown":
                self.errors.append(said["params"]["exceptionDetails"])
            if said.get("id") == number:
                return said["result"]

    def evaluate(self, script):
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"][
            "value"
        ]

    def wait(self, condition):
        deadline = time.monotonic() + SECONDS
        while not condition():
            if self.process.poll() is not None:
                pytest.fail(f"chromium has ended: {self.process.stderr.read().decode()}")
            assert time.monotonic() < deadline, f"not within {SECONDS:g} s"
            time.sleep(0.05)

    def close(self):
        self._stack.close()
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report of two runs with everything that is drawn, and long names."""
    folder, runs = tmp_path_factory.mktemp("report"), []
    for place in ("one", "other"):
        run = Run(["polaris-debug-scaling", "aurora", "perlmutter", "delta"], folder / place)
        run.play(1)
        run.begin(2)
        failure = run.fail(2, "aurora", "its endpoint is offline")
        updates = [run.answer(2, name) for name in run.names if name != "aurora"]
        run.end(2, updates, [failure], epsilon=0.5)
        run.evaluate(2, aurora=0.5, delta=0.75)
        run.close()
        runs.append(read_run(run.folder))
    file = folder / "report.html"
    file.write_text(render(runs, 1.8e9))
    return file


@pytest.fixture(scope="module")
def program():
    """A Chromium by either of the names that distributions give it.

    By the second some have a program that only says how to install one.
    """
    if found := shutil.which("chromium") or shutil.which("chromium-browser"):
        return found
    if reason := packages.install({"chromium": "chromium"}):
        pytest.skip(f"no report is looked at in a browser: {reason}")
    return shutil.which("chromium")


@pytest.fixture(scope="module")
def browser(program, tmp_path_factory):
    opened = Browser(program, tmp_path_factory.mktemp("chromium"))
    yield opened
    opened.close()


def test_a_browser_that_does_not_open_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.SECONDS", 0.1)
    program = tmp_path / "asleep"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o700)
    before = psutil.Process().children()
    with pytest.raises(AssertionError, match="not within"):
        Browser(program, tmp_path)
    assert set(psutil.Process().children()) - set(before) == set()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_is_drawn_whole_and_loads_nothing(browser, report, width, scheme):
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.call("Emulation.setDeviceMetricsOverride", **screen)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.call("Emulation.setEmulatedMedia", features=features)
    browser.call("Page.navigate", url=report.as_uri())
    browser.wait(lambda: browser.evaluate("document.readyState") == "complete")
    browser.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    browser.wait(lambda: browser.evaluate(DRAWN))
    seen = {"wider": 0, "cut": [], "loaded": [], "ground": GROUND[scheme]}
    assert browser.evaluate(SEEN) == seen
    assert browser.errors == []
