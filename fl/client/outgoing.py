"""What goes back of a round: the update, in its format, sealed, and put for the server to get."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from torch import nn

from fl.client import algorithms, budget, codec, control, frozen, local_dp, masking, unclaimed
from fl.client.corrections import Controlled, Correction
from fl.client.kept import keep
from fl.client.request import RequestError, TrainRequest
from fl.client.residual import compress_with_feedback
from fl.compression import compress
from fl.sealing import seal_update, training_name
from fl.tensors import Data, Tensors, pieces
from fl.transport import Ref, Store, UnreachableError, Way

PUT_SECONDS = 180.0
"""How long a site's way may be down after a training: cron brings a daemon that has died back
within that; one that could not start for long it tries more rarely, and the update is lost."""
PUT_PAUSE_SECONDS = 2.0
"""Before a second try; twice as long each time."""


def update(
    wanted: TrainRequest, model: nn.Module, received: Tensors, correction: Correction
) -> Tensors:
    """What training made of the model, and with SCAFFOLD of its control.

    Args:
        wanted: The request.
        model: The model after training.
        received: What travelled of it before.
        correction: What was added to gradients.

    Returns:
        The trained model or what training added to it, noised where that is asked for.

    Raises:
        BaseError: Training has changed what does not travel.
        PrivacyError: What training added cannot be noised.
        SiteStateError: SCAFFOLD's control cannot be kept.
    """
    whole = model.state_dict()
    base = {name: tensor for name, tensor in whole.items() if name not in received}
    frozen.require_untouched(base, wanted.base)
    trained = {name: whole[name] for name in received}
    noise = wanted.train_configs.local_dp
    if noise is not None:
        change = local_dp.noised(trained, received, noise)
        if wanted.update == "difference":
            return change
        return {name: received[name].to(step.device) + step for name, step in change.items()}
    controls = _controls(wanted, received, trained, correction)
    if wanted.update == "difference":
        trained = algorithms.delta(trained, received, in_place=True)
    return trained | controls


def _controls(
    wanted: TrainRequest, received: Tensors, trained: Tensors, correction: Correction
) -> Tensors:
    """What SCAFFOLD's control changed by; the client's own is kept for its next round."""
    if not isinstance(correction, Controlled):
        return {}
    own, change = correction.outcome(received, {n: t.cpu() for n, t in trained.items()})
    keep(wanted.run, wanted.client_id, wanted.round, own)
    return control.prefixed(change)


def coded(
    wanted: TrainRequest, model: nn.Module, update: Tensors, num_samples: int, get_seconds: float
) -> Tensors:
    """The update in its format, or masked; what top-k leaves out is kept before that.

    Args:
        wanted: The request.
        model: The model, which knows its buffers.
        update: See `update`.
        num_samples: In the training set.
        get_seconds: How long the model took to come.

    Returns:
        Tensors to encode.

    Raises:
        FederationError: The request does not go with the format, a number is not finite, or what
            the site keeps cannot be read or written.
    """
    configs = wanted.compressor_configs
    if wanted.masking is not None:
        return masking.masked(update, wanted, wanted.masking, num_samples)
    buffers = frozen.buffers(model)
    if not configs.enable_compression or configs.top_k is None:
        # Of the way's speed, what the model took to come is what is known.
        speed = Ref.from_json(wanted.model).size / max(get_seconds, 1e-9)
        return compress(update, codec.chosen(update, configs, speed), buffers)
    if wanted.update != "difference" or wanted.train_configs.trainer == "ScaffoldTrainer":
        raise RequestError("request: top_k: is of differences, and of no controls")
    return compress_with_feedback(
        update,
        configs,
        run=wanted.run,
        client=wanted.client_id,
        round_number=wanted.round,
        version=wanted.control_version,
        saved=wanted.control_saved,
        buffers=buffers,
    )


def sealed(wanted: TrainRequest, coded: Tensors) -> Sequence[Data]:
    """What is put: the update, for the server's eyes alone where it gave a key for that.

    Args:
        wanted: The request.
        coded: See `coded`.

    Returns:
        The pieces of a file.

    Raises:
        RequestError: It is to be sealed, and there is no run's id.
    """
    if wanted.sealing is None:
        return pieces(coded)
    training = training_name(wanted.run, wanted.client_id, wanted.round)
    return list(seal_update(pieces(coded), wanted.sealing.update_key, training))


def put(update: Sequence[Data], transport: Way) -> Ref:
    """Put an update; where the site itself holds it, see to it that it does not stay for ever.

    Args:
        update: What is sent.
        transport: The way.

    Returns:
        Where it is.

    Raises:
        UnreachableError: The way was down for `PUT_SECONDS`, or until the block's end.
        FederationError: The way failed otherwise.
    """
    sent = _insist(lambda: transport.put(*update))
    if isinstance(transport, Store):
        unclaimed.evict_unclaimed(transport)
        unclaimed.note(sent)
    return sent


def _insist(put: Callable[[], Ref]) -> Ref:
    """Try again while the site's way is down: what was trained is worth more than a wait."""
    give_up = min(time.time() + PUT_SECONDS, budget.block_end() or math.inf)
    pause = PUT_PAUSE_SECONDS
    while True:
        try:
            return put()
        except UnreachableError:
            if time.time() + pause > give_up:
                raise
        time.sleep(pause)
        pause *= 2
