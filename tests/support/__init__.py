"""What tests share: oracles, cases, courses of training, and the workers that tests start."""

from pathlib import Path

SUPPORT = Path(__file__).resolve().parent
