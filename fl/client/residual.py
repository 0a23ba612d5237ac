"""Error feedback: what top-k leaves out of an update is added to the client's next one.

Without it, numbers that are never among the largest would never move (Stich et al. 2018, arXiv
1809.07599, Algorithm 1; Karimireddy et al. 2019, arXiv 1901.09847). A round begins with
the residual of the last update that the server used (`fl.client.kept`).
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import torch

from fl.client.kept import keep, kept
from fl.compression import compress, decompress, is_changed
from fl.config import CompressorConfigs
from fl.tensors import Tensors


def compress_with_feedback(
    update: Tensors,
    configs: CompressorConfigs,
    *,
    run: str,
    client: str,
    round_number: int,
    version: int | None,
    saved: int | None,
    buffers: AbstractSet[str] = frozenset(),
) -> Tensors:
    """An update as it travels, and the rest of it kept for the next.

    Args:
        update: Differences, and what is not floating.
        configs: The format, with `top_k`.
        run: The run's id.
        client: The client's id.
        round_number: The client's round.
        version: Its last round whose update the server has used, or None.
        saved: The same at the server's last checkpoint.
        buffers: Names of the model's tensors that are no parameters: they travel whole.

    Returns:
        Tensors to encode; see `fl.compression.compress`.

    Raises:
        SiteStateError: The last residual cannot be read, or this one not written.
        TensorsError: The last one is of another model, or a number is not finite.
    """
    update = {name: tensor.detach().cpu() for name, tensor in update.items()}
    sparse = {
        name: tensor
        for name, tensor in update.items()
        if name not in buffers and is_changed(tensor, configs)
    }
    none = {name: torch.zeros_like(tensor) for name, tensor in sparse.items()}
    owed = kept(run, client, version, saved, none)
    wanted = {name: tensor + owed[name] for name, tensor in sparse.items()}
    coded = compress({**update, **wanted}, configs, buffers)
    sent = decompress(coded, update, configs, buffers)
    rest = {name: tensor - sent[name] for name, tensor in wanted.items()}
    keep(run, client, round_number, rest)
    return coded
