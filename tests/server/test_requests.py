from fl.server.requests import train_request, training
from fl.transport.base import Ref

MODEL = Ref("inline", {}, 1, "0" * 64)


def test_what_one_round_evaluates_no_other_does(federation):
    asked = federation(["a"])
    common = training(asked, asked.clients[0])
    found = [
        train_request(common, MODEL, turn=turn, job="j", run_id="r", evaluate=turn == 1)
        for turn in (1, 2)
    ]
    assert [request["train_configs"]["do_pre_validation"] for request in found] == [True, False]
