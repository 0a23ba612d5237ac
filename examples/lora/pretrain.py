"""Pre-train the base, before the example is deployed or run.

    python examples/lora/pretrain.py [epochs] [share]

It writes base.safetensors beside itself; `deploy.yml` brings that to every site.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parent))

from data import get_prose
from model import BASE, CharacterTransformer


def main(epochs: int = 10, share: float = 1.0) -> None:
    """Train on prose, and write the weights.

    Args:
        epochs: How often all of it is read.
        share: How much of it is.
    """
    torch.manual_seed(0)
    model = CharacterTransformer()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.002)
    prose = DataLoader(get_prose(share=share), batch_size=64, shuffle=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.004, total_steps=epochs * len(prose)
    )
    for epoch in range(1, epochs + 1):
        total = 0.0
        for text, following in prose:
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(text), following)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch}: loss {total / len(prose):.3f}")
    save_file(model.state_dict(), BASE)


if __name__ == "__main__":
    main(*(kind(text) for kind, text in zip((int, float), sys.argv[1:], strict=False)))
