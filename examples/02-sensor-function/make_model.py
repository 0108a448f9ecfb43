"""Trains the network of this example in a few seconds; writes `model.pt2` and `readings.csv` beside it.

    python make_model.py [FOLDER]

A pump's vibration at 1 kHz, made from what each state is known to look like: the shaft's turning (normal), the same
much stronger (imbalance: once per turn), and short ringing knocks at a rate that is no multiple of the turning (a
bearing's outer race). Every run makes the same files.
"""

import csv
import math
import sys
from pathlib import Path

import torch
from torch import nn

STATES = ("normal", "imbalance", "bearing")
WINDOW = 256  # samples
RATE_HZ = 1000
STARTS_S = 1_700_000_000  # of the recording in readings.csv, Unix time


class VibrationNet(nn.Module):
    """Three convolutions over time, then the mean over time: a knock counts wherever in the window it falls."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(1, 12, kernel_size=9, stride=2, padding=4),
            nn.ReLU(),
            nn.Conv1d(12, 24, kernel_size=7, stride=2, padding=3),
            nn.ReLU(),
            nn.Conv1d(24, 24, kernel_size=5, stride=2, padding=2),
            nn.ReLU(),
        )
        self.head = nn.Linear(24, len(STATES))

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """(N, 1, 256) m/s² -> (N, 3) logits."""
        return self.head(self.features(samples).mean(dim=2))


def vibration(state: str, count: int, random: torch.Generator) -> torch.Tensor:
    """`count` windows of one state: float32 (count, 256), m/s²."""

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand((count, 1), generator=random)

    time_s = torch.arange(WINDOW) / RATE_HZ  # (256)
    turn_hz = uniform(23.5, 25.5)  # a four-pole motor on 50 Hz
    strength = uniform(2.0, 3.5) if state == "imbalance" else uniform(0.5, 1.1)
    signal = strength * torch.sin(2 * math.pi * (turn_hz * time_s + uniform(0, 1)))
    signal += 0.2 * torch.sin(2 * math.pi * (2 * turn_hz * time_s + uniform(0, 1)))
    if state == "bearing":
        since_knock_s = (time_s + uniform(0, 1)) % (1 / (3.57 * turn_hz))
        ringing = torch.exp(-since_knock_s / 0.003) * torch.sin(2 * math.pi * 310 * since_knock_s)
        signal += uniform(1.2, 2.5) * ringing
    return signal + 0.25 * torch.randn((count, WINDOW), generator=random)


def train(random: torch.Generator) -> VibrationNet:
    """The network, trained on 400 windows of each state."""
    torch.manual_seed(7)
    model = VibrationNet()
    inputs = torch.cat([vibration(state, 400, random) for state in STATES]).unsqueeze(1)  # (1200, 1, 256)
    targets = torch.arange(len(STATES)).repeat_interleave(400)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(12):
        order = torch.randperm(len(inputs), generator=random)
        right = 0
        for batch in order.split(64):
            logits = model(inputs[batch])
            loss = nn.functional.cross_entropy(logits, targets[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            right += int((logits.argmax(1) == targets[batch]).sum())
        print(f"epoch {epoch + 1:2}  loss {loss.item():.3f}  right {right / len(inputs):.1%}")
    return model.eval()


def write_readings(path: Path, random: torch.Generator) -> None:
    """A recording the network has not seen: 12 windows in a row of each state, which `state` names."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("time", "vibration", "state"))
        at = 0
        for state in STATES:
            for sample in vibration(state, 12, random).flatten().tolist():
                rows.writerow((f"{STARTS_S + at / RATE_HZ:.3f}", f"{sample:.5f}", state))
                at += 1


def main(folder: Path) -> None:
    """Write both files into `folder`."""
    torch.set_num_threads(1)  # the same sums in the same order on every machine
    random = torch.Generator().manual_seed(2)
    model = train(random)
    program = torch.export.export(model, (torch.zeros(1, 1, WINDOW),))
    torch.export.save(program, folder / "model.pt2")
    write_readings(folder / "readings.csv", random)
    print(f"wrote {folder / 'model.pt2'} and {folder / 'readings.csv'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent)
