"""What a site counts of the privacy that its rounds have cost."""

import json
import threading

from fl.client import site_state, spending
from fl.privacy import Spent


def test_two_workers_that_pay_at_once_have_both_paid(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_SITE_STATE", str(tmp_path))
    writing, go_on, write = threading.Event(), threading.Event(), site_state.write

    def slowly(*arguments, **how):
        writing.set()
        go_on.wait(30)
        write(*arguments, **how)

    monkeypatch.setattr(site_state, "write", slowly)

    def charge():
        spending.charge("run", "a", "dp_sgd", Spent(1.0, 0.5, 1), 1e-5)

    workers = [threading.Thread(target=charge) for _ in range(2)]
    workers[0].start()
    assert writing.wait(30)
    workers[1].start()
    workers[1].join(0.2)  # the other has read what the first has not written yet, unless it waits
    go_on.set()
    for worker in workers:
        worker.join(30)
    (file,) = tmp_path.rglob("dp_sgd.json")
    assert json.loads(file.read_text()) == [[1.0, 0.5, 2]]
